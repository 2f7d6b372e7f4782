"""`States`: llama.cpp states of one model over one store, in blocks that prompts share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from lmstash.caches.models import describe_model
from lmstash.caches.states.blob import State, build, parse
from lmstash.caches.states.buffers import buffer
from lmstash.caches.states.finding import Finder, Found, Match
from lmstash.caches.states.keeping import Cutter, Facts
from lmstash.caches.states.layout import decode_layout
from lmstash.caches.states.naming import ENDS, Names, Path, touch
from lmstash.caches.states.rests import Rests
from lmstash.caches.states.scores import Scores, Take
from lmstash.errors import CorruptEntryError
from lmstash.events import DropReason, MissReason
from lmstash.identity.fingerprint import Fingerprint
from lmstash.identity.tokens import TokenIds, token_bytes
from lmstash.prefix.node import TOKEN_BYTES
from lmstash.store.base import Store, Write, default_ttl

_ATTEMPTS = 3
"""Times to look again after a damaged entry was found: it is not found again."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What the state of a model is made of."""

    n_parts: int = 1
    """KV caches that hold every token."""
    has_rest: bool = False
    """Whether something else follows: recurrent state, or a window of tokens."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A state, checked, that holds the first tokens of the prompt asked for."""

    blob: np.ndarray
    """`[n_bytes]` uint8."""
    n_tokens: int
    seconds_saved: float
    """What these tokens took to compute."""
    scores: np.ndarray | None = None
    """`[n_tokens, n_vocab]` float32, memory of its own: the logits after each token, where they were asked for."""


class States:
    """States of one model. Threads may share it, and processes may share the store.

    A loaded state is byte for byte what was saved of these tokens; nothing is served that was computed by another
    model, under other settings, or over other tokens. Every fault is a miss.
    """

    def __init__(
        self,
        store: Store,
        fingerprint: Fingerprint,
        memory: Memory | None = None,
        *,
        salt: bytes | str | None = None,
        private: bool = False,
        ttl_seconds: float | None = None,
    ) -> None:
        """Name the model; nothing is read or written yet.

        Args:
            store: Where states are kept.
            fingerprint: Who computes them: all that may change a state.
            memory: What they are made of; a plain KV cache by default.
            salt: A tenant's secret; entries under different salts are invisible to each other.
            private: Keep no token ids, only digests; prefixes are then found by whole blocks and whole tails.
            ttl_seconds: How long new entries live.
        """
        self.store = store
        self.fingerprint = fingerprint
        self.memory = memory if memory is not None else Memory()
        self.names = Names.of(fingerprint.digest, salt)
        self._private = private
        self._ttl_seconds = default_ttl(ttl_seconds)
        self._name = str(fingerprint.recorded.get("name") or "")
        self._finder = Finder(store, self.names.namespace)
        self._rests = Rests(store, self.names.namespace)
        self._scores = Scores(store, self.names.scores)
        self._described = False

    def match(self, ids: TokenIds) -> Match:
        """Return how many tokens of a prompt are kept, from the first on; reads the index only, and counts nothing.

        Costs about 3 us a block on disk and half of one in memory.

        Raises:
            InvalidArgumentError: As `tokens.token_bytes`.
        """
        return self._finder.match(self.names.path(ids))

    def usable(self, match: Match, at_most: int, *, scores: bool = False) -> int:
        """Return how many tokens of a matched prompt can be loaded, at most `at_most`: as `load` does, if all is sound.

        Where there is a rest, these are fewer than `Match.n_tokens` says; with `scores`, those whose scores are kept.
        """
        most = min(at_most, match.path.n_tokens)
        if self.memory.n_parts:
            most = min(most, match.n_tokens)
        if self.memory.has_rest:
            places = self._rests.places(match.path, most)
            return next((n for n in places if not scores or self._scored(match, n)[0] == n), 0)
        return self._scored(match, most)[0] if scores and most > 0 else most

    def _scored(self, match: Match, most: int) -> tuple[int, Path]:
        """Return of how many of the first `most` tokens scores are kept, and under which names."""
        paths = [match.kept, match.path] if match.tokens else [match.path]
        return max(((self._scores.covered(path, most), path) for path in paths), key=lambda found: found[0])

    def load(
        self,
        match: Match,
        at_most: int | None = None,
        *,
        sequence: bool = False,
        room: Callable[[int], np.ndarray] = buffer,
        n_vocab: int = 0,
    ) -> Loaded | None:
        """Return the state of the first tokens of a matched prompt; None for a miss, which is counted.

        Costs one copy of its bytes; scores cost more (see `Scores.read`).

        Args:
            match: As `match` returned it.
            at_most: Tokens.
            sequence: Return the sequence form (`llama_state_seq_set_data`) instead of the whole one.
            room: Gives the memory for it, `[n_bytes]` uint8.
            n_vocab: Give scores, too, of so many tokens of a vocabulary, and only a state that has them; 0 for none.
        """
        path, events = match.path, self.store.events
        limit = path.n_tokens if at_most is None else min(at_most, path.n_tokens)
        reason = MissReason.ABSENT
        rows = None
        for _ in range(_ATTEMPTS):
            limit = self.usable(match, limit, scores=bool(n_vocab) and rows is None)
            if limit <= 0:
                break
            if n_vocab and rows is None:
                rows = self._scores.read(self._scored(match, limit)[1], limit, n_vocab)
                if len(rows) < limit:
                    limit, reason = len(rows), MissReason.DAMAGED
                    continue
            try:
                loaded = self._read(match, limit, sequence, room)
            except CorruptEntryError as error:
                events.damage(self.names.namespace, path.first_key, str(error))
                loaded = None
            if loaded is not None:
                if loaded.n_tokens < path.n_tokens:
                    events.partial_hit(self.names.namespace, path.first_key, loaded.n_tokens, path.n_tokens)
                return loaded if rows is None else replace(loaded, scores=rows[: loaded.n_tokens])
            reason = MissReason.DAMAGED
            self._finder.known.forget()
            match = self._finder.match(path)
            limit -= self.memory.has_rest
        events.miss(self.names.namespace, path.first_key, reason)
        return None

    def _read(self, match: Match, n_tokens: int, sequence: bool, room: Callable[[int], np.ndarray]) -> Loaded | None:
        """Return the state of the first tokens, or of fewer where that can be; None when something is damaged."""
        found = self._finder.read(match, n_tokens) if self.memory.n_parts else Found()
        rest: memoryview | bytes = b""
        layout = found.layout
        if self.memory.has_rest:
            read = self._rests.read(match.path, n_tokens)
            if read is None or (self.memory.n_parts and found.n_tokens != n_tokens):
                return None
            text, rest = read
            layout = decode_layout(text)
            if found.layout not in (None, layout):
                return None
        elif not found.n_tokens:
            return None
        if layout is None or len(layout.parts) != self.memory.n_parts:
            return None
        blob = build(layout, found.spans, rest=rest, sequence=sequence, room=room)
        if not all(check() for check in found.checks):
            return None
        memory = self.memory
        state = parse(blob, n_parts=memory.n_parts, has_rest=memory.has_rest, sequence=sequence, arch=layout.arch)
        if state.layout != layout or blob.nbytes - state.rest != len(rest):
            return None
        return Loaded(blob, found.n_tokens if self.memory.n_parts else n_tokens, found.compute_seconds)

    def put(
        self,
        ids: TokenIds,
        blob: object,
        *,
        seconds_per_token: float = 0.0,
        at_most: int | None = None,
        scores: Take | None = None,
    ) -> int:
        """Keep the state of a sequence: what of it is not kept yet. Returns how many entries were written.

        Costs a copy of the new bytes, and writing them.

        Args:
            ids: The tokens of the sequence, all that the state holds.
            blob: The whole form (`llama_state_get_data`).
            seconds_per_token: What a token took to compute.
            at_most: Keep only so many tokens from the start on; nothing of a model whose state cannot be cut.
            scores: Gives the scores of some of the tokens, where they are to be kept, too.

        Raises:
            InvalidArgumentError: As `tokens.token_bytes`.
        """
        match = self.missing(ids, at_most, scores=scores is not None)
        if match is None:
            return 0
        n_tokens = len(token_bytes(ids)) // TOKEN_BYTES
        writes = self.cut(match, blob, n_tokens, seconds_per_token=seconds_per_token, scores=scores)
        known, before = self._finder.known, self._finder.known.state
        kept = self.store.put_many(writes) if writes else 0
        if kept and kept == len(writes) and self.memory.n_parts:  # else there are no blocks
            known.note(match.path.chain[1:], [write.key for write in writes if write.n_tokens], before)
        if writes:
            self.describe()
        return kept

    def missing(self, ids: TokenIds, at_most: int | None = None, *, scores: bool = False) -> Match | None:
        """Return what is kept of a sequence of which something is not; None when there is nothing to keep.

        What is kept counts as used now.

        Args:
            ids: All tokens of the sequence.
            at_most: As in `put`.
            scores: Whether their scores are to be kept, too.

        Raises:
            InvalidArgumentError: As `tokens.token_bytes`.
        """
        path = self.names.path(ids)
        if at_most is not None and at_most < path.n_tokens:
            if at_most <= 0 or self.memory.has_rest:
                return None
            path = path.first(at_most)
        if not path.n_tokens:
            return None
        match = self._finder.match(path)
        touch(self.store, path.keys(0, match.n_blocks))
        if self.memory.n_parts and match.n_tokens < path.n_tokens:
            return match
        end = self.store.describe_many([path.end()])[0]
        if end is None:
            return match
        asked = [end.parent, *([path.rest(path.n_tokens)] if self.memory.has_rest else [])]
        is_kept = all(self.store.contains_many(asked)) and (not scores or self._scores.are_kept(path))
        return None if is_kept else match

    def cut(
        self,
        match: Match,
        blob: object,
        n_tokens: int,
        *,
        seconds_per_token: float = 0.0,
        scores: Take | None = None,
    ) -> list[Write]:
        """Return the entries that keep what is missing of a sequence, the last ones first. They are copies.

        Args:
            match: As `missing` returned it.
            blob: The whole form of its state, of these tokens or more.
            n_tokens: How many it holds.
            seconds_per_token: What a token took to compute.
            scores: As in `put`.
        """
        path = match.path
        try:
            state = parse(blob, n_parts=self.memory.n_parts, has_rest=self.memory.has_rest)
        except CorruptEntryError as error:
            return self._not_kept(path.first_key, str(error))
        if self.memory.n_parts and state.n_tokens != n_tokens:
            return self._not_kept(path.first_key, f"it holds {state.n_tokens} tokens, not {n_tokens}")
        facts = Facts(self._name, self._private, self._ttl_seconds, seconds_per_token)
        writes = self._writes(match, state, facts)
        if scores is not None:  # as the last ones: without K/V they are of no use
            writes = [*self._scores.writes(path, scores, facts), *writes]
        return writes

    def describe(self) -> None:
        """Keep what the model's fingerprint was made of, once there are states of it. Threads may call it."""
        if not self._described:
            describe_model(self.store, self.fingerprint, self._name)
            self._described = True

    def _writes(self, match: Match, state: State, facts: Facts) -> list[Write]:
        path = match.path
        target = self._finder.target(match)
        if target is not None and target.layout != state.layout:
            target = None
        cutter = Cutter(match, state, target, facts)
        writes = cutter.writes()
        end = self.store.describe_many([writes[0].key])[0]
        if end is not None and end.parent == writes[0].parent:
            del writes[0]
        if self.memory.has_rest:
            writes += self._rests.writes(path, state, cutter.meta(0, path.n_tokens, 0), facts)
        return writes

    def n_sequences(self) -> int:
        """Return how many distinct sequences are kept whole. Costs about 10 us for each."""
        return count_sequences(self.store, self.names.ends)

    def _not_kept(self, key: bytes, why: str) -> list[Write]:
        events = self.store.events
        events.drop(self.names.namespace, key, DropReason.UNSUPPORTED)
        events.warn_once(f"states {why}", "lmstash: a state of %s is not kept: %s", self._name or "a model", why)
        return []


def count_sequences(store: Store, namespace: str | None = None) -> int:
    """Return how many distinct sequences are kept, of one namespace or of all models."""
    lasts = [info.parent for info in store.entries(namespace or f"{ENDS}/") if info.parent]
    return sum(store.contains_many(lasts)) if lasts else 0


__all__ = ["Loaded", "Match", "Memory", "State", "States", "count_sequences"]
