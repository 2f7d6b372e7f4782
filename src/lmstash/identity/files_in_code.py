"""Files that your own code names by texts in it, which count by what they hold: `open("judge.txt")`.

A text counts if it looks like a path, or if the code takes it for one, and if something is there: from the working
folder, from the folder of the code, or from a folder that the code names. Files that the code only writes to do not
count.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Container, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import PurePath
from types import FunctionType
from typing import Any

from lmstash.identity.encoding import Component
from lmstash.identity.handed_on import asks_by_any_name
from lmstash.identity.held_files import held_at
from lmstash.identity.uses import READ, STORED, tails_of, texts_used, uses_of
from lmstash.identity.words import texts_within

_LONGEST, _MOST = 512, 64
"""What holds more texts that look like paths is data, not settings, and a look at each would cost more than a hit."""
_PATH = re.compile(r"[^\n]*(?:\.[A-Za-z]\w{0,10}|/[^\n]*)", re.ASCII)


class FilesInCode:
    """Collects what in code may be the path of a file. Not for several threads at once."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._texts: set[str] = set()
        self._of_names: defaultdict[str, set[str]] = defaultdict(set)
        self._uses: defaultdict[str, set[str]] = defaultdict(set)
        self._tails: defaultdict[str, set[str | None]] = defaultdict(set)
        self._folders: set[str] = set()
        self._beside: set[str] = set()
        """Texts in containers: one may be the folder that another one lies in."""
        self._words: set[str] = set()
        self._kept: set[tuple[str, str, str]] = set()
        """Names of folders, what is joined behind them, and the names that this goes by then."""
        self._any_name = False
        self._found: tuple[str, list[tuple[str, list[str]]]] | None = None

    def see(self, function: FunctionType) -> None:
        """Take what a function of your own says."""
        code, self._found = function.__code__, None
        self._folders.add(os.path.abspath(os.path.dirname(code.co_filename)))
        for text, use, opens in texts_used(code):
            self._words.update([text] if text.isidentifier() else [])
            if use.startswith(STORED):
                self.see_value(use.removeprefix(STORED), text)
            elif use == READ and (may_be_path(text) or (opens and 0 < len(text) <= _LONGEST)):
                self._texts.add(text)
        defaults, last = function.__defaults__ or (), code.co_argcount
        self.see_values(dict(zip(code.co_varnames[last - len(defaults) : last], defaults, strict=False)))
        self.see_values(function.__kwdefaults__ or {})
        self._any_name = self._any_name or asks_by_any_name(code)
        for name, use in uses_of(code, of_locals=True):
            self._uses[name].add(use)
        for name, tail, use in tails_of(code):
            self._tails[name].update([tail] if use == READ else [])
            if use.startswith(STORED) and tail:
                self._kept.add((name, tail, use.removeprefix(STORED)))

    def see_value(self, name: str, value: Any) -> None:
        """Take a plain value, or a path, that code names."""
        self._found = None
        if isinstance(value, PurePath):
            self._folders |= {os.path.abspath(value), os.path.abspath(value.parent)}
        elif not (name.startswith("__") and name.endswith("__")):  # `__file__` is the code itself
            found = [*islice(_paths_within(value), _MOST + 1)]
            self._of_names[name].update(found if len(found) <= _MOST else ())
            if isinstance(value, str) and 0 < len(value) <= _LONGEST:  # a folder may have any name
                self._of_names[name].add(value)
            elif isinstance(value, dict | list | tuple):
                words = [*islice((each for each in texts_within(value) if isinstance(each, str)), _MOST + 1)]
                self._beside.update(each for each in words if len(words) <= _MOST and 0 < len(each) <= _LONGEST)

    def see_values(self, values: Mapping[str, Any]) -> None:
        """Take several."""
        for name, value in values.items():
            self.see_value(name, value)

    def only_written(self, name: str) -> bool:
        """Return whether all code only writes to the file that goes by a name."""
        uses = self._uses.get(name)
        return bool(uses) and READ not in uses and name not in self._words

    def goes_by(self, name: str) -> bool:
        """Return whether code names something."""
        return name in self._tails

    def joined_behind(self, name: str) -> set[str]:
        """Return the paths that code joins behind what goes by a name, where it is a folder; see `read_in`."""
        return {each for each in self._tails.get(name, ()) if each is not None}

    def read_in(self, name: str) -> set[str] | None:
        """Return the paths of all that is read in the folder that goes by a name; None where that cannot be told.

        A path that is empty says that it is anything in it.
        """
        tails = self._tails.get(name, set())
        if None in tails or name in self._words or self._any_name or not name.isidentifier():
            return None
        return {each for each in tails if each is not None}

    def say(self, without: Container[str] = ()) -> dict[Component, Component]:
        """Return what lies now where each text leads, but for some; those that lead nowhere are left out.

        Costs some 2 us for each text that may be a path, and reading a file once.
        """
        found: dict[Component, Component] = {}
        here = ""
        with suppress(OSError):  # a folder that was removed
            here = os.getcwd()
        if self._found is None or self._found[0] != here:
            self._found = here, [*self._places()]
        for text, places in self._found[1]:
            held = [each for place in places if (each := held_at(place)) is not None] if text not in without else []
            if held:
                found[text] = held
        return found

    def _places(self) -> Iterator[tuple[str, list[str]]]:
        texts, named = self._texts.copy(), {name: {*values} for name, values in self._of_names.items()}
        for name, tail, kept_as in self._kept:
            named.setdefault(kept_as, set()).update(os.path.join(each, tail) for each in named.get(name, ()))
        for name, values in named.items():
            if not self.only_written(name):
                for value in values:
                    texts.update(self._led_to(name, value))
        named_folders = {at for each in self._beside for at in self._at(each) if os.path.isdir(at)}
        for text in sorted(texts):
            path = os.path.expanduser(text)
            tail = path.lstrip("/")  # of `f"{HERE}/prompts/a.txt"`
            folders = sorted(self._folders | named_folders) if tail else []
            beside = [os.path.join(folder, tail) for folder in folders]
            yield text, [*dict.fromkeys([os.path.abspath(path), *beside])]

    def _led_to(self, name: str, value: str) -> Iterator[str]:
        """Yield the paths that a text leads to that goes by a name."""
        if any(map(os.path.isdir, self._at(value))):
            read = self.read_in(name)
            if read is None and not may_be_path(value):  # a word, if nothing is joined behind it
                read = {each for each in self._tails[name] if each is not None}
            yield from [value] if read is None else [os.path.join(value, each) for each in read]
        elif may_be_path(value):
            yield value

    def _at(self, text: str) -> list[str]:
        """Return where a text may lead, from the working folder and from those that are known."""
        return [os.path.abspath(os.path.expanduser(text)), *(os.path.join(each, text) for each in self._folders)]


def may_be_path(text: str) -> bool:
    """Whether a text looks like the path of a file: it has a suffix or a slash."""
    if len(text) > _LONGEST or not ("." in text or "/" in text) or "://" in text:
        return False
    return _PATH.fullmatch(text) is not None and bool(text.strip("/. "))


def _paths_within(value: Any) -> Iterator[str]:
    return (each for each in texts_within(value) if isinstance(each, str) and may_be_path(each))
