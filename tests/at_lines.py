"""Something done at one line of lmstash's own code, as a signal handler would: to call something, or to raise."""

from __future__ import annotations

import dis
import linecache
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import lmstash

SOURCE = str(Path(lmstash.__file__).parent)


def may_be_signalled(frame: FrameType) -> bool:
    """Whether a signal may come here: Python looks for them at calls and jumps.

    As a `with` block ends, and at a `try:`, there is none, and what is raised would leave the block without its end.
    Within a `__del__`, Python would drop it.
    """
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
    begins = dis.opname[frame.f_code.co_code[frame.f_lasti]] in ("LOAD_FAST", "LOAD_GLOBAL", "LOAD_DEREF")
    held = line == "try:" or line.endswith(".release()") or (line.startswith("with ") and not begins)
    return not held and not _in_finalizer(frame)


def _in_finalizer(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


def at_line(line: int, work: Callable[[], object], act: Callable[[], object], within: str = SOURCE) -> int:
    """Do `work`, and `act` at its `line`-th line where a signal may come; returns how many such lines were run.

    Args:
        line: From 1; 0 for none.
        work: What is interrupted.
        act: Done once. What it raises comes out of `work`.
        within: Lines of files whose path contains this are counted.
    """
    lines = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal lines
        if within not in frame.f_code.co_filename:
            return None
        if event == "line" and may_be_signalled(frame):
            lines += 1
            if lines == line:
                sys.settrace(None)  # what it does is not counted
                act()
                sys.settrace(trace)
        return trace

    old = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(old)
    return lines
