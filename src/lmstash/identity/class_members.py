"""Which members of a class say something, by their names."""

from __future__ import annotations

_NOISE = frozenset(
    {"__module__", "__qualname__", "__firstlineno__", "__static_attributes__", "__dict__", "__weakref__"}
)
_FIELDS = frozenset({"__pydantic_fields__", "__pydantic_decorators__", "__pydantic_generic_metadata__"})
"""What pydantic keeps of what you have written; the rest it makes of that, with addresses in it."""


def is_word(name: str) -> bool:
    """Whether a name is one of Python's own words."""
    return name.startswith("__") and name.endswith("__")


def counts_in_class(name: str) -> bool:
    """Whether what lies in a class under a name says something."""
    return name not in _NOISE and (name in _FIELDS or not name.startswith("__pydantic_"))
