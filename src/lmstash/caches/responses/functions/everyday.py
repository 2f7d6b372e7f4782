"""Objects of Python's own that programs hand about: dates, decimal numbers, namespaces, counters, patterns."""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import fractions
import operator
import re
import string
import uuid
import zoneinfo
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from lmstash.errors import InvalidArgumentError

LOCKS = frozenset(
    {
        *(("threading", name) for name in ("Semaphore", "BoundedSemaphore", "Condition", "Barrier")),
        *(("asyncio.locks", name) for name in ("Lock", "Semaphore", "BoundedSemaphore", "Condition", "Barrier")),
    }
)
"""Modules and names of the classes of what only makes others wait."""


def parts_of_everyday(value: Any) -> list[Any] | None:
    """Return what an object of exactly such a class is made of; None for others, those of subclasses among them.

    Raises:
        InvalidArgumentError: It holds more than its kind does, or a time zone of an unknown kind.
    """
    read = _PARTS.get(type(value))
    if read is None:
        return None
    if type(value) not in _ATTRIBUTES_ONLY and getattr(value, "__dict__", None):
        raise InvalidArgumentError(f"a {type(value).__qualname__} has attributes of its own")
    return read(value)


def zone_of(zone: datetime.tzinfo | None) -> Any:
    """Return what stands for a time zone.

    Raises:
        InvalidArgumentError: It is of an unknown kind.
    """
    if zone is None:
        return None
    key = getattr(zone, "key", None)
    if type(zone) is datetime.timezone:
        return repr(zone)
    if type(zone) is zoneinfo.ZoneInfo and key is not None:
        return ["zone", key]
    raise InvalidArgumentError(f"its time zone is of {type(zone).__module__}.{type(zone).__qualname__}")


def _reduced(getter: Any) -> list[Any]:
    return [*getter.__reduce__()[1]]


NAMESPACES = frozenset({argparse.Namespace, SimpleNamespace})
"""What is nothing but its attributes."""
_ATTRIBUTES_ONLY = frozenset({string.Template})
_PARTS: dict[type, Callable[[Any], list[Any]]] = {
    string.Template: lambda value: [vars(value)],
    datetime.date: lambda value: [value.isoformat()],
    datetime.time: lambda value: [value.replace(tzinfo=None).isoformat(), value.fold, zone_of(value.tzinfo)],
    datetime.datetime: lambda value: [value.replace(tzinfo=None).isoformat(), value.fold, zone_of(value.tzinfo)],
    datetime.timedelta: lambda value: [value.days, value.seconds, value.microseconds],
    datetime.timezone: lambda value: [zone_of(value)],
    zoneinfo.ZoneInfo: lambda value: [zone_of(value)],
    decimal.Decimal: lambda value: [str(value)],
    fractions.Fraction: lambda value: [value.numerator, value.denominator],
    uuid.UUID: lambda value: [str(value), value.is_safe.name],
    collections.Counter: lambda value: [dict(value)],
    collections.OrderedDict: lambda value: [dict(value)],
    collections.defaultdict: lambda value: [dict(value), value.default_factory],
    collections.deque: lambda value: [[*value], value.maxlen],
    range: lambda value: [value.start, value.stop, value.step],
    complex: lambda value: [repr(value)],
    re.Pattern: lambda value: [value.pattern, value.flags],
    operator.itemgetter: _reduced,
    operator.attrgetter: _reduced,
}
