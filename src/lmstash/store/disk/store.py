"""`DiskStore`: the public class of the disk store. What each part does is said in `lmstash.store.disk`."""

from __future__ import annotations

import atexit
import contextlib
import errno
import json
import os
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lmstash.errors import (
    CapacityError,
    FormatError,
    InvalidArgumentError,
    LmstashError,
    ReadOnlyError,
    StoreUnavailableError,
)
from lmstash.events import DropReason, EventLog, MissReason
from lmstash.settings import UNSET
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
    encode_meta,
    matches,
)
from lmstash.store.disk.appender import Appender, Item
from lmstash.store.disk.folder import Folder
from lmstash.store.disk.format import MAX_NAMESPACE_BYTES, TOMBSTONE, Header, OtherKeyError, RecordType, parse_head
from lmstash.store.disk.index import Index, IndexDamagedError, Row, SegmentRow
from lmstash.store.disk.reading import check_record, groups, read_group, read_one
from lmstash.store.disk.recency import Recency, hits, last_used
from lmstash.store.disk.reclaim import Reclaimer
from lmstash.store.disk.recovery import Recovery, rebuild
from lmstash.store.disk.room import Room, Sizes, default_capacity_bytes
from lmstash.store.disk.segment import SegmentFile, SegmentFiles, SegmentWriter
from lmstash.store.policies import policy_named

MAX_META_BYTES = 256 << 10
_BATCH_ROWS = 512
Loaded = tuple[Header, memoryview, str]
"""Header, payload, namespace."""
_live: weakref.WeakSet[DiskStore] = weakref.WeakSet()
_abandoned: list[object] = []
"""Connections that must not be finalised: those a forked child inherited, and those of a replaced index."""


def _after_fork_in_child() -> None:
    for store in list(_live):
        store._after_fork()


def _close_at_exit() -> None:
    for store in list(_live):
        with contextlib.suppress(Exception):
            store.close()


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_close_at_exit)


class _SegmentRemovedError(Exception):
    """Another process removed the segment this one was appending to."""


class DiskStore:
    """Values in a folder, within a byte limit.

    Any number of threads and processes may use one folder at the same time. `put` returns after the value is in the
    operating system's hands: a killed process loses nothing that `put` returned from; a power loss may lose what was
    put since the last `flush()`, never serve it torn.

    Costs here: a small `get` about 15 microseconds, a small `put` about 40; large values move at memory-copy speed.
    """

    def __init__(
        self,
        location: str | os.PathLike[str],
        *,
        capacity_bytes: int | None = UNSET,
        read_only: bool = False,
        strict: bool = False,
        policy: str = "lru",
        events: EventLog | None = None,
    ) -> None:
        """Open the folder, making it if it is missing.

        Args:
            location: The folder.
            capacity_bytes: Limit on all that the folder takes; None is unlimited, 0 keeps nothing. Not given: what the
                folder was last given, else 50 GiB or half of the free disk, whichever is less.
            read_only: Serve, and never write.
            strict: Raise on faults.
            policy: What goes first: `"lru"`.
            events: Where to count.

        Raises:
            StoreUnavailableError: The folder cannot be used.
            UnsupportedFormatError: A newer lmstash wrote it.
        """
        self.events = events if events is not None else EventLog()
        self.strict = strict
        self.read_only = read_only
        self._asked_capacity = capacity_bytes
        self._policy = policy_named(policy)
        self._folder = Folder(location)
        self._files = SegmentFiles()
        self._closed = False
        self._inherited = False
        """Whether the state is a parent process's."""
        self._reopen_lock = threading.RLock()
        self._open()
        _live.add(self)

    # --- opening, forking, closing --------------------------------------------------------------------------------

    def _open(self) -> None:
        """Connect to the folder as it is now."""
        folder = self._folder
        if self.read_only:
            if not folder.index.exists():
                raise StoreUnavailableError(f"{folder.path} holds no stash to read. Open it once without read_only.")
            folder.describe()
        else:
            folder.prepare()
        try:
            self._recency = Recency(folder, read_only=self.read_only)
            self._index = self._open_index()
        except OSError as error:
            raise StoreUnavailableError(folder.explain(error)) from error
        room = Room(folder, self._index)
        appender = Appender(folder, self._index, self._recency, room)
        recovery = Recovery(folder, self._index, self._recency, self.events)
        self._room, self._appender, self._recovery = room, appender, recovery
        self._reclaimer = Reclaimer(
            folder, self._index, self._recency, appender, self._policy, self.events, recovery.seal_abandoned
        )
        if not self.read_only:
            with self._index.write_lock:
                self._settle_capacity()
                recovery.reconcile()

    def _open_index(self) -> Index:
        asked = self._asked_capacity
        capacity = self._folder.describe().get("capacity_bytes") if asked is UNSET else asked
        log_bytes = Sizes.of(capacity).log_bytes

        def make() -> Index:
            return Index(self._folder, read_only=self.read_only, log_bytes=log_bytes)

        had_segments = bool(self._folder.segment_names())
        lost = had_segments and not self._folder.index.exists()
        if not lost:
            try:
                return make()
            except IndexDamagedError as error:
                if self.read_only:
                    raise StoreUnavailableError(
                        f"the index of {self._folder.path} is damaged. Open it for writing once to rebuild it."
                    ) from error
                self.events.damage("", None, f"{self._folder.index}: {error}")
        return rebuild(self._folder, make, self._recency, self.events, lost=lost)

    def _settle_capacity(self) -> None:
        with self._index.transaction():
            known = self._index.fact("capacity")
            if self._asked_capacity is UNSET and known is None:
                described = self._folder.describe().get("capacity_bytes", UNSET)
                capacity = default_capacity_bytes(self._folder) if described is UNSET else described
            elif self._asked_capacity is UNSET:
                return
            else:
                capacity = self._asked_capacity
                if known == ("unlimited" if capacity is None else capacity):
                    return
            self._index.set_fact("capacity", "unlimited" if capacity is None else capacity)
        with contextlib.suppress(OSError):
            self._folder.write_description(capacity)
        self._room.refresh()
        if capacity is not None and known is not None:
            self._reclaimer.evict(capacity)

    def _ready(self) -> None:
        """Raise if the store is closed; open the folder anew in a forked child."""
        if self._closed:
            raise StoreUnavailableError("the stash is closed. Open it again with lmstash.open().")
        if self._inherited:
            with self._reopen_lock:
                if self._inherited:
                    self._open()
                    self._inherited = False

    def _reopen(self) -> None:
        """Connect anew after the index was lost, replaced or found damaged."""
        with self._reopen_lock:
            self._appender.abandon()
            self._files = SegmentFiles()
            _abandoned.append(self._index)
            self._open()

    def _after_fork(self) -> None:
        """In a forked child: use nothing of the parent's, and open the folder anew at the next call."""
        # SQLite must neither use nor close a connection that crossed a fork.
        _abandoned.append(self._index)
        self._appender.abandon()
        self._files = SegmentFiles()
        self._reopen_lock = threading.RLock()
        self.events.after_fork()
        self._inherited = True

    def close(self) -> None:
        """Seal and flush what this process wrote, and let go of files. Costs what `flush` does."""
        if self._closed:
            return
        if not self._inherited:
            with self._faults():
                if not self.read_only:
                    with self._index.write_lock:
                        self._appender.seal_all()
                        self._reclaimer.tidy()
                        self._appender.seal_all()
                        self._sync()
                        self._index.checkpoint()
                self._index.close()
        self._closed = True
        self._files = SegmentFiles()
        _live.discard(self)

    def __repr__(self) -> str:
        """One line."""
        state = ", closed" if self._closed else ", read-only" if self.read_only else ""
        return f"<DiskStore: {self._folder.path}{state}>"

    # --- reading --------------------------------------------------------------------------------------------------

    def get(self, key: bytes) -> memoryview | None:
        """Return the value as a read-only view of memory of its own, or None."""
        found = self._load(key)
        return None if found is None else found[1].toreadonly()

    def get_many(self, keys: Sequence[bytes]) -> list[memoryview | None]:
        """Return the values as read-only views, None where there is none."""
        return [None if found is None else found[1].toreadonly() for found in self._load_many(keys)]

    def fetch_many(self, keys: Sequence[bytes]) -> list[Entry | None]:
        """Return whole entries whose values the caller may write into.

        Small values that lie together share one allocation of up to 1 MiB, which lives as long as any of them.
        """
        return [
            None
            if found is None
            else Entry(
                key,
                found[1],
                found[2],
                found[0].parent,
                found[0].compute_seconds,
                found[0].n_tokens,
                found[0].created_us / 1e6,
                found[0].expires_us / 1e6 if found[0].expires_us else None,
                found[0].meta,
            )
            for key, found in zip(keys, self._load_many(keys), strict=True)
        ]

    def contains(self, key: bytes) -> bool:
        """Whether the index knows the key and it has not expired."""
        return self.contains_many([key])[0]

    def contains_many(self, keys: Sequence[bytes]) -> list[bool]:
        """As `contains`, for many keys; about a microsecond a key."""
        with self._faults():
            self._ready()
            rows, now = self._index.find_many(keys), int(time.time() * 1e6)
            return [(row := rows.get(key)) is not None and not 0 < row.exp <= now for key in keys]
        return [False] * len(keys)

    def _load(self, key: bytes) -> Loaded | None:
        reason = MissReason.UNAVAILABLE
        try:
            self._ready()
            for _attempt in range(3):
                row = self._index.find(key)
                if row is None:
                    reason = MissReason.ABSENT
                    break
                if row.exp and row.exp <= time.time() * 1e6:
                    reason = MissReason.EXPIRED
                    break
                file = self._file(row.seg)
                if file is None:
                    reason = MissReason.GONE
                    if self._index.find(key) == row:
                        self._forget_lost(row.seg)
                        break
                    continue  # evicted or copied forward between the two look-ups
                try:
                    header, payload = read_one(file, row)
                except FormatError as error:
                    reason = self._damaged(row, file, error)
                    break
                self._recency.touch(row.slot)
                self.events.hit(file.namespace, key, row.size, header.compute_seconds)
                return header, payload, file.namespace
        except (LmstashError, OSError, IndexDamagedError) as error:
            self._fault(error)
        self.events.miss("", key, reason)
        return None

    def _load_many(self, keys: Sequence[bytes]) -> list[Loaded | None]:
        if len(keys) < 4:
            return [self._load(key) for key in keys]
        loaded: dict[bytes, Loaded] = {}
        again: list[bytes] = []
        try:
            self._ready()
            rows, now = self._index.find_many(keys), time.time() * 1e6
            by_segment: dict[int, list[Row]] = {}
            for row in rows.values():
                if not row.exp or row.exp > now:
                    by_segment.setdefault(row.seg, []).append(row)
                else:
                    again.append(row.key)
            for seg, some in by_segment.items():
                self._load_segment(seg, some, loaded, again)
        except (LmstashError, OSError, IndexDamagedError) as error:
            self._fault(error)
            for key in keys:
                self.events.miss("", key, MissReason.UNAVAILABLE)
            return [None] * len(keys)
        self._count_hits(loaded)
        odd = set(again)
        out: list[Loaded | None] = []
        given: set[bytes] = set()
        for key in keys:
            found = loaded.get(key)
            if found is None:
                if key in odd:  # gone, damaged or expired: the slow path says which, and heals
                    found = self._load(key)
                else:
                    self.events.miss("", key, MissReason.ABSENT)
            elif key in given:
                found = (found[0], memoryview(bytearray(found[1])), found[2])
                self.events.hit(found[2], key, len(found[1]), found[0].compute_seconds)
            given.add(key)
            out.append(found)
        return out

    def _load_segment(self, seg: int, rows: list[Row], loaded: dict[bytes, Loaded], again: list[bytes]) -> None:
        file = self._file(seg)
        if file is None:
            again.extend(row.key for row in rows)
            return
        touched: list[int] = []
        for group in groups(rows):
            if len(group) == 1:
                try:
                    header, payload = read_one(file, group[0])
                except FormatError:
                    again.append(group[0].key)
                    continue
                loaded[header.key] = header, payload, file.namespace
                touched.append(group[0].slot)
                continue
            for row, record in zip(group, read_group(file, group), strict=True):
                try:
                    if record is None:
                        again.append(row.key)
                        continue
                    header, payload = check_record(record, row)
                except FormatError:
                    again.append(row.key)
                    continue
                loaded[header.key] = header, payload, file.namespace
                touched.append(row.slot)
        self._recency.touch_many(touched)

    def _count_hits(self, loaded: dict[bytes, Loaded]) -> None:
        if self.events.listening:
            for key, (header, payload, namespace) in loaded.items():
                self.events.hit(namespace, key, len(payload), header.compute_seconds)
        elif loaded:
            seconds = sum(header.compute_seconds for header, _payload, _namespace in loaded.values())
            self.events.hits(len(loaded), sum(len(payload) for _h, payload, _n in loaded.values()), seconds)

    def _file(self, seg: int) -> SegmentFile | None:
        """Return segment `seg` opened, or None when it is gone."""
        with self._index.read_lock:
            file = self._files.get(seg)
            if file is None:
                segment = self._index.segment(seg)
                if segment is None:
                    return None
                try:
                    file = SegmentFile(self._folder.segment(segment.name), segment.namespace)
                except FileNotFoundError:
                    return None
                self._files.add(seg, file)
            return file

    # --- writing --------------------------------------------------------------------------------------------------

    def put(self, key: bytes, value: Buffer | Sequence[Buffer], **fields: Any) -> bool:
        """Keep one value (`fields`: as in `Write`); returns whether it is kept."""
        return self.put_many([Write(key, value, **fields)]) == 1

    def put_many(self, writes: Iterable[Write], *, replace: bool = True) -> int:
        """Keep many values; with `replace=False` what is kept already stays. Returns how many are kept now.

        A group of one namespace costs one write and one commit for up to 512 values.
        """
        kept = 0
        batch: dict[bytes, tuple[Write, Item]] = {}
        size, namespace = 0, ""
        for write in writes:
            item = self._item(write)
            full = len(batch) >= _BATCH_ROWS or size + item.most_bytes > self._room.sizes.segment_bytes
            if batch and (full or write.namespace != namespace or write.key in batch):
                kept += self._put_batch(namespace, batch, replace)
                batch, size = {}, 0
            namespace = write.namespace
            batch[write.key] = write, item
            size += item.most_bytes
        if batch:
            kept += self._put_batch(namespace, batch, replace)
        return kept

    def _item(self, write: Write) -> Item:
        check_key(write.key)
        if len(write.namespace.encode()) > MAX_NAMESPACE_BYTES or not write.namespace:
            raise InvalidArgumentError(f"a namespace has 1 to {MAX_NAMESPACE_BYTES} bytes: {write.namespace!r}")
        meta = encode_meta(write.meta)
        if len(meta) > MAX_META_BYTES:
            raise InvalidArgumentError(f"meta takes {len(meta):,} bytes; keep it under {MAX_META_BYTES:,}")
        value = write.value
        buffers = [value] if isinstance(value, (bytes, bytearray, memoryview)) else list(value)
        views: list[Buffer] = [each if isinstance(each, bytes) else memoryview(each).cast("B") for each in buffers]
        expires = 0 if write.ttl_seconds is None else int((time.time() + write.ttl_seconds) * 1e6)
        return Item(
            write.key,
            views,
            sum(map(len, views)),
            meta,
            write.parent,
            write.compute_seconds,
            write.n_tokens,
            max(expires, 0),
        )

    def _put_batch(self, namespace: str, batch: dict[bytes, tuple[Write, Item]], replace: bool) -> int:
        if self.read_only:
            return self._drop(batch, DropReason.READ_ONLY, "it was opened with read_only=True")
        try:
            self._ready()
            if self._index.moved():
                self._reopen()
            with self._index.write_lock:
                return self._store_batch(namespace, batch, replace)
        except IndexDamagedError as error:
            self._fault(error)
            return self._drop(batch, DropReason.UNAVAILABLE, str(error))
        except CapacityError as error:
            return self._drop(batch, DropReason.DISK_FULL, str(error))
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            reason = DropReason.DISK_FULL if full else DropReason.UNAVAILABLE
            return self._drop(batch, reason, self._folder.explain(error))
        except LmstashError as error:
            return self._drop(batch, DropReason.UNAVAILABLE, str(error))

    def _store_batch(self, namespace: str, batch: dict[bytes, tuple[Write, Item]], replace: bool) -> int:
        if self._room.disabled:
            self._room.refresh()
            if self._room.disabled:
                return self._drop(batch, DropReason.DISABLED, "its limit is too small to keep anything")
        kept = 0
        if not replace:
            present = [key for key, known in zip(batch, self.contains_many(list(batch)), strict=True) if known]
            kept = len(present)
            batch = {key: each for key, each in batch.items() if key not in present} if present else batch
            if not batch:
                return kept
        items = [item for _write, item in batch.values()]
        n_bytes = sum(item.most_bytes for item in items)
        for _attempt in range(3):
            with self._reclaimer.changes():
                writer = self._appender.reserve(namespace, n_bytes, len(items))
            if writer is None:
                return kept + self._too_much(namespace, batch, n_bytes, replace)
            rows = self._appender.append(writer, items)
            try:
                self._commit(namespace, writer, rows, replace)
            except _SegmentRemovedError:
                self._appender.forget(writer)
                continue
            self._count_puts(namespace, items)
            return kept + len(items)
        return kept + self._drop(batch, DropReason.UNAVAILABLE, "its segments were removed again and again")

    def _too_much(self, namespace: str, batch: dict[bytes, tuple[Write, Item]], n_bytes: int, replace: bool) -> int:
        """Keep what fits of a batch for which there is no room as a whole."""
        if len(batch) == 1:
            fits = self._room.could_ever_fit(n_bytes)
            reason = DropReason.NO_ROOM if fits else DropReason.TOO_LARGE
            what = "nothing could be evicted" if fits else f"{n_bytes:,} bytes are more than the limit allows"
            return self._drop(batch, reason, what)
        return sum(self._store_batch(namespace, {key: each}, replace) for key, each in batch.items())

    def _commit(self, namespace: str, writer: SegmentWriter, rows: list[Row], replace: bool) -> None:
        """Make appended records findable, in one transaction."""
        with self._reclaimer.changes():
            old = self._index.find_for_change([row.key for row in rows])
            fresh = rows
            if old:
                now = time.time() * 1e6
                if replace:
                    doomed = list(old.values())
                    # A pin belongs to the key.
                    fresh = [row._replace(pinned=old[row.key].pinned) if row.key in old else row for row in rows]
                else:
                    # Somebody was faster: theirs stays, unless it has expired.
                    stays = {key for key, row in old.items() if not 0 < row.exp <= now}
                    fresh = [row for row in rows if row.key not in stays]
                    doomed = [row for row in rows if row.key in stays]
                    doomed += [row for key, row in old.items() if key not in stays]
                self._bury(doomed)
                self._index.discount([row for row in doomed if old.get(row.key) == row])
            self._index.put_rows(fresh)
            live_bytes = sum(row.record_bytes for row in fresh)
            if not self._index.advance_segment(writer.row, writer.tail, writer.count, len(fresh), live_bytes):
                raise _SegmentRemovedError
        if rows:
            self._recency.mark_new(rows[0].slot, len(rows))
        if old and replace:
            for row in old.values():
                self._recency.forget(row.slot)
            self._recency.note_removal()

    def delete(self, key: bytes) -> bool:
        """Remove one entry; returns whether there was one."""
        return self.delete_many([key]) == 1

    def delete_many(self, keys: Sequence[bytes]) -> int:
        """Remove entries; returns how many there were. Their room is given back as their segments are reclaimed."""
        removed = 0
        with self._faults():
            self._writable()
            for start in range(0, len(keys), _BATCH_ROWS):
                with self._index.write_lock, self._reclaimer.changes():
                    part = list(dict.fromkeys(keys[start : start + _BATCH_ROWS]))
                    rows = list(self._index.find_for_change(part).values())
                    self._bury(rows)
                    self._index.delete_rows(rows)
                for row in rows:
                    self._recency.forget(row.slot)
                removed += len(rows)
            self._recency.note_removal()
        return removed

    def pin_many(self, keys: Sequence[bytes], pinned: bool = True) -> int:
        """Protect entries from eviction, or stop doing so; returns how many are kept. Pins outlive the process."""
        found = 0
        kind = RecordType.PIN if pinned else RecordType.UNPIN
        with self._faults():
            self._writable()
            for start in range(0, len(keys), _BATCH_ROWS):
                with self._index.write_lock, self._reclaimer.changes():
                    part = list(dict.fromkeys(keys[start : start + _BATCH_ROWS]))
                    rows = list(self._index.find_for_change(part).values())
                    found += len(rows)
                    changed = [row for row in rows if row.pinned != pinned]
                    self._index.put_rows([row._replace(pinned=int(pinned)) for row in changed])
                    for namespace, some in self._by_namespace(changed).items():
                        self._appender.append_controls(namespace, kind, [(row.key, b"") for row in some])
        return found

    def _bury(self, rows: list[Row]) -> None:
        homes = {segment.id: segment.name for segment in self._index.segments_for_change()} if rows else {}
        for namespace, some in self._by_namespace(rows).items():
            payloads = [(row.key, TOMBSTONE.pack(row.gen, bytes.fromhex(homes[row.seg]))) for row in some]
            self._appender.append_controls(namespace, RecordType.TOMBSTONE, payloads)

    def _by_namespace(self, rows: list[Row]) -> dict[str, list[Row]]:
        spaces = {segment.id: segment.namespace for segment in self._index.segments_for_change()} if rows else {}
        out: dict[str, list[Row]] = {}
        for row in rows:
            if row.seg in spaces:
                out.setdefault(spaces[row.seg], []).append(row)
        return out

    # --- looking over everything ----------------------------------------------------------------------------------

    def entries(self, namespace: str | None = None) -> Iterator[EntryInfo]:
        """Describe every entry; reads each record's header (about 5 microseconds)."""
        with self._faults():
            self._ready()
            spaces = {segment.id: segment.namespace for segment in self._index.segments()}
            for row in self._index.rows():
                if row.seg not in spaces:
                    spaces |= {segment.id: segment.namespace for segment in self._index.segments()}
                space = spaces.get(row.seg)
                if space is None or not matches(space, namespace):
                    continue
                header = self._header(row)
                if header is None:
                    continue
                cell = self._recency.read(row.slot)
                yield EntryInfo(
                    key=row.key,
                    namespace=space,
                    nbytes=row.size,
                    n_tokens=header.n_tokens,
                    compute_seconds=header.compute_seconds,
                    created=header.created_us / 1e6,
                    last_used=last_used(cell) if cell else header.created_us / 1e6,
                    hits=hits(cell),
                    expires=row.exp / 1e6 if row.exp else None,
                    pinned=bool(row.pinned),
                    parent=header.parent,
                    meta=json.loads(header.meta) if header.meta else {},
                )

    def _header(self, row: Row) -> Header | None:
        file = self._file(row.seg)
        if file is None:
            return None
        try:
            header = parse_head(os.pread(file.fd, row.head, row.off))
        except (FormatError, OSError):
            return None
        return header if header.key == row.key else None

    def prune(self, select: Selector | None = None, *, namespace: str | None = None, dry_run: bool = False) -> Removed:
        """Remove the entries that `select` is true for. Without `select`, whole segments are unlinked."""
        removed = Removed(0, 0)
        with self._faults():
            if not dry_run:
                self._writable()
            if select is None:
                self._ready()
                chosen = [each for each in self._index.segments() if matches(each.namespace, namespace)]
                if dry_run:
                    return Removed(sum(each.live for each in chosen), sum(each.live_bytes for each in chosen))
                with self._index.write_lock:
                    for each in chosen:
                        writer = self._appender.writers.get(each.namespace)
                        if writer is not None and writer.row == each.id:
                            self._appender.forget(writer)
                    return self._reclaimer.drop(chosen)
            found = [(info.key, info.nbytes) for info in self.entries(namespace) if select(info)]
            removed = Removed(len(found), sum(nbytes for _key, nbytes in found))
            if not dry_run:
                self.delete_many([key for key, _nbytes in found])
                with self._index.write_lock:
                    self._appender.seal_all()
                    self._reclaimer.tidy()
        return removed

    def clear(self) -> Removed:
        """Remove every entry; files that are not segments of this store stay."""
        return self.prune()

    def evict(self, to_bytes: int) -> Removed:
        """Evict the least valuable entries until the folder takes at most `to_bytes`."""
        with self._faults():
            self._writable()
            with self._index.write_lock:
                return self._reclaimer.evict(to_bytes)
        return Removed(0, 0)

    def set_capacity(self, capacity_bytes: int | None) -> None:
        """Change the folder's limit, for every process, and enforce it at once."""
        with self._faults():
            self._writable()
            self._asked_capacity = capacity_bytes
            with self._index.write_lock:
                self._settle_capacity()

    def info(self) -> StoreInfo:
        """Say what is held. Reads no entry: about a millisecond."""
        segments: list[SegmentRow] = []
        physical, capacity = 0, None
        with self._faults():
            self._ready()
            segments = self._index.segments()
            physical = self._folder.overhead_bytes()
            for each in segments:
                with contextlib.suppress(OSError):
                    physical += os.stat(self._folder.segment(each.name)).st_blocks * 512
            fact = self._index.fact("capacity")
            capacity = None if fact in (None, "unlimited") else int(fact)
        totals: dict[str, list[int]] = {}
        for each in segments:
            total = totals.setdefault(each.namespace, [0, 0])
            total[0] += each.live
            total[1] += each.live_bytes
        return StoreInfo(
            location=str(self._folder.path),
            entries=sum(each.live for each in segments),
            physical_bytes=physical,
            capacity_bytes=capacity,
            namespaces=[NamespaceInfo(name, n, size) for name, (n, size) in sorted(totals.items()) if n],
            oldest=min((each.created for each in segments if each.live), default=None),
            newest=max((each.created for each in segments if each.live), default=None),
            details={"segments": len(segments), "policy": self._policy.name, "read_only": self.read_only},
        )

    def verify(self, *, repair: bool = False) -> VerifyReport:
        """Read every entry and check every checksum; `repair=True` drops what is damaged."""
        n = nbytes = 0
        damaged: list[str] = []
        with self._faults():
            self._ready()
            for row in self._index.rows():
                file = self._file(row.seg)
                try:
                    if file is None:
                        raise FormatError("its segment is gone")
                    read_one(file, row)
                except (FormatError, OSError) as error:
                    if self._index.find(row.key) != row:
                        continue  # moved or removed meanwhile
                    where = file.path.name if file is not None else "?"
                    damaged.append(f"{row.key.hex()} in {where} at {row.off}: {error}")
                    if repair and not self.read_only:
                        self._drop_row(row)
                n += 1
                nbytes += row.size
        return VerifyReport(n, nbytes, damaged, repair and bool(damaged) and not self.read_only)

    def flush(self) -> None:
        """Return once everything put so far would survive a power loss: syncs segments, folder and index."""
        with self._faults():
            self._writable()
            with self._index.write_lock:
                self._sync()

    def removals(self) -> int:
        """Return a number that changes whenever any process removes or replaces an entry (for tiers above)."""
        return self._recency.removals()

    def _sync(self) -> None:
        self._appender.sync()
        self._index.sync()

    # --- faults ---------------------------------------------------------------------------------------------------

    def _writable(self) -> None:
        self._ready()
        if self.read_only:
            raise ReadOnlyError(f"{self._folder.path} was opened with read_only=True")
        if self._index.moved():
            self._reopen()

    def _fault(self, error: BaseException) -> None:
        """Note a fault; mend the index if that is what is broken. Raises in strict mode."""
        if isinstance(error, IndexDamagedError) and not self.read_only and not self._closed:
            try:
                self._reopen()
            except (LmstashError, OSError, IndexDamagedError) as second:
                self.events.warn_once("reopen", "lmstash: the index could not be rebuilt: %s", second)
        words = self._folder.explain(error) if isinstance(error, OSError) else str(error)
        self.events.warn_once(f"fault {type(error).__name__}", "lmstash: %s Treated as a miss.", words)
        if self.strict:
            raise error if isinstance(error, LmstashError) else StoreUnavailableError(words)

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except (LmstashError, OSError, IndexDamagedError) as error:
            if isinstance(error, InvalidArgumentError):
                raise
            self._fault(error)

    def _drop(self, batch: dict[bytes, tuple[Write, Item]], reason: DropReason, detail: str) -> int:
        for write, _item in batch.values():
            self.events.drop(write.namespace, write.key, reason)
        self.events.warn_once(f"drop {reason}", "lmstash: values are not kept: %s (%s)", detail, reason)
        if self.strict:
            error = ReadOnlyError if reason == DropReason.READ_ONLY else CapacityError
            raise error(f"{self._folder.path}: values are not kept: {detail}")
        return 0

    def _count_puts(self, namespace: str, items: list[Item]) -> None:
        if self.events.listening:
            for item in items:
                self.events.put(namespace, item.key, item.nbytes, item.compute_seconds)
        else:
            seconds = sum(item.compute_seconds for item in items)
            self.events.puts(len(items), sum(item.nbytes for item in items), seconds)

    def _damaged(self, row: Row, file: SegmentFile, error: FormatError) -> MissReason:
        """Note a record that cannot be served, and stop serving it."""
        self.events.damage(file.namespace, row.key, f"{file.path} at {row.off}: {error}")
        if not self.read_only:
            self._drop_row(row)
        return MissReason.MISMATCH if isinstance(error, OtherKeyError) else MissReason.DAMAGED

    def _drop_row(self, row: Row) -> None:
        with self._index.write_lock, self._reclaimer.changes():
            if self._index.find_for_change([row.key]).get(row.key) == row:
                self._bury([row])
                self._index.delete_rows([row])

    def _forget_lost(self, seg: int) -> None:
        segment = self._index.segment(seg)
        if segment is not None and not self.read_only:
            self._recovery.forget_lost([segment])
