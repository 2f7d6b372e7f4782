"""The caches of llama-cpp-python by their names: `BaseLlamaCache`, and those that keep states in a store."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import numpy as np
from llama_cpp.llama_cache import BaseLlamaCache as _BaseLlamaCache

from lmstash.adapters.llama_cpp.state import LlamaState
from lmstash.caches.states.cache import Match, States, count_sequences
from lmstash.errors import InvalidArgumentError, UnsupportedModelError
from lmstash.events import DropReason, EventLog, MissReason
from lmstash.settings import parse_bytes
from lmstash.store.base import Store

DEFAULT_BYTES = 2 << 30


class BaseLlamaCache(_BaseLlamaCache):
    """Base of every cache here, and of caches of your own.

    It is always true (llama-cpp-python asks `if cache:`), and nothing that a subclass does wrong reaches a completion:
    a look-up that raises or returns something else than a `LlamaState` is a counted miss (KeyError), a store that
    raises is a counted drop.

    Attributes:
        capacity_bytes: Limit, as given.
    """

    capacity_bytes: int = DEFAULT_BYTES

    def __init__(self, capacity_bytes: int = DEFAULT_BYTES) -> None:
        """Make an empty cache."""
        self.capacity_bytes = capacity_bytes

    def __init_subclass__(cls, **named: Any) -> None:
        """Guard the methods that llama-cpp-python calls."""
        super().__init_subclass__(**named)
        for name, guard in _GUARDS.items():
            if name in cls.__dict__:
                setattr(cls, name, guard(cls.__dict__[name]))

    @property
    def events(self) -> EventLog:
        """Counts what happens; subclasses that never call this class's `__init__` have one too."""
        own = self.__dict__.get("_events")
        if own is None:
            own = self.__dict__["_events"] = EventLog()
        return own

    @property
    def cache_size(self) -> int:
        """Bytes that are kept, bookkeeping included."""
        return 0

    def __bool__(self) -> bool:
        return True

    def __getitem__(self, key: Sequence[int]) -> Any:
        """Return the state of the longest kept prefix of `key`.

        Raises:
            KeyError: Nothing of it is kept.
        """
        raise KeyError("Key not found")

    def __contains__(self, key: object) -> bool:
        return False

    def __setitem__(self, key: Sequence[int], value: Any) -> None:
        """Keep a state."""

    def __len__(self) -> int:
        return 0


def _guard_get(method: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    @wraps(method)
    def get(self: Any, key: Any) -> Any:
        try:
            value = method(self, key)
        except KeyError:
            raise
        except Exception as error:
            _fault(self, "a look-up", error)
            raise KeyError("Key not found") from error
        if not hasattr(value, "llama_state") or not hasattr(value, "input_ids"):
            if value is not None:
                _fault(self, "a look-up", TypeError(f"it gave a {type(value).__name__}, not a LlamaState"))
            else:
                self.events.miss("states/own", b"", MissReason.ABSENT)
            raise KeyError("Key not found")
        return value

    return get


def _guard_contains(method: Callable[[Any, Any], Any]) -> Callable[[Any, Any], bool]:
    @wraps(method)
    def contains(self: Any, key: Any) -> bool:
        try:
            return bool(method(self, key))
        except Exception as error:
            _fault(self, "a look-up", error)
            return False

    return contains


def _guard_set(method: Callable[[Any, Any, Any], Any]) -> Callable[[Any, Any, Any], None]:
    @wraps(method)
    def put(self: Any, key: Any, value: Any) -> None:
        try:
            method(self, key, value)
        except Exception as error:
            self.events.drop("states/own", b"", DropReason.UNAVAILABLE)
            _say(self, "a store", error)

    return put


def _fault(cache: BaseLlamaCache, what: str, error: Exception) -> None:
    cache.events.miss("states/own", b"", MissReason.UNAVAILABLE)
    _say(cache, what, error)


def _say(cache: BaseLlamaCache, what: str, error: Exception) -> None:
    name = type(cache).__name__
    cache.events.warn_once(f"{name} {what} {type(error)}", "lmstash: %s of %s failed: %r", what, name, error)


_GUARDS: dict[str, Callable[..., Any]] = {
    "__getitem__": _guard_get,
    "__contains__": _guard_contains,
    "__setitem__": _guard_set,
}


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
    def cache_size(self) -> int:
        """Bytes that the store takes, bookkeeping included."""
        return self.store.info().physical_bytes

    def bound_to(self, llm: Any) -> BoundCache:
        """Return a view for one model: `llm.set_cache` calls this."""
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
        fingerprint = llm._identity.refresh()
        states = self._states.get(fingerprint.digest)
        if states is None:
            states = States(self.store, fingerprint, llm._identity.memory(), **self._options)
            self._states[fingerprint.digest] = states
        return states


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

        def read() -> Any:
            loaded = states.load(match, n_tokens)
            if loaded is None or loaded.n_tokens != n_tokens:
                raise KeyError("Key not found")
            return loaded

        ids = np.full(len(llm.input_ids), -1, np.intc)
        ids[:n_tokens] = key[:n_tokens]
        shape = (min(n_tokens, llm.scores.shape[0]), llm.scores.shape[1])
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
        states.put(ids, value.blob, seconds_per_token=value.seconds_per_token)

    def __len__(self) -> int:
        return len(self.cache)

    def _model(self) -> Any:
        llm = self._llm()
        if llm is None:
            raise KeyError("the model is gone")
        return llm

    def _states(self, llm: Any) -> States | None:
        if llm._logits_all:
            self._refused("logits_all=True")
            return None
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
        return match, min(match.n_tokens, len(key), len(llm.input_ids))


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
    """States in a folder, which other processes may use at the same time: `llama_cpp.LlamaDiskCache`.

    Attributes:
        cache_dir: The folder, as given.
    """

    def __init__(self, cache_dir: str = ".cache/llama_cpp", capacity_bytes: int = DEFAULT_BYTES) -> None:
        """Open the folder; a folder that cannot be used keeps nothing.

        Args:
            cache_dir: Made if missing.
            capacity_bytes: Limit of all that lies in it.
        """
        from lmstash.stash import open_stash

        self.cache_dir = cache_dir
        stash = open_stash(cache_dir, capacity_bytes=capacity_bytes)
        super().__init__(stash.store, capacity_bytes, salt=stash.salt, private=stash.private)


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
    "BaseLlamaCache", "BoundCache", "LlamaCache", "LlamaDiskCache", "LlamaRAMCache", "LlamaStashCache", "StoreCache",
]  # fmt: skip
