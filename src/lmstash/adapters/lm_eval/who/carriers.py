"""Packages that do not count by their code, and what somebody has put into them, which does.

A model behind an API is asked through `aiohttp` or `requests`: two thousand functions of theirs and of what these go by
in turn, of which none counts. They are not followed. What counts is what lies in their modules and classes and is not
theirs, nor of a package that they say they are made with: `requests.Session.send = mine`, what `unittest.mock` puts
there, or a library that answers in a server's place. To look for it takes a tenth of what it takes to follow them all.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Collection
from functools import lru_cache, partial
from importlib.metadata import PackageNotFoundError, requires
from types import FunctionType, GetSetDescriptorType, MemberDescriptorType, MethodType, ModuleType
from typing import Any

from lmstash.identity.code.bytecode import parts_of
from lmstash.identity.code.closures import variables_of
from lmstash.identity.code.owners import BY_NAME, defined_in, is_installed, is_of_its_file, owner_of

_INSTALLED_AS = {"attr": "attrs", "yaml": "pyyaml"}
"""Packages that are not called as what installs them."""
_PLAIN = frozenset({str, int, float, bool, bytes, tuple, list, dict, set, frozenset, type(None)})
_NO_CODE = _PLAIN | {GetSetDescriptorType, MemberDescriptorType}


class Carriers:
    """Looks through such packages as they are met. For one look at a model, by one thread.

    Attributes:
        put: What was found in those that were met and is not theirs, by place: functions, classes, modules, and objects
            that are called as a function would be.
    """

    def __init__(self, packages: Collection[str]) -> None:
        """Look at none yet.

        Args:
            packages: Those of which no code counts.
        """
        self.put: dict[str, Any] = {}
        self._packages = packages
        self._modules: dict[str, list[ModuleType]] | None = None
        self._todo: set[str] = set()
        self._seen: set[str] = set()
        self._met: set[int] = set()
        self._own: set[tuple[str, Any, str]] = set()
        """By package: modules and files of which a function was found to be its own. Most are told by that."""

    def has(self, code: Any) -> bool:
        """Return whether code is such a package's own, and nothing more: then it is not to be followed.

        What has closed over something may hold anything: it is. Costs some ms for the first of a package.
        """
        package = owner_of(defined_in(code))
        if package not in self._packages or not _is_there(code):
            return False
        self.look_into(package)
        return True

    def look_into(self, package: str) -> None:
        """Look for what lies in the modules of a package that are loaded, and of those that it is made with."""
        self._todo.add(package)
        while todo := self._todo - self._seen:
            self._seen |= todo
            if self._modules is None:
                self._modules = _modules_by_package()
            for each in sorted(todo):
                for module in self._modules.get(each, ()):
                    for name, value in list(vars(module).items()):
                        self._see(value, f"{module.__name__}:{name}", each)

    def _see(self, value: Any, place: str, package: str) -> None:
        """Look at something that lies in a package, and at what it leads to."""
        kind = type(value)
        if kind is FunctionType:
            self._see_function(value, place, package)
        elif kind is ModuleType:
            self._note_unless_own(value, value.__name__, place, package)
        elif issubclass(kind, type):
            self._see_class(value, place, package)
        elif kind not in _PLAIN and _is_put(value):
            self.put[place] = value

    def _see_class(self, cls: type, place: str, package: str) -> None:
        self._note_unless_own(cls, defined_in(cls), place, package)
        if id(cls) in self._met or owner_of(defined_in(cls)) != package:
            return
        self._met.add(id(cls))
        name = f"{cls.__module__}.{cls.__qualname__}"
        for number, base in enumerate(cls.__bases__):
            self._see_class(base, f"{name} base {number}", package)
        for key, member in list(vars(cls).items()):
            kind = type(member)
            if kind is FunctionType:
                self._see_function(member, f"{name}.{key}", package)
            elif kind not in _NO_CODE and not issubclass(kind, type | ModuleType):
                for part in parts_of(key, member):
                    self._see(part, f"{name}.{key}", package)

    def _see_function(self, function: FunctionType, place: str, package: str) -> None:
        lies_in = package, function.__globals__.get("__name__"), function.__code__.co_filename
        if lies_in not in self._own and not _is_generated(function):
            is_own = owner_of(defined_in(function)) == package
            if not is_own:
                self._note_unless_own(function, defined_in(function), place, package)
            elif is_of_its_file(function):
                self._own.add(lies_in)
            else:
                self.put[place] = function
        if id(function) in self._met or not (function.__defaults__ or function.__kwdefaults__ or function.__closure__):
            return
        self._met.add(id(function))
        held = [*enumerate(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).items()]
        if function.__closure__:
            held += [(variable, value) for variable, _, value in variables_of(function)]
        for name, value in held:
            if type(value) not in _PLAIN:
                self._see(value, f"{place}({name})", package)

    def _note_unless_own(self, value: Any, module: str, place: str, package: str) -> None:
        """Note what is neither of a package nor of one that it is made with; go on to the latter."""
        owner = owner_of(module)
        if owner == package or owner in BY_NAME or owner == "lmstash":
            return
        if is_installed(module) and (owner in _made_with(package) or type(value) is ModuleType):
            self._todo.add(owner)
        else:
            self.put[place] = value


def _is_put(value: Any) -> bool:
    """Return whether an object that is called as a function would be is somebody's, or stands in for another."""
    kind = type(value)
    if issubclass(kind, partial | MethodType):
        inner = value.func if issubclass(kind, partial) else value.__func__
        return _is_put(inner) if type(inner) is not FunctionType else not is_installed(defined_in(inner))
    module = str(kind.__module__)
    if module == "unittest.mock":
        return True
    return callable(value) and not module.startswith("_cython") and not is_installed(module)


def _is_generated(function: FunctionType) -> bool:
    """Return whether a function is what a named tuple or `attrs` has made of texts of its own."""
    file = function.__code__.co_filename
    return file.startswith("<attrs generated ") or (file == "<string>" and defined_in(function)[:11] == "namedtuple_")


def _is_there(code: Any) -> bool:
    """Return whether code is of its module as that was written, and holds nothing that was made elsewhere."""
    if isinstance(code, FunctionType):
        return not code.__closure__ and is_of_its_file(code)
    held: Any = sys.modules.get(defined_in(code))
    for name in str(getattr(code, "__qualname__", "")).split("."):
        held = getattr(held, "__dict__", {}).get(name)
    return held is code


@lru_cache(maxsize=256)
def _made_with(package: str) -> frozenset[str]:
    """Return the packages that an installed one says it may need. Reads its metadata, once."""
    try:
        said = requires(_INSTALLED_AS.get(package, package)) or ()
    except PackageNotFoundError:
        return frozenset()
    names = {re.split(r"[^\w.-]", each, maxsplit=1)[0].lower().replace("-", "_") for each in said}
    return frozenset(names | {each for each, name in _INSTALLED_AS.items() if name in names})


def _modules_by_package() -> dict[str, list[ModuleType]]:
    found: defaultdict[str, list[ModuleType]] = defaultdict(list)
    for name, module in list(sys.modules.items()):
        if type(module) is ModuleType:
            found[name.partition(".")[0]].append(module)
    return found
