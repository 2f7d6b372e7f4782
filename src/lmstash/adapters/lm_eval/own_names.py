"""Which attributes somebody's own code may go by: what the harness takes for harmless may decide answers there."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import FunctionType
from typing import Any

from lmstash.identity.bytecode import names_in, parts_of

_BUILT_IN = frozenset({"builtins", "abc", "typing", "torch"})


def names_in_own_code(kind: type, harness: str) -> set[str]:
    """Return the names that methods ask for of those classes that are neither the harness's nor built in.

    Args:
        kind: A model's class, whose base classes count, too.
        harness: The package of the harness.
    """
    found: set[str] = set()
    for each in kind.__mro__:
        if each.__module__.partition(".")[0] in {harness, *_BUILT_IN}:
            continue
        for name, member in list(vars(each).items()):
            for part in parts_of(name, member):
                if isinstance(part, FunctionType):
                    found.update(names_in(part.__code__))
    return found


def harmless(names: Collection[str], named: Collection[str], held: Mapping[str, Any]) -> frozenset[str]:
    """Return those of some names that need not count: not text and numbers that one's own code names."""
    return frozenset(each for each in names if not (each in named and isinstance(held.get(each), str | int | float)))
