"""What an object remembers: texts, where its generators of random numbers stand, and apart from these its numbers.

An object of which only numbers change while a model answers is a rate limiter, a clock, a counter of tokens: those
numbers drop out, and no others. One whose texts change may be a history of what was asked, and one that holds a
generator draws other numbers for each request.
"""

from __future__ import annotations

import contextlib
import datetime
import enum
import hashlib
import io
import itertools
import numbers
import os
import random
import re
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType
from typing import Any, NamedTuple

from lmstash.adapters.lm_eval.who.addresses import is_client
from lmstash.adapters.lm_eval.who.machinery import machinery_told
from lmstash.adapters.lmms_eval.who.describing import LmDescriber
from lmstash.adapters.lmms_eval.who.growth import is_history
from lmstash.adapters.lmms_eval.who.pinned import harness_code
from lmstash.identity.describe import IMMUTABLE
from lmstash.identity.encoding import Component, encode

_NUMBERS = (numbers.Number, datetime.date, datetime.time, datetime.timedelta, datetime.tzinfo)
_SMALL = 16.0
_PYTHONS_OWN = frozenset({"builtins", "collections", "itertools", "functools", "types"})
"""Larger numbers that are not whole may be times."""
_INDEX = re.compile(r"\[\d+\]")


def holds_objects(value: Any) -> bool:
    """Whether a value is an object, or a container of some, beside plain ones."""
    kind = type(value)
    if not is_history(value):
        return kind not in IMMUTABLE
    if kind in IMMUTABLE:
        return False
    within = value.values() if isinstance(value, Mapping) else value
    return any(type(each) not in IMMUTABLE and not is_history(each) for each in list(within))


class Remembered(NamedTuple):
    """What a value holds, in digests."""

    texts: bytes
    """Of all beside numbers, in its order."""
    numbers: Mapping[str, bytes]
    """By where they lie: numbers, times, truth values and None."""
    settings: Mapping[str, Component]
    """Those of them, themselves, that may be settings: no times."""
    grown: Mapping[str, int]
    """How many whole numbers there are in each list."""

    def without(self, places: Collection[str]) -> Component:
        """Return what is left but for the numbers at some places."""
        return [self.texts, {place: each for place, each in self.numbers.items() if not is_among(place, places)}]

    def changed_since(self, before: Remembered) -> set[str]:
        """Return the places of numbers that are others now; of a list that is longer or shorter all (`it.times[]`)."""
        places = self.numbers.keys() | before.numbers.keys()
        changed = {place for place in places if self.numbers.get(place) != before.numbers.get(place)}
        lengths = [Counter(map(_list_of, each.numbers)) for each in (before, self)]
        return {
            place if lengths[0][_list_of(place)] == lengths[1][_list_of(place)] else _list_of(place)
            for place in changed
        }

    def lists_grown_since(self, before: Remembered) -> set[str]:
        """Return what lists of whole numbers go by that are longer now: they may be the tokens of a conversation."""
        longer = {each for each, number in self.grown.items() if number > before.grown.get(each, 0)}
        return {each.removesuffix("[]").rpartition(".")[2] for each in longer}


def is_among(place: str, places: Collection[str]) -> bool:
    """Whether the place of a number is one of some, or lies in one of them."""
    return place in places or _list_of(place) in places


def _list_of(place: str) -> str:
    return _INDEX.sub("[]", place)


def remembered(value: Any) -> Remembered:
    """Return what a value holds. Costs some us for each object in it."""
    found = _Collected()
    try:
        found.value(value, "")
        numbers = {place: _digest(each) for place, each in found.numbers.items()}
        settings = {place: each for place, each in found.numbers.items() if all(map(_may_be_set, each))}
        whole = [_list_of(place) for place, each in found.numbers.items() if "[" in place and type(each[0]) is int]
        return Remembered(_digest(found.told), numbers, {**settings}, Counter(whole))
    except Exception:  # then it is never the same
        return Remembered(os.urandom(32), {}, {}, {})


class _Collected(LmDescriber):
    """Collects them on its way."""

    def __init__(self) -> None:
        super().__init__(harness_code(), None)
        self.told: list[Component] = []
        self.numbers: dict[str, list[Component]] = {}
        self._within_library = False

    def value(self, value: Any, path: str) -> Component:
        """Note what lies in a value."""
        kind: Any = type(value)
        if isinstance(value, str | bytes):
            self.told.append(str(value) if isinstance(value, str) else bytes(value))
            return None
        if kind in IMMUTABLE or isinstance(value, _NUMBERS):
            told: Any = value if kind in IMMUTABLE else [kind.__qualname__, repr(value)]
            self.numbers.setdefault(path, []).append(told)
            return None
        if machinery_told(value) is not None:
            return None
        if isinstance(value, enum.Enum | PurePath):
            self.told.append(str(value))
        elif isinstance(value, FunctionType | BuiltinFunctionType | type):
            self.told.append(f"{value.__module__}.{value.__qualname__}")
            for number, cell in enumerate(getattr(value, "__closure__", None) or ()):
                with contextlib.suppress(ValueError):  # empty
                    self.value(cell.cell_contents, f"{path}<{number}>")
        elif isinstance(value, io.StringIO | io.BytesIO):
            self.told.append([value.getvalue(), value.tell()])
        elif id(value) in self._seen:
            self.told.append(["seen", self._seen[id(value)]])
        elif kind.__module__ == "numpy" or _is_tensor(value) or self._moves_on(value):
            self.told.append(LmDescriber(harness_code(), None).value(value, path))
        elif kind in (list, tuple):
            for index, each in enumerate(value):
                self.value(each, f"{path}[{index}]")
        elif kind in (set, frozenset):
            self._unordered(value, path)
        elif is_client(value):  # one may be made when the first question comes
            self.told += [repr(value)] if hasattr(kind, "model_dump") else []  # an answer
        else:
            before = self._within_library
            self._within_library = before or not (kind.__module__ in _PYTHONS_OWN or self.is_yours(kind))
            try:
                return super().value(value, path)
            finally:
                self._within_library = before
        return None

    def _moves_on(self, value: Any) -> bool:
        """Whether code may go by it that it gives something else each time; libraries number things by a count."""
        return _moves_on(value) and not (self._within_library and isinstance(value, itertools.count))

    def _unordered(self, values: set[Any] | frozenset[Any], path: str) -> None:
        told, numbers, found, counted = self.told, self.numbers, list[bytes](), list[bytes]()
        for each in values:
            self.told, self.numbers = [], {}
            self.value(each, path)
            found.append(encode(self.told))
            counted.append(encode({**self.numbers}))
        self.told = [*told, *sorted(found)]
        self.numbers = {**numbers, path: [*numbers.get(path, []), *sorted(counted)]}


def _may_be_set(number: Any) -> bool:
    """Whether a number may be a setting, and no time."""
    return isinstance(number, int | None) or (type(number) is float and abs(number) <= _SMALL)


def _digest(value: Component) -> bytes:
    return hashlib.sha256(encode(value)).digest()


def _moves_on(value: Any) -> bool:
    """Whether it gives something else each time it is asked: a generator of random numbers, an iterator."""
    if isinstance(value, random.Random) or type(value).__module__.startswith("numpy.random"):
        return True
    with contextlib.suppress(AttributeError):
        if isinstance(value, sys.modules["torch"].Generator if "torch" in sys.modules else ()):
            return True
    return isinstance(value, Iterator)


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)
