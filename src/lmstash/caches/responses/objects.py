"""What an object is made of, where a function that is handed it sees no more than that."""

from __future__ import annotations

import dataclasses
from typing import Any

from lmstash.identity.object_parts import attributes_of

_SAY_MORE = (str, bytes, int, float, list, tuple, dict, set, frozenset)
"""Dataclasses that are these hold more than their fields."""


def fields_of(value: Any) -> dict[str, Any] | None:
    """Return the fields of a dataclass, pydantic model or named tuple; None where it is none, or holds more."""
    if dataclasses.is_dataclass(value):
        names = [each.name for each in dataclasses.fields(value)]
        if isinstance(value, _SAY_MORE) or attributes_of(value).keys() - set(names):
            return None
        return {name: getattr(value, name) for name in names}
    if is_pydantic(value) and not value.__pydantic_private__:
        return vars(value) | (value.model_extra or {})  # in whose order it is written; cached properties among them
    if isinstance(value, tuple) and hasattr(type(value), "_fields") and not attributes_of(value):
        return dict(zip(value._fields, value, strict=True))  # pyright: ignore[reportAttributeAccessIssue]
    return None


def fields_set(value: Any) -> list[str] | None:
    """Return which fields of a pydantic model were given: it may be sent without the others. None for other objects."""
    return sorted(value.model_fields_set) if is_pydantic(value) else None


def is_pydantic(value: Any) -> bool:
    """Whether an object is a model of pydantic's."""
    return hasattr(type(value), "model_fields") and hasattr(value, "model_dump")
