"""What your own code asks for by text: `getattr`, `vars`, `globals`, `eval`, `import_module`.

Such code is taken to mean all that its texts name, and whatever is plain or code in the modules of yours that it names.
Names that are put together when it runs, of globals and of modules, are not seen.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from functools import partial
from types import FunctionType, ModuleType
from typing import Any

from lmstash.identity.bytecode import encoded, names_in, texts_in
from lmstash.identity.code import CodeGraph
from lmstash.identity.owners import defined_in, is_foreign
from lmstash.identity.words import ANY_NAME, TABLES

_IMPORTS = frozenset({"__import__", "import_module"})
_BY_TEXT = ANY_NAME | TABLES | _IMPORTS | {"modules"}
_WORD = re.compile(r"[A-Za-z_]\w*")


class CodeByText(CodeGraph):
    """Collects code, and what your own of it asks for by text. Not for several threads at once."""

    def add_module(self, module: ModuleType) -> str:
        """Read what is plain or code in a module of yours that something holds, which may ask for any of it."""
        name = module.__name__
        if id(module) not in self._seen and self._is_yours(name):
            self._seen[id(module)] = name
            self._alive.append(module)
            self.watch(partial(len, vars(module)))
            self._add_named(name, module, plain_and_code(vars(module)), f"{name}:", set())
        return name

    def _names_beside(self, function: FunctionType) -> frozenset[str]:
        names = {*names_in(function.__code__)}
        if not self._is_own(defined_in(function)) or _BY_TEXT.isdisjoint(names):
            return frozenset()
        told = {word for each in texts_in(function.__code__) if isinstance(each, str) for word in _WORD.findall(each)}
        return frozenset(told | (plain_and_code(function.__globals__) if "globals" in names else set()))

    def _add_globals(self, function: FunctionType, name: str, owner: str) -> None:
        super()._add_globals(function, name, owner)
        here, names = defined_in(function), {*names_in(function.__code__)}
        if not self._is_own(here) or (_IMPORTS | {"modules"}).isdisjoint(names):
            return
        names |= self._names_beside(function)
        for each in sorted({each for each in texts_in(function.__code__) if isinstance(each, str)}):
            is_name = all(map(str.isidentifier, each.split(".")))
            if is_name and is_foreign(each) and (each in sys.modules or not _IMPORTS.isdisjoint(names)):
                self._add_import(here, each, names, name)

    def _add_named(self, here: str, module: ModuleType, names: set[str], place: str, seen: set[str]) -> None:
        if self._is_own(here) and self._is_yours(module.__name__) and not ANY_NAME.isdisjoint(names):
            names = names | plain_and_code(vars(module))
            self.watch(partial(len, vars(module)))
        super()._add_named(here, module, names, place, seen)

    def _is_yours(self, module: str) -> bool:
        return is_foreign(module) and self._is_own(module) and (self._pin_of is None or self._pin_of(module) is None)


def plain_and_code(table: Mapping[str, Any]) -> set[str]:
    """Return the names of the plain values in a module, and of its own functions and classes."""
    here = table.get("__name__")
    return {
        name
        for name, value in list(table.items())
        if not name.startswith("__")
        and (defined_in(value) == here if isinstance(value, FunctionType | type) else encoded(value) is not None)
    }
