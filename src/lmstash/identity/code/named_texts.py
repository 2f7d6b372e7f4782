"""Texts that code says and names, of which each may be the path of a file, or of the folder that one lies in."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import PurePath
from typing import Any, Final

from lmstash.identity.code.words import texts_within
from lmstash.identity.dataflow.path_parts import Parts

LONGEST_PATH: Final = 512
ANYBODY: Final = "\0"
"""Stands for a class of which other code than what is read may ask for anything."""
_MOST = 64
"""What holds more texts that look like paths is data, not settings, and a look at each would cost more than a hit."""
_DOLLAR = re.compile(r"\$\{?(\w+)", re.ASCII)
_PATH = re.compile(r"[^\n]*(?:\.[A-Za-z]\w{0,10}|/[^\n]*)", re.ASCII)


class NamedTexts:
    """Collects them.

    Attributes:
        values: What goes by a name: texts, paths, and what code stores there.
        lies_in: What a text lies in that goes by a name: a dict or class, and under which key, or without a name an
            object that has its attributes from its class or a constructor. None for what lies in nothing.
        words: Texts that may be the name of a folder, by what holds them: empty for code itself.
        texts: All texts, which may name what holds another one.
        variables: Of the environment, that paths are made of.
        set_first: Names of attributes that a class or a constructor gives to objects.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self.values: defaultdict[str, set[Parts]] = defaultdict(set)
        self.lies_in: defaultdict[tuple[str, str], set[tuple[str, str] | None]] = defaultdict(set)
        self.words: defaultdict[str, set[str]] = defaultdict(set)
        self.texts, self.variables, self.set_first = set[str](), set[str](), set[str]()

    def see_stored(self, name: str, parts: Parts, *, is_first: bool) -> None:
        """Take what code stores by a name, and whether a constructor does."""
        self.values[name].add(parts)
        self.lies_in[name, str(parts[0])].add(("", name) if is_first else None)
        self.set_first.update([name] if is_first else ())

    def see_value(self, name: str, value: Any, of: str | None = None) -> None:
        """Take a plain value, or a path, that code names.

        Args:
            name: What it goes by.
            value: What it is.
            of: The class that it lies in, or `ANYBODY`; empty for an object's. None for what lies in nothing.
        """
        if isinstance(value, PurePath):
            self.values[name].add((str(value),))
        elif name.startswith("__") and name.endswith("__"):  # `__file__` is the code itself
            return
        elif isinstance(value, str):
            self.values[name].update([(value,)] if 0 < len(value) <= LONGEST_PATH else ())
            self.lies_in[name, value].add(None if of in (None, ANYBODY) else (of, name))
            self.see_words(name, [value])
        elif isinstance(value, dict | list | tuple | set | frozenset):
            self._see_all(name, value, of)

    def _see_all(self, name: str, value: Any, of: str | None) -> None:
        found = [*islice(_paths_within(value), _MOST + 1)]
        if len(found) <= _MOST:
            self.values[name].update((each,) for each in found)
            for key, entry in value.items() if isinstance(value, dict) and of is None else (("", value),):
                for each in _paths_within(entry):
                    place = (name, str(key)) if isinstance(value, dict) and of is None else None
                    self.lies_in[name, each].add(place if of in (None, ANYBODY) else (of, name))
        words = [*islice((each for each in texts_within(value) if isinstance(each, str)), _MOST + 1)]
        self.see_words(name, words if len(words) <= _MOST else ())

    def see_words(self, name: str | None, texts: Iterable[str]) -> None:
        """Take texts that something holds; what holds none is only written to."""
        short = {each for each in texts if 0 < len(each) <= LONGEST_PATH}
        self.texts |= short
        self.variables.update(name for each in short if "$" in each for name in _DOLLAR.findall(each))
        if name is not None:
            self.words[name] |= short


def may_be_path(text: str) -> bool:
    """Whether a text looks like the path of a file: it has a suffix or a slash."""
    if len(text) > LONGEST_PATH or not ("." in text or "/" in text) or "://" in text:
        return False
    return _PATH.fullmatch(text) is not None and bool(text.strip("/. "))


def _paths_within(value: Any) -> Iterator[str]:
    return (each for each in texts_within(value) if isinstance(each, str) and may_be_path(each))
