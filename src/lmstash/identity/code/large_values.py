"""Large plain values that code names: whether they were touched, without reading all of them again.

Of each dict in one Python counts the changes (`dict_stamps`); a list holds what it held if all its items are the same
objects. What else is in them (texts, numbers, tuples of these) never changes.
"""

from __future__ import annotations

from itertools import chain
from marshal import dumps
from operator import is_
from typing import Any

from lmstash.identity.memory.dict_stamps import Stamps

_FIXED = (type(None), bool, int, float, complex, str, bytes)
_VALUES = frozenset(_FIXED)
_PLAIN = _VALUES | {list, tuple, dict, set, frozenset}
_DEEPEST = 64
_LARGE = 20_000
"""Bytes, from which on a plain value is not read anew at each look."""


class PlainValues:
    """Tells containers of plain values from what they come to be. Not for several threads at once."""

    def __init__(self) -> None:
        self._large: dict[int, LargeValue] = {}

    def sign(self, value: Any) -> bytes | None:
        """Return what tells a container from all others, in types and order; None for what is none."""
        if not isinstance(value, list | dict | set | tuple):
            return None
        known = self._large.get(id(value))
        if known is not None and known.is_untouched():
            return known.data
        if not _is_plain(value):  # of arrays it would write the bytes, and neither dtype nor shape
            return None
        try:
            data = dumps(value, 2)  # exact in types and order, and quick; 2 has no references in it
            if len(data) > _LARGE:
                known = self._large[id(value)] = LargeValue(value)
                known.data = dumps(value, 2)  # not before: another thread may have changed it
        except ValueError:
            return None
        return data


def _is_plain(value: Any) -> bool:
    """Whether a container holds nothing but containers and values of Python's own, down to a depth."""
    held = [value]
    for _ in range(_DEEPEST):
        kinds = set(map(type, held))
        if kinds <= _VALUES:
            return True
        if not kinds <= _PLAIN:
            return False
        inner = [each for each in held if type(each) not in _VALUES]
        held = [
            *chain.from_iterable(inner),
            *chain.from_iterable(each.values() for each in inner if type(each) is dict),
        ]
    return False


class LargeValue:
    """A plain value, as it is when it is first looked at. Not for several threads at once.

    Attributes:
        value: Kept alive.
        data: What tells it from what it comes to be; given by whoever made it, after this.
    """

    def __init__(self, value: Any) -> None:
        self.value = value
        self.data: bytes | None = None
        self._lists: list[list[Any]] = []
        dicts: list[dict[Any, Any]] = []
        self._is_known = True
        todo = [value]
        while todo:
            each = todo.pop()
            kind = type(each)
            if kind is dict:
                dicts.append(each)
                todo += [inner for inner in each.values() if type(inner) not in _FIXED]
                todo += [key for key in each if type(key) not in _FIXED]
            elif kind is list or kind is tuple:
                if kind is list:
                    self._lists.append(each)
                todo += [inner for inner in each if type(inner) not in _FIXED]
            elif kind not in _FIXED:  # a set, say
                self._is_known = False
                break
        self._n_items = [*map(len, self._lists)]
        self._items = [*chain.from_iterable(self._lists)]
        self._stamps = Stamps(dicts)
        self._stamps.hold(lambda: True)
        self._is_known = self._is_known and self._stamps.kept

    def is_untouched(self) -> bool:
        """Return whether it is surely as it was."""
        return (
            self._is_known
            and self._stamps.hold(lambda: False)
            and [*map(len, self._lists)] == self._n_items
            and all(map(is_, chain.from_iterable(self._lists), self._items))
        )
