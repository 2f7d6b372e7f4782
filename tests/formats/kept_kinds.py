"""Every kind of value by name, as it is kept in a plain stash and in a private one under a salt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import lmstash
from lmstash.stash import Stash

from . import kept_answers, kept_values
from .document import of_key
from .kept import told

KINDS: dict[str, tuple[Callable[[Stash], Any], Callable[[Stash], Any]]] = {
    "tensors": (kept_values.write_tensors, kept_values.read_tensors),
    "activations": (kept_values.write_activations, kept_values.read_activations),
    "models": (kept_values.write_described, kept_values.read_described),
    "kv": (kept_values.write_kv, kept_values.read_kv),
    "logprobs": (kept_values.write_logprobs, kept_values.read_logprobs),
    "states": (kept_values.write_states, kept_values.read_states),
    "responses": (kept_answers.write_responses, kept_answers.read_responses),
    "squeezed responses": (kept_answers.write_squeezed, kept_answers.read_squeezed),
    "saved values": (kept_answers.write_saved, kept_answers.read_saved),
    "lmprobe": (kept_answers.write_lmprobe, kept_answers.read_lmprobe),
}
PRIVATE = ", private"
ONLY_PLAIN = {"models", "squeezed responses", "lmprobe"}
NAMES = [*KINDS, *(f"{kind}{PRIVATE}" for kind in KINDS if kind not in ONLY_PLAIN)]


def private(stash: Stash) -> Stash:
    """The same store, as a tenant opens it who keeps no texts."""
    return Stash(stash.store, private=True, salt="a tenant's")


def write(stash: Stash, name: str) -> Any:
    return told(KINDS[name.removesuffix(PRIVATE)][0](private(stash) if name.endswith(PRIVATE) else stash))


def read(stash: Stash, name: str) -> Any:
    return told(KINDS[name.removesuffix(PRIVATE)][1](private(stash) if name.endswith(PRIVATE) else stash))


@dataclass(frozen=True)
class Kept:
    """An entry as the first part of `docs/format.md` gives it."""

    namespace: str
    key: bytes
    parent: bytes
    value: bytes
    facts: dict[str, Any]

    @property
    def components(self) -> dict[str, Any]:
        """What the entry is, by its fact `id`."""
        return of_key(self.facts["id"]["components"])


@cache
def entries() -> list[Kept]:
    """Every entry that all kinds make, written now."""
    stash = lmstash.open("memory://", strict=True)
    for name in NAMES:
        write(stash, name)
    found = stash.store.fetch_many([each.key for each in stash.store.entries()])
    return [Kept(e.namespace, e.key, e.parent, bytes(e.value), e.meta) for e in found if e is not None]


def of(kept: list[Kept], kind: str) -> list[Kept]:
    """Those of one kind of namespace, of which there are some."""
    found = [each for each in kept if each.namespace.startswith(f"{kind}/")]
    assert found
    return found
