"""This process's open segments, one for each namespace it writes: getting room, appending records, sealing."""

from __future__ import annotations

import contextlib
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmstash.store.base import Buffer
from lmstash.store.disk.accounting.recency import FIRST_SLOT, SLOT_BYTES, Recency, region
from lmstash.store.disk.accounting.room import Room
from lmstash.store.disk.files.folder import Folder
from lmstash.store.disk.files.format import (
    CHUNK_BYTES,
    FLAG_CHUNKED,
    FLAG_PINNED,
    FOOTER_ENTRY,
    HEADER,
    RECORD_ALIGN,
    SEGMENT_HEADER_BYTES,
    TOMBSTONE,
    Located,
    RecordType,
    aligned,
    checksum_payload,
    footer_bytes,
    pack_head,
    pack_listing,
    payload_align,
)
from lmstash.store.disk.files.rows import OPEN, SEALED, Row, row_id
from lmstash.store.disk.files.segment import SegmentWriter, descriptors, sync_data
from lmstash.store.disk.indexing.index import Index

_FIRST_SLOTS = 4096
"""Of the first segment of a namespace: few of these ever have more entries."""
_MOST_WRITERS = 64
"""Segments open at once: each takes a descriptor, of which the host program wants most."""
CONTROL_BYTES = aligned(HEADER.size + TOMBSTONE.size + RECORD_ALIGN, RECORD_ALIGN)


@dataclass(slots=True)
class Item:
    """One value on its way into a segment."""

    key: bytes
    buffers: list[Buffer]
    nbytes: int
    meta: bytes = b""
    parent: bytes = b""
    compute_seconds: float = 0.0
    n_tokens: int = 0
    expires_us: int = 0
    generation: int = 0
    """0: a new one is given."""
    created_us: int = 0
    pinned: bool = False
    checksum: int = -1
    """-1: to be computed."""
    chunk_sums: bytes = b""
    source_slot: int = -1

    @property
    def most_bytes(self) -> int:
        """An upper bound of what the record takes, wherever it starts."""
        chunks = 8 * -(-self.nbytes // CHUNK_BYTES) if self.nbytes > CHUNK_BYTES else 0
        head = HEADER.size + len(self.meta) + chunks + payload_align(self.nbytes)
        return head + self.nbytes + RECORD_ALIGN


class Appender:
    """The open segments of one process on one folder. The caller holds the store's write lock."""

    def __init__(self, folder: Folder, index: Index, recency: Recency, room: Room) -> None:
        """Start with none open."""
        self._folder = folder
        self._index = index
        self._recency = recency
        self.room = room
        self.writers: OrderedDict[str, SegmentWriter] = OrderedDict()
        """By namespace, the most recently used last."""
        self._sealed: list[SegmentWriter] = []
        """Sealed in the running transaction: theirs to take back."""
        self.make_room: Callable[[int, bool, set[int]], bool] = lambda n_bytes, forced, busy: True
        """Evicts until `n_bytes` are free; given by the reclaimer."""
        self.unsettled = False
        """Whether the limit was found to be lowered below what is taken: before more is granted, the folder shrinks."""
        self._unsynced: list[Path] = []
        self._last_generation = 0
        self._limits = recency.limits()

    def granted(self, namespace: str, n_bytes: int, n_records: int) -> SegmentWriter | None:
        """Return the open segment of `namespace` if what it was granted suffices: most puts need no more."""
        if self._recency.limits() != self._limits:
            return None
        writer = self.writers.get(namespace)
        if writer is None:
            return None
        self.writers.move_to_end(namespace)
        fits = not self._full(writer, n_bytes, n_records) and writer.room_for(n_bytes, n_records) <= writer.granted
        return writer if fits else None

    def reserve(self, namespace: str, n_bytes: int, n_records: int, *, forced: bool = False) -> SegmentWriter | None:
        """Return an open segment of `namespace` with room for records of `n_bytes` together, or None.

        None, too, where the limit was lowered (see `unsettled`).

        Inside a transaction. With `forced`, nothing is evicted and the reserve may be used.
        """
        known = self.room.capacity_bytes
        if self._recency.limits() != self._limits or self.room.refresh().capacity_bytes != known:
            self._limits = self._recency.limits()
            self.seal_all()  # what was granted under another limit goes back
            self.unsettled = self.room.refresh().over_bytes() > 0
        if self.unsettled and not forced:
            return None
        # Making room copies records forward, which may begin, fill or seal this very segment: look again each time.
        for _attempt in range(8):
            writer = self.granted(namespace, n_bytes, n_records)
            if writer is not None:
                return writer
            writer = self.writers.get(namespace)
            is_full = writer is not None and self._full(writer, n_bytes, n_records)
            if writer is not None and (is_full or not self._extend(writer, n_bytes, n_records, forced)):
                if self.writers.get(namespace) is writer:
                    self.seal(writer)
            elif writer is None and not self._begin(namespace, n_bytes, n_records, forced):
                return None
        return None

    def _full(self, writer: SegmentWriter, n_bytes: int, n_records: int) -> bool:
        too_long = writer.count > 0 and writer.room_for(n_bytes, n_records) > self.room.sizes.segment_bytes
        return too_long or writer.count + n_records > writer.n_slots

    def append(self, writer: SegmentWriter, items: Sequence[Item]) -> list[Row]:
        """Write items as records and return their rows (which the caller commits to the index)."""
        offset, ordinal = writer.tail, writer.count
        start = offset
        now = int(time.time() * 1e6)
        buffers: list[Buffer] = []
        rows: list[Row] = []
        for item in items:
            if item.checksum < 0:
                item.checksum, item.chunk_sums = checksum_payload(item.buffers, item.nbytes)
            generation = item.generation or self.next_generation(now)
            head = pack_head(
                RecordType.ENTRY,
                item.key,
                offset=offset,
                payload_bytes=item.nbytes,
                checksum=item.checksum,
                chunk_sums=item.chunk_sums,
                meta=item.meta,
                parent=item.parent,
                generation=generation,
                created_us=item.created_us or now,
                expires_us=item.expires_us,
                compute_seconds=item.compute_seconds,
                n_tokens=item.n_tokens,
                namespace_hash=writer.namespace_hash,
                pinned=item.pinned,
            )
            size = len(head) + item.nbytes
            padding = -size % RECORD_ALIGN
            buffers.append(head)
            buffers.extend(item.buffers)
            if padding:
                buffers.append(bytes(padding))
            rows.append(
                Row(
                    row_id(item.key),
                    item.key,
                    writer.row,
                    offset,
                    len(head),
                    item.nbytes,
                    writer.first_slot + ordinal,
                    generation,
                    item.expires_us,
                    int(item.pinned),
                )
            )
            offset += size + padding
            ordinal += 1
        total = offset - start
        listing = b"".join(
            FOOTER_ENTRY.pack(
                RecordType.ENTRY,
                (FLAG_PINNED if item.pinned else 0) | (FLAG_CHUNKED if item.chunk_sums else 0),
                row.head,
                item.key,
                row.gen,
                row.exp,
                row.off,
                row.size,
                row.slot - writer.first_slot,
            )
            for row, item in zip(rows, items, strict=True)
        )
        # One copy is cheaper than many small vectors.
        writer.append([b"".join(buffers)] if total < 1 << 20 else buffers, total, len(items), listing)
        return rows

    def append_controls(
        self, namespace: str, kind: RecordType, controls: Sequence[tuple[bytes, bytes]], *, generation: int = 0
    ) -> bool:
        """Append tombstones or pins, as (key, payload), so that a rebuild knows of them. Inside a transaction.

        Args:
            namespace: Where.
            kind: What they are.
            controls: For each its key and payload.
            generation: Of them, when they are said again; 0 gives new ones.

        Returns:
            Whether there was room (if not, a rebuild will not know).
        """
        parts = [controls[start : start + 256] for start in range(0, len(controls), 256)]
        return all(self._append_part(namespace, kind, part, generation) for part in parts)

    def _append_part(
        self, namespace: str, kind: RecordType, part: Sequence[tuple[bytes, bytes]], generation: int
    ) -> bool:
        now = int(time.time() * 1e6)
        for _attempt in range(3):
            writer = self.reserve(namespace, CONTROL_BYTES * len(part), len(part), forced=True)
            if writer is None:
                if not self.seal_all():  # which gives back what they were granted and do not need
                    return False
                continue
            for key, payload in part:
                self._append_control(writer, kind, key, payload, now, generation or self.next_generation(now))
            if self._index.advance_segment(writer.row, writer.tail, writer.count, 0, 0):
                return True
            self.forget(writer)  # others removed it: into a new one
        return False

    def _append_control(
        self, writer: SegmentWriter, kind: RecordType, key: bytes, payload: bytes, now: int, generation: int
    ) -> None:
        checksum, _none = checksum_payload([payload], len(payload))
        head = pack_head(
            kind,
            key,
            offset=writer.tail,
            payload_bytes=len(payload),
            checksum=checksum,
            generation=generation,
            created_us=now,
            namespace_hash=writer.namespace_hash,
        )
        padding = -(len(head) + len(payload)) % RECORD_ALIGN
        located = Located(kind, 0, len(head), key, generation, 0, writer.tail, len(payload), writer.count)
        writer.append([head + payload + bytes(padding)], located.end - writer.tail, 1, pack_listing([located]))

    def commit(self) -> None:
        """Note that the index has heard of all that was appended and sealed."""
        while self._sealed:
            self._sealed[-1].abandon()
            self._sealed.pop()
        for writer in self.writers.values():
            writer.commit()

    def roll_back(self) -> None:
        """Take back what was appended since the last commit: the index has not heard of it, so no rebuild shall."""
        for namespace, writer in list(self.writers.items()):
            if not writer.roll_back():
                del self.writers[namespace]
        while self._sealed:  # without its footer, which may list what never was; whoever finds it seals it again
            self._sealed[-1].roll_back()
            self._sealed[-1].abandon()
            self._sealed.pop()

    def next_generation(self, now: int) -> int:
        """Return a number larger than this process gave before, and than most that others gave earlier."""
        return self.next_generations(now, 1)

    def next_generations(self, now: int, count: int) -> int:
        """Return the first of `count` such numbers in a row."""
        first = max(now, self._last_generation + 1)
        self._last_generation = first + count - 1
        return first

    def follow(self, generation: int) -> None:
        """Give only larger generations from now on, whatever the clock of the process that gave this one."""
        self._last_generation = max(self._last_generation, generation)

    def seal(self, writer: SegmentWriter) -> None:
        """Finish a segment and give back the room it did not need."""
        with self._index.transaction() as connection:
            self._sealed.append(writer)
            self.writers.pop(writer.namespace, None)
            self._unsynced.append(writer.path)
            size = writer.seal()
            connection.execute(
                "UPDATE segments SET state = ?, granted = ?, tail = ?, records = ?, n_slots = ? WHERE id = ?",
                (SEALED, aligned(size, 4096), writer.tail, writer.count, region(writer.count), writer.row),
            )

    def seal_all(self, busy: set[int] | None = None) -> bool:
        """Seal every open segment but the busy ones; returns whether there was any."""
        idle = [writer for writer in self.writers.values() if not busy or writer.row not in busy]
        for writer in idle:
            self.seal(writer)
        return bool(idle)

    def forget(self, writer: SegmentWriter) -> None:
        """Let go of a segment that somebody else removed."""
        if self.writers.get(writer.namespace) is writer:
            del self.writers[writer.namespace]
        writer.abandon()

    def abandon(self) -> None:
        """Let go of every open segment as it is; the next opener seals them."""
        for writer in (*self.writers.values(), *self._sealed):
            writer.abandon()
        self.writers.clear()
        self._sealed.clear()

    def sync(self) -> None:
        """Return once all that was appended is on the medium."""
        for writer in self.writers.values():
            writer.sync()
        while self._unsynced:
            with contextlib.suppress(FileNotFoundError):  # evicted since
                fd = os.open(self._unsynced[-1], os.O_RDONLY | os.O_CLOEXEC)
                try:
                    sync_data(fd)
                finally:
                    os.close(fd)
            self._unsynced.pop()
        fd = os.open(self._folder.segments, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _extend(self, writer: SegmentWriter, n_bytes: int, n_records: int, forced: bool) -> bool:
        """Grant an open segment more room; returns whether there was any."""
        need = aligned(writer.room_for(n_bytes, n_records), 4096)
        sizes = self.room.sizes
        for want in (max(need, min(writer.granted + sizes.step_bytes, sizes.segment_bytes)), need):
            if self.make_room(want - writer.granted, forced, {writer.row}):
                if self.writers.get(writer.namespace) is writer and writer.granted < want:
                    self._grant(writer, want)
                return True
        return False

    def _begin(self, namespace: str, n_bytes: int, n_records: int, forced: bool) -> bool:
        """Begin a segment; returns whether there was room for one."""
        sizes = self.room.sizes
        n_slots = region(max(n_records, self._slots(namespace) if n_bytes < sizes.segment_bytes else 1))
        need = aligned(n_bytes + 8192 + footer_bytes(n_records), 4096)
        for want in (max(need, sizes.step_bytes), need):
            if self.make_room(want + 8192 + n_slots * SLOT_BYTES, forced, set()):
                break
        else:
            return False
        if namespace in self.writers:
            return True
        while len(self.writers) >= descriptors(_MOST_WRITERS):
            self.seal(next(iter(self.writers.values())))
        first_slot, n_slots = self._free_slots(n_slots, region(max(n_records, n_slots // 4)))
        self._recency.grow(first_slot + n_slots)
        self._recency.forget(first_slot, n_slots)
        name = os.urandom(16).hex()
        row = self._index.add_segment(name, namespace, OPEN, want, SEGMENT_HEADER_BYTES, first_slot, n_slots)
        path = self._folder.segment(name)
        self._folder.segments.mkdir(mode=0o700, exist_ok=True)  # somebody may have removed it
        writer = SegmentWriter(path, name, namespace, row=row, first_slot=first_slot, n_slots=n_slots)
        writer.granted = want
        self.writers[namespace] = writer
        return True

    def _slots(self, namespace: str) -> int:
        """Return how many records the next segment may have: more where there are many, since each takes a slot."""
        told = "SELECT coalesce(sum(records), 0) FROM segments WHERE namespace = ?"
        written = self._index.writer.execute(told, (namespace,)).get
        return min(max(written, _FIRST_SLOTS), self.room.sizes.segment_slots)

    def _grant(self, writer: SegmentWriter, want: int) -> None:
        with self._index.transaction() as connection:
            connection.execute("UPDATE segments SET granted = ? WHERE id = ?", (want, writer.row))
        writer.granted = want

    def _free_slots(self, n_slots: int, least: int) -> tuple[int, int]:
        """Return the first of a region of free slots, and their number: `least` do where there is a gap of so many."""
        taken = self._index.writer.execute("SELECT first_slot, n_slots FROM segments ORDER BY first_slot")
        start = FIRST_SLOT
        for first, count in taken:
            if first - start >= least:
                return start, min(n_slots, first - start)
            start = max(start, first + count)
        return start, n_slots
