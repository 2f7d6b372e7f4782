"""A user's own `CacheBackend` as a store: one framed, checksummed blob an entry.

A backend moves whole blobs and knows neither batches nor transactions, so this is the slow way in; it is for people who
already have one. Folders and `memory://` are served by lmstash's own stores.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from lmstash.adapters.lmprobe.backends import PREFIX, blob_key, blob_path, describe, frame, is_ours, read_head, unframe
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
    check_key,
    matches,
)


class BackendStore:
    """Keeps entries as framed, checksummed blobs of a `CacheBackend`.

    Threads may share it. The byte limit counts what this process wrote plus what it last saw listed; least recently
    touched blobs go first. Only blobs under `lmstash/` are ever listed, counted or deleted. Each get and put is one
    backend call and more; `info`, `entries` and eviction list the backend.
    """

    def __init__(
        self,
        backend: Any,
        capacity_bytes: int | None = None,
        *,
        strict: bool = False,
        events: EventLog | None = None,
    ) -> None:
        """Wrap `backend`, which has the methods of `CacheBackend`; None is unlimited, 0 keeps nothing."""
        self.backend = backend
        self.capacity_bytes = capacity_bytes
        self.strict = strict
        self.events = events if events is not None else EventLog()
        self._pinned: set[bytes] = set()
        self._used: int | None = None
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        """One line with the backend."""
        return f"<BackendStore on {type(self.backend).__name__}>"

    def get(self, key: bytes) -> memoryview | None:
        """Return the value as a read-only view, or None."""
        entry = self._fetch(key)
        return None if entry is None else entry.value.toreadonly()

    def get_many(self, keys: Sequence[bytes]) -> list[memoryview | None]:
        """As `get`, one backend read a key."""
        return [self.get(key) for key in keys]

    def fetch_many(self, keys: Sequence[bytes]) -> list[Entry | None]:
        """Return whole entries, one backend read a key."""
        return [self._fetch(key) for key in keys]

    def peek_many(self, keys: Sequence[bytes]) -> list[memoryview | None]:
        """As `get_many`, without using them."""
        found = [self._read(key) for key in keys]
        return [entry.value.toreadonly() if isinstance(entry, Entry) else None for entry in found]

    def contains(self, key: bytes) -> bool:
        """Whether the backend has a blob for `key` (which may turn out expired or damaged)."""
        try:
            return bool(self.backend.exists(blob_path(key)))
        except Exception as error:
            self._fault("exists", error)
            return False

    def contains_many(self, keys: Sequence[bytes]) -> list[bool]:
        """As `contains`, one backend call a key."""
        return [self.contains(key) for key in keys]

    def describe_many(self, keys: Sequence[bytes]) -> list[EntryInfo | None]:
        """Describe entries; reads the head of each blob, and asks the backend when it was used."""
        return [self._describe(key) if self.contains(key) else None for key in keys]

    def put(self, key: bytes, value: Buffer | Sequence[Buffer], **fields: Any) -> bool:
        """Keep one value (`fields`: as in `Write`)."""
        return self.put_many([Write(key, value, **fields)]) == 1

    def put_many(self, writes: Iterable[Write], *, replace: bool = True) -> int:
        """Keep many values, one backend write each; a failing one does not keep the others out."""
        return sum(self._put(write, replace) for write in writes)

    def delete(self, key: bytes) -> bool:
        """Remove one entry."""
        if not self.contains(key):
            return False
        try:
            with self._lock:
                size = self.backend.size(blob_path(key))
                self.backend.delete(blob_path(key))
                self._used = None if self._used is None else self._used - size
        except Exception as error:
            self._fault("delete", error)
            return False
        return True

    def delete_many(self, keys: Sequence[bytes]) -> int:
        """Remove entries; returns how many there were."""
        return sum(self.delete(key) for key in keys)

    def pin_many(self, keys: Sequence[bytes], pinned: bool = True) -> int:
        """Protect entries from this process's evictions; pins are not kept in the backend."""
        found = [key for key in keys if self.contains(key)]
        with self._lock:
            self._pinned = self._pinned | set(found) if pinned else self._pinned - set(found)
        return len(found)

    def entries(self, namespace: str | None = None) -> Iterator[EntryInfo]:
        """Describe every entry; reads the head of each blob."""
        for path, _, used in self._listed():
            head = self._head(path)
            if head is not None and matches(head["namespace"], namespace):
                yield describe(head, used, bytes.fromhex(head["key"]) in self._pinned)

    def prune(self, select: Selector | None = None, *, namespace: str | None = None, dry_run: bool = False) -> Removed:
        """Remove the entries that `select` is true for; pinned ones too."""
        chosen = [info for info in self.entries(namespace) if select is None or select(info)]
        if not dry_run:
            chosen = [info for info in chosen if self.delete(info.key)]
        return Removed(len(chosen), sum(info.nbytes for info in chosen))

    def evict(self, to_bytes: int) -> Removed:
        """Remove the least recently touched blobs until at most `to_bytes` are taken."""
        removed = nbytes = 0
        with self._lock:
            listed = sorted(self._listed(), key=lambda each: each[2])
            self._used = sum(size for _, size, _ in listed)
            for path, size, _ in listed:
                if self._used <= to_bytes:
                    break
                key = blob_key(path)
                if key not in self._pinned and self.delete(key):
                    removed += 1
                    nbytes += size
                    self.events.evict("", 1, size)
        return Removed(removed, nbytes)

    def set_capacity(self, capacity_bytes: int | None) -> None:
        """Change the limit and enforce it at once."""
        with self._lock:
            self.capacity_bytes = capacity_bytes
            if capacity_bytes is not None:
                self.evict(capacity_bytes)

    def info(self) -> StoreInfo:
        """Say what is held; lists the backend and reads the head of each blob."""
        totals: dict[str, list[int]] = {}
        times: list[float] = []
        for path, size, _ in self._listed():
            head = self._head(path)
            if head is not None:
                total = totals.setdefault(head["namespace"], [0, 0])
                total[0] += 1
                total[1] += size
                times.append(head["created"])
        return StoreInfo(
            location=f"backend://{type(self.backend).__name__}",
            entries=len(times),
            physical_bytes=sum(nbytes for _, nbytes in totals.values()),
            capacity_bytes=self.capacity_bytes,
            namespaces=[NamespaceInfo(name, n, nbytes) for name, (n, nbytes) in sorted(totals.items())],
            oldest=min(times, default=None),
            newest=max(times, default=None),
        )

    def verify(self, *, repair: bool = False) -> VerifyReport:
        """Read every blob and check its checksum and key."""
        damaged: list[str] = []
        entries = nbytes = 0
        for path, size, _ in self._listed():
            entries += 1
            nbytes += size
            try:
                unframe(self.backend.read_bytes(path), blob_key(path))
            except Exception as error:
                damaged.append(f"{path}: {error}")
                if repair:
                    self.delete(blob_key(path))
        return VerifyReport(entries, nbytes, damaged, repair)

    def clear(self) -> Removed:
        """Remove every entry of lmstash; the backend's other blobs stay."""
        listed = self._listed()
        gone = [size for path, size, _ in listed if self.delete(blob_key(path))]
        return Removed(len(gone), sum(gone))

    def flush(self) -> None:
        """Nothing to do: the backend had every byte when `put` returned."""

    def close(self) -> None:
        """Nothing to do: the backend belongs to whoever made it."""

    def _fetch(self, key: bytes) -> Entry | None:
        path, entry = blob_path(key), self._read(key)
        if isinstance(entry, MissReason):
            self.events.miss("", key, entry)
            return None
        self.events.hit(entry.namespace, key, len(entry.value), entry.compute_seconds)
        try:
            self.backend.touch(path)
        except Exception as error:
            self._fault("touch", error)
        return entry

    def _read(self, key: bytes) -> Entry | MissReason:
        """Return an entry, or why it cannot be served."""
        path = blob_path(key)
        try:
            blob = self.backend.read_bytes(path) if self.backend.exists(path) else None
        except Exception as error:
            self._fault("read", error)
            return MissReason.UNAVAILABLE
        if blob is None:
            return MissReason.ABSENT
        try:
            entry = unframe(blob, key)
        except (ValueError, KeyError, TypeError) as error:
            self.events.damage("", key, f"{path}: {error}")
            return MissReason.DAMAGED
        expired = entry.expires is not None and entry.expires <= time.time()
        return MissReason.EXPIRED if expired else entry

    def _describe(self, key: bytes) -> EntryInfo | None:
        path = blob_path(key)
        head = self._head(path)
        if head is None or head["key"] != key.hex() or (head["expires"] or float("inf")) <= time.time():
            return None
        try:
            return describe(head, self.backend.mtime(path), key in self._pinned)
        except Exception as error:
            self._fault("mtime", error)
            return None

    def _put(self, write: Write, replace: bool) -> bool:
        check_key(write.key)
        if not replace and self.contains(write.key):
            return True
        path = blob_path(write.key)
        blob = frame(write)
        with self._lock:
            if self.capacity_bytes is not None:
                if len(blob) > self.capacity_bytes:
                    reason = DropReason.DISABLED if self.capacity_bytes == 0 else DropReason.TOO_LARGE
                    return self._dropped(write, reason, f"{len(blob):,} bytes over {self.capacity_bytes:,}")
                if self._used is None:
                    self._used = sum(size for _, size, _ in self._listed())
                if self._used + len(blob) > self.capacity_bytes:
                    self.evict(self.capacity_bytes - len(blob))
                    if self._used + len(blob) > self.capacity_bytes:
                        return self._dropped(write, DropReason.NO_ROOM, "everything kept is pinned")
            try:
                self.backend.write_bytes(path, blob)
            except Exception as error:
                self._fault("write", error)
                self.events.drop(write.namespace, write.key, DropReason.UNAVAILABLE)
                return False
            self._used = None if self._used is None else self._used + len(blob)
        self.events.put(write.namespace, write.key, len(blob), write.compute_seconds)
        return True

    def _dropped(self, write: Write, reason: DropReason, detail: str) -> bool:
        self.events.drop(write.namespace, write.key, reason)
        if self.strict:
            raise CapacityError(f"{write.namespace}: value not kept: {detail}. Raise the limit: set_cache_limit().")
        return False

    def _listed(self) -> list[tuple[str, int, float]]:
        """(path, bytes, last used) of every blob of ours."""
        out: list[tuple[str, int, float]] = []
        try:
            paths = [path for path in self.backend.list_keys(PREFIX) if path.startswith(PREFIX) and is_ours(path)]
            out.extend((path, self.backend.size(path), self.backend.mtime(path)) for path in paths)
        except Exception as error:
            self._fault("list", error)
        return out

    def _head(self, path: str) -> dict[str, Any] | None:
        try:
            return read_head(self.backend, path)
        except Exception as error:
            self.events.damage("", None, f"{path}: {error}")
            return None

    def _fault(self, what: str, error: Exception) -> None:
        name = type(self.backend).__name__
        if self.strict:
            raise StoreUnavailableError(f"{name} failed to {what}: {error!r}") from error
        self.events.warn_once(f"backend {what}", "lmstash: %s failed to %s, going on without: %r", name, what, error)
