"""What stands for a value in the request that a call of a cached function is: what it is made of, and its class."""

from __future__ import annotations

import contextlib
import enum
import functools
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

from lmstash.caches.responses.functions.everyday import NAMESPACES, parts_of_everyday
from lmstash.caches.responses.functions.known import answerers, is_mark, parts_of_known, parts_of_tool
from lmstash.caches.responses.functions.looks import Code, Look
from lmstash.caches.responses.functions.objects import (
    PATHS,
    beside_pixels,
    fields_of,
    fields_set,
    is_bare_path,
    is_pydantic,
    path_says,
    read_under,
)
from lmstash.caches.responses.functions.own_objects import attributes_in, is_its_attributes, why_unread
from lmstash.errors import InvalidArgumentError
from lmstash.identity.code.named_texts import may_be_path
from lmstash.identity.code.own_modules import OwnModules
from lmstash.identity.content.media import media_of
from lmstash.identity.encoding import encode
from lmstash.identity.keys import Key

_PLAIN = (type(None), bool, int, float, str, bytes)
_NUMBERS = (type(None), bool, int, float, bytes)
_MOST_NESTED = 100
_LONGEST_PATH = 256
_MOST_KNOWN = 1000
_ITEMS = "lmstash:items"
_MARKS: dict[Any, str] = {set: "lmstash:set", frozenset: "lmstash:frozenset"}
_IS = "lmstash:is"
_MARKED = frozenset({_ITEMS, _IS, *_MARKS.values()})
_OF_WRAPPERS = {*functools.WRAPPER_ASSIGNMENTS, "__wrapped__", "cache_parameters"}
"""What lies on each function that remembers its results."""


class Values:
    """Reads values, and the code that they lead to, for one decorated function. Threads may share it.

    Args:
        package: The one that the function lies in.
        harmless: Names of objects that change no answer.
        model: Whose answers are kept: keys say it already.
        leaves_settings: Whether settings of a program (`args.limit`) do not count that no code asks for.
    """

    def __init__(
        self, package: str, harmless: frozenset[str], model: Any = None, *, leaves_settings: bool = False
    ) -> None:
        self._package = package
        self.leaves_settings = leaves_settings
        self._model = model
        self.harmless = harmless
        self._names_parts = any("." in each for each in harmless)
        self._codes: dict[tuple[int, bool], Code] = {}
        self._lock = threading.RLock()
        self._modules = OwnModules(package)
        self._reading = threading.local()

    def begin(self, parameters: frozenset[str] = frozenset(), asked: frozenset[str] = frozenset()) -> Look:
        """Forget what was read last in this thread: a call is named next."""
        self._reading.look = look = Look(parameters=parameters, asked=asked)
        return look

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
        self._look.path, self._look.seen, self._look.is_whole = name, {}, name not in self._look.parameters
        try:
            return self.plain(value, _MOST_NESTED)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"argument {name}: {error}") from error

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
                return self._entries(value, depth)
            if any(type(key) is str for key in value):  # whose values count by that, a path by its file
                raise InvalidArgumentError("it is a dict whose keys are texts and other things")
            return {_ITEMS: [[self.plain(key, depth - 1), self.plain(each, depth - 1)] for key, each in value.items()]}
        if kind is set or kind is frozenset:
            return {_MARKS[kind]: sorted((self._member(each, depth - 1) for each in value), key=encode)}
        if self._is_its_attributes(kind):
            return self._object(value, depth)
        if kind in NAMESPACES:
            return {_IS: [kind.__qualname__, [*map(list, self._settings(vars(value), depth).items())]]}
        everyday = parts_of_everyday(value)
        if everyday is not None:
            return {_IS: [kind.__qualname__, *(self.plain(each, depth - 1) for each in everyday)]}
        if isinstance(value, enum.Enum):
            inner = value.value if type(value.value) in _PLAIN else None
            return {"enum": self.code(kind, given=True), "name": value.name, "value": inner}
        if isinstance(value, FunctionType | type):
            self._look.met.setdefault(value, set()).add(self._look.path)
            return {"code of": f"{value.__module__}.{value.__qualname__}", "is": self.code(value, given=True)}
        if isinstance(value, BuiltinFunctionType) and value.__module__ == "builtins":
            return {"code of": f"builtins.{value.__qualname__}", "is": "builtin"}
        if isinstance(value, functools.partial) and kind is functools.partial and not vars(value):
            with self._kept_whole():  # by whose name nobody knows what it is called with
                held = [value.func, value.args, value.keywords]
                return {"partial": [self.plain(each, depth - 1) for each in held]}
        if isinstance(value, functools._lru_cache_wrapper):
            more = {name: self.plain(each, depth - 1) for name, each in vars(value).items() if name not in _OF_WRAPPERS}
            return {"remembers": self.plain(vars(value).get("__wrapped__"), depth - 1), "beside": more}
        if isinstance(value, MethodType):
            with self._kept_whole():
                return {"method": self.plain(value.__func__, depth - 1), "of": self.plain(value.__self__, depth - 1)}
        known = parts_of_known(value)
        if known is not None:
            with self._kept_whole():  # a method of something may give all of it
                return {_IS: ["known", *(self.plain(each, depth - 1) for each in known)]}
        fields = fields_of(value)
        if fields is not None:
            self._look.met.setdefault(kind, set()).add(self._look.path)
            is_, given = self.code(kind, given=True), fields_set(value)  # first: it says what is done with the fields
            foreign = not all(base is object or self._modules.is_own(base.__module__) for base in kind.__mro__)
            about = self._fields(fields, depth, is_kept=foreign or is_pydantic(value))  # which may give all it holds
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
        seen, kind = self._look.seen, type(value)
        self._look.met.setdefault(kind, set()).add(self._look.path)
        if id(value) in seen:  # a child names its parent, which holds it
            later = "" if self._look.is_whole else self._look.path  # by which anybody may have it
            self._look.again.add((self._look.first[id(value)], later))
            return {_IS: ["met before", seen[id(value)]]}
        seen[id(value)] = len(seen)
        self._look.first[id(value)] = self._look.path
        said: dict[str, Any] = {"code of": f"{kind.__module__}.{kind.__qualname__}", "is": self.code(kind, given=True)}
        held, code = dict(attributes_in(value)), self._look.used[said["is"]]
        is_made = hasattr(kind, "__dataclass_fields__") or hasattr(kind, "__attrs_attrs__")  # others read all fields
        for name, each in [*held.items()]:
            if name not in self._look.asked and not is_made and code.only_adds(name, each):
                self._look.added.add(name)
                del held[name]
        said["fields"] = self._fields(held, depth)
        return said

    def _fields(self, held: Mapping[str, Any], depth: int, *, is_kept: bool = False) -> dict[str, Any]:
        """Return what stands for the fields of an object, those left out that change no answer."""
        path, out = self._look.path, dict[str, Any]()
        for name, each in held.items():
            self._look.path = f"{path}.{name}"
            if not self._is_harmless(each):
                out[name] = (not is_kept and "." not in name and self._left(each)) or self._field(name, each, depth - 1)
        self._look.path = path
        return out

    def _settings(self, held: Mapping[str, Any], depth: int) -> dict[str, Any]:
        """Return what stands for the settings of a program, and only the names of those that no code asks for."""
        path, unasked = self._look.path, set[str]()
        for name in held:
            self._look.path = f"{path}.{name}"
            if self.leaves_settings and "." not in name and self._is_unasked():
                unasked.add(name)
        self._look.path = path
        out = self._fields({name: each for name, each in held.items() if name not in unasked}, depth)
        return out | {name: {_IS: ["unasked"]} for name in sorted(unasked)}

    def _entries(self, held: Mapping[Any, Any], depth: int) -> dict[Any, Any]:
        """Return what stands for the entries of a dict, those left out that change no answer."""
        path, out = self._look.path, dict[Any, Any]()
        for key, each in held.items():
            is_plain = type(each) in _NUMBERS or (type(each) is str and "." not in each)
            if type(key) is not str or (is_plain and not self._names_parts):
                out[key] = self.plain(each, depth - 1)
                continue
            if "." in key:  # whose path would say something else
                with self._kept_whole():
                    out[key] = self.plain(each, depth - 1)
                continue
            self._look.path = f"{path}.{key}"
            if not self._is_harmless(each):
                out[key] = self._left(each) or self.plain(each, depth - 1)
        self._look.path = path
        return out

    @contextlib.contextmanager
    def _kept_whole(self) -> Iterator[None]:
        """Leave no field out of what is read."""
        before, self._look.is_whole = self._look.is_whole, True
        try:
            yield
        finally:
            self._look.is_whole = before

    def _is_harmless(self, value: Any) -> bool:
        """Whether what is being read is said to change no answer; then a file that it names does not, either."""
        if self._look.path not in self.harmless:
            return False
        self._look.harmless.update([os.fspath(value)] if isinstance(value, str | PurePath) else ())
        return True

    def _left(self, value: Any) -> Any:
        """Return what stands for a field that names a file which does not count, since nobody reads it there."""
        if type(value) is str and "." in value and value in self.harmless:
            return _path_only(value)
        is_path = (type(value) is str and may_be_path(value)) or (isinstance(value, PurePath) and is_bare_path(value))
        return _path_only(value) if is_path and self._is_unasked() else None

    def _is_unasked(self) -> bool:
        """Whether no code that is known by now asks for what is being read; notes that it is left out."""
        path = self._look.path
        if self._look.is_whole or path in self._look.asked or not self._look.leaves(path):
            return False
        self._look.left.add(path)
        return True

    def _field(self, name: str, value: Any, depth: int) -> Any:
        """Return what stands for a field of an object."""
        if isinstance(value, str | PurePath) and name not in self._look.asked and self._look.only_writes(name):
            self._look.written.add(name)
            return _path_only(value)
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


def _path_only(path: str | PurePath) -> dict[str, Any]:
    """Return what stands for a path whose file does not count: no name of a file any more."""
    return {_IS: ["path of", Key({"path": os.fspath(path)}).hex]}
