"""What your own code asks for by text: `getattr`, `vars`, `globals`, `eval`, `import_module`.

Such code is taken to mean all that its texts name, and whatever is plain or code in the modules of yours that it names;
so is code that holds a module of yours as a value. Of functions and classes that are met only so, their own code counts
and not what they name in turn: a module may have much in it that a model never uses.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import sys
from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

from lmstash.identity.bytecode import code_component, encoded, names_in, parts_of, plain_component, texts_in
from lmstash.identity.code import CodeGraph
from lmstash.identity.encoding import Component, encode
from lmstash.identity.owners import defined_in, is_foreign
from lmstash.identity.words import ANY_NAME, TABLES

IMPORTS = frozenset({"__import__", "import_module"})
"""By which it imports what only a text names."""
_GLOBALS = TABLES - {"vars"}
_SETTINGS = frozenset({"argparse.Namespace", "numpy.ndarray", "torch.Tensor", "torch.nn.parameter.Parameter"})
_WORD = re.compile(r"[A-Za-z_]\w*")


class CodeByText(CodeGraph):
    """Collects code, and what your own of it asks for by text. Not for several threads at once."""

    def add_module(self, module: ModuleType) -> str:
        """Read what is plain or code in a module of yours that something holds, which may ask for any of it."""
        if self._is_yours(module.__name__):
            self._add_all(vars(module), f"{module.__name__}:")
        return module.__name__

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
        if "globals" in names:
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
        if self._is_own(here) and self._is_yours(module.__name__) and not ANY_NAME.isdisjoint(names):
            self._add_all(vars(module), f"{module.__name__}:")

    def _add_all(self, table: Mapping[str, Any], place: str) -> None:
        """Read all that is plain or code in a module, each by itself."""
        if id(table) in self._seen:
            return
        self._seen[id(table)] = place
        self._alive.append(table)
        self.watch(partial(len, table))
        for name in sorted(each for each in list(table) if isinstance(each, str)):
            value = table.get(name)
            if name.startswith("__"):
                continue
            if isinstance(value, FunctionType | type):
                if not self._is_yours(defined_in(value)):
                    continue
                self._watch_code(value)
                data = encode(_by_itself(value))
            else:
                data = self._encoded(value)
            if data is not None:
                self._units[f"{place}{name} alone"] = hashlib.sha256(data).hexdigest()
            elif _is_settings(value):
                self.objects[f"{place}{name} alone"] = value
            else:
                continue
            self._place(table, name, value)

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

    def _is_yours(self, module: str) -> bool:
        return is_foreign(module) and self._is_own(module) and (self._pin_of is None or self._pin_of(module) is None)


def file_of_module(module: str) -> str:
    """Return a digest of a module's file, which is not run: a text may be just a text. Empty where there is none."""
    try:
        spec = find_spec(module)
        return "" if spec is None else hashlib.sha256(Path(str(spec.origin)).read_bytes()).hexdigest()
    except (ImportError, ValueError, OSError):
        return ""


def _by_itself(code: Any) -> Component:
    """Return the code of a function or class, without what it names."""
    if isinstance(code, FunctionType):
        return [code_component(code.__code__), plain_component([code.__defaults__, code.__kwdefaults__])]
    held: dict[Component, Component] = {"": [f"{each.__module__}.{each.__qualname__}" for each in code.__bases__]}
    for name, member in vars(code).items():
        functions = [_by_itself(each) for each in parts_of(name, member) if isinstance(each, FunctionType)]
        if functions or (not name.startswith("__") and encoded(member) is not None):
            held[name] = functions or plain_component(member)
    return held


def _is_settings(value: Any) -> bool:
    """Whether a value is of a kind that holds settings and can be read: no client, lock or log."""
    kind = type(value)
    if kind is SimpleNamespace or f"{kind.__module__}.{kind.__qualname__}" in _SETTINGS:
        return True
    return dataclasses.is_dataclass(value) and not isinstance(value, type)
