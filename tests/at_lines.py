"""Something done at one line of lmstash's own code, as a signal handler would: to call something, or to raise."""

from __future__ import annotations

import asyncio
import dis
import linecache
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, ClassVar

import lmstash

SOURCE = str(Path(lmstash.__file__).parent)


class Lines:
    """Tells the lines before which a signal may come: Python looks for them at calls and jumps only."""

    _known: ClassVar[dict[tuple[int, int, int], bool]] = {}
    """Of code and two lines of it, one behind the other: to find out takes longer than to run them."""
    _alive: ClassVar[list[CodeType]] = []

    def __init__(self) -> None:
        self._last: dict[int, int] = {}
        """For each frame where its last line began."""

    def is_open(self, frame: FrameType, event: str) -> bool:
        """Whether a signal may come at an event of a frame that is traced; to be told of all its events.

        As a `with` block or a `try` begins or ends there is none, and what a tracer raises there would leave the block
        without its end.
        """
        if event != "line":
            if event == "return":
                self._last.pop(id(frame), None)
            return False
        code, start, at = frame.f_code, self._last.get(id(frame), 0), frame.f_lasti
        self._last[id(frame)] = at
        name = id(code), start, at
        found = self._known.get(name)
        if found is None:
            self._alive.append(code)
            found = self._known[name] = _calls(code, start) and not _begins_block(code, at, frame.f_lineno)
        return found


def _begins_block(code: CodeType, at: int, number: int) -> bool:
    """Whether a line is the beginning of a block, or its end."""
    line = linecache.getline(code.co_filename, number).strip()
    begins = dis.opname[code.co_code[at]] in ("LOAD_FAST", "LOAD_GLOBAL", "LOAD_DEREF")
    return line == "try:" or line.endswith(".release()") or (line.startswith("with ") and not begins)


def _calls(code: CodeType, start: int) -> bool:
    """Whether the line that begins at an offset calls something, or jumps back, as the start of a function does."""
    starts = sorted(offset for offset, line in dis.findlinestarts(code) if line is not None)
    end = next((offset for offset in starts if offset > start), len(code.co_code))
    if start == 0:
        return True
    return any(
        start <= each.offset < end and ("CALL" in each.opname or each.opname in ("RESUME", "JUMP_BACKWARD", "SEND"))
        for each in dis.get_instructions(code)
    )


def _in_finalizer(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


def at_line(line: int, work: Callable[[], object], act: Callable[[], object], *within: str) -> int:
    """Do `work`, and `act` at its `line`-th line where a signal may come; returns how many such lines were run.

    Within a `__del__`, where Python would drop what is raised, it waits for the next such line.

    Args:
        line: From 1; 0 for none.
        work: What is interrupted.
        act: Done once; what is run from then on is not counted. What it raises comes out of `work`.
        within: Lines of files are counted whose path contains any of these; by default lmstash's.
    """
    lines, count, has_acted = Lines(), 0, False
    known: dict[str, bool] = {}

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count, has_acted
        file = frame.f_code.co_filename
        inside = known.get(file)
        if inside is None:
            inside = known[file] = any(each in file for each in within or (SOURCE,))
        if has_acted or not inside:
            return None
        if lines.is_open(frame, event):
            count += 1
            if 0 < line <= count and not _in_finalizer(frame):
                has_acted = True
                sys.settrace(None)
                act()
                return None
        return trace

    old = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(old)
    return count


def after_interrupt(loop: asyncio.AbstractEventLoop, ask: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Return what is answered in a loop that was interrupted, and close it.

    Asked again once: what has come out of a task of the loop comes out of those that wait for it, once.
    """
    try:
        return loop.run_until_complete(ask())
    except KeyboardInterrupt:
        return loop.run_until_complete(ask())
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left))
        loop.close()
