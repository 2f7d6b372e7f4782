"""Which members of a class say something, by their names."""

from __future__ import annotations

from collections.abc import Callable

from lmstash.identity.code.named_texts import ANYBODY
from lmstash.identity.dataflow.stores import CONSTRUCTORS

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


def holder_of(cls: type, first: object, is_own: Callable[[str], bool]) -> str:
    """Return what texts in a class lie in, as `NamedTexts` takes it: its name, or none where they are an object's.

    Base classes, and classes made of it, may ask for them, whoever is not read.

    Args:
        cls: The class.
        first: What the code that it was found in begins with: the class itself where objects of it are read.
        is_own: Says of a module by its name whether its code is read.
    """
    if not all(base is object or is_own(base.__module__) for base in cls.__mro__):
        return ANYBODY
    return "" if cls is first else ANYBODY if type.__subclasses__(cls) else cls.__name__


def is_constructor_of(cls: object, function: object) -> bool:
    """Whether a function is the constructor of a class, or of one of its base classes."""
    bases = cls.__mro__ if isinstance(cls, type) else ()
    return any(vars(base).get(name) is function for base in bases for name in CONSTRUCTORS)
