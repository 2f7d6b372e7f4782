"""Objects of somebody's own classes: they are what their attributes hold, and what their classes' code makes of it."""

from __future__ import annotations

import abc
import json
import typing
from collections.abc import Callable, Iterator, Mapping
from types import GetSetDescriptorType, MemberDescriptorType
from typing import Any, Final

from lmstash.errors import InvalidArgumentError

_HOLD_NOTHING: tuple[Any, ...] = (abc.ABC, typing.Generic, typing.Protocol)
"""Python's own base classes that put nothing into an object; those of `collections.abc` are such, too."""
_WORD_BYTES: Final = 8
SOURCE_TEXT: Final = (
    "what that reads of code, its comments and layout, is not looked at, so that such a call cannot be cached. Hand "
    "the text over as an argument. If it changes no answer, name it in harmless="
)
FIELDS: Final = frozenset({"code of", "is", "fields"})
"""What stands for such an object: its class's name, its class's code, and its attributes."""


def is_its_attributes(kind: Any, is_own: Callable[[str], bool]) -> bool:
    """Whether an object of a class is nothing but its attributes: all of its bases are somebody's own, and in Python.

    Args:
        kind: The class.
        is_own: Says of a module by its name whether its code is read.
    """
    bases = [*_bases_of(kind)]
    return bool(bases) and all(is_own(str(base.__module__)) for base in bases) and all(map(_is_in_python, bases))


def why_unread(kind: Any, path: str, is_own: Callable[[str], bool]) -> str:
    """Return why an object cannot be read, and what to do.

    Args:
        kind: Its class.
        path: What it goes by.
        is_own: Says of a module by its name whether its code is read.
    """
    others = [base for base in _bases_of(kind) if not is_own(str(base.__module__))] if is_own(kind.__module__) else []
    bases = [f", whose base class {each.__module__}.{each.__qualname__} may hold more," for each in others[:1]]
    return (
        f"{f'`{path}`: ' if '.' in path else ''}an object of {kind.__module__}.{kind.__qualname__}{''.join(bases)} has "
        "no content that lmstash knows how to read. Give what it stands for: the text of a prompt, not its template, "
        f"or an object of a class of your own that holds it. What is named in harmless=['{path}'] does not count at "
        "all, so name there only what changes no answer (a client of the model that the cache is for, say)"
    )


def attributes_in(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of such an object, in their order. None of its code runs for that.

    Raises:
        InvalidArgumentError: One has a name that is no text.
    """
    for base in type(value).__mro__[:-1]:
        held = vars(base).get("__dict__")
        if held is not None:
            for name, each in list(held.__get__(value).items()):
                if not isinstance(name, str):
                    raise InvalidArgumentError("it has an attribute whose name is no text")
                yield name, each
    names = set[str]()
    for base, slot in _slots_of(type(value)):
        try:
            each = slot.__get__(value)
        except AttributeError:  # none yet
            continue
        yield (f"{base.__qualname__}.{slot.__name__}" if slot.__name__ in names else slot.__name__), each
        names.add(slot.__name__)


def parts_told(name: str, said: Any, *, files: bool = True) -> dict[str, list[Any]]:
    """Return what stands for a value apart by the names of what it lies in: `client`, `client.model`.

    Args:
        name: What the value goes by.
        said: What stands for it, or the same as the text of a record.
        files: Whether to say what files hold that it names.
    """
    out: dict[str, list[Any]] = {}
    if isinstance(said, list) and said and said[0] == "object":
        said = json.loads(said[1])
    todo = [(name, said)]
    while todo:
        place, each = todo.pop()
        each = each if files else _without_files(each)
        held = out.setdefault(place, [])
        inner = _fields_of_namespace(each)
        if inner is not None:
            held += ["namespace", *inner]
            todo += [(f"{place}.{key}", inner[key]) for key in reversed(inner)]
        elif isinstance(each, dict):
            names = each.keys() >= FIELDS and isinstance(each["fields"], dict)
            held += [each["code of"], each["is"]] if names else [*each]
            inner = each["fields"] if names else each
            todo += [(f"{place}.{key}" if names else place, inner[key]) for key in reversed(inner)]
        elif isinstance(each, list | tuple):
            held.append(f"{type(each).__name__} {len(each)}")
            todo += [(place, inner) for inner in reversed(each)]
        else:
            held.append(each)
    return out


def _fields_of_namespace(said: Any) -> dict[str, Any] | None:
    """Return what stands for the attributes of a namespace; None for others."""
    told = said["lmstash:is"] if isinstance(said, dict) and said.keys() == {"lmstash:is"} else None
    return dict(told[1]) if isinstance(told, list) and told[0] in ("Namespace", "SimpleNamespace") else None


def _without_files(said: Any) -> Any:
    """Return of a path only how it is written."""
    if isinstance(said, dict) and said.keys() == {"$object"}:
        return None
    if isinstance(said, dict) and said.keys() == {"lmstash:is"} and str(said["lmstash:is"][0]).startswith("pathlib."):
        return said["lmstash:is"][:2]
    is_path = isinstance(said, list) and len(said) == 3 and said[0] in ("path", "folder")
    return said[:2] if is_path else said


def differing(before: Mapping[Any, Any], after: Mapping[Any, Any]) -> set[Any]:
    """Return the names of what differs."""
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def _bases_of(kind: Any) -> Iterator[Any]:
    for base in kind.__mro__[:-1]:
        if not any(base is each for each in _HOLD_NOTHING) and base.__module__ != "collections.abc":
            yield base


def _slots_of(kind: Any) -> Iterator[tuple[Any, Any]]:
    for base in kind.__mro__[:-1]:
        for each in vars(base).values():
            if type(each) is MemberDescriptorType and each.__objclass__ is base:
                yield base, each


def _is_in_python(kind: Any) -> bool:
    """Whether the objects of a class have no more memory than its slots take: else they hold what C alone sees."""
    tables = [vars(base) for base in kind.__mro__[:-1]]
    dicts = [table["__dict__"] for table in tables if "__dict__" in table]
    n_places = len(dicts) + sum("__weakref__" in table for table in tables) + sum(1 for _ in _slots_of(kind))
    most = object.__basicsize__ + n_places * _WORD_BYTES
    read = all(type(each) is GetSetDescriptorType for each in dicts)  # `__dict__` may be a property
    return read and kind.__basicsize__ <= most and not kind.__itemsize__
