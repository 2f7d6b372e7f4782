"""A fast store in front of a slow one: what is read is promoted, what is put goes to both."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    is_interrupted,
)

if TYPE_CHECKING:
    from lmstash.store.sheets import Sheet

_TOUCH_EVERY = 256


class TieredStore:
    """RAM in front of a folder, say. The slow store is the truth; the fast one only holds copies of it.

    Events and counters are the slow store's, with the fast one's hits added. When any process removes or replaces an
    entry of the slow store, the fast one is emptied before it serves again: what is forgotten is forgotten everywhere.
    A slow store opened for reading cannot tell of removals, so nothing is promoted from it. An entry served by the fast
    store is `created` when it was promoted. Threads may share it.
    """

    def __init__(self, fast: Store, slow: Store, *, removals: Callable[[], int] | None = None) -> None:
        """Put `fast` in front of `slow`.

        Args:
            fast: The small store.
            slow: The large one.
            removals: Returns a number that changes whenever an entry of `slow` is removed or replaced; default: the
                slow store's own `removals`.
        """
        self.fast = fast
        self.slow = slow
        self.events = slow.events
        self.strict = slow.strict
        self._removals: Callable[[], int] = removals or getattr(slow, "removals", lambda: 0)
        self._seen = self._removals()
        self._touch: Callable[[Sequence[bytes]], None] = getattr(slow, "touch_many", lambda keys: None)
        self._served: set[bytes] = set()
        self._promotes = not getattr(slow, "read_only", False)
        self._lock = threading.RLock()  # a signal handler may look up in the middle of it

    @property
    def folder_path(self) -> Path | None:
        """The slow store's folder, if it has one."""
        return getattr(self.slow, "folder_path", None)

    def __repr__(self) -> str:
        """Show both tiers."""
        return f"<TieredStore: {self.fast!r} over {self.slow!r}>"

    def get(self, key: bytes) -> memoryview | None:
        """Return the value as a read-only view, from the fastest tier that has it."""
        return self.get_many([key])[0]

    def get_many(self, keys: Sequence[bytes]) -> list[memoryview | None]:
        """Return the values as read-only views, None where there is none."""
        return [None if entry is None else entry.value.toreadonly() for entry in self.fetch_many(keys)]

    def fetch_many(self, keys: Sequence[bytes]) -> list[Entry | None]:
        """Return whole entries whose values the caller owns; what the slow tier gave is promoted."""
        self._keep_up()
        out = self.fast.fetch_many(keys)
        for entry in out:
            if entry is not None:
                self.events.hit(entry.namespace, entry.key, len(entry.value), entry.compute_seconds)
                self._served.add(entry.key)
        if len(self._served) >= _TOUCH_EVERY:
            self._tell_uses()
        wanted = [number for number, entry in enumerate(out) if entry is None]
        if wanted:
            seen = self._removals()
            found = self.slow.fetch_many([keys[number] for number in wanted])
            for number, entry in zip(wanted, found, strict=True):
                out[number] = entry
            self._promote([entry for entry in found if entry is not None and entry.expires is None], seen)
        return out

    def peek_many(self, keys: Sequence[bytes]) -> list[memoryview | None]:
        """Return the values of the slow tier as read-only views without using them."""
        return self.slow.peek_many(keys)

    def contains(self, key: bytes) -> bool:
        """Whether the slow tier has the key."""
        return self.slow.contains(key)

    def contains_many(self, keys: Sequence[bytes]) -> list[bool]:
        """As `contains`, for many keys."""
        return self.slow.contains_many(keys)

    def describe_many(self, keys: Sequence[bytes]) -> list[EntryInfo | None]:
        """Describe entries of the slow tier."""
        self._tell_uses()
        return self.slow.describe_many(keys)

    def put(self, key: bytes, value: Buffer | Sequence[Buffer], **fields: Any) -> bool:
        """Keep one value in both tiers; returns whether the slow one has it."""
        return self.put_many([Write(key, value, **fields)]) == 1

    def put_many(self, writes: Iterable[Write], *, replace: bool = True) -> int:
        """Keep many values in the slow tier; the fast one has them when they are read."""
        self._tell_uses()
        kept = self.slow.put_many(writes, replace=replace)
        self._keep_up()
        return kept

    def put_sheets(self, sheets: Sequence[Sheet], *, replace: bool = True) -> int:
        """As `put_many`, for the entries of sheets."""
        from lmstash.store.sheets import put_sheets

        self._tell_uses()
        kept = put_sheets(self.slow, sheets, replace=replace)
        self._keep_up()
        return kept

    def delete(self, key: bytes) -> bool:
        """Remove one entry from both tiers."""
        return self.delete_many([key]) == 1

    def delete_many(self, keys: Sequence[bytes]) -> int:
        """Remove entries from both tiers."""
        self.fast.delete_many(keys)
        return self.slow.delete_many(keys)

    def pin_many(self, keys: Sequence[bytes], pinned: bool = True) -> int:
        """Protect entries of the slow tier from eviction."""
        return self.slow.pin_many(keys, pinned)

    def entries(self, namespace: str | None = None) -> Iterator[EntryInfo]:
        """Describe every entry of the slow tier."""
        self._tell_uses()
        return self.slow.entries(namespace)

    def prune(self, select: Selector | None = None, *, namespace: str | None = None, dry_run: bool = False) -> Removed:
        """Remove entries from both tiers."""
        if not dry_run:
            self.fast.clear()
        return self.slow.prune(select, namespace=namespace, dry_run=dry_run)

    def evict(self, to_bytes: int) -> Removed:
        """Make room in the slow tier."""
        self._tell_uses()
        return self.slow.evict(to_bytes)

    def set_capacity(self, capacity_bytes: int | None) -> None:
        """Change the slow tier's limit."""
        self._tell_uses()
        self.slow.set_capacity(capacity_bytes)

    def info(self) -> StoreInfo:
        """Say what the slow tier holds."""
        return self.slow.info()

    def verify(self, *, repair: bool = False) -> VerifyReport:
        """Check the slow tier."""
        return self.slow.verify(repair=repair)

    def clear(self) -> Removed:
        """Empty both tiers."""
        self.fast.clear()
        return self.slow.clear()

    def flush(self) -> None:
        """Flush the slow tier."""
        self.slow.flush()

    def close(self) -> None:
        """Close both, or neither: see `DiskStore.is_interrupted`."""
        self._tell_uses()
        if not self.is_interrupted():
            self.fast.close()
        self.slow.close()

    def is_interrupted(self) -> bool:
        """As the slow tier's."""
        return is_interrupted(self.slow)

    def _keep_up(self) -> None:
        if self._removals() != self._seen:
            with self._lock:
                now = self._removals()
                self.fast.clear()
                self._seen = now

    def _promote(self, entries: list[Entry], seen: int) -> None:
        """Copy what was read from the slow tier while its count of removals was `seen`, if that still holds."""
        if entries and self._promotes:
            writes = [_copy(entry) for entry in entries]
            # Under the lock: whoever notices a later removal empties the fast tier after this, not before.
            with self._lock:
                if self._removals() == seen:
                    self.fast.put_many(writes)

    def _tell_uses(self) -> None:
        """Tell the slow tier what the fast one served, before it takes that for the coldest and evicts it."""
        served, self._served = self._served, set()
        if served:
            self._touch(list(served))


def _copy(entry: Entry) -> Write:
    return Write(
        entry.key,
        entry.value,
        entry.namespace,
        entry.meta_bytes,
        entry.parent,
        entry.compute_seconds,
        entry.n_tokens,
    )
