"""What stands for arguments, and for code and what it names, in the request that a call of a cached function is."""

from __future__ import annotations

import collections
import enum
import functools
import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from lmstash.caches.responses.everyday import LOCKS, NAMESPACES, parts_of_everyday
from lmstash.caches.responses.hiding import is_secret
from lmstash.caches.responses.known import lies_in_its_package, parts_of_known
from lmstash.caches.responses.objects import (
    PATHS,
    beside_pixels,
    fields_of,
    fields_set,
    is_bare_path,
    path_says,
    read_under,
)
from lmstash.caches.responses.package_settings import settings_of
from lmstash.caches.responses.requests import read_request
from lmstash.errors import InvalidArgumentError
from lmstash.identity.encoding import encode
from lmstash.identity.keys import Key
from lmstash.identity.media import media_of
from lmstash.identity.own_code import OwnCode
from lmstash.identity.owners import owner_of, version_of
from lmstash.identity.words import variables_under, words_of

_PLAIN = (type(None), bool, int, float, str, bytes)
_MOST_NESTED = 100
_MOST_KNOWN = 1000
_WITHOUT_MEANING = (logging.Logger, type(threading.Lock()), type(threading.RLock()))
_ITEMS = "lmstash:items"
_MARKS: dict[Any, str] = {set: "lmstash:set", frozenset: "lmstash:frozenset"}
_IS = "lmstash:is"
_MARKED = frozenset({_ITEMS, _IS, *_MARKS.values()})
_TUPLE_GETTER: Any = type(vars(collections.namedtuple("_", "x"))["x"])
_OF_WRAPPERS = {*functools.WRAPPER_ASSIGNMENTS, "__wrapped__", "cache_parameters"}
"""What lies on each function that remembers its results."""
_SAY = " (a client of the model that the cache is for, say)"
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
        self._harmless = harmless
        self._codes: dict[tuple[int, bool], _Code] = {}
        self._lock = threading.RLock()
        self._reading = threading.local()

    def begin(self) -> None:
        """Forget which code was read last in this thread: a call is named next."""
        self._reading.codes, self._reading.used, self._reading.texts, self._reading.marks = set(), [], [], {}

    def argument(self, name: str, value: Any) -> Any:
        """Return what stands for an argument in a request.

        Raises:
            InvalidArgumentError: Nobody can tell it from another one of its kind.
        """
        try:
            return self.plain(value, _MOST_NESTED)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"argument {name}: {error}") from error

    def environment(self, arguments: Any) -> str | None:
        """Return a digest of the variables of the environment that the code of a call may read; None for none.

        These are all whose name is a word in that code, in what it names, or among the arguments, if any of that code
        names the environment at all. What is named for a secret does not count.
        """
        used: list[_Code] = self._reading.used
        if not any(each.graph.reads_environment for each in used):
            return None
        names = {word for text in _texts(arguments) for word in words_of(text)}
        names.update(*[each.graph.words | each.graph.told for each in used])
        for text in self._reading.texts:
            names.update(word.decode() for word in _WORD.findall(text))
        said = variables_under(names, self._counts_not)
        return Key({"environment": said}).hex if said else None

    def _counts_not(self, variable: str) -> bool:
        """Whether a variable of the environment is a secret, or said to change no answer."""
        return is_secret(variable) or variable in self._harmless

    def files(self, arguments: Any) -> str | None:
        """Return a digest of what the files hold that texts in the code of a call name; None for none.

        Its arguments may name folders that these lie in.
        """
        used: list[_Code] = self._reading.used
        said: dict[Any, Any] = {}
        texts = [each for each in _texts(arguments) if isinstance(each, str)]
        for each in used:
            said |= each.graph.files.say(self._harmless, texts)
        return Key({"files": said}).hex if said else None

    def plain(self, value: Any, depth: int = _MOST_NESTED) -> Any:
        """Return what stands for a value.

        Raises:
            InvalidArgumentError: Nobody can tell it from another one of its kind.
        """
        kind: Any = type(value)
        if kind in _PLAIN:
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
            return {_MARKS[kind]: sorted((self.plain(each, depth - 1) for each in value), key=encode)}
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
            said = [f"{kind.__module__}.{kind.__qualname__}", *path_says(value)]
            if not is_bare_path(value):
                said += [self.code(kind, given=True), self.plain(getattr(value, "__dict__", {}), depth - 1)]
            return {_IS: said}
        media = media_of(value)
        if media is not None:  # it says the content; a function sees its class, too, and what an image's file said
            return {_IS: [f"{kind.__module__}.{kind.__qualname__}", media, beside_pixels(value)]}
        raise InvalidArgumentError(
            f"an object of {kind.__module__}.{kind.__qualname__} has no content that lmstash knows how to read. Make "
            "it a dataclass, or give what it stands for: the text of a prompt, not its template. What is named in "
            "harmless= does not count at all, so name there only what changes no answer"
        )

    def _field(self, name: str, value: Any, depth: int) -> Any:
        """Return what stands for a field of an object."""
        path = self._path(name, value) if isinstance(value, PurePath) else None
        if type(value) is str:
            behind = set[str]().union(*[each.graph.files.joined_behind(name) for each in self._reading.used])
            if behind and os.path.isdir(value):
                path = ["folder", *read_under(PurePath(value), behind)]
        return self.plain(value, depth) if path is None else path

    def _path(self, name: str, value: PurePath) -> Any:
        """Return what counts of a path by what all code does with its name; None where that cannot be told."""
        if not is_bare_path(value) or not self._reading.used:
            return None
        files = [each.graph.files for each in self._reading.used]
        read = [each.read_in(name) for each in files]
        if None in read or not (os.path.isdir(value) or any(each.goes_by(name) for each in files)):
            return None
        return ["path", *read_under(value, set[str]().union(*[each for each in read if each is not None]))]

    def code(self, code: Any, *, given: bool = False) -> str:
        """Return the digest of a function's or class's code, and of what it leads to.

        Args:
            code: The function or class.
            given: Whether it is an argument, or lies in an object: then all of its attributes count.

        Raises:
            InvalidArgumentError: It names an object that nobody can tell from another one of its kind.
        """
        with self._lock:
            known = self._codes.get((id(code), given))
            if known is None or not known.graph.unchanged():
                if len(self._codes) >= _MOST_KNOWN:
                    self._codes.clear()
                known = self._codes[id(code), given] = _Code(code, self._package, self._harmless, given)
        self._reading.used.append(known)
        reading: set[tuple[int, bool]] = self._reading.codes
        if not known.objects or (id(code), given) in reading:  # a class may hold an instance of itself
            return known.digest
        reading.add((id(code), given))
        try:
            held: dict[Any, Any] = {place: self._held(known, place, value) for place, value in known.objects.items()}
            known.held = held
        finally:
            reading.discard((id(code), given))
        return Key({"code": known.digest, "objects": held}).hex

    def changed(self, fn: FunctionType, before: _Code | None) -> list[str]:
        """Return the names of what a function's own code leads to that is no more as it was.

        Args:
            fn: The function.
            before: As `read_of` returned it then.
        """
        if before is None:
            return []
        differ = set[str]()
        if before.objects:
            self.begin()
            self._reading.used.append(before)
            held = {place: self._held(before, place, value) for place, value in before.objects.items()}
            differ = {place for place, each in held.items() if before.held.get(place, each) != each}
        if not before.graph.unchanged():
            self.begin()
            self.code(fn)
            after = self.read_of(fn)
            now = {} if after is None else after.units
            differ |= {place for place in before.units.keys() | now.keys() if before.units.get(place) != now.get(place)}
        return sorted({_variable(str(place)).removesuffix(" is") for place in differ})

    def read_of(self, fn: FunctionType) -> _Code | None:
        """Return a function's code as it was read last; None if it never was."""
        return self._codes.get((id(fn), False))

    def parts_of(self, fn: FunctionType) -> tuple[dict[str, str], dict[str, Any]]:
        """Return the code that a function leads to, and by name the values that count beside it, as they are now.

        These are globals and what packages hold, variables of the environment and files.
        """
        self.begin()
        self.code(fn)
        known = self._codes[id(fn), False]
        code = {str(place): digest for place, digest in known.units.items() if ":" not in str(place)}
        values: dict[str, Any] = {}
        told = {place: digest for place, digest in known.units.items() if ":" in str(place)}
        told |= {place: self._held(known, place, value) for place, value in known.objects.items()}
        for place, each in sorted(told.items()):
            values.setdefault(_variable(str(place)).removesuffix(" is"), []).append(each)
        for settings in known.settings.values():
            values.update(settings)
        names = known.graph.words | known.graph.told if known.graph.reads_environment else set[str]()
        values.update(variables_under(names, self._counts_not))
        return code, values | {str(text): held for text, held in known.graph.files.say(self._harmless).items()}

    def _held(self, known: _Code, place: str, value: Any) -> Any:
        """Return what an object that code names is made of now, as a key can hold it."""
        if isinstance(value, PurePath) and (path := self._path(_variable(place), value)) is not None:
            return path
        if isinstance(value, BuiltinFunctionType) and isinstance(value.__self__, type | ModuleType | None):
            owner = value.__self__
            return ["builtin", getattr(owner, "__qualname__", getattr(owner, "__name__", None)), value.__qualname__]
        if isinstance(value, re.Pattern):
            return ["pattern", value.pattern, value.flags]
        if isinstance(value, _WITHOUT_MEANING) or (type(value).__module__, type(value).__qualname__) in LOCKS:
            return ["logger" if isinstance(value, logging.Logger) else type(value).__qualname__]
        if type(value).__module__ == "loguru._logger":  # says nothing, either
            return ["logger"]
        if type(value) is threading.Event:
            return ["event", value.is_set()]
        if isinstance(value, _TUPLE_GETTER):
            return ["field", *value.__reduce__()[1]]
        if _is_mark(value):
            marks: dict[int, int] = self._reading.marks  # which of them is which, and no more, is what they say
            return ["mark", type(value).__qualname__, marks.setdefault(id(value), len(marks))]
        if lies_in_its_package(value):
            return ["in", value.__module__, value.__qualname__, version_of(owner_of(value.__module__))]
        if type(value) in _caches():
            cache: Any = value
            return ["answers of", cache.asker.who.look().hex]
        if isinstance(value, threading.local) and type(value).__module__ == "_thread":
            # attrs notes there what it is writing out, and leaves it there once it has done so first.
            value = {name: each for name, each in vars(value).items() if name != "already_repring"}
        try:
            text = read_request([self.plain(value)], urls="trust").text
        except InvalidArgumentError as error:
            if place in known.graph.asides:
                return ["type", f"{type(value).__module__}.{type(value).__qualname__}"]
            name = _variable(place)
            said = str(error).removesuffix(_SAY)
            raise InvalidArgumentError(f"its code names `{name}`: {said}{_SAY}") from error
        self._reading.texts.append(text)
        return ["object", text]


class _Code:
    """The code of a function or class, as it was when it was read."""

    def __init__(self, code: Any, package: str, harmless: frozenset[str], given: bool) -> None:
        self.graph = OwnCode(package, code, given=given)  # keeps it alive, so that its id stays its own
        self.units: dict[Any, Any] = {
            name: each for name, each in self.graph.components().items() if not _is_harmless(name, harmless)
        }
        self.settings: dict[Any, Any] = {}
        for module in self.graph.installed_modules():
            if module.__name__ not in harmless and (found := settings_of(module, harmless)):
                self.settings[module.__name__] = found
                self.graph.watch_names(vars(module), [*found])
        self.digest = Key({"code": self.units, "packages": self.graph.packages(), "settings": self.settings}).hex
        self.held: dict[Any, Any] = {}
        """What the objects were made of when they were looked at last."""
        self.objects = {
            place: value for place, value in self.graph.objects.items() if not _is_harmless(place, harmless)
        }


@functools.lru_cache(maxsize=1)
def _caches() -> tuple[type, ...]:
    """Return the classes of what answers for a model."""
    from lmstash.caches.responses.cache import Responses
    from lmstash.caches.responses.decorating import Calls

    return Responses, Calls


def _is_mark(value: Any) -> bool:
    """Whether an object stands for nothing and says nothing: `object()`, and those that dataclasses use."""
    kind = type(value)
    return kind is object or (
        kind.__module__ == "dataclasses" and not getattr(value, "__dict__", hasattr(kind, "__slots__"))
    )


def _variable(place: str) -> str:
    return re.split("[:.]", place)[-1].rstrip("'")


def _texts(value: Any) -> Iterator[str | bytes]:
    if isinstance(value, str | bytes):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts([*value.keys(), *value.values()])
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)


def _is_harmless(place: Any, harmless: frozenset[str]) -> bool:
    """Whether a place in the code (`module.function:variable`) is one of an object that changes no answer."""
    return ":" in str(place) and str(place).rpartition(":")[2] in harmless
