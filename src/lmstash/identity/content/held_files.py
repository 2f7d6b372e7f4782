"""What lies at a path, for keys: what a file holds, and of a folder all that lies in it, if that is not much."""

from __future__ import annotations

import os
import stat
from collections.abc import Container, Iterator
from itertools import islice

from lmstash.errors import UnsupportedModelError
from lmstash.identity.content.files import Stamp, file_digest
from lmstash.identity.encoding import Component

ANY = "\0"
"""Stands in a path for whatever it may be there."""
_READ_BYTES = 64 << 20
"""Larger files count by their size and when they were written."""
_MOST_FILES, _MOST_ENTRIES = 256, 512
_DEEP, _DEEPEST = 4, 32
_MOST_STAMPS = 4096
_NOT_READ = frozenset(
    {"__pycache__", ".git", ".venv", "venv", "node_modules", ".mypy_cache", ".ruff_cache", ".pytest_cache"}
)
_OF_STORES = frozenset({"stash.json", "segments"})
"""What lies in the folder of a store, which says nothing."""


def held_at(path: str, apart: Container[str] = ()) -> Component:
    """Return what stands for what lies at a path; None where nothing does.

    Of a folder with more than 256 files, or deep ones, these count by size and when they were written. Of one with more
    than 4,096 nobody can tell in the time of a hit what changed: then it is never the same.

    Args:
        path: Of a file or folder.
        apart: Paths of files that do not count within a folder.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # none, or no path at all
        return None
    if stat.S_ISDIR(status.st_mode):
        files = files_within(path, apart)
        return ["folder", _stamps_within(path, apart) if files is None else files]
    return _held_in(path, status)


def _stamps_within(folder: str, apart: Container[str]) -> Component:
    """Return sizes and times of the files in a folder. Costs some 3 us a file."""
    found: dict[Component, Component] = {}
    try:
        for path, status in _walk(folder, _DEEPEST, _MOST_STAMPS):
            if len(found) >= _MOST_STAMPS:
                raise _TooMuchError
            if path not in apart:
                found[path[len(folder) :].lstrip(os.sep)] = [status.st_size, status.st_mtime_ns]
    except (OSError, _TooMuchError):
        return os.urandom(16)
    return found


def files_within(folder: str, apart: Container[str] = ()) -> dict[Component, Component] | None:
    """Return what the files hold that lie in a folder and the folders within it, by their paths from it.

    The folders of stores, of git, of compiled Python, of environments and of tools' caches are left out. None where
    there are more than 256 files, or folders within folders four deep, or it cannot be read. Costs some 5 us a file,
    and reading it once.
    """
    found: dict[Component, Component] = {}
    try:
        for path, status in _walk(folder, _DEEP):
            if len(found) >= _MOST_FILES:
                return None
            if path not in apart:
                found[path[len(folder) :].lstrip(os.sep)] = _held_in(path, status)
    except (OSError, _TooMuchError):
        return None
    return found


def files_like(path: str, apart: Container[str] = ()) -> Component:
    """Return what the files of one folder hold whose names are like the last part of a path; None where none is.

    Args:
        path: With `ANY` in its last part, where a name may go on in any way.
        apart: As `held_at` takes it.
    """
    folder, name = os.path.split(path)
    begins, ends = name.partition(ANY)[0], name.rpartition(ANY)[2]
    try:
        names = sorted(each for each in os.listdir(folder) if each.startswith(begins) and each.endswith(ends))
    except (OSError, ValueError):
        return None
    found: dict[Component, Component] = {}
    for each in names[: _MOST_FILES + 1]:
        file = os.path.join(folder, each)
        held = None if file in apart else content_of(file)
        found.update({each: held} if held is not None else {})
    return os.urandom(16) if len(found) > _MOST_FILES else found or None


def content_of(path: str) -> Component:
    """Return what stands for a file's content; None where there is no file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return _held_in(path, status)


def _held_in(path: str, status: os.stat_result) -> Component:
    try:
        if not stat.S_ISREG(status.st_mode):
            return None
        if status.st_size > _READ_BYTES:
            return [status.st_size, status.st_mtime_ns]
        return file_digest(path, Stamp.of(status)).hex()
    except UnsupportedModelError:  # written to meanwhile, or not to be read
        return [status.st_size, status.st_mtime_ns]


class _TooMuchError(Exception):
    """A folder holds more than is read."""


def _walk(folder: str, depth: int, most: int = _MOST_ENTRIES) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(folder) as found:
        entries = sorted(islice(found, most + 1), key=lambda each: each.name)
    if len(entries) > most:
        raise _TooMuchError
    if {each.name for each in entries} >= _OF_STORES:
        return
    for each in entries:
        if not each.is_dir():
            try:
                status = each.stat()
            except FileNotFoundError:  # a link that leads nowhere
                continue
            yield each.path, status
        elif each.name not in _NOT_READ:
            if depth <= 1:
                raise _TooMuchError
            yield from _walk(each.path, depth - 1, most)
