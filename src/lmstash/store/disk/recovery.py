"""After a crash or damage: sealing what dead processes left, dropping what lost its file, rebuilding a lost index.

Nothing that was deleted comes back: tombstones name what they killed (key, generation, segment), and a file that the
index does not know, while the index is sound, is a removal that was cut short and is finished.
"""

from __future__ import annotations

import contextlib
import copy
import fcntl
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from lmstash.errors import FormatError
from lmstash.events import EventLog, logger
from lmstash.store.disk.accounting.doomed import forget_gone
from lmstash.store.disk.accounting.recency import FIRST_SLOT, Recency, region
from lmstash.store.disk.files.folder import Folder
from lmstash.store.disk.files.format import (
    FLAG_PINNED,
    SEGMENT_HEADER_BYTES,
    Located,
    RecordType,
    aligned,
    footer_bytes,
    pack_footer,
    pack_listing,
)
from lmstash.store.disk.files.rows import OPEN, SEALED, IndexDamagedError, Row, SegmentRow, checked_segment, row_id
from lmstash.store.disk.files.segment import lock_if_abandoned, read_footer, read_segment_header, scan, seal_file
from lmstash.store.disk.indexing.index import Index


class Recovery:
    """Brings index and files of one folder together again."""

    def __init__(self, folder: Folder, index: Index, recency: Recency, events: EventLog) -> None:
        """Take the parts of a store."""
        self._folder = folder
        self._index = index
        self._recency = recency
        self._events = events

    def reconcile(self) -> None:
        """Do what an opener does: forget lost files, seal abandoned segments, finish removals."""
        present = set(self._folder.segment_names())
        lost = [each for each in self._index.segments() if each.name not in present]
        if lost:
            self.forget_lost(lost)
        self.tend()

    def tend(self) -> bool:
        """Seal what dead writers left, and finish the removals that they began; returns whether any was sealed.

        Whoever removes entries does so first: what a dead process left in a file and no index knows could be an older
        value of the same key, which a rebuild would raise once the newer one is gone. Costs a look at the folder.
        """
        with self._index.transaction():
            sealed = self.seal_abandoned()
            # An index made just now has left alone what it could not read, and must not judge it.
            if not self._index.made:
                self._finish_removals()
        return sealed

    def seal_abandoned(self) -> bool:
        """Seal the segments whose writers have died, with what they committed. Inside a transaction.

        Returns:
            Whether there was any.
        """
        sealed = False
        for segment in self._index.segments_for_change():
            if segment.state == OPEN:
                sealed |= self._seal_if_abandoned(segment)
        return sealed

    def forget_lost(self, segments: Iterable[SegmentRow]) -> None:
        """Drop segments whose files are gone; not if the folder was moved, and they with it."""
        with self._index.transaction() as connection:
            for segment in segments:
                if self._folder.segment(segment.name).exists():
                    continue
                if self._index.moved():  # looked at after the file: before, it could have moved between the two
                    return
                rows = self._index.rows_of_segment(segment.id)
                if rows:
                    detail = f"segment {segment.name} is gone, with {len(rows)} entries of {segment.namespace}"
                    self._events.damage(segment.namespace, None, detail)
                self._index.delete_rows(rows)
                connection.execute("DELETE FROM segments WHERE id = ?", (segment.id,))
                self._recency.note_removal()

    def _finish_removals(self) -> None:
        # Segments are made in transactions, and nobody else can be in one: a file without a row is a remainder.
        known = {each.name for each in self._index.segments_for_change()}
        for name in set(self._folder.segment_names()) - known:
            with contextlib.suppress(OSError, FormatError):
                fd = lock_if_abandoned(self._folder.segment(name))
                if fd is None:
                    continue
                try:
                    # Shorter than a header: its writer died while it made the file.
                    unborn = os.fstat(fd).st_size < SEGMENT_HEADER_BYTES
                    if unborn or read_segment_header(fd)[0] == name:
                        os.unlink(self._folder.segment(name))
                finally:
                    os.close(fd)
        forget_gone(self._index, set(self._folder.segment_names()) - known)

    def _seal_if_abandoned(self, segment: SegmentRow) -> bool:
        path = self._folder.segment(segment.name)
        try:
            fd = lock_if_abandoned(path)
        except OSError:
            return False
        if fd is None:
            return False
        try:
            with self._index.transaction() as connection:
                current = connection.execute("SELECT * FROM segments WHERE id = ?", (segment.id,)).fetchall()
                if not current or checked_segment(current[0]).state != OPEN:
                    return False  # another process was first
                segment = checked_segment(current[0])
                listed = read_footer(fd)
                found = listed if listed is not None else list(scan(fd, segment.namespace))
                size = seal_file(fd, pack_listing(self._vouched_for(segment, found)), segment.tail)
                connection.execute(
                    "UPDATE segments SET state = ?, granted = ?, n_slots = ? WHERE id = ?",
                    (SEALED, aligned(size, 4096), region(segment.records), segment.id),
                )
        except OSError as error:
            logger.info("lmstash: could not seal %s: %s", path, error)
            return False
        finally:
            os.close(fd)
        return True

    def _vouched_for(self, segment: SegmentRow, found: list[Located]) -> list[Located]:
        """Return the records of an abandoned segment that a footer may list: what lives, and committed controls.

        The rest is dead, or its writer did not live to acknowledge it. Since then its key may have been put anew and
        evicted, or deleted, which leaves no trace: such a record, indexed now or by a rebuild, would be an old value.
        """
        rows = {row.off: row for row in self._index.rows_of_segment(segment.id)}
        records = {
            each.offset: each
            for each in found
            if each.offset < segment.tail and (each.type != RecordType.ENTRY or each.offset in rows)
        }
        for offset, row in rows.items():  # even where a damaged header hides it from the scan
            records.setdefault(offset, _located(row, segment))
        return [records[offset] for offset in sorted(records)]


def _located(row: Row, segment: SegmentRow) -> Located:
    flags = FLAG_PINNED if row.pinned else 0
    ordinal = row.slot - segment.first_slot
    return Located(RecordType.ENTRY, flags, row.head, row.key, row.gen, row.exp, row.off, row.size, ordinal)


@dataclass(slots=True)
class _Rebuilt:
    """What a set of records amounts to once tombstones and pins have spoken."""

    found: dict[bytes, list[Row]] = field(default_factory=dict)
    killed: set[tuple[bytes, int]] = field(default_factory=set)
    replaced: dict[bytes, list[tuple[int, int]]] = field(default_factory=dict)
    """For each key its tombstones: their own generation, and that of the record they name."""
    pins: dict[bytes, tuple[int, bool]] = field(default_factory=dict)

    def add(self, segment: int, first_slot: int, each: Located) -> None:
        if each.type == RecordType.ENTRY:
            self.found.setdefault(each.key, []).append(
                Row(
                    row_id(each.key),
                    each.key,
                    segment,
                    each.offset,
                    each.head_bytes,
                    each.payload_bytes,
                    first_slot + each.ordinal,
                    each.generation,
                    each.expires_us,
                    int(bool(each.flags & FLAG_PINNED)),
                )
            )
        elif (
            each.type in (RecordType.PIN, RecordType.UNPIN) and each.generation > self.pins.get(each.key, (0, False))[0]
        ):
            self.pins[each.key] = (each.generation, each.type == RecordType.PIN)

    def _began(self, row: Row) -> int:
        """Return the generation of the first of the records that replaced each other up to this one."""
        began, stones = row.gen, self.replaced.get(row.key, [])
        # What a record replaced is named by a tombstone younger than the record; later tombstones name later records.
        while earlier := [killed for own, killed in stones if killed < began < own]:
            began = max(earlier)
        return began

    def live_rows(self) -> list[Row]:
        """Return the newest record of each key that no tombstone names."""
        rows: list[Row] = []
        for key, candidates in self.found.items():
            alive = [row for row in candidates if (key, row.gen) not in self.killed]
            if alive:
                row = max(alive, key=lambda each: each.gen)
                # A pin from before was an earlier entry's, the end of which may have been removed with it.
                said, pinned = self.pins.get(key, (0, False))
                rows.append(row._replace(pinned=int(pinned)) if said > self._began(row) else row)
        return rows


def rebuild(
    folder: Folder,
    make_index: Callable[[Folder], Index],
    recency: Recency,
    events: EventLog,
    *,
    condemned: tuple[int, int],
) -> Index:
    """Make a new index from the segments, under a lock that one process at a time holds.

    Args:
        folder: The folder.
        make_index: Opens the folder's index; raises if it is unsound.
        recency: Its slots.
        events: Counts the damage.
        condemned: The inode of an index that is not to be used, whatever it looks like.

    Returns:
        The index; another process may have been first to make it.
    """
    lock = os.open(folder.repair_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.has_index() and folder.index_inode() != condemned:
            with contextlib.suppress(IndexDamagedError):
                return make_index(folder)
        # Filled under another name: whoever is killed meanwhile leaves no index, never one that knows of nothing.
        aside = copy.copy(folder)
        aside.index = folder.index.with_name("index.db.new")
        for path in (folder.index, aside.index):
            for suffix in ("", "-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"{path}{suffix}")
        filled = make_index(aside)
        try:
            with filled.transaction():
                fill_from_segments(folder, filled, recency, events)
        finally:
            filled.close()
        os.rename(aside.index, folder.index)
        index = make_index(folder)
        index.made = True
        recency.note_removal()  # whoever has the old index open looks for the new one
        return index
    finally:
        os.close(lock)


def fill_from_segments(folder: Folder, index: Index, recency: Recency, events: EventLog) -> None:
    """Index what the segments hold. Inside a transaction of an empty index."""
    rebuilt = _Rebuilt()
    sealed: dict[int, tuple[str, int]] = {}
    next_slot = FIRST_SLOT
    for name in folder.segment_names():
        path = folder.segment(name)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            events.damage("", None, f"segment {path} cannot be opened: {error}")
            continue
        try:
            found_name, namespace = read_segment_header(fd)
            if found_name != name:
                raise FormatError(f"it says that it is {found_name}")
            alive = not _locked(fd)
            listed = read_footer(fd)
            records = listed if listed is not None else list(scan(fd, namespace))
            tail = records[-1].end if records else SEGMENT_HEADER_BYTES
            if listed is None and not alive:
                seal_file(fd, pack_listing(records), tail)
            state = OPEN if listed is None and alive else SEALED
            count = max((each.ordinal + 1 for each in records), default=0)  # a footer may leave some out
            n_slots = region(count)  # to an open one nobody who knows this index appends
            recency.grow(next_slot + n_slots)
            granted = aligned(os.fstat(fd).st_size, 4096)
            segment = index.add_segment(name, namespace, state, granted, tail, next_slot, n_slots)
            index.advance_segment(segment, tail, count, 0, 0)
            if state == SEALED:
                sealed[segment] = name, sum(each.type == RecordType.ENTRY for each in records)
            for each in records:
                if each.type == RecordType.TOMBSTONE:
                    payload = os.pread(fd, each.payload_bytes, each.offset + each.head_bytes)
                    rebuilt.killed.add((each.key, int.from_bytes(payload[:8], "little")))
                    killed = int.from_bytes(payload[:8], "little")
                    rebuilt.replaced.setdefault(each.key, []).append((each.generation, killed))
                else:
                    rebuilt.add(segment, next_slot, each)
            recency.mark_new(next_slot, count)
            next_slot += n_slots
        except (FormatError, OSError) as error:
            events.damage("", None, f"segment {path} is left alone: {error}")
        finally:
            os.close(fd)
    rows = rebuilt.live_rows()
    index.put_rows(rows)
    totals: dict[int, list[int]] = {}
    for row in rows:
        total = totals.setdefault(row.seg, [0, 0])
        total[0] += 1
        total[1] += row.record_bytes
    index.writer.executemany(
        "UPDATE segments SET live = ?, live_bytes = ? WHERE id = ?",
        [(n, size, seg) for seg, (n, size) in totals.items()],
    )
    offsets: dict[int, set[int]] = {}
    for row in rows:
        offsets.setdefault(row.seg, set()).add(row.off)
    for segment, (name, entries) in sealed.items():
        if entries > len(offsets.get(segment, ())):
            _unlist_losers(folder, name, offsets.get(segment, set()))
    capacity = folder.describe().get("capacity_bytes", "missing")
    if capacity != "missing":
        index.set_fact("capacity", "unlimited" if capacity is None else capacity)
    if rows:
        logger.warning("lmstash: the index of %s was rebuilt from its segments: %d entries", folder.path, len(rows))


def _unlist_losers(folder: Folder, name: str, live: set[int]) -> None:
    """Make a sealed segment's footer list, of its entries, only those at the offsets `live`.

    Others may be named by no tombstone; the next rebuild would raise them once the newer record has been evicted.
    """
    with contextlib.suppress(OSError):
        fd = os.open(folder.segment(name), os.O_RDWR | os.O_CLOEXEC)
        try:
            listed = read_footer(fd)
            if listed is not None:
                kept = [each for each in listed if each.type != RecordType.ENTRY or each.offset in live]
                # It ends where the old one ended, in one write: a kill leaves the one or the other.
                offset = os.fstat(fd).st_size - footer_bytes(len(kept))
                os.pwrite(fd, pack_footer(pack_listing(kept), offset), offset)
        finally:
            os.close(fd)


def _locked(fd: int) -> bool:
    """Take the segment's lock if nobody has it; returns whether it was taken."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
