"""What stands for arguments, and for code and what it names, in the request that a call of a cached function is."""

from __future__ import annotations

import enum
import functools
import os
import re
import threading
from collections.abc import Mapping
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

from lmstash.caches.between_runs import sources_of
from lmstash.caches.responses.everyday import NAMESPACES, parts_of_everyday
from lmstash.caches.responses.hiding import is_secret
from lmstash.caches.responses.known import answerers, is_mark, parts_of_known, parts_of_tool
from lmstash.caches.responses.looks import Code, Look, is_name
from lmstash.caches.responses.objects import (
    PATHS,
    beside_pixels,
    fields_of,
    fields_set,
    is_bare_path,
    path_says,
    read_under,
)
from lmstash.caches.responses.own_objects import (
    SOURCE_TEXT,
    attributes_in,
    is_its_attributes,
    parts_told,
    why_unread,
)
from lmstash.caches.responses.requests import read_request
from lmstash.errors import InvalidArgumentError
from lmstash.identity.encoding import encode
from lmstash.identity.keys import Key
from lmstash.identity.media import media_of
from lmstash.identity.own_modules import OwnModules
from lmstash.identity.words import SourceText, texts_within, variables_under, words_of

_PLAIN = (type(None), bool, int, float, str, bytes)
_MOST_NESTED = 100
_LONGEST_PATH = 256
_MOST_KNOWN = 1000
_ITEMS = "lmstash:items"
_MARKS: dict[Any, str] = {set: "lmstash:set", frozenset: "lmstash:frozenset"}
_IS = "lmstash:is"
_MARKED = frozenset({_ITEMS, _IS, *_MARKS.values()})
_OF_WRAPPERS = {*functools.WRAPPER_ASSIGNMENTS, "__wrapped__", "cache_parameters"}
"""What lies on each function that remembers its results."""
_WORD = re.compile(rb'(?:"|\$\{?)([A-Za-z_][A-Za-z0-9_]*)')


class Content:
    """Reads arguments and code for one decorated function. Threads may share it.

    Args:
        package: The one that the function lies in.
        harmless: Names of objects that change no answer.
        model: Whose answers are kept: keys say it already.
    """

    def __init__(self, package: str, harmless: frozenset[str], model: Any = None) -> None:
        self._package = package
        self._model = model
        self.harmless = harmless
        self._codes: dict[tuple[int, bool], Code] = {}
        self._lock = threading.RLock()
        self._modules = OwnModules(package)
        self._reading = threading.local()

    def begin(self, asked: frozenset[str] = frozenset()) -> Look:
        """Forget what was read last in this thread: a call is named next."""
        self._reading.look = look = Look(asked=asked)
        return look

    def told(self, fn: FunctionType, named: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Return what stands for a function and for the arguments of a call.

        Raises:
            InvalidArgumentError: Nobody can tell something of it from another one of its kind.
        """
        look = self.begin()
        while True:
            code = self.code(fn)
            arguments = {name: self.argument(name, value) for name, value in named.items()}
            objects: Any = self.objects()
            # Only now is all code known that may ask for what was left out.
            asked = {name for name in look.added if any(each.asks(name) for each in look.used.values())}
            asked |= {name for name in look.written if not look.only_writes(name)}
            if not asked:
                return (Key({"code": code, "objects": objects}).hex if objects else code), arguments
            look = self.begin(look.asked | asked)

    def last(self) -> Look:
        """Return how all was that was read last in this thread."""
        return self._look

    @property
    def _look(self) -> Look:
        return self._reading.look

    def argument(self, name: str, value: Any) -> Any:
        """Return what stands for an argument in a request.

        Raises:
            InvalidArgumentError: Nobody can tell it from another one of its kind.
        """
        self._look.path, self._look.seen = name, {}
        try:
            return self.plain(value, _MOST_NESTED)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"argument {name}: {error}") from error

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

    def plain(self, value: Any, depth: int = _MOST_NESTED) -> Any:
        """Return what stands for a value.

        Raises:
            InvalidArgumentError: Nobody can tell it from another one of its kind.
        """
        kind: Any = type(value)
        if kind in _PLAIN:
            if kind is str and len(value) < _LONGEST_PATH:
                self._look.words.add(value)
            return value
        if value is self._model:
            return {_IS: ["the model"]}
        if depth <= 0:
            raise InvalidArgumentError(f"it is nested more than {_MOST_NESTED} deep")
        if kind is list or kind is tuple:
            return kind([self.plain(each, depth - 1) for each in value])
        if kind is dict:
            if not _MARKED.isdisjoint(value):
                raise InvalidArgumentError("it is a dict with a key that lmstash marks other things by")
            if all(type(key) in _PLAIN for key in value):
                return {key: self.plain(each, depth - 1) for key, each in value.items()}
            if any(type(key) is str for key in value):  # whose values count by that, a path by its file
                raise InvalidArgumentError("it is a dict whose keys are texts and other things")
            return {_ITEMS: [[self.plain(key, depth - 1), self.plain(each, depth - 1)] for key, each in value.items()]}
        if kind is set or kind is frozenset:
            return {_MARKS[kind]: sorted((self._member(each, depth - 1) for each in value), key=encode)}
        if self._is_its_attributes(kind):
            return self._object(value, depth)
        if kind in NAMESPACES:
            held = [[name, self._field(name, each, depth - 1)] for name, each in vars(value).items()]
            return {_IS: [kind.__qualname__, held]}
        everyday = parts_of_everyday(value)
        if everyday is not None:
            return {_IS: [kind.__qualname__, *(self.plain(each, depth - 1) for each in everyday)]}
        if isinstance(value, enum.Enum):
            inner = value.value if type(value.value) in _PLAIN else None
            return {"enum": self.code(kind, given=True), "name": value.name, "value": inner}
        if isinstance(value, FunctionType | type):
            return {"code of": f"{value.__module__}.{value.__qualname__}", "is": self.code(value, given=True)}
        if isinstance(value, BuiltinFunctionType) and value.__module__ == "builtins":
            return {"code of": f"builtins.{value.__qualname__}", "is": "builtin"}
        if isinstance(value, functools.partial) and kind is functools.partial and not vars(value):
            held = [value.func, value.args, value.keywords]
            return {"partial": [self.plain(each, depth - 1) for each in held]}
        if isinstance(value, functools._lru_cache_wrapper):
            more = {name: self.plain(each, depth - 1) for name, each in vars(value).items() if name not in _OF_WRAPPERS}
            return {"remembers": self.plain(vars(value).get("__wrapped__"), depth - 1), "beside": more}
        if isinstance(value, MethodType):
            return {"method": self.plain(value.__func__, depth - 1), "of": self.plain(value.__self__, depth - 1)}
        known = parts_of_known(value)
        if known is not None:
            return {_IS: ["known", *(self.plain(each, depth - 1) for each in known)]}
        fields = fields_of(value)
        if fields is not None:
            is_, given = self.code(kind, given=True), fields_set(value)  # first: it says what is done with the fields
            about = {name: self._field(name, each, depth - 1) for name, each in fields.items()}
            said = {"code of": f"{kind.__module__}.{kind.__qualname__}", "is": is_, "fields": about}
            return said if given is None else said | {"set": given}
        if isinstance(value, PATHS):
            self._look.words.add(os.fsdecode(value))
            said = [f"{kind.__module__}.{kind.__qualname__}", *path_says(value)]
            if not is_bare_path(value):
                said += [self.code(kind, given=True), self.plain(getattr(value, "__dict__", {}), depth - 1)]
            return {_IS: said}
        media = media_of(value)
        if media is not None:  # it says the content; a function sees its class, too, and what an image's file said
            return {_IS: [f"{kind.__module__}.{kind.__qualname__}", media, beside_pixels(value)]}
        told = self._tool(value)
        if told is not None:
            return {_IS: told}
        if self._look.lenient:
            return {_IS: [f"{kind.__module__}.{kind.__qualname__}"]}
        raise InvalidArgumentError(why_unread(kind, self._look.path, self._modules.is_own))

    def _tool(self, value: Any) -> list[Any] | None:
        """Return what stands for what says little, as `parts_of_tool`; and for marks and caches."""
        if is_mark(value):
            marks = self._look.marks  # which of them is which, and no more, is what they say
            return ["mark", type(value).__qualname__, marks.setdefault(id(value), len(marks))]
        if type(value) in answerers():
            cache: Any = value
            return ["answers of", cache.asker.who.look().hex]
        return parts_of_tool(value)

    def _member(self, value: Any, depth: int) -> Any:
        """Return what stands for a member of a set: these come in any order, so that no object may be counted there."""
        look = self._look
        before, look.seen = look.seen, {**look.seen}
        try:
            return self.plain(value, depth)
        finally:
            look.seen = before

    # --- objects of somebody's own classes ---------------------------------------------------------------------------

    def _is_its_attributes(self, kind: type) -> bool:
        known = self._look.own.get(id(kind))
        if known is None:
            known = self._look.own[id(kind)] = is_its_attributes(kind, self._modules.is_own)
        return known

    def _object(self, value: Any, depth: int) -> dict[str, Any]:
        """Return what stands for an object that is nothing but its attributes."""
        seen, path, kind = self._look.seen, self._look.path, type(value)
        if id(value) in seen:  # a child names its parent, which holds it
            return {_IS: ["met before", seen[id(value)]]}
        seen[id(value)] = len(seen)
        said: dict[str, Any] = {"code of": f"{kind.__module__}.{kind.__qualname__}", "is": self.code(kind, given=True)}
        fields, code = {}, self._look.used[said["is"]]
        said["fields"] = fields
        is_made = hasattr(kind, "__dataclass_fields__") or hasattr(kind, "__attrs_attrs__")  # others read all fields
        for name, each in attributes_in(value):
            self._look.path = f"{path}.{name}"
            if name not in self._look.asked and not is_made and code.only_adds(name, each):
                self._look.added.add(name)
            elif self._look.path not in self.harmless:
                fields[name] = self._field(name, each, depth - 1)
        self._look.path = path
        return said

    def _field(self, name: str, value: Any, depth: int) -> Any:
        """Return what stands for a field of an object."""
        if isinstance(value, str | PurePath) and name not in self._look.asked and self._look.only_writes(name):
            self._look.written.add(name)
            return {_IS: ["written to", Key({"path": os.fspath(value)}).hex]}  # no name of a file any more
        path = self._path(name, value) if isinstance(value, PurePath) else None
        if type(value) is str:
            behind = set[str]().union(*[each.graph.files.joined_behind(name) for each in self._look.used.values()])
            if behind and os.path.isdir(value):
                path = ["folder", *read_under(PurePath(value), behind)]
        return self.plain(value, depth) if path is None else path

    def _path(self, name: str, value: PurePath) -> Any:
        """Return what counts of a path by what all code does with its name; None where that cannot be told."""
        if not is_bare_path(value) or not self._look.used:
            return None
        files = [each.graph.files for each in self._look.used.values()]
        read = [each.read_in(name) for each in files]
        if None in read or not (os.path.isdir(value) or any(each.goes_by(name) for each in files)):
            return None
        return ["path", *read_under(value, set[str]().union(*[each for each in read if each is not None]))]

    def code(self, code: Any, *, given: bool = False) -> str:
        """Return the digest of a function's or class's code, and of what it leads to.

        Args:
            code: The function or class.
            given: Whether it is an argument, or lies in an object: then all of its attributes count.
        """
        look = self._look
        said = look.known.get((id(code), given))
        if said is not None:
            return said
        with self._lock:
            known = self._codes.get((id(code), given))
            if known is None or not known.graph.unchanged():
                if len(self._codes) >= _MOST_KNOWN:
                    self._codes.clear()
                known = self._codes[id(code), given] = Code(code, self._package, self.harmless, given)
        said, number = known.digest, 0
        while said in look.used:  # two that look alike may name different objects
            said, number = f"{known.digest} {number + 1}", number + 1
        look.used[said] = known
        look.known[id(code), given] = said
        return said

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
        look = self.begin(before.asked)
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
        self._look.path, self._look.seen = known.name_of(place), {}
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
