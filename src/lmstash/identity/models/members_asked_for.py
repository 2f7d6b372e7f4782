"""What lies in classes of transformers and torch that code of yours may ask for: `LlamaMLP.gain = 4`.

Those classes count by the files that they come from, and their code by itself: it asks for no more than lies there.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from lmstash.identity.code.bytecode import encoded
from lmstash.identity.code.owners import is_foreign, owner_of
from lmstash.identity.encoding import Component
from lmstash.identity.models.reached import config_of

if TYPE_CHECKING:
    import torch

    from lmstash.identity.models.code import ModelCode

_OWNERS = frozenset({"torch", "transformers"})
_OF_DATA = frozenset({"torch", "numpy"})
"""Whose objects in such classes somebody has put there."""


def members_asked_for(model: torch.nn.Module, code: ModelCode) -> dict[Component, Component]:
    """Return the plain values in the classes of a model's modules and configurations, by names that its code asks for.

    What is not plain is put among the objects of `code`.

    Args:
        model: Any torch module.
        code: All of its code, as it was read; watches them from now on.
    """
    if not code.asked:
        return {}
    parts = [part for each in model.modules() for part in (each, config_of(each))]
    kinds = {base: None for part in parts for base in type(part).__mro__ if owner_of(base.__module__) in _OWNERS}
    names = frozenset(code.asked)
    look = partial(_plain, [*kinds], names)
    code.watch(look)
    code.watch(lambda: {place: id(value) for place, value in _objects([*kinds], names)})
    code.objects.update(_objects([*kinds], names))
    return {**look()}


def _members(kinds: list[type], names: frozenset[str]) -> Iterator[tuple[str, Any]]:
    for kind in kinds:
        members = vars(kind)
        for name in sorted(names.intersection(members)):
            yield f"{kind.__module__}.{kind.__qualname__}.{name}", members[name]


def _plain(kinds: list[type], names: frozenset[str]) -> dict[Component, Component]:
    return {place: data for place, value in _members(kinds, names) if (data := encoded(value)) is not None}


def _objects(kinds: list[type], names: frozenset[str]) -> Iterator[tuple[str, Any]]:
    """Yield what somebody has put there: tensors, arrays, objects of classes of their own."""
    for place, value in _members(kinds, names):
        owner = owner_of(type(value).__module__)
        if isinstance(value, SimpleNamespace) or owner in _OF_DATA or is_foreign(type(value).__module__):
            yield place, value
