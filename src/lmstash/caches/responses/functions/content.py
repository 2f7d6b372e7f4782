"""What stands for arguments, and for code and what it names, in the request that a call of a cached function is."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from pathlib import PurePath
from types import FunctionType
from typing import Any

from lmstash.caches.between_runs import sources_of
from lmstash.caches.responses.functions.looks import Code, Look, is_name, parameters_of
from lmstash.caches.responses.functions.own_objects import SOURCE_TEXT, parts_told
from lmstash.caches.responses.functions.values import Values
from lmstash.caches.responses.requests.encoding import read_request
from lmstash.caches.responses.requests.hiding import is_secret
from lmstash.errors import InvalidArgumentError
from lmstash.identity.code.words import SourceText, texts_within, variables_under, words_of
from lmstash.identity.keys import Key

_WORD = re.compile(rb'(?:"|\$\{?)([A-Za-z_][A-Za-z0-9_]*)')


class Content(Values):
    """Reads calls of one decorated function. Threads may share it."""

    def told(self, fn: FunctionType, named: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Return what stands for a function and for the arguments of a call.

        Raises:
            InvalidArgumentError: Nobody can tell something of it from another one of its kind.
        """
        look = self.begin(parameters_of(fn))
        while True:
            code = self.code(fn)
            arguments = {name: self.argument(name, value) for name, value in named.items()}
            objects: Any = self.objects()
            # Only now is all code known that may ask for what was left out.
            asked = {name for name in look.added if any(each.asks(name) for each in look.used.values())}
            asked |= {name for name in look.written if not look.only_writes(name)}
            asked |= look.asked_after_all()
            if not asked:
                return (Key({"code": code, "objects": objects}).hex if objects else code), arguments
            look = self.begin(look.parameters, look.asked | asked)

    def environment(self, arguments: Any) -> str | None:
        """Return a digest of the variables of the environment that the code of a call may read; None for none.

        These are all whose name is a word in that code, in what it names, or among the arguments, if any of that code
        names the environment at all. What is named for a secret does not count.
        """
        used = self._look.used.values()
        if not any(each.graph.reads_environment for each in used):
            return None
        names = {word for text in texts_within(arguments) for word in words_of(text)}
        names.update(*[each.graph.words | each.graph.told for each in used])
        for text in self._look.texts:
            names.update(word.decode() for word in _WORD.findall(text))
        said = variables_under(names, self._counts_not)
        return Key({"environment": said}).hex if said else None

    def _counts_not(self, variable: str) -> bool:
        """Whether a variable of the environment is a secret, or said to change no answer."""
        return is_secret(variable) or variable in self.harmless

    def files(self) -> str | None:
        """Return a digest of what the files hold that texts in the code of a call name; None for none.

        Its arguments, and fields of objects, may name folders that these lie in.
        """
        look = self._look
        look.files = look.files_now(self.harmless)
        return Key({"files": look.files}).hex if look.files else None

    def objects(self) -> dict[str, dict[str, Any]]:
        """Return what the objects are made of that all code of a call names, once all of its arguments were read.

        Raises:
            InvalidArgumentError: Nobody can tell one of them from another one of its kind.
        """
        look, done = self._look, 0
        look.n_first = len(look.used)
        out: dict[str, dict[str, Any]] = {}
        while done < len(look.used):  # each may lead to more code
            for said, known in list(look.used.items())[done:]:
                done += 1
                for place, value in known.objects.items():
                    held = look.held[said, place] = self._held(known, place, value)
                    out.setdefault(said, {})[place] = held
        return out

    def again(self, before: Look) -> Look:
        """Look once more at the objects that the code of a call names; returns how they are now.

        Args:
            before: How they were. The code is taken to be as it was then.
        """
        look = self.begin(before.parameters, before.asked)
        look.lenient = True
        look.used = dict(list(before.used.items())[: before.n_first])
        look.known = {(id(each.code), each.given): said for said, each in look.used.items()}
        self.objects()
        return look

    def read_anew(self, known: Code) -> tuple[Code, dict[str, Any]]:
        """Return code as it is now, and what the objects are made of that it names then and named before."""
        now = Code(known.code, self._package, self.harmless, known.given)
        both = now.objects.keys() & known.objects.keys()
        return now, {place: self._held(now, place, now.objects[place]) for place in both}

    def parts_of(self, fn: FunctionType) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the code that a function leads to, and by name the values that count beside it, as they are now.

        These are globals and what packages hold, and variables of the environment. Files are no such values: people
        edit them. Of the code there are all files, too, that any of the program's own modules lies in: what a value is
        stands in one of them.
        """
        self.told(fn, {})
        look = self._look
        code: dict[str, Any] = {"files": sources_of(self._modules.is_own)}
        values: dict[str, Any] = {}
        names = set[str]()
        for known in look.used.values():
            for place, digest in sorted(known.units.items()):
                if ":" in place and is_name(known.name_of(place)):
                    values.setdefault(known.name_of(place), []).append(digest)
                else:
                    code[place] = digest
            for settings in known.settings.values():
                values.update(settings)
            names.update(known.graph.words | known.graph.told if known.graph.reads_environment else ())
        for (said, place), held in sorted(look.held.items()):
            name = look.used[said].name_of(place)
            for at, each in parts_told(name, held, files=False).items():
                (values if is_name(at) else code).setdefault(at, []).append(each)
        return code, values | variables_under(names, self._counts_not)

    def _held(self, known: Code, place: str, value: Any) -> Any:
        """Return what an object that code names is made of now, as a key can hold it."""
        if isinstance(value, PurePath) and (path := self._path(known.name_of(place), value)) is not None:
            return path
        self._look.path, self._look.seen, self._look.is_whole = known.name_of(place), {}, ":" not in place
        if not self._is_its_attributes(type(value)) and (told := self._tool(value)) is not None:
            return told
        if isinstance(value, threading.local) and type(value).__module__ == "_thread":
            # attrs notes there what it is writing out, and leaves it there once it has done so first.
            value = {name: each for name, each in vars(value).items() if name != "already_repring"}
        lenient, self._look.lenient = self._look.lenient, self._look.lenient and place not in known.graph.asides
        try:
            if type(value) is SourceText:
                raise InvalidArgumentError(SOURCE_TEXT)
            text = read_request([self.plain(value)], urls="trust").text
        except InvalidArgumentError as error:
            if place in known.graph.asides:
                return ["type", f"{type(value).__module__}.{type(value).__qualname__}"]
            raise InvalidArgumentError(f"its code names `{known.name_of(place)}`: {error}") from error
        finally:
            self._look.lenient = lenient
        self._look.texts.append(text)
        return ["object", text]
