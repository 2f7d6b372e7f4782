"""What an object of a package holds, as far as Python can see: attributes, slots, members of containers."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from types import MethodType
from typing import Any

_MOST = 1000
_ADDRESSES = frozenset({"cls_ref"})
"""Attributes that pydantic puts an address into."""


def attributes_of(value: Any) -> dict[str, Any]:
    """Return what lies in an object's `__dict__` and slots."""
    held = {name: each for name, each in getattr(value, "__dict__", {}).items() if isinstance(name, str)}
    for base in type(value).__mro__:
        slots = vars(base).get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            if slot not in ("__dict__", "__weakref__") and hasattr(value, slot):
                held[slot] = getattr(value, slot)
    return held


def parts_held(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what an object holds, as far as Python can see, with a name for each."""
    if isinstance(value, Mapping):
        for number, (key, each) in enumerate(list(value.items())[:_MOST]):
            yield (key, each) if isinstance(key, str) else (f"{number} of", key)
            if not isinstance(key, str):
                yield str(number), each
    elif isinstance(value, list | tuple):
        yield from ((str(number), each) for number, each in enumerate(value[:_MOST]))
    elif isinstance(value, functools.partial):
        yield from (("func", value.func), ("args", value.args), ("keywords", value.keywords))
    elif isinstance(value, MethodType):
        yield from (("func", value.__func__), ("self", value.__self__))
    else:
        yield from sorted((name, each) for name, each in attributes_of(value).items() if name not in _ADDRESSES)
