"""From keys to checked records: one at a time, and many at once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

from lmstash.errors import FormatError
from lmstash.events import EventLog, MissReason
from lmstash.store.base import Entry
from lmstash.store.disk.accounting.recency import Recency
from lmstash.store.disk.files.folder import Folder
from lmstash.store.disk.files.format import HEADER, Header, check_small, parse_head
from lmstash.store.disk.files.rows import PLACE, IndexDamagedError, Row, row_of, sane
from lmstash.store.disk.files.segment import SegmentFile, SegmentFiles
from lmstash.store.disk.indexing.index import Index
from lmstash.store.disk.reading.checked import check_record
from lmstash.store.disk.reading.record import groups, read_group, read_one

Loaded = tuple[Header, memoryview, str]
"""Header, payload (memory of its own), namespace."""


_SMALL_BYTES = 16 << 10


class Lookup:
    """Reads one folder. Threads may share it."""

    def __init__(
        self,
        folder: Folder,
        index: Index,
        recency: Recency,
        events: EventLog,
        on_damage: Callable[[Row, SegmentFile, FormatError], MissReason],
        on_loss: Callable[[int], None],
    ) -> None:
        """Take the parts of a store.

        Args:
            folder: The folder.
            index: Its index.
            recency: Its slots.
            events: Counts hits and misses.
            on_damage: Stops serving a record that failed its checks, and says what the look-up shall report.
            on_loss: Forgets a segment (by row id) whose file is gone.
        """
        self._folder = folder
        self._index = index
        self._recency = recency
        self._events = events
        self._on_damage = on_damage
        self._on_loss = on_loss
        self._files = SegmentFiles()
        self._removals = recency.removals()
        self._looked = time.monotonic()

    def load(self, key: bytes, row: Row | None = None) -> Loaded | None:
        """Return what is kept under `key`, checked; counts a hit or a miss. Faults of disk and index are raised.

        Args:
            key: The key.
            row: Where the index has just said that it is.
        """
        reason = MissReason.GONE
        for attempt in range(3):
            if attempt or row is None:
                row = self._index.find(key)
            if row is None:
                reason = MissReason.ABSENT
                break
            if not sane(row):
                raise IndexDamagedError(f"a row makes no sense: {row}")
            if row.exp and row.exp <= time.time() * 1e6:
                reason = MissReason.EXPIRED
                break
            file = self.file(row.seg)
            if file is None:
                if self._index.find(key) != row:
                    continue  # evicted or copied forward between the two look-ups
                self._on_loss(row.seg)
                break
            try:
                header, payload = read_one(file, row)
            except FormatError as error:
                reason = self._on_damage(row, file, error)
                break
            self._recency.touch(row.slot)
            self._events.hit(file.namespace, key, row.size, header.compute_seconds)
            return header, payload, file.namespace
        self._events.miss("", key, reason)
        return None

    def value(self, key: bytes) -> memoryview | None:
        """As `load`, for the value alone, as a read-only view; a small one costs half as much.

        What is used of its header is compared with what is known, so the header's own checksum would add nothing. Of a
        damaged index anything may come here: it is refused, or raises, and the slow way says which it is.
        """
        found = self._index.spot(key)
        if found is None:
            self._events.miss("", key, MissReason.ABSENT)
            return None
        row: Row | None = None
        seg, off, head, size, slot = PLACE.unpack(found[2])
        exp = found[4]
        if exp == 0 and size <= _SMALL_BYTES and HEADER.size <= head <= _SMALL_BYTES:
            file = self.file(seg)
            buffer = bytearray(head + size)
            if file is not None and os.preadv(file.fd, (buffer,), off) == head + size:
                payload = memoryview(buffer)[head:]
                seconds = check_small(buffer, payload, key, head, file.namespace_hash)
                if seconds is not None:
                    self._recency.touch(slot)
                    self._events.hit(file.namespace, key, size, seconds)
                    return payload.toreadonly()
        else:
            row = row_of(found)
        loaded = self.load(key, row)  # expired, large, damaged, moved or gone: this says which, and heals
        return None if loaded is None else loaded[1].toreadonly()

    def load_many(self, keys: Sequence[bytes]) -> list[Loaded | None]:
        """As `load`, with one look-up for all and one read for neighbours."""
        if len(keys) < 4:
            return [self.load(key) for key in keys]
        now = time.time() * 1e6
        loaded: dict[bytes, Loaded] = {}
        odd: set[bytes] = set()
        by_segment: dict[int, list[Row]] = {}
        for key, row in self._index.find_many(keys).items():
            if not sane(row):
                raise IndexDamagedError(f"a row makes no sense: {row}")
            if not row.exp or row.exp > now:
                by_segment.setdefault(row.seg, []).append(row)
            else:
                odd.add(key)
        for seg, rows in by_segment.items():
            self._load_segment(seg, rows, loaded, odd)
        self._count_hits(loaded)
        out: list[Loaded | None] = []
        given: set[bytes] = set()
        for key in keys:
            found = loaded.get(key)
            if found is None:
                if key in odd:  # gone, damaged or expired: the slow path says which, and heals
                    found = self.load(key)
                else:
                    self._events.miss("", key, MissReason.ABSENT)
            elif key in given:
                found = (found[0], memoryview(bytearray(found[1])), found[2])
                self._events.hit(found[2], key, len(found[1]), found[0].compute_seconds)
            else:
                given.add(key)
            out.append(found)
        return out

    def forget(self, seg: int) -> None:
        """Let go of one segment's file."""
        with self._index.read_lock:
            self._files.drop(seg)

    def _let_go_of_unlinked(self) -> None:
        """Close files that another process has unlinked, at most once a second: their room is given back then."""
        removals = self._recency.removals()
        if removals != self._removals and time.monotonic() - self._looked > 1.0:
            self._removals, self._looked = removals, time.monotonic()
            self._files.drop_unlinked()

    def close(self) -> None:
        """Let go of every file."""
        with self._index.read_lock:
            self._files.clear()

    def header(self, row: Row) -> Header | None:
        """Return a record's header, or None if it cannot be read."""
        file = self.file(row.seg)
        if file is None:
            return None
        try:
            header = parse_head(os.pread(file.fd, row.head, row.off))
        except (FormatError, OSError):
            return None
        return header if header.key == row.key else None

    def file(self, seg: int) -> SegmentFile | None:
        """Return the segment with row id `seg`, opened, or None when it is gone."""
        with self._index.read_lock:
            self._let_go_of_unlinked()
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

    def _load_segment(self, seg: int, rows: list[Row], loaded: dict[bytes, Loaded], odd: set[bytes]) -> None:
        file = self.file(seg)
        if file is None:
            odd.update(row.key for row in rows)
            return
        touched: list[int] = []
        for group in groups(rows):
            records = [None] if len(group) == 1 else read_group(file, group)
            for row, record in zip(group, records, strict=True):
                try:
                    header, payload = read_one(file, row) if record is None else check_record(file, record, row)
                except FormatError:
                    odd.add(row.key)
                    continue
                loaded[header.key] = header, payload, file.namespace
                touched.append(row.slot)
        self._recency.touch_many(touched)

    def _count_hits(self, loaded: dict[bytes, Loaded]) -> None:
        if self._events.listening:
            for key, (header, payload, namespace) in loaded.items():
                self._events.hit(namespace, key, len(payload), header.compute_seconds)
        elif loaded:
            seconds = sum(header.compute_seconds for header, _payload, _namespace in loaded.values())
            self._events.hits(len(loaded), sum(len(payload) for _h, payload, _n in loaded.values()), seconds)


def entry_of(key: bytes, found: Loaded) -> Entry:
    """Return what was loaded as callers see it."""
    header, payload, namespace = found
    return Entry(
        key,
        payload,
        namespace,
        header.parent,
        header.compute_seconds,
        header.n_tokens,
        header.created_us / 1e6,
        header.expires_us / 1e6 if header.expires_us else None,
        header.meta,
    )
