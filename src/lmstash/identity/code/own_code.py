"""All of your own code that a function leads to, by all that anybody may look at.

Beside what `CodeGraph` reads, these count: annotations and docstrings, the order of dicts and of what lies in classes,
attributes of functions, members of enums and what hangs on them, what is registered with a `singledispatch`,
metaclasses, and what a library's wrapper holds. Packages that are installed and say their version count by that; the
one that the function itself lies in is always read. What is neither plain nor code lies in `objects`.
"""

from __future__ import annotations

import builtins
import functools
import hashlib
import re
import string
import sys
from collections.abc import Mapping
from enum import EnumMeta
from inspect import Signature
from types import FunctionType, MappingProxyType, ModuleType
from typing import Any

from lmstash.errors import InvalidArgumentError
from lmstash.identity.code.annotations import annotations_lying_on, annotations_of, taken_apart, words_in
from lmstash.identity.code.bytecode import (
    encoded,
    globals_in,
    imports_in,
    in_order,
    is_plain,
    names_in,
    parts_of,
    plain_component,
    texts_in,
)
from lmstash.identity.code.class_members import counts_in_class, holder_of, is_constructor_of, is_word
from lmstash.identity.code.closures import is_empty, variables_of
from lmstash.identity.code.files import FilesInCode
from lmstash.identity.code.large_values import PlainValues
from lmstash.identity.code.own_modules import OwnModules
from lmstash.identity.code.owners import defined_in, owner_of
from lmstash.identity.code.settings_classes import variables_of_settings
from lmstash.identity.code.templates import is_template, texts_of_template
from lmstash.identity.code.words import (
    ANY_NAME,
    ENVIRONMENT,
    RUN,
    SOURCE,
    TABLES,
    SourceText,
    all_words_in,
    is_environment,
    words_within,
)
from lmstash.identity.content.object_parts import parts_held
from lmstash.identity.encoding import Component, encode

_DEEP = 4
"""How far into an object that a package has made of your settings."""
_NESTED = 50
_OF_MEMBERS = frozenset({"_name_", "__objclass__", "_sort_order_", "_inverted_"})
"""What each member of an enum bears, without meaning."""
_ADDRESS = re.compile(" at 0x[0-9a-fA-F]+")


class OwnCode(OwnModules):
    """Collects the code that one function or class leads to. Not for several threads at once.

    Attributes:
        words: Texts in the code that are words: each may name an attribute, or a variable of the environment.
        told: Words in texts that are templates or code, of which the same holds.
        functions, classes: Those of your own that were read.
        reads_environment: Whether any of it names the environment.
    """

    def __init__(self, package: str, code: Any, *, given: bool = False) -> None:
        """Read.

        Args:
            package: Never taken by its version: the one that the function lies in which all this is for.
            code: A function or class.
            given: Whether it is an argument, of which anybody may ask for any attribute.
        """
        super().__init__(package)
        self._names: set[str] = set()
        self._met: list[tuple[FunctionType, str]] = []
        self.classes: list[type] = []
        self._first = code
        self._said: list[tuple[FunctionType, str | None, str, Any]] = []
        self._taken: dict[int, str] = {}
        self._encoded_last: tuple[Any, bytes | None] = (None, None)
        self._plain_values = PlainValues()
        self._attributes: set[str] = set()
        self.words, self.told, self.files = set[str](), set[str](), FilesInCode(sees_all=True)
        self.reads_environment = False
        self.add(code)
        self._complete(code if given else None)
        self.functions = own = [each for each, _ in self._met if self._is_own(defined_in(each))]
        words = self.told if (ANY_NAME | TABLES).isdisjoint(self._names) else self.told | self.words
        self._leave_out_added(own, self.classes, words)
        self.reads_environment |= not ENVIRONMENT.isdisjoint(self._names | self.words)

    def unchanged(self) -> bool:
        """Return whether all of it is as it was read."""
        for function, doc, name, said in self._said:
            if function.__doc__ is not doc or function.__name__ != name:
                return False
            if said is not None and function.__annotations__ is not said:
                return False
        return super().unchanged()

    def _complete(self, given: Any) -> None:
        """Follow what any code that was read may ask of any function, class or module that was read."""
        self._follow_all(given)
        # What is found beside names in code may be there for anything: what cannot be read of it refuses nothing.
        self._is_aside = True
        more = True
        while more:
            more = self._add_asides(self._names, self.words | (self.told - ANY_NAME))
            self._follow_all(given)
        if "__subclasses__" in self._names | self.words:
            for cls in self.classes:
                self.watch(functools.partial(type.__subclasses__, cls))

    def _follow_all(self, given: Any) -> None:
        before: Any = None
        while before != (now := (len(self._met), len(self._units), len(self._names | self.words))):
            before, asked = now, self._names | self.words
            if self._is_aside:
                asked |= self.told - ANY_NAME
            by_any_name = not ANY_NAME.isdisjoint(asked)
            for function, name in list(self._met):
                own, held = self._is_own(defined_in(function)), vars(function)
                of_all = own and (by_any_name or function is given)
                for each in sorted(held.keys() if of_all else held.keys() & asked):
                    self._add_attribute(function, each, f"{name}.{each}", own)
            self._add_asked(asked, self._names)
            if "__subclasses__" in asked:
                for cls in list(self.classes):
                    for number, each in enumerate(type.__subclasses__(cls)):
                        self._link(f"{_name_of(cls)} has {number}", self.add(each))

    def _add_attribute(self, function: FunctionType, attribute: str, place: str, own: bool) -> None:
        if place in self._attributes or attribute == "__wrapped__" or defined_in(function) == "functools":
            return
        self._attributes.add(place)
        value = vars(function)[attribute]
        self._place(vars(function), attribute, value)
        if own:
            self._follow("", value, place)
        else:
            self._take(value, place, _DEEP)

    # --- plain values ------------------------------------------------------------------------------------------------

    def _encoded(self, value: Any) -> bytes | None:
        if not isinstance(value, dict | list | tuple):
            return encoded(value)
        if self._encoded_last[0] is not value:  # asked for twice in a row
            try:
                data = encode(in_order(value))
            except InvalidArgumentError:
                data = None
            self._encoded_last = (value, data)
        return self._encoded_last[1]

    def _mutable(self, value: Any) -> bytes | None:
        return self._plain_values.sign(value)

    def _also(self, name: str, *what: Any) -> None:
        """Count something more of what goes by a name."""
        digest = hashlib.sha256(encode(in_order(what))).hexdigest()
        while self._units.setdefault(name, digest) != digest:
            name += "'"

    def _values_of(self, cls: type) -> Component:
        held = {key: value for key, value in list(vars(cls).items()) if counts_in_class(key)}
        self._see_texts(held)
        self.files.see_values(held, holder_of(cls, self._first, self._is_own))
        if str(held.get("__doc__")).startswith(f"{cls.__name__}("):  # written by `dataclass`, with its defaults' `repr`
            held["__doc__"] = _ADDRESS.sub("", held["__doc__"])
        names = [key for key in held if not is_word(key)]  # what Python and others put there may come in any order
        words = [each for each in sorted(held.items()) if is_word(each[0]) and is_plain(each[1])]
        return [names, [[key, in_order(plain_component(value))] for key, value in words]]

    # --- functions ---------------------------------------------------------------------------------------------------

    def _note(self, code: Any, name: str, *what: Component, own: bool = False) -> str:
        return super()._note(code, name, *what, own=own or self._is_own(defined_in(code)))

    def _add_function(self, function: FunctionType) -> str:
        name = super()._add_function(function)
        self._met.append((function, name))
        self.reads_environment |= is_environment(function)
        wrapped = vars(function).get("__wrapped__")
        if wrapped is not None:
            self.watch_names(vars(function), ["__wrapped__"])
            self._follow("", wrapped, f"{name} wraps")
        if self._is_own(defined_in(function)):
            self._add_words(function, name)
        return name

    def _add_words(self, function: FunctionType, name: str) -> None:
        """Read what a function of your own says beside its code."""
        code, defaults = function.__code__, [function.__defaults__, function.__kwdefaults__]
        self.files.see(function, is_first=is_constructor_of(self._first, function))
        self._names.update(names_in(code))
        self._see_texts([*texts_in(code), defaults])
        self._also(f"{name} says", function.__doc__, function.__name__, in_order(plain_component(defaults)))
        self._said.append((function, function.__doc__, function.__name__, annotations_lying_on(function)))
        for table in (vars(function), function.__kwdefaults__):
            if table is not None:
                self._watch_table(table)
        self._add_annotations(function, name)
        for each in {*imports_in(code, function.__globals__.get("__package__"), by_call=True)}:
            self._place(sys.modules, each, sys.modules.get(each))
            self._touched.see_import(each)
        for each in SOURCE & {*names_in(code)}:
            self._put(SourceText(), f"{name}:{each}")
        for cell in filter(is_empty, function.__closure__ or ()):
            self.watch(functools.partial(is_empty, cell))
        table = function.__globals__
        missing = sorted((globals_in(code) | self._names_beside(function)) - table.keys())
        for each in missing:
            self._place(table, each, None)  # it may come later
            value = vars(builtins).get(each)
            if is_plain(value) or isinstance(value, FunctionType):  # put there by somebody
                self._place(vars(builtins), each, value)
                self._follow("", value, f"{name}:{each}")

    def _names_beside(self, function: FunctionType) -> frozenset[str]:
        if not self._is_own(defined_in(function)):
            return frozenset()
        told = {word for each in annotations_of(function).values() for word in words_in(each)}
        if not TABLES.isdisjoint(names_in(function.__code__)):
            told.update(each for each in texts_in(function.__code__) if isinstance(each, str))
        return frozenset(told)

    def _add_globals(self, function: FunctionType, name: str, owner: str) -> None:
        super()._add_globals(function, name, owner)
        if not self._is_own(defined_in(function)):
            return
        self._see_handed_on(function, name)
        if self._handed:  # with whatever lies in a module
            self.files.holders.hand_on_all()
        table, named = function.__globals__, {*names_in(function.__code__)}
        if not TABLES.isdisjoint(named):
            self._tables[id(table)] = table
        if not RUN.isdisjoint(named):
            self.told |= all_words_in([*texts_in(function.__code__), *map(table.get, named & table.keys())])

    def _see_texts(self, value: Any) -> None:
        self.words |= words_within(value, self.told)

    def _add_annotations(self, owner: Any, name: str) -> None:
        said = annotations_of(owner)
        self._also(f"{name} annotates", list(said))
        for key, value in said.items():
            self._take(value, f"{name} annotates {key}", _NESTED, watched=True)
        table = vars(owner).get("__annotations__") if isinstance(owner, type) else annotations_lying_on(owner)
        if isinstance(table, dict):
            self._watch_table(table)

    def _add_closure(self, function: FunctionType, name: str) -> None:
        if self._is_own(defined_in(function)):
            super()._add_closure(function, name)
            return
        if owner_of(defined_in(function)) == "lmstash" and "__wrapped__" in vars(function):
            for variable, _, held in variables_of(function):  # a cached function adds whose answers those are
                if owner_of(type(held).__module__) == "lmstash":
                    self._put(held, f"{name} by {variable}")
            return
        registry = vars(function).get("registry")
        if defined_in(function) == "functools" and isinstance(registry, MappingProxyType):
            self._add_registry(registry, name)
            return
        # What such a wrapper calls is known by `__wrapped__`; without that, whatever it holds may be what it calls.
        for variable, cell, held in variables_of(function):
            self._cells.append((cell, held, self._mutable(held)))
            if "__wrapped__" in vars(function):
                self._take(held, f"{name}:{variable}", _DEEP)
            else:
                self._follow("", held, f"{name}:{variable}")

    def _add_registry(self, registry: Mapping[Any, Any], name: str) -> None:
        """Read what is called for which type."""
        self.watch(lambda: list(registry.items()))
        for number, (kind, function) in enumerate(list(registry.items())):
            self._follow("", kind, f"{name} for {number}")
            self._follow("", function, f"{name} calls {number}")

    # --- classes -----------------------------------------------------------------------------------------------------

    def _add_class(self, cls: type) -> str:
        name = super()._add_class(cls)
        if not self._is_own(cls.__module__):
            return name
        self.classes.append(cls)
        variables = variables_of_settings(cls)
        self.reads_environment |= variables is not None
        self.words |= variables or set()
        for key, value in list(vars(cls).items()):
            if counts_in_class(key) and not is_word(key) and is_plain(value):
                said = hashlib.sha256(encode(in_order(plain_component(value)))).hexdigest()
                self._units[f"{name}:{key}"] = said  # one by one: each may be harmless
        if type(cls) is not type:
            self._link(f"{name} is made by", self.add(type(cls)))
        self._add_annotations(cls, name)
        words = sorted({word for each in annotations_of(cls).values() for word in words_in(each)})
        for word in words:
            self._add_named_in(cls.__module__, word, words, name)
        members = cls.__members__ if isinstance(cls, EnumMeta) else {}
        for key, member in members.items():
            self._watch_table(vars(member))
            for each, value in sorted(vars(member).items()):
                if each not in _OF_MEMBERS:
                    self._follow(cls.__module__, value, f"{name}.{key}.{each}")
        for key, member in list(vars(cls).items()):
            if self._is_own(type(member).__module__) and type(member) is not cls:  # a `property` of your own, say
                self._link(f"{name}.{key} is of", self.add(type(member)))
            if isinstance(member, functools.singledispatchmethod):
                self._add_registry(member.dispatcher.registry, f"{name}.{key}")
            elif is_word(key):
                is_made = callable(member) and not isinstance(member, type) and not isinstance(member, Signature)
                if counts_in_class(key) and not is_made and key not in ("__annotations__", "__doc__"):
                    self._take(member, f"{name}.{key}", _DEEP, watched=True)
            elif members and key not in members and not key.startswith("_"):
                for number, part in enumerate(parts_of(key, member)):
                    if type(part).__module__ != "enum" and not isinstance(part, FunctionType):
                        self._follow(cls.__module__, part, f"{name}.{key} {number}")
        return name

    # --- other objects -----------------------------------------------------------------------------------------------

    def _follow(self, here: str, value: Any, name: str) -> None:
        self._touched.see(value)
        called = re.split("[:.]", name)[-1]
        if "__dataclass_fields__" not in name:  # of which the class and its constructor say the same
            self.files.see_value(called, value)
        if isinstance(value, type) and called != value.__name__:  # who asks of it does so by another name
            self.files.holders.hand_on(value.__name__)
        if isinstance(value, FunctionType | type) or self._encoded(value) is not None:
            self._see_texts(value)
            super()._follow(here, value, name)
        elif is_environment(value):
            self.reads_environment = True
        elif type(value) is string.Template or is_template(value):
            self._see_texts(value.template if type(value) is string.Template else texts_of_template(value))
            self._put(value, name)
        elif isinstance(value, ModuleType):
            self._also(f"{name} is", f"module {value.__name__}")
            self._modules[id(value)] = value
        elif taken_apart(value) is not None:
            self._take(value, name, _NESTED, watched=True)
        else:
            self._put(value, name)

    def _put(self, value: Any, place: str) -> None:
        while self.objects.get(place, value) is not value:
            place += "'"
        if place not in self.objects and self._is_aside:
            self.asides.add(place)
        self.objects[place] = value

    def _take(self, value: Any, place: str, depth: int, *, watched: bool = False) -> None:
        """Read an annotation, or what a package has made of your settings: of the latter, as far as one can see.

        Args:
            value: What is read.
            place: What it goes by.
            depth: How far it is looked into.
            watched: Whether it counts once it changes in place: what a wrapper holds does at each call.
        """
        apart = taken_apart(value)
        if apart is not None:
            self._also(f"{place} kind", apart[0])
            is_known = isinstance(apart[0], str) and apart[0].startswith("alias") and self._taken.get(id(value))
            self._taken.setdefault(id(value), place)
            self._alive.append(value)
            for number, each in enumerate(apart[1] if depth and not is_known else ()):
                self._take(each, f"{place}[{number}]", depth - 1, watched=watched)
        elif isinstance(value, FunctionType | type) or self._encoded(value) is not None:
            self._follow("", value, place)
            if watched and self._mutable(value) is not None:
                self._place({"": value}, "", value)
        elif self._is_own(type(value).__module__):
            self._put(value, place)
        elif id(value) in self._taken:
            self._also(f"{place} as", self._taken[id(value)])
        elif depth and not (isinstance(value, dict) and "__builtins__" in value):
            self._taken[id(value)] = place
            self._alive.append(value)
            self._follow("", type(value), f"{place} type")
            for name, each in parts_held(value):
                self._take(each, f"{place}.{name}", depth - 1, watched=watched)


def _name_of(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
