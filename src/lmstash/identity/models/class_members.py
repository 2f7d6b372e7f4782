"""Plain values in classes of transformers and torch that code of yours may ask for: `LlamaMLP.gain = 4`.

Those classes count by the files that they come from, and their code by itself: it asks for no more than lies there.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from lmstash.identity.code.bytecode import encoded
from lmstash.identity.code.owners import owner_of
from lmstash.identity.encoding import Component

if TYPE_CHECKING:
    import torch

    from lmstash.identity.models.code import ModelCode

_OWNERS = frozenset({"torch", "transformers"})


def plain_members(model: torch.nn.Module, code: ModelCode) -> dict[Component, Component]:
    """Return the plain values in the classes of a model's modules and configurations, by names that its code asks for.

    Args:
        model: Any torch module.
        code: All of its code, as it was read; watches them from now on.
    """
    if not code.asked:
        return {}
    parts = [part for each in model.modules() for part in (each, getattr(each, "config", None))]
    kinds = {base: None for part in parts for base in type(part).__mro__ if owner_of(base.__module__) in _OWNERS}
    look = partial(_members, [*kinds], frozenset(code.asked))
    code.watch(look)
    return look()


def _members(kinds: list[type], names: frozenset[str]) -> dict[Component, Component]:
    found: dict[Component, Component] = {}
    for kind in kinds:
        members = vars(kind)
        for name in sorted(members.keys() & names):
            value = encoded(members[name])
            if value is not None:
                found[f"{kind.__module__}.{kind.__qualname__}.{name}"] = value
    return found
