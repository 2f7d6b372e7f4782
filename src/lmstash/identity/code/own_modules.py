"""Your own modules that code names, hands on or imports, and whose code a module is: read, or known by its version."""

from __future__ import annotations

import functools
import gc
import sys
from collections.abc import Collection, Mapping
from itertools import chain
from types import FunctionType, MappingProxyType, ModuleType
from typing import Any

from lmstash.identity.code.class_members import is_word
from lmstash.identity.code.closures import variables_of
from lmstash.identity.code.digests import CodeGraph
from lmstash.identity.code.handed_on import asks_by_any_name, modules_named
from lmstash.identity.code.only_added import is_addable, used_in
from lmstash.identity.code.owners import hides_python, is_foreign, is_installed, owner_of, version_of
from lmstash.identity.code.touched_packages import TouchedPackages
from lmstash.identity.code.words import ANY_NAME
from lmstash.identity.encoding import Component


class OwnModules(CodeGraph):
    """What `OwnCode` knows of modules and packages.

    Attributes:
        adds: Names of attributes that your own code adds to, whatever else it does with them.
        asks: Names of attributes that it reads.
        any_name: Whether it may read attributes by any name.
        asides: Places of objects that were found only by names in texts, or by reading all of a module: one of them
            that cannot be read is no reason to refuse a call.
    """

    def __init__(self, package: str) -> None:
        """Begin with nothing.

        Args:
            package: Never taken by its version.
        """
        super().__init__(installed_by_version=True)
        self._imports_by_call = True
        self._package = package
        self._touched = TouchedPackages()
        self._modules: dict[int, ModuleType] = {}
        """Those that lie in objects, classes and such, by `id`: anybody may ask anything of them."""
        self._handed: dict[int, ModuleType] = {}
        """Those that a function names and hands on to other code."""
        self._tables: dict[int, dict[str, Any]] = {}
        """Globals of functions that reach them by texts."""
        self._asked_of: dict[int, set[str]] = {}
        self._asked_tables: set[int] = set()
        """The globals, by `id`, of modules that code asks for attributes."""
        self._called: dict[str, int] = {}
        self._is_aside = False
        self.any_name = False
        self.adds, self.asks = frozenset[str](), frozenset[str]()
        self.asides: set[str] = set()

    def packages(self) -> dict[Component, Component]:
        """Return {package: version} of the packages that the code lies in, or that your own code names."""
        roots = {name.partition(".")[0] for name in self._units}
        lies_in = {root: version_of(root) for root in sorted(roots) if self._by_its_version(root)}
        found = {**super().packages(), **self._touched.versions(self._may_say_version), **lies_in}
        return {root: version for root, version in found.items() if root != "lmstash"}

    def installed_modules(self) -> list[ModuleType]:
        """Return the modules of packages that count by their version, of those that your own code names."""
        modules = self._touched.modules.values()
        return [
            each for each in modules if is_installed(each.__name__) and self._by_its_version(owner_of(each.__name__))
        ]

    def is_own(self, module: str) -> bool:
        """Return whether a module's code is read, and not known by its package's version."""
        return self._is_own(module)

    # --- modules -----------------------------------------------------------------------------------------------------

    def _see_handed_on(self, function: FunctionType, name: str) -> None:
        """Note the modules of your own that a function hands on: other code may ask for anything in them."""
        self.any_name = self.any_name or asks_by_any_name(function.__code__)
        for each, module, is_handed in modules_named(function, self._is_own):
            if is_handed:
                self._handed.setdefault(id(module), module)
                self._units[f"{name}:{each} is"] = f"module {module.__name__}"

    def _add_asked(self, asked: set[str], named: set[str]) -> None:
        """Read what any code may ask of modules.

        Args:
            asked: Names that code asks for, words in its texts among them.
            named: Those that are no words in texts.
        """
        for module in list(self._modules.values()):
            if self._is_own(module.__name__):
                self._add_named("", module, asked, "", set())
        for module in list(self._handed.values()):
            self._add_named("", module, named - ANY_NAME, "", set())

    def _add_asides(self, named: set[str], told: set[str]) -> bool:
        """Read what code may ask of modules that are handed on without naming it, and what it asks of globals by texts.

        Of such a module all values count: a package, or a template in a file, may ask for any.

        Args:
            named: Names that code asks for.
            told: Words in its texts.

        Returns:
            Whether that was more than was known.
        """
        before = len(self._units), len(self.objects), len(self._modules)
        asked = named | told
        for module in list(self._handed.values()):
            names = asked if self.any_name else asked - ANY_NAME
            self._add_named("", module, names | _values_in(module), "", set())
        for table in list(self._tables.values()):
            done = self._asked_of.setdefault(id(table), set())
            for each in sorted((told & table.keys()) - done):
                done.add(each)
                self._place(table, each, table[each])
                self._follow("", table[each], f"{table.get('__name__')} by text:{each}")
        return before != (len(self._units), len(self.objects), len(self._modules))

    def _add_named(self, here: str, module: ModuleType, names: set[str], place: str, seen: set[str]) -> None:
        self._touched.see_within(module, names)
        if not self._is_own(module.__name__):
            super()._add_named(here, module, names, place, seen)
            return
        seen.add(module.__name__)
        self._alive.append(module)
        asked, held, called = self._asked_of.setdefault(id(module), set()), vars(module), module.__name__
        self._asked_tables.add(id(held))
        while self._called.setdefault(called, id(module)) != id(module):
            called += "'"  # another one of the same name
        if not ANY_NAME.isdisjoint(names):
            names = names | {each for each in held if not is_word(each)}
            if ANY_NAME.isdisjoint(asked):
                self.watch(functools.partial(len, held))
        names = names | {"__getattr__"}
        new = names - asked
        asked |= names
        self.watch_names(held, sorted(new - held.keys()))  # they may come later
        for attribute in sorted(names & held.keys()):
            value = held[attribute]
            if attribute in new:  # once, whoever asks: a module that many functions name is not read for each
                self._place(held, attribute, value)
                self._follow(here, value, f"{called}:{attribute}")
            if isinstance(value, ModuleType) and self._is_foreign(value.__name__) and value.__name__ not in seen:
                self._add_named(here, value, names, f"{place}{attribute}.", seen)

    # --- what changes no answer --------------------------------------------------------------------------------------

    def _leave_out_added(self, functions: list[FunctionType], classes: list[type], words: set[str]) -> None:
        """Leave out what all of your own code only adds to, in globals and classes.

        Args:
            functions: All of your own that were read.
            classes: All of your own that were read.
            words: By which any of it may be asked for.
        """
        used = [used_in(each.__code__) for each in functions]
        self.adds = frozenset[str]().union(*[each.added_attributes for each in used])
        self.asks = frozenset[str]().union(*[each.read_attributes for each in used])
        if self.any_name:
            return
        added = set[str]().union(*[each.added for each in used]) - words.union(*[each.read_variables for each in used])
        # An attribute of the same name may be one of theirs; of a global, only where its module is asked for it.
        attributes = {
            name for table, name, _, _ in self._places if _is_of_class(table) or id(table) in self._asked_tables
        }
        attributes.update(*[vars(each) for each in classes])
        only_globals = {name for _, name, _, _ in self._places if name in added} - attributes
        added -= set[str]().union(*[each.read_attributes for each in used]) - only_globals
        for module in [*self._handed.values(), *self._modules.values()]:
            added -= vars(module).keys()
        tables = {id(each.__globals__) for each in functions} | self._asked_of.keys()
        held = {name: value for _, name, value, _ in self._places if name in added}
        for table, name, value, _ in self._places:
            if name in added and not (is_addable(value) and (id(table) in tables or _is_of_class(table))):
                held[name] = None
        for variable, _, value in chain.from_iterable(map(variables_of, functions)):
            if variable in added:
                held[variable] = value if is_addable(held.get(variable, 0)) else None
        for cls in classes:
            for name in added & vars(cls).keys():
                held[name] = vars(cls)[name] if is_addable(held.get(name, 0)) and _is_simple(cls) else None
        names = {name for name, value in held.items() if is_addable(value)}
        if names:
            self._leave_out(names, functions, classes)

    def _leave_out(self, names: set[str], functions: list[FunctionType], classes: list[type]) -> None:
        for found in (self._units, self.objects):
            for place in [each for each in found if ":" in each and each.rpartition(":")[2].rstrip("'") in names]:
                del found[place]
        self._places = [each for each in self._places if each[1] not in names]
        for cls in classes:
            if any(name in names for name in vars(cls)):
                self._watch_without(vars(cls), names)
        out = {id(cell) for variable, cell, _ in chain.from_iterable(map(variables_of, functions)) if variable in names}
        self._cells = [each for each in self._cells if id(each[0]) not in out]
        for at, (table, watched, values) in enumerate(self._named):
            if not names.isdisjoint(watched):
                kept = [each for each in zip(watched, values, strict=True) if each[0] not in names]
                self._named[at] = (table, [name for name, _ in kept], [value for _, value in kept])

    def _watch_without(self, table: Mapping[str, Any], names: Collection[str]) -> None:
        """Watch a class, but for some names."""
        first = 0
        for at, each in enumerate(self._classes):
            if _dict_behind(each) is _dict_behind(table):
                del self._members[first : first + self._n_members[at]], self._classes[at], self._n_members[at]
                break
            first += self._n_members[at]
        self.watch(functools.partial(len, table))
        self.watch_names(table, [each for each in table if each not in names])

    def _add_named_in(self, module: str, word: str, words: list[str], name: str) -> None:
        """Read what a word in a class's annotations stands for in its module."""
        table = vars(sys.modules.get(module, object))
        value = table.get(word)
        if isinstance(value, ModuleType):
            self._add_named(module, value, set(words), f"{name}:", set())
        elif word in table:
            self._place(table, word, value)
            self._follow(module, value, f"{name}:{word}")

    # --- whose code it is --------------------------------------------------------------------------------------------

    def _owner(self, module: str) -> str:
        root = owner_of(module)
        return f"own {root}" if root == self._package or hides_python(root) else root

    def _is_foreign(self, module: str) -> bool:
        return is_foreign(module) or self._owner(module) != owner_of(module)

    def _pinned(self, module: str) -> bool:
        root = owner_of(module)
        if self._owner(module) != root:
            return False
        return root == "lmstash" or (is_installed(module) and self._by_its_version(root))

    def _by_its_version(self, root: str) -> bool:
        return self._may_say_version(root) and version_of(root) is not None

    def _may_say_version(self, root: str) -> bool:
        return root not in sys.stdlib_module_names and root != self._package

    def _is_installed(self, module: str, path: str) -> bool:
        return self._owner(module) == owner_of(module) and super()._is_installed(module, path)

    def _is_own(self, module: str) -> bool:
        return self._is_foreign(module) and not self._pinned(module)


def _values_in(module: ModuleType) -> set[str]:
    """Return under which names values lie in a module: a template that it is handed to may ask for any of them."""
    code = (FunctionType, type, ModuleType)
    return {each for each, value in list(vars(module).items()) if not is_word(each) and not isinstance(value, code)}


def _dict_behind(table: Any) -> Any:
    return gc.get_referents(table)[0] if _is_of_class(table) else table


def _is_of_class(table: Any) -> bool:
    return isinstance(table, MappingProxyType)


def _is_simple(cls: type) -> bool:
    """Whether what lies in a class is nobody's but who asks for it: no dataclass, no base class of a package."""
    return type(cls) is type and "__dataclass_fields__" not in vars(cls) and set(cls.__bases__) == {object}
