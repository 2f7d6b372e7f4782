"""`KV`: a model's generate(), with the KV of prompts seen before restored instead of computed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmstash.caches.kv.calls import Call, Prompts, read_call, read_prompts
from lmstash.caches.kv.clock import PrefillClock
from lmstash.caches.kv.families import family_of
from lmstash.caches.kv.finding import Finder, Match
from lmstash.caches.kv.guard import Guard, UnverifiedError
from lmstash.caches.kv.harvest import Facts
from lmstash.caches.kv.keeping import PATIENCE, Filled, Keeper
from lmstash.caches.kv.loading import Filling, restore
from lmstash.caches.kv.naming import Names, Path, namespace_of
from lmstash.caches.kv.stats import KVStats
from lmstash.caches.writing import WriteBehind
from lmstash.codecs.dtypes import check_storage_dtype
from lmstash.errors import InvalidArgumentError
from lmstash.events import MissReason
from lmstash.identity.fingerprint import Fingerprint
from lmstash.identity.watch import ModelWatch, Sighting
from lmstash.store.base import Store


class KV:
    """Generation by one model over one store.

    `kv.generate(...)` is `model.generate(...)`; the model must not be edited while a call runs (what is computed then
    is not kept). Threads may share it as far as they may share the model. Processes share what is kept, through the
    store.

    A restored prefix continues bit for bit as the live cache would have. Against one uncached pass over everything the
    last bits differ, as they do whenever a prompt is computed in two pieces.

    Attributes:
        stats: Counters: tokens asked and reused, calls left to the model alone by reason, and so on.
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

        A model whose KV cannot be served safely is taken all the same: `reason` says why, and calls go to it as they
        are.

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
        self._storage_dtype = storage_dtype
        self._family = family_of(model)
        # An exception through accelerate's hooks would leave offloaded weights where they are.
        self._has_hooks = any(hasattr(module, "_hf_hook") for module in model.modules())
        self._name: str = getattr(model.config, "name_or_path", "") or type(model).__name__
        facts = Facts(self._name, storage_dtype, private, ttl_seconds)
        self._keeper = Keeper(store, self._queue, self._family, facts, self.stats)

    @property
    def reason(self) -> str:
        """Why nothing is kept for this model; empty when it is served."""
        return self._family.reason

    @property
    def fingerprint(self) -> str:
        """Who computes, as 64 hexadecimal digits; the first 16 name the namespace of the entries."""
        return self._watch.fingerprint.hex

    @property
    def namespace(self) -> str:
        """Where the entries live in the store."""
        return namespace_of(self._watch.fingerprint.digest)

    def __repr__(self) -> str:
        """One line."""
        return f"<KV of {self._name} ({self.fingerprint[:16]}) on {self.store!r}>"

    # --- generating -----------------------------------------------------------------------------------------------

    def generate(self, inputs: Any = None, generation_config: Any = None, **arguments: Any) -> Any:
        """Do what `model.generate` does, feeding only what is not kept of the prompt, and keep what is computed.

        Calls that a kept prefix cannot take part in go to `model.generate` as they are, counted by reason in
        `stats.passed_on` and logged once for each.

        Args:
            inputs: Token ids `[batch, n_tokens]`, padded on the left where rows differ in length.
            generation_config: As `model.generate` takes it.
            **arguments: Likewise.

        Returns:
            What `model.generate` returns.
        """
        self.stats.called()
        if generation_config is not None:
            arguments["generation_config"] = generation_config
        turn = self._prepare(inputs, arguments)
        if isinstance(turn, str):
            self._pass_on(turn)
            return self.model.generate(inputs, **arguments)
        if turn.width:
            try:
                if (turn.call.streams or self._has_hooks) and not turn.passed():
                    raise UnverifiedError
                out = self._run(turn, inputs, arguments)
                if turn.passed():
                    return out
            except UnverifiedError:
                pass
            self._pass_on("what was kept proved damaged, or the model changed")
            turn = self._prepare(inputs, arguments, afresh=True)
            if isinstance(turn, str):
                return self.model.generate(inputs, **arguments)
        return self._run(turn, inputs, arguments)

    def _prepare(self, inputs: Any, arguments: Mapping[str, Any], *, afresh: bool = False) -> _Turn | str:
        """Look for what is kept of a prompt and begin to check it; return why, if the call is the model's alone.

        `afresh` looks for nothing: everything will be computed by the model as it is now.
        """
        if not self._family.served:
            return self._family.reason
        try:
            call = read_call(self.model, self._family, inputs, arguments)
            if isinstance(call, str):
                return call
            sight = self._watch.look()
            names = self._names(sight.fingerprint)
            finder = Finder(self.store, self._queue, names.namespace, lent=True)
            matches = [] if afresh else self._find(finder, names, call.prompts.rows)
            matches = matches or [Match(names.path(row)) for row in call.prompts.rows]
            width = _restorable(call.prompts, matches)
            if not width:
                return _Turn(call, names, matches, sight, 0, None, self._family.empty(self.model))
            guard = Guard([*finder.checks, sight.holds], len(self._family.kept))
            cache = self._restored(call.prompts, matches, width, call.repeats, guard)
            return _Turn(call, names, matches, sight, width, guard, cache)
        except Exception as error:  # a program that runs without the cache runs with it
            if self.store.strict:
                raise
            return f"{type(error).__name__}: {error}"

    def _run(self, turn: _Turn, inputs: Any, arguments: Mapping[str, Any]) -> Any:
        """Generate, and keep what the cache holds then."""
        call, cache = turn.call, turn.cache
        clock = PrefillClock()
        processors = clock.listed([*(arguments.get("logits_processor") or ()), clock])
        out = self.model.generate(inputs, **{**arguments, "logits_processor": processors, self._family.argument: cache})
        try:
            if turn.passed():
                self._count(call.prompts, turn.matches, turn.width)
                self._keep(turn, out, clock)
            self._family.forget(cache)
        except Exception as error:  # what was generated is right; that it cannot be kept must not lose it
            if self.store.strict:
                raise
            self._keeper.refuse(f"{type(error).__name__}: {error}")
        return out

    def _keep(self, turn: _Turn, out: Any, clock: PrefillClock) -> None:
        rows = _filled(turn.call, turn.matches, out, turn.cache)
        if isinstance(rows, str):
            self._keeper.refuse(rows)
            return
        fed = len(turn.call.prompts.rows) * (turn.call.prompts.width - turn.width)
        patience = PATIENCE * (time.perf_counter() - clock.started)
        self._keeper.keep(
            rows,
            turn.cache,
            turn.names,
            turn.sight,
            seconds_per_token=clock.seconds / fed,
            patience_seconds=patience,
        )

    # --- for people who call forward ------------------------------------------------------------------------------

    def past(self, input_ids: Any, attention_mask: Any = None) -> tuple[Any, int]:
        """Return a fresh cache that holds the first n tokens of the prompt, and n, for calling `forward` yourself.

        n is less than the length of the prompt, since a model must be fed a token to say anything. Feed the others
        (`input_ids[:, n:]`) with the cache; never give one cache to two calls.

        Args:
            input_ids: A list of token ids, or a tensor `[n_tokens]` or `[batch, n_tokens]`.
            attention_mask: Where rows are padded (on the left); n then counts slots.

        Returns:
            (cache, n), or (None, 0) when nothing is kept.
        """
        self.stats.called()
        prompts = self._prompts(input_ids, attention_mask)
        if isinstance(prompts, str):
            self._pass_on(prompts)
            return None, 0
        names = self._names(self._watch.refresh())
        matches = self._find(Finder(self.store, self._queue, names.namespace), names, prompts.rows)
        width = _restorable(prompts, matches)
        self._count(prompts, matches, width)
        return (self._restored(prompts, matches, width, 1, None), width) if width else (None, 0)

    def put(self, input_ids: Any, past_key_values: Any, attention_mask: Any = None) -> int:
        """Keep what forward passes over `input_ids` left in a cache.

        You vouch that the cache is of these tokens, from position 0 on, and of this model as it is now: tensors do not
        say what they were computed from. Of a cache that holds fewer tokens than `input_ids` has (`generate` does not
        feed the last one), as many are kept; of one that holds more, only those of `input_ids`.

        Args:
            input_ids: As `past` takes them.
            past_key_values: A transformers cache. Windows, recurrent states and quantised layers are not kept.
            attention_mask: Where rows are padded (on the left).

        Returns:
            How many tokens are newly kept. 0 with a reason in `stats.not_kept` where the cache cannot be.
        """
        prompts = self._prompts(input_ids, attention_mask)
        if isinstance(prompts, str):
            self._keeper.refuse(prompts)
            return 0
        try:
            length = int(past_key_values.get_seq_length())
        except (AttributeError, TypeError, ValueError):
            self._keeper.refuse(f"a {type(past_key_values).__name__} is no transformers Cache")
            return 0
        sight = self._watch.look()
        if not sight.holds():
            sight = self._watch.look()
        names = self._names(sight.fingerprint)
        prompts = prompts.first(min(length, prompts.width))
        matches = self._find(Finder(self.store, self._queue, names.namespace, lent=True), names, prompts.rows)
        rows = [
            Filled(ids, row, pads, match)
            for row, (ids, pads, match) in enumerate(zip(prompts.rows, prompts.pads, matches, strict=True))
            if len(ids)
        ]
        if not rows:
            return 0
        return self._keeper.keep(rows, past_key_values, names, sight, seconds_per_token=0.0, patience_seconds=None)

    def prefill(self, input_ids: Any, attention_mask: Any = None) -> int:
        """Compute and keep what is not kept of the prompt, all of it, without generating anything.

        Args:
            input_ids: As `past` takes them.
            attention_mask: Where rows are padded (on the left).

        Returns:
            How many tokens were fed to the model, in all rows.
        """
        self.stats.called()
        prompts = self._prompts(input_ids, attention_mask)
        if isinstance(prompts, str):
            self._pass_on(prompts)
            return 0
        sight = self._watch.look()
        if not sight.holds():
            sight = self._watch.look()
        names = self._names(sight.fingerprint)
        matches = self._find(Finder(self.store, self._queue, names.namespace), names, prompts.rows)
        if all(match.n_tokens == len(match.path.ids) for match in matches):
            self._count(prompts, matches, prompts.width)
            return 0
        width = _restorable(prompts, matches)
        cache = self._restored(prompts, matches, width, 1, None) if width else self._family.empty(self.model)
        started = time.perf_counter()
        self._forward(prompts, cache, width)
        fed = len(prompts.rows) * (prompts.width - width)
        self._count(prompts, matches, width)
        rows = [
            Filled(ids, row, pads, match)
            for row, (ids, pads, match) in enumerate(zip(prompts.rows, prompts.pads, matches, strict=True))
        ]
        seconds = (time.perf_counter() - started) / fed
        self._keeper.keep(rows, cache, names, sight, seconds_per_token=seconds, patience_seconds=None)
        return fed

    def flush(self) -> None:
        """Return once everything computed so far is in the store."""
        self._queue.flush()

    def _forward(self, prompts: Prompts, cache: Any, width: int) -> None:
        """Feed the model what follows the first `width` slots."""
        device = self.model.device
        ids = np.zeros((len(prompts.rows), prompts.width), np.int64)
        mask = np.zeros_like(ids)
        for row, (tokens, pads) in enumerate(zip(prompts.rows, prompts.pads, strict=True)):
            ids[row, pads:] = tokens
            mask[row, pads:] = 1
        inputs: dict[str, Any] = {"input_ids": torch.from_numpy(ids[:, width:]).to(device)}
        takes = self._family.takes
        if "attention_mask" in takes:
            inputs["attention_mask"] = torch.from_numpy(mask).to(device)
        if "position_ids" in takes:
            positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
            inputs["position_ids"] = torch.from_numpy(positions[:, width:]).to(device)
        if "logits_to_keep" in takes:
            inputs["logits_to_keep"] = 1
        with torch.no_grad():
            self.model(**inputs, **{self._family.argument: cache}, use_cache=True)

    # --- parts ----------------------------------------------------------------------------------------------------

    def _names(self, fingerprint: Fingerprint) -> Names:
        return Names.of(fingerprint.digest, self._salt, self._storage_dtype)

    def _prompts(self, input_ids: Any, attention_mask: Any) -> Prompts | str:
        if not self._family.served:
            return self._family.reason
        ids = input_ids if isinstance(input_ids, Tensor) else torch.as_tensor(np.asarray(input_ids, np.int64))
        ids = ids[None] if ids.ndim == 1 else ids
        if ids.ndim != 2 or not ids.numel():
            raise InvalidArgumentError(f"input_ids is one prompt or a batch [batch, n_tokens]; got {tuple(ids.shape)}")
        mask = attention_mask
        if isinstance(mask, Tensor) and mask.ndim == 1:
            mask = mask[None]
        return read_prompts(ids, mask, self._family)

    def _find(self, finder: Finder, names: Names, rows: Sequence[np.ndarray]) -> list[Match]:
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

    def _restored(
        self, prompts: Prompts, matches: Sequence[Match], width: int, repeats: int, guard: Guard | None
    ) -> Any:
        shape = next(match.shape for match in matches if match.shape is not None)
        fillings = [
            Filling(min(pads, width), match.first(width - pads))
            for pads, match in zip(prompts.pads, matches, strict=True)
        ]
        empty = self._family.empty(self.model)
        return restore(empty, self._family.kept, fillings, shape, self.model.device, repeats=repeats, guard=guard)

    def _count(self, prompts: Prompts, matches: Sequence[Match], width: int) -> None:
        reused = [max(0, width - pads) for pads in prompts.pads]
        self.stats.served(sum(map(len, prompts.rows)), sum(reused))
        for match, n_tokens in zip(matches, reused, strict=True):
            key = match.path.first_key
            if n_tokens == 0:
                self.store.events.miss(match.path.names.namespace, key, MissReason.ABSENT)
            elif n_tokens < len(match.path.ids) - 1:
                self.store.events.partial_hit(match.path.names.namespace, key, n_tokens, len(match.path.ids))

    def _pass_on(self, reason: str) -> None:
        self.stats.note(self.stats.passed_on, reason)
        self.store.events.warn_once(f"kv {reason}", "lmstash: %s: generated without kept KV: %s", self._name, reason)


@dataclass(slots=True)
class _Turn:
    """One call of `generate` that is kept, and may be served."""

    call: Call
    names: Names
    matches: Sequence[Match]
    sight: Sighting
    width: int
    """Slots that are restored in `cache`."""
    guard: Guard | None
    cache: Any

    def passed(self) -> bool:
        """Wait until what was restored has been checked; return whether it may be used."""
        return self.guard is None or self.guard.passed()


def _restorable(prompts: Prompts, matches: Sequence[Match]) -> int:
    """Return how many slots of every row can be restored: one at least must be left to feed."""
    reach = min(pads + match.n_tokens for pads, match in zip(prompts.pads, matches, strict=True))
    reach = min(reach, prompts.width - 1)
    return reach if reach > min(prompts.pads) else 0


def _filled(call: Call, matches: Sequence[Match], out: Any, cache: Any) -> list[Filled] | str:
    """Return which rows of the cache hold what after `generate`, or why that cannot be told."""
    sequences = out if isinstance(out, Tensor) else out.sequences
    length = cache.get_seq_length()
    if length < call.prompts.width or (not call.beams and length != sequences.shape[1] - 1):
        return "the cache does not hold what was generated"
    rows: list[Filled] = []
    for number, (ids, pads, match) in enumerate(zip(call.prompts.rows, call.prompts.pads, matches, strict=True)):
        first = number * call.repeats
        if call.beams:  # beams took turns in these rows: they share the prompt only
            rows.append(Filled(ids, first, pads, match))
            continue
        for row in range(first, first + call.repeats):
            tokens = sequences[row, pads:length].cpu().numpy()
            if len(sequences) > 1 and call.pad is not None:  # a row that was done before others
                stop = len(tokens)
                while stop > len(ids) and tokens[stop - 1] == call.pad:
                    stop -= 1
                tokens = tokens[:stop]
            rows.append(Filled(tokens.astype(np.uint32), row, pads, match))
    return rows
