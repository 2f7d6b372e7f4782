"""What an object holds, as far as Python itself says it."""

from __future__ import annotations

import functools
import types
from typing import Any


def fields_of(value: Any, kind: type) -> dict[Any, Any]:
    """Return what an object of a class holds in its `__dict__` and in slots."""
    return {**getattr(value, "__dict__", {}), **in_slots(value, kind)}


def in_slots(value: Any, kind: type) -> dict[str, Any]:
    """Return what an object of a class holds in slots."""
    return {slot: getattr(value, slot) for slot in _slots(kind) if hasattr(value, slot)}


@functools.lru_cache(maxsize=1024)
def _slots(kind: type) -> tuple[str, ...]:
    bases = (vars(base) for base in kind.__mro__ if "__slots__" in vars(base))
    return tuple(name for held in bases for name, each in held.items() if type(each) is types.MemberDescriptorType)


def is_transparent(kind: type) -> bool:
    """Return whether all state of an instance lies in its `__dict__` and slots: no class of it is written in C."""
    return all(base is object or "__slots__" in vars(base) or base.__dictoffset__ for base in kind.__mro__)
