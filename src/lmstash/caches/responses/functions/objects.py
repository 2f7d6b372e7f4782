"""What an object is made of, where a function that is handed it sees no more than that."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Collection
from pathlib import PosixPath, PurePath, PurePosixPath, PureWindowsPath, WindowsPath
from typing import Any

from lmstash.errors import InvalidArgumentError
from lmstash.identity.content.held_files import files_within, held_at
from lmstash.identity.content.media import media_of
from lmstash.identity.content.object_parts import attributes_of
from lmstash.identity.encoding import Component

_SAY_MORE = (str, bytes, int, float, list, tuple, dict, set, frozenset)
"""Dataclasses that are these hold more than their fields."""
PATHS = (PurePath, os.DirEntry)
_NOTED: tuple[Any, ...] = (str, bytes, bool, int, float)
_BARE_PATHS = (PosixPath, PurePosixPath, PureWindowsPath, WindowsPath, os.DirEntry)


def fields_of(value: Any) -> dict[str, Any] | None:
    """Return the fields of a dataclass, attrs object, pydantic model or named tuple; None for others and for more."""
    if dataclasses.is_dataclass(value):
        names = [each.name for each in dataclasses.fields(value)]
        if isinstance(value, _SAY_MORE) or attributes_of(value).keys() - set(names):
            return None
        return {name: getattr(value, name) for name in names}
    made = getattr(type(value), "__attrs_attrs__", None)
    if isinstance(made, tuple):
        names = [each.name for each in made]
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


def path_says(path: PurePath | os.DirEntry[Any]) -> list[Any]:
    """Return what a function sees of a path: how it is written, and what its file holds, or all files of its folder.

    Raises:
        InvalidArgumentError: It is a large folder, or cannot be read.
    """
    written = os.fspath(path)
    place = _place(written)
    if not os.path.isdir(place):
        return [written, media_of(PurePath(place)) if os.path.lexists(place) else None]
    return [written, _files_of(place)]


def _files_of(folder: str) -> Component:
    files = files_within(folder)
    if files is None:
        raise InvalidArgumentError(
            f"{folder} is a folder of too many files to read: name those that count, by a Path each, or str(path) if "
            "what lies in it changes no answer"
        )
    return files


def read_under(path: PurePath, names: Collection[str]) -> list[Any]:
    """Return what a function sees of a path that only leads it to what goes by some names from there.

    Raises:
        InvalidArgumentError: One of these is a large folder.
    """
    written = os.fspath(path)
    places = {name: os.path.join(_place(written), name) for name in sorted(names)}
    return [written, {name: _files_of(at) if os.path.isdir(at) else held_at(at) for name, at in places.items()}]


def _place(written: str | bytes) -> str:
    return os.path.abspath(os.path.expanduser(os.fsdecode(written)))


def beside_pixels(value: Any) -> list[Any] | None:
    """Return what an image of PIL says beside its pixels: its format, its file's name and notes. None for others."""
    pil = sys.modules.get("PIL.Image")
    if pil is None or not isinstance(value, pil.Image):
        return None
    notes = [[str(name), _note(each)] for name, each in sorted(value.info.items(), key=lambda item: str(item[0]))]
    name = getattr(value, "filename", None)
    return [value.format, os.fspath(name) if isinstance(name, str | bytes | os.PathLike) else None, notes]


def _note(value: Any, depth: int = 4) -> Any:
    """Return a plain value; of what is none, its class alone. PIL makes subclasses of texts of a file's notes."""
    for kind in _NOTED:
        if isinstance(value, kind):
            return [type(value).__qualname__, kind(value)]
    name = type(value).__qualname__
    if isinstance(value, list | tuple) and depth:
        return [name, [_note(each, depth - 1) for each in value]]
    if isinstance(value, dict) and depth:
        return [name, [[_note(key, depth - 1), _note(each, depth - 1)] for key, each in value.items()]]
    return [name]


def is_bare_path(path: PurePath | os.DirEntry[Any]) -> bool:
    """Whether a path is of Python's own classes, which hold nothing else."""
    return type(path) in _BARE_PATHS
