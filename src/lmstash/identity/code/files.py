"""Files that your own code names by texts in it, which count by what they hold: `open("judge.txt")`.

A text counts if it looks like a path, or if the code takes it for one, and if something is there: from the working
folder, from the folder of the code, or from a folder that the code names. Of a path that is put together while the code
runs (`open(f"prompts/{name}.txt")`) all files of the folder count that it is known to lie in; where nobody can tell
which that is, the folders that words in the code name. Files that the code only writes to do not count.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import PurePath
from types import FunctionType
from typing import Any

from lmstash.identity.code.handed_on import asks_by_any_name
from lmstash.identity.code.holders import Holders, names_all_fields
from lmstash.identity.code.named_texts import LONGEST_PATH, NamedTexts, may_be_path
from lmstash.identity.code.owners import is_installed
from lmstash.identity.code.path_places import Found, Place, behind_words, folders_of, replaced_within, tail_of
from lmstash.identity.code.uses import FILE, FOLDER, LOG, NAMED, READ, WRITTEN, PathUse, paths_in, replaced_in, uses_of
from lmstash.identity.content.held_files import ANY, files_like, held_at
from lmstash.identity.dataflow.path_parts import VARIABLE, Hole, Parts, without_places
from lmstash.identity.encoding import Component

_MOST_PATHS, _DEEP = 64, 6
"""That one expression may stand for, and through how many names."""
_WILD = re.compile(r"[*?\[].*")


class FilesInCode:
    """Collects what in code may be the path of a file. Not for several threads at once."""

    def __init__(self, *, sees_all: bool = False) -> None:
        """Begin with nothing.

        Args:
            sees_all: Whether all code is shown that may ask for what is: else what nobody asks for counts, too.
        """
        self._sees_all = sees_all
        self._paths: dict[PathUse, None] = {}
        self._uses: defaultdict[str, set[str]] = defaultdict(set)
        self._folders: set[str] = set()
        """Where paths may begin."""
        self._of_code: set[str] = set()
        """Those of them that code lies in."""
        self._fills = False
        """Whether code fills in texts that it does not say."""
        self._replaced: dict[tuple[str, str], None] = {}
        """What code puts in the place of what in texts."""
        self._named = NamedTexts()
        self._names_folders: list[str] = []
        self._any_name = False
        self.holders = Holders()
        self._unasked: frozenset[str] = frozenset()
        self._found: Found | None = None
        self._joined: dict[str, set[str | None]] = {}
        """What is joined behind names that were asked for."""

    def see(self, function: FunctionType, *, is_first: bool = False) -> None:
        """Take what a function of your own says.

        Args:
            function: It.
            is_first: Whether it is the constructor of objects that were there before.
        """
        code, self._found, self._joined = function.__code__, None, {}
        file = os.path.abspath(code.co_filename)
        self._folders.add(os.path.dirname(file))
        self._of_code.add(os.path.dirname(file))
        defaults, last = function.__defaults__ or (), code.co_argcount
        given = dict(zip(code.co_varnames[last - len(defaults) : last], defaults, strict=False))
        given |= function.__kwdefaults__ or {}
        self.see_values(given, "" if is_first else None)
        if not names_all_fields(code):
            self._see_code(function, is_first)

    def _see_code(self, function: FunctionType, is_first: bool) -> None:
        code = function.__code__
        file = os.path.abspath(code.co_filename)
        for each in paths_in(code):
            parts = tuple(_said_by(part, file, function.__globals__) for part in each.parts)
            self._paths[each._replace(parts=parts)] = None
            self._named.see_words("" if each.use == READ else None, _texts_in(parts))
            self._named.variables.update(_variables_in(parts))
            self._fills = self._fills or any(isinstance(part, Hole) and part.is_template for part in parts)
            if each.stored_as:
                self._named.see_stored(each.stored_as, parts, is_first=is_first)
        self._replaced |= dict.fromkeys(replaced_in(code))
        self._any_name = self._any_name or asks_by_any_name(code)
        self.holders.see(function)
        for name, use in uses_of(code, of_locals=True):
            self._uses[name].add(use)

    def see_value(self, name: str, value: Any, of: str | None = None) -> None:
        """Take a plain value, or a path, that code names, and what it lies in: see `NamedTexts`."""
        self._found = None
        if isinstance(value, PurePath):
            self._folders |= {os.path.abspath(value), os.path.abspath(value.parent)}
        self._named.see_value(name, value, of)

    def see_values(self, values: Mapping[str, Any], of: str | None = None) -> None:
        """Take several."""
        for name, value in values.items():
            self.see_value(name, value, of)
        self._named.set_first.update(values if of == "" else ())

    def only_written(self, name: str) -> bool:
        """Return whether all code only writes to the file that goes by a name."""
        uses = self._uses.get(name)
        return bool(uses) and READ not in uses and name not in self._named.texts

    @property
    def set_first(self) -> set[str]:
        """Names of attributes that a class or a constructor gives to objects."""
        return self._named.set_first

    @property
    def any_name(self) -> bool:
        """Whether code may ask for what it does not name."""
        return self._any_name

    @property
    def folders(self) -> list[str]:
        """The texts that name folders, as of when `say` was called last."""
        return self._names_folders

    def named(self, endings: tuple[str, ...]) -> list[str]:
        """Return the files that code names and that end so, as of when `say` was called last."""
        return self._found.ending(endings) if self._found else []

    def goes_by(self, name: str) -> bool:
        """Return whether code names something."""
        return name in self._uses

    def joined_behind(self, name: str) -> set[str]:
        """Return the paths that code joins behind what goes by a name, where it is a folder; see `read_in`."""
        return {each for each in self._behind(name) if each is not None}

    def read_in(self, name: str) -> set[str] | None:
        """Return the paths of all that is read in the folder that goes by a name; None where that cannot be told.

        A path that is empty says that it is anything in it.
        """
        behind = self._behind(name)
        if None in behind or name in self._named.texts or self._any_name or not name.isidentifier():
            return None
        return {each for each in behind if each is not None}

    def leaves(self, name: str, entry: str) -> bool:
        """Return whether no code asks what goes by a name for an attribute or entry, or hands all of it on."""
        return not (self._any_name or self.holders.asks(entry) or self.holders.hands_on(name))

    def say(
        self,
        without: Collection[str] = (),
        also: Iterable[str] = (),
        opened: Iterable[str] = (),
        unasked: frozenset[str] = frozenset(),
    ) -> dict[Component, Component]:
        """Return what lies now where each text leads, but for some; those that lead nowhere are left out.

        Costs some 2 us for each text that may be a path, and reading a file once.

        Args:
            without: Texts that do not count, and files that do not in folders.
            also: Other texts that may name folders, or what code fills in, which the code is given.
            opened: Other texts that name files, whose names code may be given.
            unasked: Those of `set_first` for which no code asks, of objects that were there before.
        """
        found: dict[Component, list[Component]] = {}
        here = ""
        with suppress(OSError):  # a folder that was removed
            here = os.getcwd()
        since = here, *map(os.environ.get, sorted(self._named.variables))
        if self._found is None or self._found.since != since or self._unasked != unasked:
            self._unasked = unasked
            self._found = self._find(since)
        all_found = self._found
        paths, behind = all_found.paths, all_found.behind
        if also and (behind or self._fills or self._replaced):
            given = [each for each in dict.fromkeys(also) if len(each) <= LONGEST_PATH]
            beside = behind_words(filter(self._is_there, given), behind) | self._filled(given)
            beside |= replaced_within(filter(may_be_path, given), self._replaced)
            beside -= {place._replace(is_guessed=True) for place, _ in paths}
            paths = [*paths, *((each, self._at(each.text)) for each in sorted(beside))]
        told_of = {each: self._at(each) for each in opened if len(each) <= LONGEST_PATH}
        written = all_found.written | all_found.logs
        paths = [*paths, *((Place(each), at) for each, at in told_of.items() if written.isdisjoint(at))]
        harmless = frozenset(os.path.abspath(each) for each in without)
        for place, leads in paths:
            if place.said in without:
                continue
            apart = all_found.apart(place, harmless)
            leads = [each for each in leads if each != "/" or not place.is_guessed]
            told = [files_like(each, apart) if ANY in place.text else held_at(each, apart) for each in leads]
            none = (None, ["folder", {}]) if place.is_guessed else (None,)  # an empty folder may be made meanwhile
            if held := [each for each in told if each not in none]:
                found.setdefault(place.said, []).extend(held)  # several places of one text leave other files out
        return {**found}

    # --- what paths there are ----------------------------------------------------------------------------------------

    def _behind(self, name: str) -> set[str | None]:
        """Return what is joined behind a name, as `read_in` says it; None where it is used alone, or otherwise."""
        known = self._joined.get(name)
        if known is None:
            known = self._joined[name] = self._read_behind(name)
        return known

    def _read_behind(self, name: str) -> set[str | None]:
        found = set[str | None]()
        for each in self._paths:
            first, *rest = each.parts
            if each.use != READ or not (isinstance(first, Hole) and first.name == name):
                continue
            begins = rest[0] if rest else None
            if not rest and each.stored_as:
                continue  # what is done with it is said by that name
            if not isinstance(begins, str) or not begins.startswith("/"):
                found.add("" if not rest and each.opens == FOLDER else None)
            elif len(rest) > 1:
                found.add(begins.rpartition("/")[0].strip("/"))
            else:
                found.add(begins.strip("/"))
        return found

    def _find(self, since: tuple[str | None, ...]) -> Found:
        """Return the paths that there may be: those that code names, and what it joins behind folders nobody knows."""
        found, behind, written, logs = set[Place](), set[str](), set[str](), set[str]()
        for each in self._paths:
            if (each.stored_as and each.use == READ) or each.opens == NAMED:
                continue
            for text in islice(self._resolved(each.parts, _DEEP), _MOST_PATHS):
                path = _WILD.sub(ANY, text) if each.opens == FOLDER else text  # of `glob`
                begun, is_any, _ = path.partition(ANY)
                if each.use == WRITTEN:
                    if path.startswith(ANY):
                        written.update([path] if tail_of(path) else ())
                    elif 0 < len(path) <= LONGEST_PATH:
                        (logs if each.opens == LOG and not is_any else written).update(self._at(path))
                    continue
                is_whole = each.opens == FILE or (each.opens == FOLDER and path != text)  # else more may come behind it
                if path.startswith(ANY):
                    rest = path.lstrip(ANY)
                    rest = rest if is_whole or ANY not in rest else f"{rest.rpartition(ANY)[0]}{ANY}"
                    if rest[:1] == "/" or (not rest and each.opens == FOLDER):
                        behind.add(rest)
                    elif rest and (each.opens or may_be_path(f"a{rest}".replace(ANY, ""))):  # `open(f"{name}.txt")`
                        behind.add(rest)
                        found.add(Place(f"{ANY}{rest}".partition("/")[0], tail_of(f"{ANY}{rest}"), each.opens == FILE))
                elif is_any:
                    folder, _, _ = begun.rpartition("/")
                    if each.opens or may_be_path(path.replace(ANY, "")):
                        tail = tail_of(path) if is_whole else ""
                        found.add(Place(folder, tail, each.opens == FILE) if folder else Place(path))
                elif may_be_path(path) or (each.opens and 0 < len(path) <= LONGEST_PATH and _says(path, each.opens)):
                    found.add(Place(path))
        for name, values in self._named.values.items():
            if not self.only_written(name):
                for value in values:
                    found.update(() if self._is_left(name, value) else map(Place, self._led_to(name, value)))
        read = [held for name, held in self._named.words.items() if not (name and self.only_written(name))]
        words = set[str]().union(*read)
        self._names_folders = sorted(filter(self._is_folder, words))
        files = filter(may_be_path, words)  # of `splitext(file)[0] + ".txt"`
        found |= behind_words({*self._names_folders, *files}, behind) | self._filled(words)
        paths = [
            (each, self._at(each.text))
            for each in sorted(found)
            if each._replace(is_guessed=False) not in found or not each.is_guessed
        ]
        return Found(since, paths, sorted(behind), frozenset(written), frozenset(logs))

    def _resolved(self, parts: Parts, depth: int) -> Iterator[str]:
        """Yield what a path may be, with what goes by the names in it; `ANY` for what nobody knows."""
        if not parts:
            yield ""
            return
        first, rest = parts[0], parts[1:]
        begins = [first] if isinstance(first, str) else self._held_by(first, depth)
        for begin in begins:
            for end in islice(self._resolved(rest, depth), _MOST_PATHS):
                yield begin + end

    def _held_by(self, hole: Hole, depth: int) -> Iterator[str]:
        package, is_package, _ = hole.name.partition(":package")
        if is_package:
            yield from folders_of(package)
            return
        package, is_own, _ = hole.name.partition(":modules")
        if is_own:
            if not is_installed(package.partition(".")[0]):
                yield from [*folders_of(package)] or [package.replace(".", "/")]  # its place may be said later
            return
        values = self._named.values.get(hole.name, set()) if depth else set[Parts]()
        if hole.name.startswith(VARIABLE):
            value = os.environ.get(hole.name.removeprefix(VARIABLE), "")
            values = {(value,)} if 0 < len(value) <= LONGEST_PATH else set[Parts]()
        if hole.is_template and not any(map(_has_places, values)):  # `for each in FILES: each.format(...)`: any
            values = values | {each for held in self._named.values.values() for each in held if _has_places(each)}
        for value in sorted(values, key=repr)[:_MOST_PATHS]:
            if self._is_left(hole.name, value):
                continue
            for text in islice(self._resolved(value, depth - 1), _MOST_PATHS):
                yield without_places(text, ANY) if hole.is_template else text
        if hole.is_open or not values:
            yield ANY

    def _is_left(self, name: str, value: Parts) -> bool:
        """Return whether a text lies only where nobody asks for it."""
        places = self._named.lies_in.get((name, str(value[0]))) if len(value) == 1 and self._sees_all else None
        return bool(places) and all(each is not None and self._leaves(*each) for each in places)

    def _leaves(self, holder: str, entry: str) -> bool:
        if not holder:
            return entry in self._unasked
        if any(map(self.holders.calls, (holder, "cls"))):  # its own methods know a class by the latter
            return False
        return self.leaves(holder, entry) and not self.holders.hands_on("cls")

    def _led_to(self, name: str, value: Parts) -> Iterator[str]:
        """Yield the paths that a text leads to that goes by a name."""
        text = value[0]
        if len(value) != 1 or not isinstance(text, str):
            return
        if self._is_folder(text):
            # A plain word is a folder only where it is taken for one, which its uses say.
            if may_be_path(text) and self.read_in(name) is None:
                yield text
        elif may_be_path(text):
            yield text

    def _filled(self, texts: Iterable[str]) -> set[Place]:
        """Return the folders that texts lead to once their places are filled in: `"prompts/{}.txt"`."""
        paths = (without_places(each, ANY) for each in texts if self._fills and ("{" in each or "%" in each))
        begun = (each.partition(ANY)[0].rpartition("/")[0] for each in paths if ANY in each)
        return {Place(each, is_guessed=True) for each in begun if each}

    def _is_there(self, text: str) -> bool:
        """Whether a text names a file or a folder."""
        return bool(text.strip("./ \t\n")) and "\n" not in text and any(map(os.path.exists, self._at(text)))

    def _is_folder(self, text: str) -> bool:
        return bool(text.strip("./ \t\n")) and "\n" not in text and any(map(os.path.isdir, self._at(text)))

    def _at(self, text: str) -> list[str]:
        """Return where a text may lead, from the working folder and from those that are known."""
        path = os.path.expanduser(os.path.expandvars(text))
        tail = path.lstrip("/")  # of `f"{HERE}/prompts/a.txt"`
        folders = self._of_code if path.startswith("..") else self._folders  # else it would lead out of any of them
        beside = [os.path.normpath(os.path.join(each, tail)) for each in sorted(folders)] if tail else []
        return [*dict.fromkeys([os.path.abspath(path), *beside])]


def _has_places(value: Parts) -> bool:
    return len(value) == 1 and isinstance(value[0], str) and without_places(value[0], ANY) != value[0]


def _texts_in(parts: Parts) -> Iterator[str]:
    for part in parts:
        yield from (part,) if isinstance(part, str) else part.put


def _variables_in(parts: Parts) -> Iterator[str]:
    """Yield the variables of the environment that a path is made of."""
    for part in parts:
        if isinstance(part, Hole) and part.name.startswith(VARIABLE):
            yield part.name.removeprefix(VARIABLE)


def _said_by(part: str | Hole, file: str, table: Mapping[str, Any]) -> str | Hole:
    """Return a part of a path with what the code's own place, and modules that it names, say of it."""
    if not isinstance(part, Hole):
        return part
    if part.name == "__file__":
        return file
    name, is_module, _ = part.name.partition(":module")
    module = table.get(name) if is_module else None
    place = getattr(module, "__file__", None)
    folders = [*getattr(module, "__path__", ())] or ([os.path.dirname(place)] if isinstance(place, str) else [])
    return str(folders[0]) if folders else part


def _says(path: str, opens: str) -> bool:
    """Whether a path is more than that of the working folder, or that one's files are asked for."""
    return opens == FOLDER or bool(path.strip("./"))
