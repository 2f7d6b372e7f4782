"""Files that an attribute of a model names and that somebody's own code may read: they count by what they hold."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import PurePath
from types import SimpleNamespace
from typing import Any

from lmstash.adapters.lm_eval.own_names import Followed
from lmstash.caches.responses.hiding import SECRETS
from lmstash.identity.encoding import Component
from lmstash.identity.held_files import content_of

_NESTED = 4


def files_named(held: Mapping[str, Any], without: Collection[str], code: Followed) -> dict[Component, Component]:
    """Return what the files hold that attributes name, by attribute. Costs some 5 us an attribute, and reading once.

    Args:
        held: The attributes.
        without: Names that do not count.
        code: What was read; a file that it only writes to, or that none of it goes by, does not count.
    """
    found: dict[Component, Component] = {}
    for name in sorted(code.read_of(held) - {*without}):
        if not SECRETS.fullmatch(name):
            told = [each for path in _paths(held[name]) if (each := content_of(path)) is not None]
            if told:
                found[name] = told
    return found


def _paths(value: Any, depth: int = _NESTED) -> Iterator[str]:
    """Yield the texts and paths in a value, and in containers and namespaces within it."""
    if isinstance(value, str | PurePath):
        yield str(value)
        return
    kind = type(value)
    if kind is SimpleNamespace or f"{kind.__module__}.{kind.__qualname__}" == "argparse.Namespace":
        value = vars(value)
    within = list(value.values()) if isinstance(value, dict) else value
    if depth and isinstance(within, list | tuple | set | frozenset):
        for each in list(within):
            yield from _paths(each, depth - 1)
