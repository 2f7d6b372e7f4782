"""The RAM tier: values held by this process, least recently used out first, within a byte limit."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmstash.errors import CapacityError, StoreUnavailableError
from lmstash.events import DropReason, EventLog, MissReason
from lmstash.store.base import (
    Buffer,
    Entry,
    EntryInfo,
    NamespaceInfo,
    Removed,
    Selector,
    StoreInfo,
    VerifyReport,
    Write,
    check_write,
    decode_meta,
    join,
    matches,
)

if TYPE_CHECKING:
    from lmstash.store.loans import Loan

ENTRY_OVERHEAD_BYTES = 512
"""What one entry costs in RAM beside its value (objects, dict slot), counted against the limit."""


@dataclass(slots=True)
class _Kept:
    value: bytes
    namespace: str
    meta_bytes: bytes
    parent: bytes
    compute_seconds: float
    n_tokens: int
    created: float
    expires: float | None
    last_used: float
    weight: int
    """What it takes, counted against the limit."""
    hits: int = 0
    pinned: bool = False


class MemoryStore:
    """Keeps values in this process, within `capacity_bytes`, least recently used out first.

    Values are copied in. `get` hands out read-only views (no copy); `fetch_many` hands out copies. Threads may share
    it; processes do not. Every call holds one lock for well under a microsecond per key plus the copy.
    """

    def __init__(
        self, capacity_bytes: int | None = None, *, strict: bool = False, events: EventLog | None = None
    ) -> None:
        """Make an empty store.

        Args:
            capacity_bytes: Limit, values and bookkeeping together; None is unlimited, 0 keeps nothing.
            strict: Raise instead of counting a drop.
            events: Where to count; a fresh log by default.
        """
        self.events = events if events is not None else EventLog()
        self.strict = strict
        self.capacity_bytes = capacity_bytes
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()
        self._bytes = 0
        self._removals = 0
        self._closed = False
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        """One line with the fill."""
        limit = "unlimited" if self.capacity_bytes is None else f"{self.capacity_bytes:,} bytes"
        return f"<MemoryStore: {len(self._kept):,} entries, {self._bytes:,} of {limit}>"

    def get(self, key: bytes) -> memoryview | None:
        """Return the value as a read-only view, or None."""
        kept = self._look_up(key)
        return None if kept is None else memoryview(kept.value)

    def get_many(self, keys: Sequence[bytes]) -> list[memoryview | None]:
        """Return the values as read-only views, None where there is none."""
        return [self.get(key) for key in keys]

    def fetch_many(self, keys: Sequence[bytes]) -> list[Entry | None]:
        """Return whole entries; each value is a fresh copy."""
        out: list[Entry | None] = []
        for key in keys:
            kept = self._look_up(key)
            out.append(None if kept is None else _entry(key, kept, memoryview(bytearray(kept.value))))
        return out

    def peek_many(self, keys: Sequence[bytes]) -> list[memoryview | None]:
        """Return the values as read-only views without using them."""
        now, found = time.time(), [self._kept.get(key) for key in keys]
        return [
            memoryview(kept.value) if kept is not None and (kept.expires is None or kept.expires > now) else None
            for kept in found
        ]

    def borrow_many(self, keys: Sequence[bytes]) -> list[Loan | None]:
        """Return values without copying them: see `lmstash.store.loans`."""
        from lmstash.store.loans import Loan

        out: list[Loan | None] = []
        for key in keys:
            kept = self._look_up(key)
            out.append(None if kept is None else Loan(_entry(key, kept, memoryview(kept.value))))
        return out

    def touch_many(self, keys: Sequence[bytes]) -> None:
        """Note that entries were used without being read."""
        with self._lock:
            for key in keys:
                self._use(key)

    def contains(self, key: bytes) -> bool:
        """Whether a get would find the key now."""
        kept = self._kept.get(key)
        return kept is not None and (kept.expires is None or kept.expires > time.time())

    def contains_many(self, keys: Sequence[bytes]) -> list[bool]:
        """As `contains`, for many keys."""
        return [self.contains(key) for key in keys]

    def describe_many(self, keys: Sequence[bytes]) -> list[EntryInfo | None]:
        """Describe entries, None where there is none."""
        now = time.time()
        out: list[EntryInfo | None] = []
        for key in keys:
            kept = self._kept.get(key)
            fresh = kept is not None and (kept.expires is None or kept.expires > now)
            out.append(_info(key, kept) if kept is not None and fresh else None)
        return out

    def put(self, key: bytes, value: Buffer | Sequence[Buffer], **fields: Any) -> bool:
        """Keep one value (`fields`: as in `Write`)."""
        return self.put_many([Write(key, value, **fields)]) == 1

    def put_many(self, writes: Iterable[Write], *, replace: bool = True) -> int:
        """Keep many values, evicting the least recently used. A value over the whole limit is dropped, not the rest."""
        return sum(self._put(write, replace) for write in writes)

    def delete(self, key: bytes) -> bool:
        """Remove one entry."""
        with self._lock:
            return self._take_out(key) is not None

    def delete_many(self, keys: Sequence[bytes]) -> int:
        """Remove entries; returns how many there were."""
        return sum(self.delete(key) for key in keys)

    def pin_many(self, keys: Sequence[bytes], pinned: bool = True) -> int:
        """Protect entries from eviction, or stop doing so; returns how many are kept."""
        with self._lock:
            found = [kept for key in keys if (kept := self._kept.get(key)) is not None]
            for kept in found:
                kept.pinned = pinned
            return len(found)

    def entries(self, namespace: str | None = None) -> Iterator[EntryInfo]:
        """Describe every entry, as they are now."""
        with self._lock:
            snapshot = list(self._kept.items())
        for key, kept in snapshot:
            if matches(kept.namespace, namespace):
                yield _info(key, kept)

    def prune(self, select: Selector | None = None, *, namespace: str | None = None, dry_run: bool = False) -> Removed:
        """Remove the entries that `select` is true for; pinned ones too."""
        chosen = [info for info in self.entries(namespace) if select is None or select(info)]
        if not dry_run:
            chosen = [info for info in chosen if self.delete(info.key)]
        return Removed(len(chosen), sum(info.nbytes for info in chosen))

    def evict(self, to_bytes: int) -> Removed:
        """Remove the least recently used entries until at most `to_bytes` are taken."""
        removed = nbytes = 0
        with self._lock:
            for key in list(self._kept):
                if self._bytes <= to_bytes:
                    break
                kept = self._kept.get(key)
                if kept is None or kept.pinned or self._take_out(key) is None:  # a signal handler removes, too
                    continue
                removed += 1
                nbytes += len(kept.value)
                self.events.evict(kept.namespace, 1, kept.weight)
        return Removed(removed, nbytes)

    def set_capacity(self, capacity_bytes: int | None) -> None:
        """Change the limit and enforce it at once."""
        with self._lock:
            self.capacity_bytes = capacity_bytes
            if capacity_bytes is not None:
                self.evict(capacity_bytes)

    def info(self) -> StoreInfo:
        """Say what is held."""
        with self._lock:
            totals: dict[str, list[int]] = {}
            for kept in self._kept.values():
                total = totals.setdefault(kept.namespace, [0, 0])
                total[0] += 1
                total[1] += kept.weight
            times = [kept.created for kept in self._kept.values()]
            return StoreInfo(
                location="memory://",
                entries=len(self._kept),
                physical_bytes=self._bytes,
                capacity_bytes=self.capacity_bytes,
                namespaces=[NamespaceInfo(name, n, nbytes) for name, (n, nbytes) in sorted(totals.items())],
                oldest=min(times, default=None),
                newest=max(times, default=None),
            )

    def verify(self, *, repair: bool = False) -> VerifyReport:
        """Count what is held; RAM carries no checksums."""
        with self._lock:
            return VerifyReport(len(self._kept), sum(len(kept.value) for kept in self._kept.values()), [], repair)

    def clear(self) -> Removed:
        """Remove every entry."""
        return self.prune()

    def flush(self) -> None:
        """Nothing to do: RAM does not survive a power loss."""

    def close(self) -> None:
        """Let go of every value."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0
            self._removals += 1
            self._closed = True

    def removals(self) -> int:
        """Return a number that changes whenever an entry is removed or replaced (for who remembers what is there)."""
        return self._removals

    # No call is between an entry and the count of its bytes, neither here nor below: an interrupt would come there.

    def _take_out(self, key: bytes) -> _Kept | None:
        try:
            kept = self._kept[key]
        except KeyError:
            return None
        del self._kept[key]
        self._bytes -= kept.weight
        self._removals += 1
        return kept

    def _put_in(self, key: bytes, kept: _Kept) -> None:
        if key in self._kept:  # by a signal handler
            self._bytes -= self._kept[key].weight
            self._removals += 1
        self._kept[key] = kept
        self._bytes += kept.weight

    def _use(self, key: bytes) -> None:
        with contextlib.suppress(KeyError):  # a signal handler may have removed it meanwhile
            self._kept.move_to_end(key)

    def _look_up(self, key: bytes) -> _Kept | None:
        with self._lock:
            kept = self._kept.get(key)
            now = time.time()
            expired = kept is not None and kept.expires is not None and kept.expires <= now
            if kept is not None and not expired:
                self._use(key)
                kept.last_used = now
                kept.hits += 1
        if self._closed and self.strict:
            raise StoreUnavailableError("the store is closed. Open it again.")
        if kept is None or expired:
            reason = MissReason.UNAVAILABLE if self._closed else MissReason.ABSENT
            self.events.miss("", key, MissReason.EXPIRED if expired else reason)
            return None
        self.events.hit(kept.namespace, key, len(kept.value), kept.compute_seconds)
        return kept

    def _put(self, write: Write, replace: bool) -> bool:
        meta_bytes, lifetime = check_write(write)
        value = join(write.value)
        now = time.time()
        kept = _Kept(
            value=value,
            namespace=write.namespace,
            meta_bytes=meta_bytes,
            parent=write.parent,
            compute_seconds=write.compute_seconds,
            n_tokens=write.n_tokens,
            created=now,
            expires=None if lifetime is None else now + lifetime,
            last_used=now,
            weight=len(value) + len(meta_bytes) + ENTRY_OVERHEAD_BYTES,
        )
        with self._lock:
            if self._closed:
                return self._dropped(write, DropReason.UNAVAILABLE, "the store is closed")
            if not replace and self.contains(write.key):
                return True
            capacity = self.capacity_bytes
            if capacity is not None and kept.weight > capacity:
                reason = DropReason.DISABLED if capacity == 0 else DropReason.TOO_LARGE
                return self._dropped(write, reason, f"{kept.weight:,} bytes over a limit of {capacity:,}")
            old = self._take_out(write.key)
            if old is not None:
                kept.pinned = old.pinned
            if capacity is not None and self._bytes + kept.weight > capacity:
                self.evict(capacity - kept.weight)
                if self._bytes + kept.weight > capacity:
                    if old is not None:
                        self._put_in(write.key, old)
                    return self._dropped(write, DropReason.NO_ROOM, "everything kept is pinned")
            self._put_in(write.key, kept)
        self.events.put(write.namespace, write.key, len(value), write.compute_seconds)
        return True

    def _dropped(self, write: Write, reason: DropReason, detail: str) -> bool:
        self.events.drop(write.namespace, write.key, reason)
        if self.strict and reason == DropReason.UNAVAILABLE:
            raise StoreUnavailableError(f"{write.namespace}: value not kept: {detail}. Open it again.")
        if self.strict:
            raise CapacityError(f"{write.namespace}: value not kept: {detail}. Raise capacity_bytes= or unpin entries.")
        return False


def _info(key: bytes, kept: _Kept) -> EntryInfo:
    return EntryInfo(
        key=key,
        namespace=kept.namespace,
        nbytes=len(kept.value),
        n_tokens=kept.n_tokens,
        compute_seconds=kept.compute_seconds,
        created=kept.created,
        last_used=kept.last_used,
        hits=kept.hits,
        expires=kept.expires,
        pinned=kept.pinned,
        parent=kept.parent,
        meta=decode_meta(kept.meta_bytes),
    )


def _entry(key: bytes, kept: _Kept, value: memoryview) -> Entry:
    return Entry(
        key=key,
        value=value,
        namespace=kept.namespace,
        parent=kept.parent,
        compute_seconds=kept.compute_seconds,
        n_tokens=kept.n_tokens,
        created=kept.created,
        expires=kept.expires,
        meta_bytes=kept.meta_bytes,
    )
