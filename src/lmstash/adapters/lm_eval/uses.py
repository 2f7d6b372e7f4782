"""What code does with the attributes and globals that it names: reads them, counts them up, writes to their files.

Told by the instructions around each place where one is loaded. What is not recognised is taken to be read.
"""

from __future__ import annotations

import dis
from collections.abc import Iterator
from types import CodeType
from typing import Any

READ, COUNTED, WRITTEN = "read", "counted", "written"
_LOADS = frozenset({"LOAD_ATTR", "LOAD_METHOD"})
_GLOBALS = frozenset({"LOAD_GLOBAL", "LOAD_NAME"})
_IDLE = frozenset({"EXTENDED_ARG", "CACHE", "PUSH_NULL", "PRECALL", "RESUME"})
_MODES = frozenset({"w", "a", "x", "wb", "ab", "xb", "wt", "at", "xt"})
_OF_PATHS = frozenset({"mkdir", "touch", "unlink", "write_text", "write_bytes", "parent", "name", "stem", "suffix"})
"""Of a `Path`: what reads nothing of the file."""


def uses_of(code: CodeType) -> Iterator[tuple[str, str]]:
    """Yield each attribute and global that code, or a function within it, loads: its name, one of the words above."""
    done = [each for each in dis.get_instructions(code) if each.opname not in _IDLE]
    for at, each in enumerate(done):
        if each.opname in _LOADS:
            is_counted = at > 0 and done[at - 1].opname == "COPY"  # of the object that gets it back: `self.n += 1`
            yield str(each.argval), COUNTED if is_counted else _use(done[max(0, at - 2)], done[at + 1 : at + 4])
        elif each.opname in _GLOBALS:
            yield str(each.argval), _use(done[max(0, at - 1)], done[at + 1 : at + 4])
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from uses_of(inner)


def _use(before: Any, after: list[Any]) -> str:
    if not after:
        return READ
    if after[0].opname in _LOADS:
        opened = after[0].argval == "open" and _is_mode(after[1:])
        return WRITTEN if opened or after[0].argval in _OF_PATHS else READ
    opens = before.opname in _GLOBALS and before.argval == "open"
    return WRITTEN if opens and _is_mode(after) else READ


def _is_mode(after: list[Any]) -> bool:
    """Whether what comes next is a mode to write in, as an argument: it may be a key, or a text to be added."""
    if len(after) < 2 or after[0].opname != "LOAD_CONST" or after[0].argval not in _MODES:
        return False
    return after[1].opname in ("LOAD_CONST", "KW_NAMES") or after[1].opname.startswith("CALL")
