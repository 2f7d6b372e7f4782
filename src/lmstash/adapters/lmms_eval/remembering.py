"""What an object remembers beside numbers: texts, and where its generators of random numbers stand.

An object of which only numbers change while a model answers is a rate limiter, a clock, a counter of tokens. One whose
texts change may be a history of what was asked, and one that holds a generator draws other numbers for each request.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import datetime
import enum
import hashlib
import itertools
import numbers
import os
import random
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType
from typing import Any

from lmstash.adapters.lm_eval.addresses import is_client
from lmstash.adapters.lmms_eval.describing import LmDescriber
from lmstash.adapters.lmms_eval.growth import is_history
from lmstash.adapters.lmms_eval.pinned import harness_code
from lmstash.identity.describe import IMMUTABLE
from lmstash.identity.encoding import Component, encode

_NUMBERS = (numbers.Number, datetime.date, datetime.time, datetime.timedelta, datetime.tzinfo)
_RUNNING = (threading.Thread, concurrent.futures.Executor, asyncio.AbstractEventLoop, asyncio.Future)
"""What says how a program runs."""


def holds_objects(value: Any) -> bool:
    """Whether a value is an object, or a container of some, beside plain ones."""
    kind = type(value)
    if not is_history(value):
        return kind not in IMMUTABLE
    if kind in IMMUTABLE:
        return False
    within = value.values() if isinstance(value, Mapping) else value
    return any(type(each) not in IMMUTABLE and not is_history(each) for each in list(within))


def remembered(value: Any) -> bytes:
    """Return a digest of what a value holds beside numbers, in its order. Costs some us for each object in it."""
    found = _Texts()
    try:
        found.value(value, "it")
        return hashlib.sha256(encode(found.told)).digest()
    except Exception:  # then it is never the same
        return os.urandom(32)


class _Texts(LmDescriber):
    """Collects them on its way."""

    def __init__(self) -> None:
        super().__init__(harness_code(), None)
        self.told: list[Component] = []

    def value(self, value: Any, path: str) -> Component:
        """Note what lies in a value."""
        kind = type(value)
        if kind in IMMUTABLE or isinstance(value, str | bytes):
            if isinstance(value, str | bytes):
                self.told.append(str(value) if isinstance(value, str) else bytes(value))
            return None
        if isinstance(value, (*_NUMBERS, *_RUNNING)):
            return None
        if isinstance(value, enum.Enum | PurePath):
            self.told.append(str(value))
        elif isinstance(value, FunctionType | BuiltinFunctionType | type):
            self.told.append(f"{value.__module__}.{value.__qualname__}")
        elif id(value) in self._seen:
            self.told.append(["seen", self._seen[id(value)]])
        elif _moves_on(value) or kind.__module__ == "numpy" or _is_tensor(value):
            self.told.append(LmDescriber(harness_code(), None).value(value, path))
        elif kind in (list, tuple):
            for index, each in enumerate(value):
                self.value(each, f"{path}[{index}]")
        elif kind in (set, frozenset):
            self._unordered(value, path)
        elif is_client(value):  # one may be made when the first question comes
            self.told += [repr(value)] if hasattr(kind, "model_dump") else []  # an answer
        else:
            return super().value(value, path)
        return None

    def _unordered(self, values: set[Any] | frozenset[Any], path: str) -> None:
        told, found = self.told, list[bytes]()
        for each in values:
            self.told = []
            self.value(each, path)
            found.append(encode(self.told))
        self.told = [*told, *sorted(found)]


def _moves_on(value: Any) -> bool:
    """Whether it gives something else each time it is asked: a generator of random numbers, an iterator."""
    if isinstance(value, random.Random) or type(value).__module__.startswith("numpy.random"):
        return True
    with contextlib.suppress(AttributeError):
        if isinstance(value, sys.modules["torch"].Generator if "torch" in sys.modules else ()):
            return True
    return isinstance(value, Iterator) and not isinstance(value, itertools.count)


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)
