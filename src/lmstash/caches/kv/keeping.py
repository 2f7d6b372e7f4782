"""From a cache that a model filled to entries on their way to the store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import Tensor

from lmstash.caches.kv.families import Family
from lmstash.caches.kv.finding import Finder, Match
from lmstash.caches.kv.harvest import Cutter, Facts, Harvest
from lmstash.caches.kv.layers import (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    StaticLayer,
)
from lmstash.caches.kv.naming import Names
from lmstash.caches.kv.recurrent import write_state
from lmstash.caches.kv.stats import KVStats
from lmstash.caches.models import describe_model
from lmstash.caches.writing import WriteBehind
from lmstash.events import DropReason
from lmstash.identity.chain import BLOCK_TOKENS
from lmstash.identity.models.sighting import Sighting
from lmstash.store.base import Store, Write

_PLAIN = (DynamicLayer, DynamicSlidingWindowLayer, StaticLayer, LinearAttentionAndFullAttentionLayer)
"""Layers whose tensors are keys and values of every token, as far as they are long enough."""
PATIENCE = 0.01
"""Share of the time a call computed that it may wait for room in the queue."""


@dataclass(frozen=True, slots=True)
class Filled:
    """One row of a filled cache."""

    ids: np.ndarray
    """`[n_tokens]` uint32: the tokens that it holds, from the first on."""
    row: int
    """Of the batch."""
    pads: int
    """Slots before the first token."""
    match: Match
    """What was kept of the tokens before."""


@dataclass(slots=True)
class Tally:
    """What of one call is in the store by now."""

    n_tokens: int = 0


class Keeper:
    """Keeps rows of filled caches. Threads may share it."""

    def __init__(self, store: Store, queue: WriteBehind, family: Family, facts: Facts, stats: KVStats) -> None:
        """Take where to, how, and what is said of every entry."""
        self._store = store
        self._queue = queue
        self._family = family
        self._facts = facts
        self._stats = stats

    def keep(
        self,
        rows: Sequence[Filled],
        cache: Any,
        names: Names,
        sight: Sighting,
        *,
        seconds_per_token: float,
        patience_seconds: float | None,
        states: Mapping[int, Mapping[str, Tensor]] = MappingProxyType({}),
    ) -> Tally:
        """Offer to the queue what is new in a cache, copied; returns how much of it was put, as far as it was.

        Args:
            rows: Which rows hold what.
            cache: As a model left it.
            names: Of the entries.
            sight: Who computed; asked again before anything is put.
            seconds_per_token: What a token cost.
            patience_seconds: How long to wait for room; None for as long as it takes.
            states: Of the recurrent layers, by how many tokens of the only row they are of.
        """
        tally = Tally()
        if not rows:
            return tally
        if getattr(self._store, "read_only", False):
            self.refuse("the stash is read-only")
            return tally
        length = max(row.pads + len(row.ids) for row in rows)
        tensors = self._tensors(cache, length)
        if isinstance(tensors, str):
            self.refuse(tensors)
            return tally
        keys, values = tensors
        finder = Finder(self._store, self._queue, names.namespace)
        harvest = Harvest()
        for filled in _longest(rows):
            path = names.path(filled.ids)
            known = finder.there(path.blocks[filled.match.n_blocks :])
            span = slice(filled.pads, filled.pads + len(filled.ids))
            Cutter(
                path,
                filled.match,
                known,
                [each[filled.row, :, span] for each in keys],
                [each[filled.row, :, span] for each in values],
                self._facts,
                seconds_per_token,
                harvest,
            ).cut()
        fresh, again = list(harvest.fresh.values()), list(harvest.again.values())
        for n_tokens, state in states.items():
            path, ttl_seconds = names.path(rows[0].ids), self._facts.ttl_seconds
            again.append(write_state(path, n_tokens // BLOCK_TOKENS, state, ttl_seconds))

        def confirm() -> bool:
            unchanged = sight.unchanged()
            if unchanged:
                describe_model(self._store, sight.fingerprint, self._facts.name)
            return unchanged

        def published(writes: Sequence[Write]) -> None:
            n_tokens = sum(write.n_tokens for write in writes)
            tally.n_tokens += n_tokens
            self._stats.kept(n_tokens, harvest.worst_error)

        offer = partial(self._queue.offer, confirm=confirm, published=published, patience_seconds=patience_seconds)
        if offer(fresh) == len(fresh):
            offer(again, replace=True)
        else:  # what points to a block that was dropped is of no use
            for write in again:
                self._store.events.drop(write.namespace, write.key, DropReason.BUSY)
        self._store.events.overflow(harvest.overflows)
        return tally

    def refuse(self, reason: str) -> None:
        """Count, and say once, why a cache is not kept."""
        self._stats.note(self._stats.not_kept, reason)
        self._store.events.warn_once(f"kv kept {reason}", "lmstash: KV of %s is not kept: %s", self._facts.name, reason)

    def _tensors(self, cache: Any, length: int) -> tuple[list[Tensor], list[Tensor]] | str:
        """Return keys and values by layer, `[batch, heads, length or more, dim]`, or why they cannot be had."""
        layers = getattr(cache, "layers", None)
        if layers is None:
            return f"a {type(cache).__name__} is no transformers Cache"
        if not self._family.kept or len(layers) <= self._family.kept[-1]:
            return f"the cache has {len(layers)} layers, fewer than the model fills"
        keys: list[Tensor] = []
        values: list[Tensor] = []
        for number in self._family.kept:
            layer = layers[number]
            if not isinstance(layer, DynamicLayer | StaticLayer) or not layer.is_initialized:
                return f"a layer of class {type(layer).__name__} holds no plain keys and values"
            key, value = layer.keys, layer.values  # touched first: a restored layer becomes a plain one
            kind = type(layer)
            if kind not in _PLAIN or key is None or value is None:
                return f"a layer of class {kind.__name__} holds no plain keys and values"
            if layer.get_seq_length() < length or key.shape[-2] < length or key.ndim != 4:
                kept = "generate and prefill of stash.kv keep all"
                return f"this cache's {kind.__name__} holds only the last tokens; {kept}"
            if kind is DynamicSlidingWindowLayer and key.shape[-2] != layer.get_seq_length():
                return "a sliding layer of this cache has forgotten its first tokens"
            keys.append(key)
            values.append(value)
        return keys, values


def _longest(rows: Sequence[Filled]) -> Iterator[Filled]:
    """Yield rows, but of those with equal tokens only the first."""
    seen: set[bytes] = set()
    for row in rows:
        name = row.ids.tobytes()
        if name not in seen:
            seen.add(name)
            yield row
