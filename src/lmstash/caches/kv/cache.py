"""`KV`: a model's generate(), with the KV of prompts seen before restored instead of computed."""

from __future__ import annotations

import inspect
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmstash.caches.drawing import NOT_KEPT, moved, torch_states
from lmstash.caches.kv.calls import Prompts, read_prompts
from lmstash.caches.kv.families import family_of
from lmstash.caches.kv.finding import Finder, Match
from lmstash.caches.kv.generating import Generating
from lmstash.caches.kv.harvest import Facts
from lmstash.caches.kv.keeping import Filled, Keeper
from lmstash.caches.kv.naming import Names, namespace_of
from lmstash.caches.kv.parts import Parts, restorable
from lmstash.caches.kv.recurrent import find_state, load, snapshot, stops
from lmstash.caches.kv.stats import KVStats
from lmstash.caches.writing import WriteBehind
from lmstash.codecs.dtypes import check_storage_dtype
from lmstash.errors import InvalidArgumentError
from lmstash.identity.chain import BLOCK_TOKENS
from lmstash.identity.models.reached import config_of
from lmstash.identity.models.watch import Sighting, watch_model
from lmstash.store.base import Store, default_ttl


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
            variant: A name for what lmstash cannot see; part of the identity. Of modules and functions of your own you
                vouch with it that a token's values depend on the tokens before it only, however many are fed at once.
                With hooks of others, a `forward` on an instance or a mode of torch's nothing is kept all the same.
            strict_numerics: Make the torch version and the device part of the identity.
            assume_frozen: Do not look for weights changed in place: you vouch for them. Autocast and torch's other
                settings are looked at all the same.
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
        family = family_of(model)
        name = getattr(config_of(model), "name_or_path", "") or type(model).__name__
        queue = queue if queue is not None else WriteBehind(store)
        watch = watch_model(model, variant=variant, strict_numerics=strict_numerics, assume_frozen=assume_frozen)
        facts = Facts(name, storage_dtype, private or bool(family.linear), private, default_ttl(ttl_seconds))
        keeper = Keeper(store, queue, family, facts, self.stats)
        self._parts = Parts(
            store, queue, model, name, watch, family, keeper, self.stats, salt=salt, storage_dtype=storage_dtype
        )
        self._generating = Generating(self._parts)

    @property
    def reason(self) -> str:
        """Why nothing is kept for this model; empty when it is served."""
        return self._parts.reason()

    @property
    def fingerprint(self) -> str:
        """Who computes, as 64 hexadecimal digits; the first 16 name the namespace of the entries."""
        return self._parts.watch.fingerprint.hex

    @property
    def namespace(self) -> str:
        """Where the entries live in the store."""
        return namespace_of(self._parts.watch.fingerprint.digest)

    def __repr__(self) -> str:
        """One line."""
        return f"<KV of {self._parts.name} ({self.fingerprint[:16]}) on {self.store!r}>"

    # --- generating -----------------------------------------------------------------------------------------------

    def generate(self, inputs: Any = None, generation_config: Any = None, *more: Any, **arguments: Any) -> Any:
        """Do what `model.generate` does, feeding only what is not kept of the prompt, and keep what is computed.

        Calls that a kept prefix cannot take part in go to `model.generate` as they are, counted by reason in
        `stats.passed_on` and logged once for each.

        Args:
            inputs: Token ids `[batch, n_tokens]`, padded on the left where rows differ in length.
            generation_config: As `model.generate` takes it.
            *more: Likewise, in the order in which it takes them.
            **arguments: Likewise.

        Returns:
            What `model.generate` returns.
        """
        self.stats.called()
        if generation_config is not None:
            arguments["generation_config"] = generation_config
        if more:
            names = list(inspect.signature(self.model.generate).parameters)[2:]
            arguments |= dict(zip(names, more, strict=False))
        return self._generating.generate(inputs, arguments)

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
        parts = self._parts
        begun = self._begin(input_ids, attention_mask)
        if isinstance(begun, str):
            parts.pass_on(begun)
            return None, 0
        width, state = restorable(begun.prompts, begun.matches), {}
        if parts.family.linear:
            n_blocks, state = find_state(begun.finder, begun.matches[0], (begun.prompts.width - 1) // BLOCK_TOKENS)
            width = n_blocks * BLOCK_TOKENS
        parts.count(begun.prompts, begun.matches, width)
        if not width:
            return None, 0
        cache = parts.restored(begun.prompts, begun.matches, width)
        load(cache, state, self.model.device)
        return cache, width

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
            How many tokens are newly kept, once they are in the store. 0, with a reason in `stats.not_kept`, where the
            cache cannot be kept.
        """
        parts = self._parts
        if parts.family.linear:
            parts.keeper.refuse("its state is of a whole prefix: use prefill()")
            return 0
        try:
            length = int(past_key_values.get_seq_length())
        except (AttributeError, TypeError, ValueError):
            parts.keeper.refuse(f"a {type(past_key_values).__name__} is no transformers Cache")
            return 0
        begun = self._begin(input_ids, attention_mask, most=length, lent=True)
        if isinstance(begun, str):
            parts.keeper.refuse(begun)
            return 0
        kept = parts.keeper.keep(
            begun.rows(), past_key_values, begun.names, begun.sight, seconds_per_token=0.0, patience_seconds=None
        )
        parts.queue.flush()
        return kept.n_tokens

    def prefill(self, input_ids: Any, attention_mask: Any = None) -> int:
        """Compute and keep what is not kept of the prompt, all of it; returns once that is in the store.

        Args:
            input_ids: As `past` takes them.
            attention_mask: Where rows are padded (on the left).

        Returns:
            How many tokens were fed to the model, in all rows.
        """
        self.stats.called()
        parts = self._parts
        begun = self._begin(input_ids, attention_mask)
        if isinstance(begun, str):
            parts.pass_on(begun)
            return 0
        prompts, matches = begun.prompts, begun.matches
        state: dict[str, Tensor] = {}
        if parts.family.linear:
            n_blocks, state = find_state(begun.finder, matches[0], prompts.width // BLOCK_TOKENS)
            width = n_blocks * BLOCK_TOKENS
            pauses = stops(prompts.width + 1, matches[0], width)
        else:
            whole = all(match.n_tokens == len(match.path.ids) for match in matches)
            width = prompts.width if whole else restorable(prompts, matches)
            pauses = [] if whole else [prompts.width]
        parts.count(prompts, matches, width)
        if not pauses:
            return 0
        cache = parts.restored(prompts, matches, width)
        load(cache, state, self.model.device)
        states: dict[int, dict[str, Tensor]] = {}
        started, fed, random = time.perf_counter(), width, torch_states()
        for pause in pauses:
            parts.forward(prompts.first(pause), cache, fed)
            fed = pause
            if parts.family.linear:
                states[pause] = snapshot(cache, parts.family.linear)
        n_fed = len(prompts.rows) * (fed - width)
        if moved(random, torch_states()):
            parts.keeper.refuse(NOT_KEPT)
            return n_fed
        parts.keeper.keep(
            begun.rows(fed),
            cache,
            begun.names,
            begun.sight,
            states=states,
            seconds_per_token=(time.perf_counter() - started) / n_fed,
            patience_seconds=None,
        )
        parts.queue.flush()
        return n_fed

    def flush(self) -> None:
        """Return once everything computed so far is in the store."""
        self._parts.queue.flush()

    def _begin(
        self, input_ids: Any, attention_mask: Any, *, most: int | None = None, lent: bool = False
    ) -> _Begun | str:
        """Look whether the model is who it was, and what is kept of a prompt; return why, if it cannot be served.

        Args:
            input_ids: As the caller gave them.
            attention_mask: Likewise.
            most: Slots to look at.
            lent: What is found is not used for computing.
        """
        parts = self._parts
        prompts = self._prompts(input_ids, attention_mask)
        if isinstance(prompts, str):
            return prompts
        if most is not None:
            prompts = prompts.first(min(most, prompts.width))
        if parts.family.linear and (len(prompts.rows) > 1 or any(prompts.pads)):
            return "several rows, or padding, of a model with recurrent layers"
        try:
            sight = parts.watch.look()
            if not sight.holds():
                sight = parts.watch.look()
            if reason := parts.unserved(sight.fingerprint):
                return reason
            names = parts.names(sight.fingerprint)
            finder = Finder(self.store, parts.queue, names.namespace, lent=lent)
            return _Begun(prompts, sight, names, finder, parts.find(finder, names, prompts.rows))
        except Exception as error:  # a program that runs without the cache runs with it
            if self.store.strict:
                raise
            return f"{type(error).__name__}: {error}"

    def _prompts(self, input_ids: Any, attention_mask: Any) -> Prompts | str:
        if reason := self._parts.idle():
            return reason
        ids = input_ids if isinstance(input_ids, Tensor) else torch.as_tensor(np.asarray(input_ids, np.int64))
        ids = ids[None] if ids.ndim == 1 else ids
        if ids.ndim != 2 or not ids.numel():
            raise InvalidArgumentError(f"input_ids is one prompt or a batch [batch, n_tokens]; got {tuple(ids.shape)}")
        mask = attention_mask
        if isinstance(mask, Tensor) and mask.ndim == 1:
            mask = mask[None]
        return read_prompts(ids, mask, self._parts.family)


@dataclass(frozen=True, slots=True)
class _Begun:
    """What a call that does not generate goes by."""

    prompts: Prompts
    sight: Sighting
    names: Names
    finder: Finder
    matches: Sequence[Match]

    def rows(self, width: int | None = None) -> list[Filled]:
        """Return the rows of a cache that holds the prompts, or their first `width` slots."""
        prompts = self.prompts if width is None else self.prompts.first(width)
        return [
            Filled(ids, row, pads, match)
            for row, (ids, pads, match) in enumerate(zip(prompts.rows, prompts.pads, self.matches, strict=True))
            if len(ids)
        ]
