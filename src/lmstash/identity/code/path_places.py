"""Where the paths lead that code is made of: a file, or the folder that it lies in, and what is written there."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from typing import NamedTuple

from lmstash.identity.content.held_files import ANY


class Place(NamedTuple):
    """A path that code may read."""

    text: str
    """As the code writes it: of a file, or of the folder that it lies in."""
    tail: str = ""
    """What the file that is read in that folder ends with, `.txt`; empty where nobody knows."""
    is_guessed: bool = False
    """Whether code says neither the file nor that it lists the folder: what it writes there does not count then."""

    @property
    def said(self) -> str:
        """What it goes by in a key."""
        return self.text.replace(ANY, "*")


class Found(NamedTuple):
    """The paths that code may read."""

    since: tuple[str | None, ...]
    """The working folder, and the variables of the environment that count, at that time."""
    paths: list[tuple[Place, list[str]]]
    """As code writes them, and where they may lead."""
    behind: list[str]
    """What is joined behind folders that nobody can tell."""
    written: frozenset[str]
    """Files that code writes to."""
    logs: frozenset[str]
    """Those of them that it adds to."""

    def apart(self, place: Place, harmless: frozenset[str] = frozenset()) -> Apart:
        """Return the files in a folder that are not read there: those that are added to, or end in another way."""
        if not place.is_guessed:
            return Apart(harmless)
        return Apart(harmless | self.logs, self.written if place.tail else frozenset(), place.tail)

    def ending(self, endings: tuple[str, ...]) -> list[str]:
        """Return the files that code names and that end so."""
        return [at for place, leads in self.paths for at in leads if at.endswith(endings) and os.path.isfile(at)]


class Apart:
    """Files that do not count within a folder.

    Args:
        files: That do not.
        written: Others, `ANY` among their names, that do not unless they end in `tail`.
        tail: What those that count end with.
    """

    def __init__(self, files: frozenset[str], written: frozenset[str] = frozenset(), tail: str = "") -> None:
        self._files = files
        self._ends = [(each.partition(ANY)[0], each.rpartition(ANY)[2]) for each in written]
        self._tail = tail

    def __contains__(self, path: str) -> bool:
        """Whether it is one of them."""
        if path in self._files:
            return True
        ended = bool(self._ends) and not path.endswith(self._tail)
        return ended and any(path.startswith(begins) and path.endswith(ends) for begins, ends in self._ends)


def behind_words(words: Iterable[str], behind: Collection[str]) -> set[Place]:
    """Return the paths that folders and what is joined behind them make; the folder where that is anything."""
    found = set[Place]()
    for word in words:
        for rest in behind:
            begun, is_any, _ = rest.partition(ANY)
            behind_it = begun.rpartition("/")[0] if is_any else begun
            begins = [word] if rest.startswith("/") else [word, os.path.splitext(word)[0]]  # `base + ".ann"`
            found |= {Place(os.path.normpath(each + behind_it), tail_of(rest), True) for each in begins}
    return found


def replaced_within(texts: Iterable[str], pairs: Iterable[tuple[str, str]]) -> set[Place]:
    """Return the files and folders that paths lead to once a part is put in the place of another one."""
    found = set[Place]()
    for text in texts:
        whole = text
        for old, new in pairs:
            whole = whole.replace(old, new)
            for each in {text.replace(old, new), whole} - {text}:
                folder = os.path.dirname(each)
                found |= {Place(each)} | ({Place(folder)} if folder not in ("", os.path.dirname(text)) else set())
    return found


def tail_of(path: str) -> str:
    """Return what a path ends with behind the last of what nobody knows; empty where that says nothing."""
    _, is_any, tail = path.rpartition(ANY)
    return tail if is_any and ".." not in path else ""


def folders_of(package: str) -> Iterator[str]:
    """Yield the folders of a package, which need not be loaded."""
    root, *rest = package.split(".")
    folders = getattr(sys.modules.get(root), "__path__", None)
    if folders is None:
        with suppress(Exception):  # whatever finders of other people's do
            folders = getattr(find_spec(root), "submodule_search_locations", None)
    for each in folders or ():
        yield os.path.join(each, *rest)
