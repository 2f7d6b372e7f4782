"""`KV`: a model's generate(), with the KV of prompts seen before restored instead of computed."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmstash.caches.kv.calls import Call, Prompts, read_call, read_prompts
from lmstash.caches.kv.families import Family, empty_cache, family_of
from lmstash.caches.kv.finding import Finder, Match
from lmstash.caches.kv.harvest import Cutter, Facts, Harvest
from lmstash.caches.kv.loading import Filling, restore
from lmstash.caches.kv.naming import Names, Path
from lmstash.caches.writing import WriteBehind
from lmstash.codecs.dtypes import check_storage_dtype
from lmstash.errors import InvalidArgumentError
from lmstash.events import MissReason
from lmstash.identity.fingerprint import Fingerprint
from lmstash.identity.watch import ModelWatch
from lmstash.store.base import Store


@dataclass(slots=True)
class KVStats:
    """Counters of one `KV` since it was made."""

    calls: int = 0
    tokens_asked: int = 0
    """Prompt tokens of all rows."""
    tokens_reused: int = 0
    tokens_kept: int = 0
    """Offered to the store."""
    passed_on: Counter[str] = field(default_factory=Counter[str])
    """Calls that were left to the model alone, by reason."""
    worst_error: float = 0.0
    """With `storage_dtype`: the largest rounding seen, relative to the largest value of its tensor."""


class KV:
    """Generation by one model over one store.

    `kv.generate(...)` is `model.generate(...)`; the model must not be edited while a call runs (what is computed then is
    not kept). Threads may share it as far as they may share the model. Processes share what is kept, through the store.

    A restored prefix continues bit for bit as the live cache would have. Against one uncached pass over everything the
    last bits differ, as they do whenever a prompt is computed in two pieces.
    """

    def __init__(
        self,
        store: Store,
        model: Any,
        *,
        queue: WriteBehind | None = None,
        variant: str | None = None,
        strict_numerics: bool = False,
        assume_frozen: bool = False,
        salt: bytes | str | None = None,
        private: bool = False,
        storage_dtype: str | None = None,
        ttl_seconds: float | None = None,
    ) -> None:
        """Fingerprint the model (reads every weight once).

        Args:
            store: Where KV is kept.
            model: A transformers model with `generate`, in evaluation mode.
            queue: Through which it is written; by default one of its own.
            variant: A name for what lmstash cannot see (patched forwards, hooks of your own); part of the identity.
            strict_numerics: Make the torch version and the device part of the identity.
            assume_frozen: Do not look for weights changed in place: you vouch for them.
            salt: A tenant's secret; entries under different salts are invisible to each other.
            private: Keep no token ids, only digests; prefixes are then found by whole blocks and whole tails.
            storage_dtype: "float16" or "bfloat16" to keep KV rounded (None: exactly).
            ttl_seconds: How long new entries live.

        Raises:
            InvalidArgumentError: An unknown `storage_dtype`.
            UnsupportedModelError: The model cannot be fingerprinted safely; says why.
        """
        check_storage_dtype(storage_dtype)
        self.store = store
        self.model = model
        self.stats = KVStats()
        self._queue = queue if queue is not None else WriteBehind(store)
        self._watch = ModelWatch(model, variant=variant, strict_numerics=strict_numerics, assume_frozen=assume_frozen)
        self._salt = salt
        self._private = private
        self._storage_dtype = storage_dtype
        self._ttl_seconds = ttl_seconds
        self._lock = threading.Lock()
        self._family: Family = family_of(model)
        self._name: str = getattr(model.config, "name_or_path", "") or type(model).__name__

    @property
    def reason(self) -> str:
        """Why nothing is kept for this model; empty when it is served."""
        return self._family.reason

    def generate(self, inputs: Any = None, **arguments: Any) -> Any:
        """Do what `model.generate` does, feeding only what is not kept of the prompt, and keep what is computed.

        Calls that a kept prefix cannot take part in go to `model.generate` as they are, counted in
        `stats.passed_on` and logged once for each reason.

        Args:
            inputs: Token ids `[batch, n_tokens]`, padded on the left where rows differ in length.
            **arguments: As `model.generate` takes them.

        Returns:
            What `model.generate` returns.
        """
        self.stats.calls += 1
        call = read_call(self.model, inputs, arguments) if self._family.served else self._family.reason
        if isinstance(call, str):
            self._pass_on(call)
            return self.model.generate(inputs, **arguments)
        fingerprint = self._watch.refresh()
        names = self._names(fingerprint)
        matches = self._find(names, call.prompts.rows)
        width = _restorable(call.prompts, matches)
        cache = self._cache(call.prompts, matches, width, call.repeats)
        self._count(call.prompts, matches, width)
        started = time.perf_counter()
        out = self.model.generate(inputs, **arguments, **{self._family.argument: cache})
        seconds = time.perf_counter() - started
        self._keep(call, names, matches, cache, out, fingerprint, seconds)
        return out

    def past(self, input_ids: Any, attention_mask: Any = None) -> tuple[Any, int]:
        """Return a fresh cache that holds the first n tokens of the prompt, and n, for calling `forward` yourself.

        n is less than the length of the prompt, since a model must be fed a token to say anything. Feed the others
        (`input_ids[:, n:]`) with the cache; never give one cache to two calls.

        Args:
            input_ids: A list of token ids, or a tensor `[n_tokens]` or `[batch, n_tokens]`.
            attention_mask: Where rows are padded (on the left).

        Returns:
            (cache, n), or (None, 0) when nothing is kept.
        """
        if not self._family.served:
            self._pass_on(self._family.reason)
            return None, 0
        prompts = self._prompts(input_ids, attention_mask)
        if isinstance(prompts, str):
            self._pass_on(prompts)
            return None, 0
        matches = self._find(self._names(self._watch.refresh()), prompts.rows)
        width = _restorable(prompts, matches)
        self._count(prompts, matches, width)
        return (self._cache(prompts, matches, width, 1), width) if width else (None, 0)

    def put(self, input_ids: Any, past_key_values: Any, attention_mask: Any = None) -> int:
        """Keep what a forward pass over `input_ids` left in its cache.

        You vouch that the cache is of these tokens, from position 0 on, and of this model as it is now. Returns how many
        tokens are newly kept; 0, with a counted reason, for caches that cannot be kept.
        """
        raise NotImplementedError

    def prefill(self, input_ids: Any, attention_mask: Any = None) -> int:
        """Compute and keep what is not kept of the prompt; returns how many tokens were computed."""
        raise NotImplementedError

    def flush(self) -> None:
        """Return once everything computed so far is in the store."""
        self._queue.flush()

    def __repr__(self) -> str:
        """One line."""
        return f"<KV of {self._name} ({self._watch.fingerprint.hex[:16]}) on {self.store!r}>"

    def _names(self, fingerprint: Fingerprint) -> Names:
        return Names.of(fingerprint.digest, self._salt, self._storage_dtype)

    def _prompts(self, input_ids: Any, attention_mask: Any) -> Prompts | str:
        ids = input_ids if isinstance(input_ids, Tensor) else torch.as_tensor(np.asarray(input_ids, np.int64))
        ids = ids[None] if ids.ndim == 1 else ids
        if ids.ndim != 2 or not ids.numel():
            raise InvalidArgumentError(f"input_ids is one prompt or a batch [batch, n_tokens]; got {tuple(ids.shape)}")
        return read_prompts(ids, attention_mask)

    def _find(self, names: Names, rows: Sequence[np.ndarray]) -> list[Match]:
        distinct: dict[bytes, int] = {}
        paths: list[Path] = []
        owners: list[int] = []
        for row in rows:
            owner = distinct.setdefault(row.tobytes(), len(paths))
            if owner == len(paths):
                paths.append(names.path(row))
            owners.append(owner)
        found = self._finder(names).find(paths)
        return [found[owner] for owner in owners]

    def _finder(self, names: Names) -> Finder:
        return Finder(self.store, self._queue, names.namespace)

    def _cache(self, prompts: Prompts, matches: Sequence[Match], width: int, repeats: int) -> Any:
        cache = empty_cache(self.model)
        shape = next((match.shape for match in matches if match.shape is not None), None)
        if not width or shape is None:
            return cache
        fillings = [
            Filling(min(pads, width), match.first(width - pads))
            for pads, match in zip(prompts.pads, matches, strict=True)
        ]
        return restore(cache, self._family.kept, fillings, shape, self.model.device, repeats=repeats)

    def _keep(
        self,
        call: Call,
        names: Names,
        matches: Sequence[Match],
        cache: Any,
        out: Any,
        fingerprint: Fingerprint,
        seconds: float,
    ) -> None:
        """Keep what a call left in its cache."""
        length = cache.get_seq_length()
        layers = [cache.layers[number] for number in self._family.kept]
        sequences = out if isinstance(out, Tensor) else out.sequences
        facts = Facts(self._name, self._storage_dtype, self._private, self._ttl_seconds, seconds / max(1, length))
        harvest = Harvest()
        done: set[bytes] = set()
        for row, match in enumerate(matches):
            pads = call.prompts.pads[row]
            for repeat in range(1 if call.beams else call.repeats):
                at = row * call.repeats + repeat
                ids = call.prompts.rows[row]
                if not call.beams:
                    ids = sequences[at, pads:length].cpu().numpy().astype(np.uint32)
                if ids.tobytes() in done:
                    continue
                done.add(ids.tobytes())
                stop = pads + len(ids)
                keys = [layer.keys[at, :, pads:stop] for layer in layers]
                values = [layer.values[at, :, pads:stop] for layer in layers]
                path = names.path(ids)
                known = self._finder(names).there(path.blocks[match.n_blocks :])
                Cutter(path, match, known, keys, values, facts, harvest).cut()
        self._offer(harvest, fingerprint)

    def _offer(self, harvest: Harvest, fingerprint: Fingerprint) -> None:
        def confirm() -> bool:
            return self._watch.unchanged(fingerprint)

        taken = self._queue.offer(harvest.fresh, confirm=confirm)
        taken += self._queue.offer(harvest.again, replace=True, confirm=confirm)
        with self._lock:
            self.stats.tokens_kept += sum(each.n_tokens for each in (*harvest.fresh, *harvest.again))
            self.stats.worst_error = max(self.stats.worst_error, harvest.worst_error)

    def _count(self, prompts: Prompts, matches: Sequence[Match], width: int) -> None:
        with self._lock:
            self.stats.tokens_asked += sum(map(len, prompts.rows))
            self.stats.tokens_reused += sum(max(0, width - pads) for pads in prompts.pads)
        if not width:
            for match in matches:
                key = match.path.blocks[0] if match.path.blocks else match.path.slot(0)
                self.store.events.miss(match.path.names.namespace, key or b"", MissReason.ABSENT)

    def _pass_on(self, reason: str) -> None:
        with self._lock:
            self.stats.passed_on[reason] += 1
        self.store.events.warn_once(f"kv {reason}", "lmstash: %s: generated without kept KV: %s", self._name, reason)


def _restorable(prompts: Prompts, matches: Sequence[Match]) -> int:
    """Return how many slots of every row can be restored: one at least must be left to feed."""
    reach = min(pads + match.n_tokens for pads, match in zip(prompts.pads, matches, strict=True))
    reach = min(reach, prompts.width - 1)
    return reach if reach > min(prompts.pads) else 0
