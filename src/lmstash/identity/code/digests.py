"""The code that a model runs, as digests: what is loaded now, not what a file on disk says.

Followed from the modules' classes: their base classes, every function in them, and the functions, classes and plain
values that these functions name, hold as defaults or import. Three kinds of owner:

* torch, numpy, huggingface_hub, tqdm and the standard library: by name only (torch's version is recorded in
  fingerprints);
* transformers: by name and SHA-256 of the source file (its version is a component of its own), so that another minor
  version of Python shares; functions that another package has put into its classes or modules count as that package's;
* everything else (your classes, remote code, other packages): by bytecode, which is what really runs. Bytecode differs
  between minor versions of Python; the loss is a miss. Objects, tensors and modules that your own functions name as
  globals, that are their defaults or lie in your classes count, too; those of installed packages are taken to follow
  from the package's version.

Not seen: state that a function reaches neither through its arguments, its module's globals nor what it closed over
(files, what libraries read of the environment), and C code that is replaced under the same version.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from enum import Enum
from functools import lru_cache
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    MethodDescriptorType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any

from lmstash.identity.code.bytecode import (
    code_component,
    encoded,
    globals_in,
    imports_in,
    is_plain,
    names_in,
    parts_of,
    plain_component,
)
from lmstash.identity.code.owners import (
    BY_NAME,
    defined_in,
    is_foreign,
    is_installed,
    is_installed_file,
    is_of_its_file,
    owner_of,
)
from lmstash.identity.code.watched import Watched
from lmstash.identity.encoding import Component, encode

_PYTHON = f"{sys.implementation.name}-{sys.version_info.major}.{sys.version_info.minor}"


class CodeGraph(Watched):
    """Collects the code reachable from classes and functions. Not for several threads at once.

    Reading is done once per object; `unchanged` says whether anything that was read has been replaced since.
    """

    def __init__(self, *, installed_by_version: bool = False, pin_of: Callable[[str], Component] | None = None) -> None:
        """Begin with nothing.

        Args:
            installed_by_version: Follow no code of installed packages that say their version; that stands for it.
            pin_of: Given a module's name, what stands for all its code, which is not followed then; None to follow it.
        """
        self._by_version = installed_by_version
        self._pin_of, self._imports_by_call = pin_of, False
        self._units: dict[str, str] = {}
        self._seen: dict[int, str] = {}
        self._alive: list[Any] = []  # what was read, so that its id stays its own
        super().__init__()
        self.objects: dict[str, Any] = {}
        """Other things that your own code names as globals, by where; whoever asked for the code describes them."""

    def components(self) -> dict[Component, Component]:
        """Return {qualified name: hexadecimal digest} of everything read so far."""
        return {**self._units}

    @property
    def codes(self) -> list[CodeType]:
        """The code of the functions that were read by their bytecode."""
        return [code for _, code, _, _ in self._functions]

    def packages(self) -> dict[Component, Component]:
        """Return {package: version} of the packages that the code lies in."""
        roots = {name.partition(".")[0] for name in self._units} - BY_NAME
        versions = {root: getattr(sys.modules.get(root), "__version__", None) for root in sorted(roots)}
        return {root: version for root, version in versions.items() if isinstance(version, str)}

    def add(self, code: Any) -> str:
        """Read a class, function or builtin and what it leads to; return its qualified name."""
        known = self._seen.get(id(code))
        if known is not None:
            return known
        pin = None if self._pin_of is None else self._pin_of(defined_in(code))
        if pin is not None:
            return self._note(code, f"{defined_in(code)}.{code.__qualname__}", "pinned", pin)
        if isinstance(code, type):
            return self._add_class(code)
        if isinstance(code, FunctionType):
            return self._add_function(code)
        name = f"{getattr(code, '__module__', None)}.{getattr(code, '__qualname__', type(code).__qualname__)}"
        return self._note(code, name, "builtin")

    def _note(self, code: Any, name: str, *what: Component, own: bool = False) -> str:
        digest = hashlib.sha256(encode(what)).hexdigest()
        own = own or bool(getattr(code, "__closure__", None))  # what it has closed over hangs on its name
        while name in self._units if own else self._units.get(name, digest) != digest:
            name += "'"  # another one of the same name: decorators and notebooks make them
        self._units[name] = digest
        self._seen[id(code)] = name
        self._alive.append(code)
        return name

    def _add_class(self, cls: type) -> str:
        name = f"{cls.__module__}.{cls.__qualname__}"
        owner = self._owner(cls.__module__)
        if owner in BY_NAME:
            return self._note(cls, name, "by name")
        if self._pinned(cls.__module__):
            return self._note(cls, name, "by version")
        bases = [f"{base.__module__}.{base.__qualname__}" for base in cls.__bases__]
        if owner == "transformers":
            name = self._note(cls, name, "file", _file_digest(cls.__module__), bases)
        else:
            name = self._note(cls, name, "class", bases, self._values_of(cls))
        self.watch_class(cls)
        for base in cls.__bases__:
            self.add(base)
        holds = self._is_own(cls.__module__) and not issubclass(cls, Enum)  # whose members are its values
        for key, member in list(vars(cls).items()):  # what is read first may be made only now
            if owner != "transformers" and self._mutable(member) is not None:
                self._place(vars(cls), key, member)
            for number, part in enumerate(parts_of(key, member)):
                if isinstance(part, FunctionType):
                    if owner != "transformers" or defined_in(part) != cls.__module__ or _is_modeling(cls.__module__):
                        self._link(f"{name}.{key}", self.add(part))
                elif owner == "transformers":
                    if not isinstance(part, type) and callable(part) and not _is_usual(key, part):
                        self.objects[f"{name}.{key}"] = part
                elif holds:
                    self._follow(cls.__module__, part, f"{name}.{key}" + (f" {number}" if number else ""))
        return name

    def _add_function(self, function: FunctionType) -> str:
        module = str(function.__globals__.get("__name__"))  # `__module__` is copied about by functools.wraps
        name = f"{module}.{function.__code__.co_qualname}"
        owner = self._owner(module)
        if owner in BY_NAME and is_of_its_file(function):
            name = self._note(function, name, "by name")
        elif self._pinned(module):
            name = self._note(function, name, "by version")
        elif owner == "transformers" and is_of_its_file(function):
            name = self._note(function, name, "file", _file_digest(module))
            self.watch_code([function])
        else:
            name = self._add_bytecode(function, name)
        self._add_closure(function, name)
        if owner not in BY_NAME and not self._pinned(module):
            self._add_globals(function, name, owner)
        return name

    def _add_closure(self, function: FunctionType, name: str) -> None:
        module = defined_in(function)
        own = self._is_own(module)
        for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
            try:
                held = cell.cell_contents
            except ValueError:  # an empty cell
                continue
            if own or self._by_version:
                self._cells.append((cell, held, self._mutable(held)))
            self._follow(module, held, f"{name}:{variable}")

    def _add_bytecode(self, function: FunctionType, name: str) -> str:
        """Note a function by its bytecode and its arguments' defaults; return what it goes by."""
        defaults = function.__defaults__, function.__kwdefaults__
        held = [*enumerate(defaults[0] or ()), *(defaults[1] or {}).items()]
        objects = [(which, value) for which, value in held if encoded(value) is None]
        what = [_PYTHON, code_component(function.__code__), plain_component([*defaults])]
        name = self._note(function, name, "bytecode", *what, own=bool(objects))
        self._functions.append((function, function.__code__, *defaults))
        for _, value in held:
            if self._mutable(value) is not None:
                self._place({"": value}, "", value)
        for which, value in objects:
            self._follow(defined_in(function), value, f"{name}({which})")
        return name

    def _add_globals(self, function: FunctionType, name: str, owner: str) -> None:
        told = self._names_beside(function)
        names = {*names_in(function.__code__), *told}
        here = defined_in(function)
        # In a script, anything may have the name of an attribute. Elsewhere nothing does, and kept keys hold these.
        asked = globals_in(function.__code__) | told if self._is_own(here) and owner != "remote" else names
        for each in sorted(names & function.__globals__.keys()):
            value = function.__globals__[each]
            if isinstance(value, ModuleType):
                if each in asked and self._is_own(here):
                    self._place(function.__globals__, each, value)
                    if each != value.__name__:  # `np` says nothing of numpy
                        self._units[f"{name}:{each} is"] = value.__name__
                if owner != "transformers" or _is_modeling(here):
                    self._add_named(here, value, names, f"{name}:", set())
                continue
            if each not in asked:
                continue
            self._place(function.__globals__, each, value)
            if owner == "transformers" and not _is_modeling(here):
                if isinstance(value, FunctionType) and is_foreign(defined_in(value)):  # put there by somebody
                    self._follow(here, value, f"{name}:{each}")
            elif owner != "transformers" or isinstance(value, FunctionType | type):
                self._follow(here, value, f"{name}:{each}")
            elif (callable(value) or is_foreign(type(value).__module__)) and not _is_usual(each, value):
                self.objects[f"{name}:{each}"] = value  # put there by somebody
        if self._is_own(here):
            package = function.__globals__.get("__package__")
            imported = {*imports_in(function.__code__, package, by_call=self._imports_by_call)}
            for each in sorted(filter(self._is_foreign, imported)):
                self._add_import(here, each, names, name)

    def _add_named(self, here: str, module: ModuleType, names: set[str], place: str, seen: set[str]) -> None:
        """Read what lies in a module under some names, and in its modules."""
        foreign = self._is_foreign(module.__name__)
        seen.add(module.__name__)
        for attribute in sorted(names & vars(module).keys()):
            inner = vars(module)[attribute]
            patched = isinstance(inner, FunctionType | type) and defined_in(inner) != module.__name__
            if self._pinned(module.__name__) and self._pinned(type(inner).__module__):
                continue  # an object that the package has made
            if patched or foreign:
                self._place(vars(module), attribute, inner)
                self._follow(here, inner, place + attribute)
                if isinstance(inner, ModuleType) and self._is_foreign(inner.__name__) and inner.__name__ not in seen:
                    self._add_named(here, inner, names, f"{place}{attribute}.", seen)

    def _add_import(self, here: str, imported: str, names: set[str], name: str) -> None:
        """Read what a function will import when it runs: your own modules now, others by their version."""
        place = f"{name} imports {imported}"
        loaded, parent = imported in sys.modules, sys.modules.get(imported.rpartition(".")[0])
        try:
            spec = None if loaded or (parent and not hasattr(parent, "__path__")) else find_spec(imported)
            if not loaded and spec is None:
                if parent is None:  # or it is something in that module
                    self._units[place] = "not found"
            elif self._is_installed(imported, "" if spec is None else str(spec.origin)):
                self._units[place] = version(owner_of(imported))
            else:
                self._add_named(here, import_module(imported), names, f"{place}:", set())
        except (Exception, SystemExit) as error:  # it may do anything; the function will say so
            self._units[place] = type(error).__name__

    def _pinned(self, module: str) -> bool:
        """Whether a module's code follows from the version of its package."""
        if not self._by_version or not is_installed(module):
            return False
        return isinstance(getattr(sys.modules.get(owner_of(module)), "__version__", None), str)

    def _owner(self, module: str) -> str:
        return owner_of(module)

    def _is_foreign(self, module: str) -> bool:
        return is_foreign(module)

    def _is_installed(self, module: str, path: str) -> bool:
        return is_installed(module) or is_installed_file(path)

    def _is_own(self, module: str) -> bool:
        """Whether what a module's code names follows from nobody's version."""
        return not is_installed(module)

    def _values_of(self, cls: type) -> Component:
        """Return the plain values that lie in a class."""
        return plain_component({k: v for k, v in vars(cls).items() if is_plain(v) and k not in _CLASS_NOISE})

    def _names_beside(self, function: FunctionType) -> frozenset[str]:
        """Return names that a function asks for elsewhere than in its code."""
        return frozenset()

    def _link(self, place: str, name: str) -> None:
        """Note which code lies in a place, where the place's own name does not say it."""
        if place.replace(":", ".") != name:
            self._units[f"{place} is"] = name

    def _follow(self, here: str, value: Any, name: str) -> None:
        """Read what code in a module leads to, and note under what name it does."""
        if isinstance(value, FunctionType | type):
            target = defined_in(value)
            if owner_of(target) == "transformers" and target != here and not isinstance(value, FunctionType):
                self._units.setdefault(f"{target}.{value.__qualname__}", "pinned by version")
            else:
                self._link(name, self.add(value))
        elif (data := self._encoded(value)) is not None:
            self._units[name] = hashlib.sha256(data).hexdigest()
        elif self._is_own(here):
            self.objects[name] = value


_BESIDE_CODE = frozenset({"transformers", "typing", "typing_extensions", "types", "collections"})
"""Whose objects lie beside functions: activations, and words for annotations."""
_ENUM_NOISE = frozenset({"_new_member_", "_value_repr_", "_member_type_"})
_CLASS_NOISE = frozenset({"__module__", "__doc__", "__qualname__", "__firstlineno__"})


def _is_modeling(module: str) -> bool:
    return module.startswith("transformers.models.")


def _is_usual(name: str, value: Any) -> bool:
    """Whether something callable in a module or class of transformers is of the kinds that lie there by themselves."""
    if isinstance(value, BuiltinFunctionType | WrapperDescriptorType | MethodDescriptorType):
        return getattr(value, "__name__", None) in (name, name.strip("_")) or name in _ENUM_NOISE
    if owner_of(type(value).__module__) == "torch":  # a scripted function
        return getattr(value, "__name__", None) == name
    if type(value).__qualname__ == "_lru_cache_wrapper":
        return not is_foreign(defined_in(value.__wrapped__))
    return owner_of(type(value).__module__) in _BESIDE_CODE


@lru_cache(maxsize=4096)
def _file_digest(module: str) -> str:
    path = getattr(sys.modules.get(module), "__file__", None)
    try:
        return hashlib.sha256(Path(str(path)).read_bytes()).hexdigest()
    except OSError:
        return "no file"
