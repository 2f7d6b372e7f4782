"""Which installed packages your own code names, by a module, by something of theirs, or by an import within it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from types import BuiltinFunctionType, ModuleType
from typing import Any

from lmstash.identity.code.owners import (
    defined_in,
    installed_version,
    is_installed,
    is_installed_file,
    owner_of,
    version_of,
)


class TouchedPackages:
    """Collects the packages that code names. Not for several threads at once."""

    def __init__(self) -> None:
        self.modules: dict[str, ModuleType] = {}
        """Modules that code names, by their names; your own among them."""
        self._named: set[str] = set()
        self._imported: set[str] = set()

    def see(self, value: Any) -> None:
        """Take what code names: a module, or anything that may be of a package."""
        if isinstance(value, ModuleType):
            self._named.add(value.__name__)
            self.modules[value.__name__] = value
            return
        self._named |= {defined_in(value), type(value).__module__}
        if isinstance(value, BuiltinFunctionType):
            owner = value.__self__
            self._named.add(owner.__name__ if isinstance(owner, ModuleType) else str(getattr(owner, "__module__", "")))

    def see_within(self, module: ModuleType, names: set[str]) -> None:
        """Take a module, and those of the same package that lie in it under names of the code."""
        todo = [module]
        while todo:
            each = todo.pop()
            self.see(each)
            for inner in map(vars(each).get, names & vars(each).keys()):
                if isinstance(inner, ModuleType) and inner.__name__ not in self.modules:
                    todo += [inner] if owner_of(inner.__name__) == owner_of(each.__name__) else []

    def see_import(self, module: str) -> None:
        """Take a module that code imports when it runs."""
        self._imported.add(module)

    def versions(self, counts: Callable[[str], bool]) -> dict[str, str]:
        """Return {package: version} of those that are installed and say their version.

        What is only imported while code runs counts by how it was installed, whether it is loaded yet or not.

        Args:
            counts: Whether a package of this name is to be taken by its version.
        """
        named = {owner_of(each) for each in self._named if is_installed(each)}
        imported = {owner_of(each) for each in self._imported} - named
        found = {root: version_of(root) for root in named if counts(root)}
        found |= {root: installed_version(root) for root in imported if counts(root) and _is_installed(root)}
        return {root: version for root, version in sorted(found.items()) if version is not None}


@lru_cache(maxsize=1024)
def _is_installed(package: str) -> bool:
    """Whether a package is installed, loaded or not."""
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):  # a module that somebody has made by hand
        return is_installed(package) and package in sys.modules
    if spec is None:
        return False
    return any(map(is_installed_file, [str(spec.origin), *(spec.submodule_search_locations or ())]))
