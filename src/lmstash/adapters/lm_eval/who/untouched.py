"""Packages that do not count by their code: what is read of them is what somebody may have put there.

A model behind an API is asked through `aiohttp` or `requests`: two thousand functions of theirs and of what these go by
in turn, to be followed at each look, of which none counts. They are followed only where anything lies in them that is
of no installed package (`requests.Session.send = mine`), since that does. Whether it does is told by what lies in their
modules and classes, at a twentieth of the cost.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Collection, Iterable
from types import FunctionType, ModuleType
from typing import Any

from lmstash.identity.code.bytecode import parts_of
from lmstash.identity.code.closures import variables_of
from lmstash.identity.code.owners import defined_in, is_foreign, is_installed, is_of_its_file, owner_of

_NOT_LOOKED_INTO = frozenset({"lmstash", "lm_eval"})


class Untouched:
    """Knows for one look which packages hold nothing but what was installed. Not for several threads at once."""

    def __init__(self, packages: Collection[str]) -> None:
        """Look at none yet.

        Args:
            packages: Those of which no code counts.
        """
        self._packages = packages
        self._modules: dict[str, list[ModuleType]] | None = None
        self._known: dict[str, bool] = {}
        self._met: set[int] = set()
        self._leads_to: set[str] = set()

    def has(self, code: Any) -> bool:
        """Return whether code lies in such a package, which leads to nothing of anybody's own.

        A function that has closed over something may hold anything: it is to be followed.
        """
        package = owner_of(defined_in(code))
        if package not in self._packages or not _lies_there(code):
            return False
        known = self._known.get(package)
        if known is None:
            known = self._known[package] = self._is_untouched(package)
        return known

    def _is_untouched(self, package: str) -> bool:
        """Look through a package, and through those that lie in its modules."""
        if self._modules is None:
            self._modules = _modules_by_package()
        self._met, self._leads_to = set(), {package}
        seen: set[str] = set()
        while todo := self._leads_to - seen:
            seen |= todo
            for each in todo:
                if self._known.get(each) is False:
                    return False
                for module in self._modules.get(each, ()):
                    if self._holds_others(module):
                        return False
        return True

    def _holds_others(self, module: ModuleType) -> bool:
        return any(map(self._is_others, list(vars(module).values())))

    def _is_others(self, value: Any) -> bool:
        """Return whether something in a module is of no installed package, or leads to what is not."""
        kind = type(value)
        if kind is FunctionType:
            return self._is_others_function(value)
        if kind is ModuleType:
            return self._is_elsewhere(value.__name__)
        return isinstance(value, type) and self._is_others_class(value)

    def _is_others_class(self, cls: type) -> bool:
        if id(cls) in self._met:
            return False
        self._met.add(id(cls))
        module = defined_in(cls)
        if self._is_elsewhere(module):
            return True
        if owner_of(module) not in self._leads_to:  # of Python's own, or one that is not followed
            return False
        if any(map(self._is_others_class, cls.__bases__)):
            return True
        for name, member in list(vars(cls).items()):
            if type(member) is FunctionType:
                if self._is_others_function(member):
                    return True
            elif not isinstance(member, str | int | tuple | type(None)) and self._any_function(parts_of(name, member)):
                return True
        return False

    def _is_others_function(self, function: FunctionType) -> bool:
        if id(function) in self._met:
            return False
        self._met.add(id(function))
        if not _is_generated(function) and (self._is_elsewhere(defined_in(function)) or not is_of_its_file(function)):
            return True
        held = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        if function.__closure__:
            held += [value for _, _, value in variables_of(function)]
        return any(map(self._is_others, held))

    def _any_function(self, parts: Iterable[Any]) -> bool:
        return any(type(each) is FunctionType and self._is_others_function(each) for each in parts)

    def _is_elsewhere(self, module: str) -> bool:
        """Return whether a module is of no installed package; notes the package of one that is."""
        if not is_installed(module):
            return owner_of(module) not in _NOT_LOOKED_INTO
        if is_foreign(module):
            self._leads_to.add(owner_of(module))
        return False


def _is_generated(function: FunctionType) -> bool:
    """Return whether a function is what a named tuple or `attrs` has made of texts of its own."""
    file = function.__code__.co_filename
    return file.startswith("<attrs generated ") or (file == "<string>" and defined_in(function)[:11] == "namedtuple_")


def _lies_there(code: Any) -> bool:
    """Return whether code is of its module as that was written, and holds nothing that was made elsewhere."""
    if isinstance(code, FunctionType):
        return not code.__closure__ and is_of_its_file(code)
    held: Any = sys.modules.get(defined_in(code))
    for name in str(getattr(code, "__qualname__", "")).split("."):
        held = getattr(held, "__dict__", {}).get(name)
    return held is code


def _modules_by_package() -> dict[str, list[ModuleType]]:
    found: defaultdict[str, list[ModuleType]] = defaultdict(list)
    for name, module in list(sys.modules.items()):
        if type(module) is ModuleType:
            found[owner_of(name)].append(module)
    return found
