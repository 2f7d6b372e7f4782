"""What your own code asks for by text: `getattr`, `vars`, `globals`, `eval`, `import_module`.

Such code is taken to mean all that its texts name, and whatever is plain or code in the modules of yours that it names;
so is code that holds a module of yours as a value. A module that is handed on (`apply(x, settings)`) is asked for every
name that any code of yours asks for. Of functions and classes that are met only so, their own code counts, and of what
they name in turn what can be read: a module may have much in it that a model never uses, clients and locks among it.
"""

from __future__ import annotations

import functools
import hashlib
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from marshal import dumps
from operator import attrgetter
from types import FunctionType, MappingProxyType, ModuleType
from typing import Any

from lmstash.identity.code.alone import attributes_of, by_itself, functions_in, is_settings, words_asked
from lmstash.identity.code.bytecode import globals_in, imports_in, in_order, names_in, plain_component, texts_in
from lmstash.identity.code.class_members import is_word
from lmstash.identity.code.closures import variables_of
from lmstash.identity.code.digests import CodeGraph
from lmstash.identity.code.handed_on import modules_named
from lmstash.identity.code.named_modules import IMPORTS, RESOLVERS, file_of_module, files_named
from lmstash.identity.code.operators import is_known, is_space, kernels_of, look_at_registered
from lmstash.identity.code.operators_asked import OperatorsAsked
from lmstash.identity.code.owners import defined_in, is_foreign, owner_of
from lmstash.identity.code.uses import COUNTED, READ, uses_of
from lmstash.identity.code.words import ANY_NAME, TABLES, texts_within
from lmstash.identity.encoding import Component, encode

_OF_MODULES = frozenset({"__name__", "__module__"})
"""By which it finds a module in `sys.modules`: the one that it lies in itself."""
_GLOBALS = TABLES - {"vars"}
_WORD = re.compile(r"[A-Za-z_]\w*")
_DEEP = 4
"""How far into dicts and lists of functions."""


class CodeByText(CodeGraph):
    """Collects code, and what your own of it asks for by text. Not for several threads at once."""

    def __init__(self, *, installed_by_version: bool = False, pin_of: Callable[[str], Component] | None = None) -> None:
        """Begin with nothing; takes what `CodeGraph` takes."""
        super().__init__(installed_by_version=installed_by_version, pin_of=pin_of)
        self._within = 0
        self._size: Any = None
        self._asked: set[str] = set()
        self._operators, self._watched_operators = OperatorsAsked(), set[str]()
        self._handed: dict[str, ModuleType] = {}
        self._alone: dict[int, FunctionType | type] = {}
        self._n_read = 0
        self._importing: list[FunctionType] = []
        self._functions_of_yours: dict[str, FunctionType] = {}
        self._classes_of_yours: dict[str, type] = {}
        self._told: set[tuple[int, str]] = set()

    def add(self, code: Any) -> str:
        """Read a class, function or builtin and what it leads to; return its qualified name."""
        known = self._seen.get(id(code))
        if known is not None:
            return known
        self._within += 1
        try:
            name = super().add(code)
        finally:
            self._within -= 1
        self._complete()
        return name

    def add_module(self, module: ModuleType) -> str:
        """Read what is plain or code in a module of yours that something holds, which may ask for any of it."""
        if self.is_yours(module.__name__):
            self._add_all(vars(module), f"{module.__name__}:")
            self._complete()
        elif self._operators.see_value(module):
            self._complete()
        return module.__name__

    def is_yours(self, module: str) -> bool:
        """Return whether a module is one whose code and values follow from nobody's version."""
        if not is_foreign(module) or not self._is_own(module) or owner_of(module) == "lmstash":
            return False
        return self._pin_of is None or self._pin_of(module) is None

    def watch_operator(self, name: str) -> None:
        """Have `unchanged` say no once something else computes an operator, or torch knows other ones."""
        if name not in self._watched_operators and not is_known(name):
            self.watch(partial(kernels_of, name))
            if not self._watched_operators:
                self.watch(look_at_registered())
            self._watched_operators.add(name)

    # --- what any code may ask of what any other holds ----------------------------------------------------------------

    def _complete(self) -> None:
        """Read what any code that was read may ask of the modules that were handed on, of functions and classes."""
        if self._within:
            return
        self._within += 1
        try:
            while self._size != (now := self._sizes()):
                self._size = now
                for each in [*self._alone.values()][self._n_read :]:
                    self._n_read += 1
                    self._add_what_it_names(each)
                for name, module in list(self._handed.items()):
                    table = vars(module)
                    if not ANY_NAME.isdisjoint(self._asked):
                        self._add_all(table, f"{name}:")
                    self._add_values(table, self._asked & table.keys(), f"{name}:")
                self._add_of_functions()
                self._add_of_classes()
                self._add_by_texts()
                for name, op in self._operators.found(self._asked).items():
                    self.watch_operator(name)
                    self._put(op, f"torch.ops {name}")
        finally:
            self._within -= 1

    def _sizes(self) -> tuple[int, ...]:
        met = self._asked, self._handed, self._alone, self._functions_of_yours, self._classes_of_yours
        return (*map(len, met), self._operators.size)

    def _add_of_functions(self) -> None:
        """Read attributes of functions, but for numbers that code only counts up."""
        bearing = {id(each): (name, each) for name, each in self._functions_of_yours.items() if attributes_of(each)}
        if not bearing:
            return
        uses = {use for each in self._functions_of_yours.values() for use in uses_of(each.__code__)}
        counted = {name for name, use in uses if use == COUNTED} - {name for name, use in uses if use == READ}
        for name, function in bearing.values():
            held = attributes_of(function)
            numbers = {each for each in held.keys() & counted if type(held[each]) in (int, float)}
            self._add_values(vars(function), held.keys() - numbers, f"{name}.")

    def _add_of_classes(self) -> None:
        """Read what code that asks for it finds by a class: classes made of it, its module, its docstring."""
        if {"modules", "__module__"} <= self._asked:
            for module in sorted({each.__module__ for each in self._classes_of_yours.values()}):
                self._add_all(vars(sys.modules.get(module, object)), f"{module}:")
        for name, cls in list(self._classes_of_yours.items()):
            if "__doc__" in self._asked:
                self._count_alone(f"{name}.__doc__", encode(plain_component(cls.__doc__)))
            if "__subclasses__" in self._asked and (id(cls), "__subclasses__") not in self._told:
                self._told.add((id(cls), "__subclasses__"))
                self.watch(partial(type.__subclasses__, cls))
                for number, each in enumerate(type.__subclasses__(cls)):
                    self._link(f"{name} has {number}", self.add(each))

    def _add_by_texts(self) -> None:
        """Read the modules that texts name, in code that imports by text, in globals and classes that it names."""
        for function in self._importing:
            names, table = {*names_in(function.__code__)}, function.__globals__
            held = [table.get(each) for each in names]
            held += [
                vars(cls).get(each) for cls in self._classes_of_yours.values() for each in names & vars(cls).keys()
            ]
            held += [*texts_in(function.__code__), function.__defaults__, function.__kwdefaults__]
            for text in sorted({each for each in texts_within(held) if isinstance(each, str)}):
                if not self.is_yours(text.partition(".")[0] or str(table.get("__package__"))):
                    continue
                for module, digest in files_named(text, table.get("__package__")):
                    self._units[f"{defined_in(function)}.{function.__qualname__} may import {module}"] = digest
                    if module in sys.modules:
                        self._add_all(vars(sys.modules[module]), f"{module}:")

    def _see_asking(self, function: FunctionType) -> None:
        """Note what a function of yours asks for, and the modules that it hands on."""
        code, table = function.__code__, function.__globals__
        words = words_asked(code)
        self._asked |= words
        self._operators.see(code, words)
        if not RESOLVERS.isdisjoint(names_in(code)):
            self._importing.append(function)
        for name in sorted(globals_in(code) & table.keys()):
            each = table[name]
            if isinstance(each, attrgetter):
                self._asked.update(word for text in each.__reduce__()[1] for word in str(text).split("."))
            elif self._operators.see_global(each, name, code):
                self._place(table, name, each)
                if is_space(each):
                    self._link(f"{defined_in(function)}:{name}", each.__name__)
        for _, module, is_handed in modules_named(function, self.is_yours):
            if is_handed and module.__name__ not in self._handed:
                self._handed[module.__name__] = module
                self.watch(partial(len, vars(module)))  # what is asked for may come later

    def _add_bytecode(self, function: FunctionType, name: str) -> str:
        name = super()._add_bytecode(function, name)
        if self.is_yours(defined_in(function)):
            self._functions_of_yours[name] = function
            self._see_asking(function)
            table = vars(function)
            self.watch(partial(len, table)) if table else self._watch_table(table)
        return name

    def _add_class(self, cls: type) -> str:
        name = super()._add_class(cls)
        if self.is_yours(cls.__module__):
            self._classes_of_yours[name] = cls
            made_by: Any = type(cls).__module__  # a descriptor, of classes that Cython makes
            if isinstance(made_by, str) and self.is_yours(made_by):
                self._link(f"{name} is made by", self.add(type(cls)))
            for key, member in list(vars(cls).items()):
                if isinstance(member, functools.singledispatchmethod):
                    self._add_registry(member.dispatcher.registry, f"{name}.{key}")
        return name

    def _add_closure(self, function: FunctionType, name: str) -> None:
        super()._add_closure(function, name)
        registry = vars(function).get("registry")
        if defined_in(function) == "functools" and isinstance(registry, MappingProxyType):
            self._add_registry(registry, name)

    def _add_registry(self, registry: Mapping[Any, Any], name: str) -> None:
        """Read what of yours is called for which type."""
        self.watch(lambda: list(registry.items()))
        for kind, function in list(registry.items()):
            if self.is_yours(defined_in(function)):
                self._follow(defined_in(function), function, f"{name} for {kind.__module__}.{kind.__qualname__}")

    def _values_of(self, cls: type) -> Component:
        held = super()._values_of(cls)
        if not self.is_yours(cls.__module__):
            return held
        return [[each for each in vars(cls) if not is_word(each)], in_order([held])]

    def _follow(self, here: str, value: Any, name: str) -> None:
        super()._follow(here, value, name)
        if (
            isinstance(value, dict | list | tuple)
            and self.is_yours(here)
            and (data := self._encoded(value)) is not None
        ):
            self._units[name] = hashlib.sha256(self._ordered(value, data)).hexdigest()

    def _ordered(self, value: Any, data: bytes) -> bytes:
        """Return what tells a plain value of yours from others: the order of a dict, too, which code may go through."""
        return encode(in_order(value)) if isinstance(value, dict | list | tuple) else data

    def _mutable(self, value: Any) -> bytes | None:
        if not isinstance(value, list | dict | set):
            return None
        try:
            return dumps(value, 2)  # exact in types and order, and quick; 2 has no references in it
        except ValueError:
            return None

    # --- what code names ---------------------------------------------------------------------------------------------

    def _names_beside(self, function: FunctionType) -> frozenset[str]:
        if not self._is_own(defined_in(function)) or _GLOBALS.isdisjoint(names_in(function.__code__)):
            return frozenset()
        texts = (each for each in texts_in(function.__code__) if isinstance(each, str))
        return frozenset(word for each in texts for word in _WORD.findall(each))

    def _add_globals(self, function: FunctionType, name: str, owner: str) -> None:
        super()._add_globals(function, name, owner)
        here, names = defined_in(function), {*names_in(function.__code__)}
        if not self._is_own(here):
            return
        asked = globals_in(function.__code__) & _GLOBALS  # not `model.eval()`
        if asked or "globals" in names or ("modules" in names and not _OF_MODULES.isdisjoint(names)):
            self._add_all(function.__globals__, f"{here}:")
        if (IMPORTS | {"modules"}).isdisjoint(names):
            return
        for each in sorted({each for each in texts_in(function.__code__) if isinstance(each, str)}):
            if not all(map(str.isidentifier, each.split("."))) or not is_foreign(each):
                continue
            if each in sys.modules:
                self._add_import(here, each, names, name)
            elif "." not in each and not IMPORTS.isdisjoint(names):
                self._units[f"{name} may import {each}"] = file_of_module(each)

    def _add_named(self, here: str, module: ModuleType, names: set[str], place: str, seen: set[str]) -> None:
        super()._add_named(here, module, names, place, seen)
        if not (self._is_own(here) and self.is_yours(module.__name__)):
            return
        if not ANY_NAME.isdisjoint(names):
            self._add_all(vars(module), f"{module.__name__}:")
        self._add_values(vars(module), {"__getattr__"} & vars(module).keys(), f"{module.__name__}:")

    # --- what is read by itself --------------------------------------------------------------------------------------

    def _add_all(self, table: Mapping[str, Any], place: str) -> None:
        """Read all that is plain or code in a module, each by itself."""
        if id(table) in self._seen:
            return
        self._seen[id(table)] = place
        self._alive.append(table)
        self.watch(partial(len, table))
        self._add_values(table, {each for each in list(table) if not str(each).startswith("__")}, place)

    def _add_values(self, table: Mapping[str, Any], names: Iterable[str], place: str) -> None:
        """Read what is plain, code or settings of what lies in a table under some names."""
        fixed: list[str] = []
        for name in sorted(each for each in names if isinstance(each, str)):
            value = table.get(name)
            if (id(table), name) not in self._told and self._is_known(value, f"{place}{name}", _DEEP):
                self._told.add((id(table), name))
                if self._mutable(value) is None:
                    fixed.append(name)
                else:
                    self._place(table, name, value)
        if fixed:
            self._alive.append(table)
            self.watch_names(table, fixed)

    def _is_known(self, value: Any, place: str, depth: int) -> bool:
        """Read a value by itself; return whether it can be."""
        if isinstance(value, FunctionType | type):
            return self._add_alone(value, place)
        if (data := self._encoded(value)) is not None:
            self._count_alone(place, self._ordered(value, data))
        elif is_settings(value):
            self._put(value, f"{place} alone")
        elif self._operators.see_value(value):
            self._link(place, value.__name__)
        elif isinstance(value, dict | list | tuple) and depth:
            inner = value.items() if isinstance(value, dict) else enumerate(value)
            known = [self._is_known(each, f"{place}[{key!r}]", depth - 1) for key, each in inner if _is_short(key)]
            if not any(known):
                return False
            self.watch(partial(_entries, value))
        else:
            inner = getattr(value, "__wrapped__", None)
            return isinstance(inner, FunctionType) and self._add_alone(inner, place)
        return True

    def _add_alone(self, code: FunctionType | type, place: str) -> bool:
        if not self.is_yours(defined_in(code)):
            return False
        if id(code) not in self._alone:
            self._alone[id(code)] = code
            self._watch_code(code)
        self._count_alone(place, encode(by_itself(code)))
        return True

    def _count_alone(self, place: str, data: bytes) -> None:
        place, digest = f"{place} alone", hashlib.sha256(data).hexdigest()
        while self._units.setdefault(place, digest) != digest:
            place += "'"

    def _put(self, value: Any, place: str) -> None:
        while self.objects.setdefault(place, value) is not value:
            place += "'"

    def _add_what_it_names(self, code: FunctionType | type) -> None:
        """Read what can be read of what code names that is met by itself."""
        if id(code) in self._seen:  # it has been followed
            return
        if isinstance(code, type):
            for base in code.__bases__:
                self._add_alone(base, f"{base.__module__}.{base.__qualname__}")
        for function in functions_in(code):
            here, table = defined_in(function), function.__globals__
            if not self.is_yours(here) or id(function) in self._seen:
                continue
            self._see_asking(function)
            names = {*names_in(function.__code__)}
            self._add_values(
                table, (globals_in(function.__code__) | self._names_beside(function)) & table.keys(), f"{here}:"
            )
            loaded = map(sys.modules.get, sorted({*imports_in(function.__code__, table.get("__package__"))}))
            named = (table[each] for each in sorted(names & table.keys()))
            for module in (*named, *loaded):
                if isinstance(module, ModuleType) and self.is_yours(module.__name__):
                    self._add_values(
                        vars(module), (names | {"__getattr__"}) & vars(module).keys(), f"{module.__name__}:"
                    )
            for variable, cell, held in variables_of(function):
                self._is_known(held, f"{here}.{function.__qualname__}:{variable}", _DEEP)
                self._cells.append((cell, held, self._mutable(held)))

    def _watch_code(self, code: Any) -> None:
        if isinstance(code, FunctionType):
            self._functions.append((code, code.__code__, code.__defaults__, code.__kwdefaults__))
            table: Mapping[Any, Any] = {**dict(enumerate(code.__defaults__ or ())), **(code.__kwdefaults__ or {})}
        else:
            self.watch_class(code)
            table = vars(code)
        for name, value in list(table.items()):
            if self._mutable(value) is not None:
                self._place(table, name, value)


def _entries(held: Any) -> list[Any]:
    return [*held.items()] if isinstance(held, dict) else [*held]


def _is_short(key: Any) -> bool:
    return isinstance(key, str | int)
