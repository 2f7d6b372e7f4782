"""Files that a model's attributes or somebody's own code name, and that this may read: they count by what they hold."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import PurePath
from types import SimpleNamespace
from typing import Any

from lmstash.adapters.lm_eval.who.own_names import Followed
from lmstash.caches.responses.requests.hiding import SECRETS
from lmstash.identity.code.asked_by_text import IMPORTS, file_of_module
from lmstash.identity.code.named_texts import may_be_path
from lmstash.identity.code.owners import is_foreign, is_installed
from lmstash.identity.content.held_files import content_of
from lmstash.identity.content.object_parts import attributes_of
from lmstash.identity.encoding import Component

_NESTED = 4


def files_named(held: Mapping[str, Any], without: Collection[str], code: Followed) -> dict[Component, Component]:
    """Return what the files hold that attributes or texts in code name, and the modules that attributes name.

    Costs some 5 us an attribute, and reading once.

    Args:
        held: The attributes.
        without: Names that do not count.
        code: What was read; a file that it only writes to, or that none of it goes by, does not count.
    """
    texts = [each for each in held.values() if isinstance(each, str)]
    found: dict[Component, Component] = {f"text:{text}": told for text, told in code.files.say(without, texts).items()}
    imports = not IMPORTS.isdisjoint(code.names)
    for name in sorted(code.read_of(held) - {*without}):
        if SECRETS.fullmatch(name):
            continue
        told = [each for path in _paths(held[name]) if (each := content_of(path)) is not None]
        if told:
            found[name] = told
        if imports and isinstance(held[name], str) and (module := _module_at(held[name])):
            found[f"module:{name}"] = module
    return found


def _paths(value: Any, depth: int = _NESTED) -> Iterator[str]:
    """Yield the texts and paths in a value, and in containers, namespaces and objects of one's own within it.

    Of texts in containers, those that look like paths: there may be many.
    """
    if isinstance(value, PurePath) or (isinstance(value, str) and (depth == _NESTED or may_be_path(value))):
        yield str(value)
        return
    kind = type(value)
    if kind is SimpleNamespace or f"{kind.__module__}.{kind.__qualname__}" == "argparse.Namespace":
        value = vars(value)
    elif hasattr(kind, "__dataclass_fields__") or not (kind.__module__ == "builtins" or is_installed(kind.__module__)):
        value = value if isinstance(value, list | tuple | dict) else attributes_of(value)
    within = list(value.values()) if isinstance(value, dict) else value
    if depth and isinstance(within, list | tuple | set | frozenset):
        for each in list(within):
            yield from _paths(each, depth - 1)


def _module_at(name: str) -> str:
    """Return a digest of the file of a module of one's own that goes by a name; empty where none does."""
    is_name = all(map(str.isidentifier, name.split(".")))
    return file_of_module(name) if is_name and is_foreign(name) and not is_installed(name) else ""
