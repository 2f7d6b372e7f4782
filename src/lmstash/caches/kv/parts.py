"""What every call of one `KV` shares: who computes, where things are kept, and the steps that calls have in common."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from lmstash.caches.kv.calls import Prompts
from lmstash.caches.kv.families import Family, family_of
from lmstash.caches.kv.finding import Finder, Match
from lmstash.caches.kv.gate import Gate
from lmstash.caches.kv.guard import Guard
from lmstash.caches.kv.keeping import Keeper
from lmstash.caches.kv.loading import Filling, restore
from lmstash.caches.kv.naming import Names, Path
from lmstash.caches.kv.probing import verdict
from lmstash.caches.kv.stats import KVStats
from lmstash.caches.writing import WriteBehind
from lmstash.events import MissReason
from lmstash.forks import renew_after_fork
from lmstash.identity.fingerprint import Fingerprint
from lmstash.identity.models.watch import ModelWatch
from lmstash.store.base import Store

_UNKNOWN_CODE = (
    "it runs code that lmstash does not know. If what it computes of each token depends on the tokens before it only, "
    "however many are fed at once, vouch for that: variant='...'"
)
_IN_PASSES = (
    "%s, and what that does may depend on how many tokens are fed at once, whatever variant= calls it: generate() goes "
    "to the model as it is. Remove it; or, where each token depends on the tokens before it only, write it as a module "
    "of your own, and vouch for that with variant='...'"
)


@dataclass(slots=True, weakref_slot=True, eq=False)
class Parts:
    """One model over one store. Threads may share it."""

    store: Store
    queue: WriteBehind
    model: Any
    name: str
    watch: ModelWatch
    family: Family
    keeper: Keeper
    stats: KVStats
    salt: bytes | str | None
    storage_dtype: str | None
    gate: Gate = field(default_factory=Gate)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _seen: dict[bytes, str] = field(default_factory=dict)
    """Why a model cannot be served, by digest; empty for those that can, which doubtful ones have proved."""

    def __post_init__(self) -> None:
        """See to forked children."""
        renew_after_fork(self, _lock=threading.RLock)

    def idle(self) -> str:
        """Return why nothing need be looked for or kept, known without a look at the model; empty when it must."""
        if getattr(self.store, "capacity_bytes", None) == 0:
            return "caching is switched off"
        if self.watch.is_interrupted():  # by a signal handler, which would wait for what looks beside it
            return "a call in the midst of another one's look at the model"
        return self.family.reason

    def reason(self) -> str:
        """Return why nothing is kept for the model, as it was last read; empty where that is no matter of its kind."""
        if self.family.reason or not self.watch.runs_unknown_code():
            return self.family.reason
        placed = self.watch.in_passes()
        return _IN_PASSES % placed if placed else _UNKNOWN_CODE

    def names(self, fingerprint: Fingerprint) -> Names:
        """Return what entries of the model are called."""
        return Names.of(fingerprint.digest, self.salt, self.storage_dtype)

    def unserved(self, fingerprint: Fingerprint) -> str:
        """Return why the model cannot be served; empty when it can. Some models are asked to prove it, once."""
        if reason := self.reason():  # each time: modes of torch's come and go
            return reason
        reason = self._seen.get(fingerprint.digest)
        if reason is None:
            with self._lock:
                reason = self._seen.get(fingerprint.digest)
                if reason is None:
                    reason = self._seen[fingerprint.digest] = self._judge(fingerprint)
        return reason

    def _judge(self, fingerprint: Fingerprint) -> str:
        family = family_of(self.model)  # a configuration may have changed since
        if family != self.family:
            return (
                family.reason or "its cache is made of other layers than when stash.kv(model) was called: call it again"
            )
        if family.doubtful and not verdict(self.store, self.model, family, fingerprint):
            return "it does not continue from its cache as it should"
        return ""

    def find(self, finder: Finder, names: Names, rows: Sequence[np.ndarray]) -> list[Match]:
        """Return what is kept of each prompt; equal prompts are looked for once."""
        distinct: dict[bytes, int] = {}
        paths: list[Path] = []
        owners: list[int] = []
        for row in rows:
            owner = distinct.setdefault(row.tobytes(), len(paths))
            if owner == len(paths):
                paths.append(names.path(row))
            owners.append(owner)
        found = finder.find(paths)
        return [found[owner] for owner in owners]

    def restored(
        self, prompts: Prompts, matches: Sequence[Match], width: int, *, repeats: int = 1, guard: Guard | None = None
    ) -> Any:
        """Return a cache of which the first `width` slots are filled. Of a compiled model `guard` is not told."""
        empty = self.family.empty(self.model)
        shape = next((match.shape for match in matches if match.shape is not None), None)
        if not width or shape is None:
            return empty
        fillings = [
            Filling(min(pads, width), match.first(width - pads))
            for pads, match in zip(prompts.pads, matches, strict=True)
        ]
        traced = self.watch.is_compiled()
        told = None if traced else guard
        cache = restore(empty, self.family.kept, fillings, shape, self.model.device, repeats=repeats, guard=told)
        # Only plain layers can be compiled: asked for its keys, a layer is read; given them, it is a plain one.
        if traced:
            started = time.perf_counter()
            layers: list[Any] = cache.layers
            for number in self.family.kept:
                layers[number].keys = layers[number].keys
            if guard is not None:
                guard.seconds = time.perf_counter() - started
        return cache

    def forward(self, prompts: Prompts, cache: Any, width: int) -> None:
        """Feed the model what follows the first `width` slots of some prompts, which its cache holds already."""
        device = self.model.device
        ids = np.zeros((len(prompts.rows), prompts.width), np.int64)
        mask = np.zeros_like(ids)
        for row, (tokens, pads) in enumerate(zip(prompts.rows, prompts.pads, strict=True)):
            ids[row, pads:] = tokens
            mask[row, pads:] = 1
        inputs: dict[str, Any] = {"input_ids": torch.from_numpy(ids[:, width:]).to(device)}
        takes = self.family.takes
        if any(prompts.pads) and "attention_mask" in takes:
            inputs["attention_mask"] = torch.from_numpy(mask).to(device)
        if "position_ids" in takes:
            positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
            inputs["position_ids"] = torch.from_numpy(positions[:, width:]).to(device)
        if "logits_to_keep" in takes:
            inputs["logits_to_keep"] = 1
        with torch.no_grad():
            self.model(**inputs, **{self.family.argument: cache}, use_cache=True)

    def count(self, prompts: Prompts, matches: Sequence[Match], width: int) -> None:
        """Count what was served of some prompts."""
        reused = [max(0, width - pads) for pads in prompts.pads]
        self.stats.served(sum(map(len, prompts.rows)), sum(reused))
        for match, n_tokens in zip(matches, reused, strict=True):
            namespace, key = match.path.names.namespace, match.path.first_key
            if n_tokens == 0:
                self.store.events.miss(namespace, key, MissReason.ABSENT)
            elif n_tokens < len(match.path.ids) - 1:
                self.store.events.partial_hit(namespace, key, n_tokens, len(match.path.ids))

    def pass_on(self, reason: str) -> None:
        """Count, and say once, why a call is left to the model alone."""
        self.stats.note(self.stats.passed_on, reason)
        self.store.events.warn_once(f"kv {reason}", "lmstash: %s: generated without kept KV: %s", self.name, reason)


def restorable(prompts: Prompts, matches: Sequence[Match]) -> int:
    """Return how many slots of every row can be restored: one at least must be left to feed."""
    reach = min(pads + match.n_tokens for pads, match in zip(prompts.pads, matches, strict=True))
    reach = min(reach, prompts.width - 1)
    return reach if reach > min(prompts.pads) else 0
