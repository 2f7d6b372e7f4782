"""What annotations say: on functions and classes, and as values that code names (`Mood = Literal["good", "bad"]`).

Schemas of tools and answers are made of them, by whoever is handed the function or class.
"""

from __future__ import annotations

import inspect
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

_WORD = re.compile(r"[^\W\d]\w*")
_MOST_NESTED = 50


def annotations_of(owner: Any) -> Mapping[str, Any]:
    """Return a function's or class's own annotations; as texts where they cannot be evaluated."""
    try:
        return inspect.get_annotations(owner)
    except Exception:  # evaluated only now: a name that is not there, or whatever they do
        if sys.version_info < (3, 14):
            return {}
        import annotationlib  # pyright: ignore[reportMissingImports]

        return annotationlib.get_annotations(owner, format=annotationlib.Format.STRING)


def annotations_lying_on(function: Any) -> Any:
    """Return the dict that lies on a function now; None where there is none."""
    try:
        return function.__annotations__
    except Exception:  # evaluated only now
        return None


def taken_apart(value: Any) -> tuple[str, list[Any]] | None:
    """Return what kind of annotation a value is and what it is made of; None if it is none, or a class or text."""
    origin = typing.get_origin(value)
    if origin is typing.Annotated:
        return "Annotated", [value.__origin__, *value.__metadata__]
    if origin is not None:
        return "of", [origin, *typing.get_args(value)]
    kind = type(value)
    if kind.__module__ not in ("typing", "typing_extensions", "types") or isinstance(value, type):
        return None
    if isinstance(value, typing.ForwardRef):
        return "ForwardRef", [value.__forward_arg__]
    if isinstance(value, typing.NewType):
        return f"NewType {value.__name__}", [value.__supertype__]
    if kind.__name__ == "TypeAliasType":
        try:
            return f"alias {value.__name__}", [value.__value__]
        except Exception:  # evaluated only now
            return f"alias {value.__name__}", []
    if kind.__name__ in ("TypeVar", "ParamSpec", "TypeVarTuple"):
        held = [getattr(value, name, None) for name in ("__bound__", "__constraints__")]
        return f"{kind.__name__} {value.__name__}", held
    if kind.__module__ == "types":
        return None
    return f"{kind.__name__} {getattr(value, '_name', None)}", []


def words_in(value: Any, depth: int = _MOST_NESTED) -> Iterator[str]:
    """Yield the words of the texts in an annotation: names that are looked up when somebody evaluates it."""
    if isinstance(value, str):
        yield from _WORD.findall(value)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from words_in(each, depth)
    elif depth and not isinstance(value, type | types.FunctionType):
        kind, parts = taken_apart(value) or ("", [])
        for each in () if kind.startswith("alias") else parts:  # an alias may hold itself
            yield from words_in(each, depth - 1)
