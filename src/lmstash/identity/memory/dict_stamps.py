"""Has any of many dicts changed? Told by the number that CPython writes into a dict whenever it changes (PEP 509).

The number is new for every change of every dict, so an equal one means that nothing was set, added or removed since. It
lies in the dict's own memory, 8 bytes in a place that is fixed for good in the versions of Python that keep it (3.11
and 3.12, which take security fixes only); torch.compile's guards read it on 3.11 as well. Where it is not kept, or a
trial of each kind of change does not move it, nothing is read and values are compared.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from lmstash.identity.memory.object_words import WORD_BYTES, Words

_PLACE = object.__basicsize__ + ctypes.sizeof(ctypes.c_ssize_t)
"""Behind what each object begins with, and the number of entries."""
_DICT_BYTES = _PLACE + WORD_BYTES + 2 * ctypes.sizeof(ctypes.c_void_p)


class Stamps:
    """Tells whether dicts are what they were. Threads may share it; costs 2 ns a dict, of whatever size.

    The order of an `OrderedDict` may change unnoticed, and so may what lies in mutable values.
    """

    def __init__(self, dicts: Iterable[dict[Any, Any]]) -> None:
        """Keep the dicts alive: it is their memory that is read, unless one is something else."""
        self._dicts = tuple(dicts)
        kept = _are_kept() and all(type(each) is dict for each in self._dicts)
        self._words = Words([id(each) + _PLACE for each in self._dicts]) if kept else None
        self._seen: bytes | None = None

    @property
    def kept(self) -> bool:
        """Whether numbers are read. If not, `hold` asks each time."""
        return self._words is not None

    def hold(self, same: Callable[[], bool]) -> bool:
        """Return whether the dicts are untouched since `same()` last said that they hold the same; if not, ask it.

        Raises:
            Exception: What `same` raises.
        """
        if self._words is None:
            return same()
        now = self._words.read()  # before the values are compared: what changes meanwhile moves it once more
        if now == self._seen:
            return True
        if not same():
            return False
        self._seen = now
        return True


@lru_cache(maxsize=1)
def _are_kept() -> bool:
    """Return whether this Python keeps the number where it is looked for, and moves it at each kind of change."""
    if sys.implementation.name != "cpython" or sys.version_info >= (3, 13) or dict.__basicsize__ != _DICT_BYTES:
        return False

    class Trial:
        pass

    trial = Trial()
    state = trial.__dict__
    stamp = Words([id(state) + _PLACE])
    seen = {stamp.read()}
    n_changes = 0
    for number in range(64):  # often enough that the interpreter goes over to its faster ways
        trial.value = number  # pyright: ignore[reportAttributeAccessIssue]
        seen.add(stamp.read())
        state["value"] = -number - 1
        seen.add(stamp.read())
        n_changes += 2
    changes: list[Callable[[], object]] = [
        lambda: setattr(trial, "other", 1),
        lambda: delattr(trial, "other"),
        lambda: state.update(value=2, more=3),
        lambda: state.setdefault("most", 4),
        lambda: state.pop("more"),
        lambda: state.popitem(),
        lambda: state.__ior__({"value": 5}),
        lambda: state.__delitem__("value"),
        lambda: state.update({"again": 6}),
        lambda: state.clear(),
    ]
    for change in changes:
        change()
        seen.add(stamp.read())
    return len(seen) == 1 + n_changes + len(changes) and stamp.read() in seen and not state
