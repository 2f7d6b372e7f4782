"""The caches of llama-cpp-python by their names, over stores."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from lmstash.adapters.llama_cpp.base import DEFAULT_BYTES, BaseLlamaCache
from lmstash.adapters.llama_cpp.state import LlamaState
from lmstash.caches.states.cache import Match, States, count_sequences
from lmstash.errors import InvalidArgumentError, UnsupportedModelError
from lmstash.events import DropReason, MissReason
from lmstash.identity.chain import BLOCK_TOKENS
from lmstash.settings import parse_bytes
from lmstash.store.base import Store


class StoreCache(BaseLlamaCache):
    """States in a store. Set on a model it acts through a view of its own, which knows who asks.

    Asked directly it does not know who asks, so it misses. Any number of models may share one cache; threads too.
    """

    def __init__(
        self,
        store: Store,
        capacity_bytes: int = DEFAULT_BYTES,
        *,
        salt: str | bytes | None = None,
        private: bool = False,
        ttl_seconds: float | None = None,
    ) -> None:
        """Take the store."""
        super().__init__(capacity_bytes)
        self.store = store
        self._events = store.events
        self._options: dict[str, Any] = {"salt": salt, "private": private, "ttl_seconds": ttl_seconds}
        self._states: dict[bytes, States] = {}

    @property
    def strict(self) -> bool:
        """As the store."""
        return self.store.strict

    @property
    def cache_size(self) -> int:
        """Bytes that the store takes, bookkeeping included."""
        return self.store.info().physical_bytes

    def bound_to(self, llm: Any) -> BoundCache:
        """Return a view for one model: `llm.set_cache` calls this."""
        self._recall(llm)
        return BoundCache(self, llm)

    def __getitem__(self, key: Sequence[int]) -> Any:
        """Miss: it is not known which model asks."""
        self.events.miss("states/unknown", b"", MissReason.UNAVAILABLE)
        self.events.warn_once(
            "states unbound",
            "lmstash: a cache of states was asked by a model that it does not know: use Llama of "
            "lmstash.adapters.llama_cpp, or bind(llm)",
        )
        raise KeyError("Key not found")

    def __setitem__(self, key: Sequence[int], value: Any) -> None:
        """Drop: it is not known which model computed it."""
        self.events.drop("states/unknown", b"", DropReason.UNSUPPORTED)

    def __len__(self) -> int:
        """Return how many distinct sequences are kept, of all models."""
        return count_sequences(self.store)

    def states_of(self, llm: Any) -> States:
        """Return the states of a model as it is now.

        Raises:
            UnsupportedModelError: They cannot be kept; says why.
        """
        self._recall(llm)
        fingerprint = llm._identity.refresh()
        states = self._states.get(fingerprint.digest)
        if states is None:
            states = States(self.store, fingerprint, llm._identity.memory(), **self._options)
            self._states[fingerprint.digest] = states
            try:
                llm._identity.keep(self.store, self._options["salt"])
            except Exception:  # then the next process reads its files
                if self.strict:
                    raise
        return states

    def _recall(self, llm: Any) -> None:
        """Have a model know the digests that this store has kept, and no others."""
        try:
            llm._identity.recall(self.store, self._options["salt"])
        except Exception:  # then its files are read
            if self.strict:
                raise


class BoundCache(BaseLlamaCache):
    """What one model sees of a cache."""

    def __init__(self, cache: StoreCache, llm: Any) -> None:
        """Take both; the model is referred to weakly, since it refers to this."""
        self.cache = cache
        self._llm = weakref.ref(llm)
        self._events = cache.events

    @property
    def capacity_bytes(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Of the cache."""
        return self.cache.capacity_bytes

    @property
    def strict(self) -> bool:
        """Of the cache."""
        return self.cache.strict

    @property
    def cache_size(self) -> int:
        """Of the cache."""
        return self.cache.cache_size

    def bound_to(self, llm: Any) -> BoundCache:
        """Return a view for another model."""
        return self.cache.bound_to(llm)

    def __getitem__(self, key: Sequence[int]) -> LlamaState:
        """Return the state of the longest kept prefix of `key`, read when it is needed.

        Costs the look-up: some 10 us to 100 us for 1,000 tokens, however many are kept.

        Raises:
            KeyError: Nothing of it is kept, or the model's states cannot be kept.
        """
        llm = self._model()
        states = self._states(llm)
        if states is None:
            self.events.miss("states/unknown", b"", MissReason.DISABLED)
            raise KeyError("Key not found")
        match, n_tokens = self._find(states, llm, key)
        if not n_tokens:
            self.events.miss(states.names.namespace, match.path.first_key if match else b"", MissReason.ABSENT)
            raise KeyError("Key not found")
        assert match is not None
        if llm.n_tokens and not (llm.can_trim() or llm.is_begun_by(key)):
            llm.reset()  # it cannot go on from a part of what it holds, and must not be thought to
        llm.trim_to_exact(key)

        def read(sequence: bool) -> Any:
            loaded = states.load(match, n_tokens, sequence=sequence, n_vocab=n_vocab)
            if loaded is None or loaded.n_tokens != n_tokens:
                raise KeyError("Key not found")
            return loaded

        ids = np.full(len(llm.input_ids), -1, np.intc)
        ids[:n_tokens] = np.frombuffer(match.path.data, "<u4", n_tokens)
        shape = (min(n_tokens, llm.scores.shape[0]), llm.scores.shape[1])
        n_vocab = shape[1] if llm._logits_all else 0
        origin = states.fingerprint.digest
        return LlamaState(ids, None, n_tokens, None, 0, llm._seed, origin=origin, shape=shape, read=read)

    def __contains__(self, key: object) -> bool:
        llm = self._llm()
        states = None if llm is None else self._states(llm)
        return states is not None and self._find(states, llm, key)[1] > 0

    def __setitem__(self, key: Sequence[int], value: Any) -> None:
        """Keep what is new of a state that this model computed; any other is dropped, and counted."""
        llm = self._model()
        states = self._states(llm)
        origin = getattr(value, "origin", None)
        if states is None or origin is None or origin != states.fingerprint.digest or value.is_kept:
            reason = DropReason.MODEL_CHANGED if states is not None and origin is None else DropReason.UNSUPPORTED
            self.events.drop("states/unknown", b"", reason)
            return
        n_tokens = value.n_tokens
        ids = np.asarray(value.input_ids[:n_tokens])
        n = min(n_tokens, len(key))
        if not np.array_equal(ids[:n], np.asarray(key[:n])):
            self.events.drop(states.names.namespace, b"", DropReason.UNSUPPORTED)
            return
        states.put(
            ids,
            value.blob,
            seconds_per_token=value.seconds_per_token,
            at_most=llm.exact_tokens(),
            scores=value.take_scores(),
        )

    def __len__(self) -> int:
        return len(self.cache)

    def states_now(self) -> States | None:
        """Return the states of the model as it is now; None when they cannot be kept, which is logged."""
        return self._states(self._model())

    def find(self, tokens: list[int]) -> tuple[Match | None, int]:
        """Return what is kept of a prompt, and how much of it can be loaded; `states_now` must give something."""
        llm = self._model()
        return self._find(self.cache.states_of(llm), llm, tokens)

    def _model(self) -> Any:
        llm = self._llm()
        if llm is None:
            raise KeyError("the model is gone")
        return llm

    def _states(self, llm: Any) -> States | None:
        try:
            return self.cache.states_of(llm)
        except UnsupportedModelError as error:
            self._refused(str(error))
            return None

    def _refused(self, why: str) -> None:
        self.events.warn_once(f"states {why}", "lmstash: nothing is cached for a llama.cpp model: %s", why)

    @staticmethod
    def _find(states: States, llm: Any, key: Any) -> tuple[Match | None, int]:
        try:
            match = states.match(key if isinstance(key, list) else list(key))
        except InvalidArgumentError:  # images are negative numbers
            return None, 0
        # A state that cannot be trimmed must leave a token to evaluate.
        most = min(len(key) - states.memory.has_rest, len(llm.input_ids))
        if llm._logits_all:
            most = min(most, len(llm.scores))
        n_tokens = states.usable(match, most, scores=llm._logits_all)
        return match, llm.exact_point(n_tokens, len(key)) if n_tokens and not states.memory.has_rest else n_tokens

    def stops(self, ids: Sequence[int], start: int) -> list[int]:
        """Return where to keep the state on the way through a prompt, of which `start` tokens are evaluated.

        Only of models whose state cannot be cut: at the last whole block, so that the prompt can be continued, and
        where it leaves what was kept before: others will leave there too (the idea of SGLang's branching points).
        In exact mode where a whole batch ends.
        """
        llm = self._llm()
        try:
            states = None if llm is None else self._states(llm)
            if llm is None or states is None or not states.memory.has_rest:
                return []
            branch = states.match(list(ids)).n_blocks * BLOCK_TOKENS
        except Exception:  # nothing is kept on the way, then
            return []
        last = (len(ids) - 1) // BLOCK_TOKENS * BLOCK_TOKENS
        return sorted({stop for stop in map(llm.exact_stop, (branch, last)) if start < stop < len(ids)})


class LlamaRAMCache(StoreCache):
    """States in this process's memory, least recently used out first: `llama_cpp.LlamaRAMCache`."""

    def __init__(self, capacity_bytes: int = DEFAULT_BYTES) -> None:
        """Make an empty cache.

        Args:
            capacity_bytes: Limit of everything that is kept.
        """
        from lmstash.store.memory import MemoryStore

        super().__init__(MemoryStore(capacity_bytes), capacity_bytes)


LlamaCache = LlamaRAMCache


class LlamaDiskCache(StoreCache):
    """States in a folder, which other processes may use at the same time: `llama_cpp.LlamaDiskCache`."""

    def __init__(self, cache_dir: str = ".cache/llama_cpp", capacity_bytes: int = DEFAULT_BYTES) -> None:
        """Open the folder; a folder that cannot be used keeps nothing.

        Args:
            cache_dir: Made if missing.
            capacity_bytes: Limit of all that lies in it.
        """
        from lmstash.stash import open_stash

        self._cache_dir = cache_dir
        stash = open_stash(cache_dir, capacity_bytes=capacity_bytes)
        super().__init__(stash.store, capacity_bytes, salt=stash.salt, private=stash.private)

    @property
    def cache_dir(self) -> str:
        """The folder, as given.

        Scripts that clean it up by age remove every old thing in it as a file, so that folders in it must be young.
        """
        with contextlib.suppress(OSError):
            for each in os.scandir(self._cache_dir):
                if each.is_dir(follow_symlinks=False):
                    os.utime(each.path)
        return self._cache_dir


class LlamaStashCache(StoreCache):
    """States in a stash, or in any store."""

    def __init__(self, stash: Any, capacity_bytes: int | str | None = None) -> None:
        """Take where states are kept.

        Args:
            stash: From `lmstash.open`, or a store.
            capacity_bytes: A new limit of the store; None leaves it.
        """
        store = getattr(stash, "store", stash)
        limit = parse_bytes(capacity_bytes)
        if limit is not None:
            store.set_capacity(limit)
        options = {name: getattr(stash, name, None) for name in ("salt", "ttl_seconds")}
        known = limit if limit is not None else store.info().capacity_bytes
        super().__init__(store, known or DEFAULT_BYTES, private=bool(getattr(stash, "private", False)), **options)


__all__ = [
    "BoundCache", "LlamaCache", "LlamaDiskCache", "LlamaRAMCache", "LlamaStashCache", "StoreCache",
]  # fmt: skip
