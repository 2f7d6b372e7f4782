"""A store that fails on purpose, for tests of what stands on a store."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from lmstash.events import DropReason, EventLog, MissReason
from lmstash.store.base import (
    Buffer,
    Entry,
    EntryInfo,
    Removed,
    Selector,
    Store,
    StoreInfo,
    VerifyReport,
    Write,
)


class FaultyStore:
    """Passes calls on to another store, and fails as often as it was told: misses, drops, or errors.

    What fails is drawn from a seeded generator, so that a run can be repeated (by one thread). The rates are plain
    attributes and may be changed at any time. With all of them 0 it keeps the protocol of the store inside.
    """

    def __init__(
        self,
        store: Store,
        *,
        miss_rate: float = 0.0,
        drop_rate: float = 0.0,
        error_rate: float = 0.0,
        error: Exception | None = None,
        seed: int = 0,
    ) -> None:
        """Wrap `store`.

        Args:
            store: Where values really go.
            miss_rate: Share of keys asked for that are not found though they are kept.
            drop_rate: Share of values that are not kept though there is room.
            error_rate: Share of calls that raise `error`, as a store does that breaks its promise.
            error: What is raised; an `OSError` by default.
            seed: Of the generator.
        """
        self.store = store
        self.miss_rate = miss_rate
        self.drop_rate = drop_rate
        self.error_rate = error_rate
        self.error = error if error is not None else OSError(5, "a fault made on purpose")
        self.strict = store.strict
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    @property
    def events(self) -> EventLog:
        """The wrapped store's; the faults are counted there too."""
        return self.store.events

    def get(self, key: bytes) -> memoryview | None:
        """As the store does, or None, or an error."""
        return self.get_many([key])[0]

    def get_many(self, keys: Sequence[bytes]) -> list[memoryview | None]:
        """As the store does, but for the keys that are lost."""
        kept = self._spared(keys)
        found = iter(self.store.get_many([key for key, spared in zip(keys, kept, strict=True) if spared]))
        return [next(found) if spared else None for spared in kept]

    def fetch_many(self, keys: Sequence[bytes]) -> list[Entry | None]:
        """As the store does, but for the keys that are lost."""
        kept = self._spared(keys)
        found = iter(self.store.fetch_many([key for key, spared in zip(keys, kept, strict=True) if spared]))
        return [next(found) if spared else None for spared in kept]

    def contains(self, key: bytes) -> bool:
        """As the store does."""
        return self.contains_many([key])[0]

    def contains_many(self, keys: Sequence[bytes]) -> list[bool]:
        """As the store does: a store may contain what it then fails to give."""
        self._maybe_raise()
        return self.store.contains_many(keys)

    def peek_many(self, keys: Sequence[bytes]) -> list[memoryview | None]:
        """As the store does, but for the keys that are lost."""
        kept = self._spared(keys)
        found = iter(self.store.peek_many([key for key, spared in zip(keys, kept, strict=True) if spared]))
        return [next(found) if spared else None for spared in kept]

    def describe_many(self, keys: Sequence[bytes]) -> list[EntryInfo | None]:
        """As the store does: a store may describe what it then fails to give."""
        self._maybe_raise()
        return self.store.describe_many(keys)

    def put(self, key: bytes, value: Buffer | Sequence[Buffer], **fields: Any) -> bool:
        """As the store does, or not kept, or an error."""
        return self.put_many([Write(key, value, **fields)]) == 1

    def put_many(self, writes: Iterable[Write], *, replace: bool = True) -> int:
        """As the store does, but for the values that are lost."""
        self._maybe_raise()
        return self.store.put_many((write for write in writes if self._takes(write)), replace=replace)

    def delete(self, key: bytes) -> bool:
        """As the store does."""
        return self.delete_many([key]) == 1

    def delete_many(self, keys: Sequence[bytes]) -> int:
        """As the store does."""
        self._maybe_raise()
        return self.store.delete_many(keys)

    def pin_many(self, keys: Sequence[bytes], pinned: bool = True) -> int:
        """As the store does."""
        self._maybe_raise()
        return self.store.pin_many(keys, pinned)

    def entries(self, namespace: str | None = None) -> Iterator[EntryInfo]:
        """As the store does."""
        self._maybe_raise()
        return self.store.entries(namespace)

    def prune(self, select: Selector | None = None, *, namespace: str | None = None, dry_run: bool = False) -> Removed:
        """As the store does."""
        self._maybe_raise()
        return self.store.prune(select, namespace=namespace, dry_run=dry_run)

    def evict(self, to_bytes: int) -> Removed:
        """As the store does."""
        self._maybe_raise()
        return self.store.evict(to_bytes)

    def set_capacity(self, capacity_bytes: int | None) -> None:
        """As the store does."""
        self._maybe_raise()
        self.store.set_capacity(capacity_bytes)

    def info(self) -> StoreInfo:
        """As the store does."""
        self._maybe_raise()
        return self.store.info()

    def verify(self, *, repair: bool = False) -> VerifyReport:
        """As the store does."""
        self._maybe_raise()
        return self.store.verify(repair=repair)

    def clear(self) -> Removed:
        """As the store does."""
        return self.prune()

    def flush(self) -> None:
        """As the store does."""
        self._maybe_raise()
        self.store.flush()

    def close(self) -> None:
        """Close the store inside; never fails."""
        self.store.close()

    def _draw(self, rate: float) -> bool:
        if rate <= 0:
            return False
        with self._lock:
            return self._random.random() < rate

    def _maybe_raise(self) -> None:
        if self._draw(self.error_rate):
            raise self.error

    def _spared(self, keys: Sequence[bytes]) -> list[bool]:
        self._maybe_raise()
        spared = [not self._draw(self.miss_rate) for _key in keys]
        for key, each in zip(keys, spared, strict=True):
            if not each:
                self.events.miss("", key, MissReason.UNAVAILABLE)
        return spared

    def _takes(self, write: Write) -> bool:
        if not self._draw(self.drop_rate):
            return True
        self.events.drop(write.namespace, write.key, DropReason.UNAVAILABLE)
        return False
