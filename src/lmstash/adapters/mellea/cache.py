"""mellea's `Cache` and `SimpleLRUCache`, by its own names and with its own semantics."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from typing import Any


class Cache(ABC):
    """A place for model state under keys. None is no value: it cannot be told from a miss."""

    @abstractmethod
    def put(self, key: str | int, value: Any) -> None:
        """Keep `value` under `key`; other entries may go."""

    @abstractmethod
    def get(self, key: str | int) -> Any | None:
        """Return the value under `key`, or None. May count as a use."""

    @abstractmethod
    def current_size(self) -> int:
        """Return how many entries are kept."""


class SimpleLRUCache(Cache):
    """Keeps up to `capacity` values, least recently used out first; exactly as mellea's.

    Values are kept and returned as they are, not copied. It has no length and is always true, since mellea asks
    `if cache:`. One thread at a time.

    Attributes:
        capacity: read at every put; made smaller, it evicts nothing by itself.
        cache: the `OrderedDict` of key -> value, oldest first.
        on_evict: called with each value that is put out to make room, and never with one that is replaced.
    """

    def __init__(self, capacity: int, on_evict: Callable[[Any], None] | None = None) -> None:
        """Make an empty cache; with a capacity of 0 or less it keeps nothing."""
        self.capacity = capacity
        self.cache: OrderedDict[str | int, Any] = OrderedDict()
        self.on_evict = on_evict

    def current_size(self) -> int:
        """Return how many values are kept."""
        return len(self.cache)

    def get(self, key: str | int) -> Any | None:
        """Return the value under `key` and make it the latest, or None."""
        if key not in self.cache:
            return None
        value = self.cache[key]  # first: a signal handler may put it out at the next call
        self.cache.move_to_end(key)
        return value

    def put(self, key: str | int, value: Any) -> None:
        """Keep `value` under `key` as the latest; when full and the key is new, put out the oldest one first."""
        if self.capacity <= 0:
            return
        if key in self.cache:
            del self.cache[key]
        elif len(self.cache) >= self.capacity:
            _, evicted = self.cache.popitem(last=False)
            if self.on_evict is not None:
                self.on_evict(evicted)
        self.cache[key] = value


def _join_mellea() -> None:
    """Let `isinstance(cache, mellea.backends.cache.Cache)` hold where mellea is installed (imports it: a second)."""
    try:
        if importlib.util.find_spec("mellea") is None:
            return
        from mellea.backends import cache as theirs
    except Exception:  # a broken installation of theirs is not ours to report
        return
    theirs.Cache.register(Cache)


_join_mellea()
