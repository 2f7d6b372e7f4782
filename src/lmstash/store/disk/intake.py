"""From values to indexed records: keeping, replacing, deleting and pinning, in groups of one namespace."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

from lmstash.errors import CapacityError
from lmstash.events import EventLog
from lmstash.store.base import Write, byte_views, check_write
from lmstash.store.disk.accounting.recency import Recency
from lmstash.store.disk.files.format import TOMBSTONE, RecordType
from lmstash.store.disk.files.rows import Row, row_ids
from lmstash.store.disk.files.segment import SegmentWriter
from lmstash.store.disk.indexing.index import Index
from lmstash.store.disk.reclaiming.reclaim import Reclaimer
from lmstash.store.disk.reclaiming.shrinking import Shrinker
from lmstash.store.disk.writing.appender import Appender, Item

if TYPE_CHECKING:
    from lmstash.store.disk.indexing.adding import RowRun
    from lmstash.store.sheets import Sheet


class NoRoomError(Exception):
    """There is no room for a value, and none can be made."""


class _SegmentRemovedError(Exception):
    """Another process removed the segment this one was appending to."""


class _OccupiedError(Exception):
    """A key of a sheet is kept already, or its row is another's."""


class Intake:
    """Changes one folder. Every method takes the index's write lock."""

    def __init__(
        self,
        index: Index,
        recency: Recency,
        appender: Appender,
        reclaimer: Reclaimer,
        shrinker: Shrinker,
        events: EventLog,
    ) -> None:
        """Take the parts of a store."""
        self._index = index
        self._recency = recency
        self._appender = appender
        self._reclaimer = reclaimer
        self._shrinker = shrinker
        self._events = events

    def keep(self, namespace: str, items: Sequence[Item], *, replace: bool) -> None:
        """Append items and make them findable.

        Raises:
            NoRoomError: There is no room for them together.
            OSError, CapacityError: The disk is full.
        """
        n_bytes = sum(item.most_bytes for item in items)
        with self._index.writing():
            self._index.finish()  # or what an interrupt has left to be done would take the new records for old ones
            try:
                writer = self._writer(namespace, n_bytes, len(items))
                if writer is None:
                    raise NoRoomError
                try:
                    self._commit(writer, self._appender.append(writer, items), replace)
                except _SegmentRemovedError:
                    self._appender.forget(writer)
                    self._keep_undisturbed(namespace, items, n_bytes, replace)
            except BaseException:
                self._index.finish()
                self._appender.roll_back()
                raise

    def _keep_undisturbed(self, namespace: str, items: Sequence[Item], n_bytes: int, replace: bool) -> None:
        """Append in the transaction that grants the room: nobody can remove the segment in between.

        It keeps other processes waiting for the write, so it is done only after somebody did remove one.
        """
        for _attempt in range(64):
            writer = None
            try:
                with self._reclaimer.changes():
                    writer = self._appender.reserve(namespace, n_bytes, len(items))
                    # Files that are evicted for it go when that is committed, not before: then comes the next attempt.
                    if writer is not None and not self._reclaimer.dooms:
                        self._commit(writer, self._appender.append(writer, items), replace)
                        return
            except _SegmentRemovedError:
                if writer is not None:
                    self._appender.forget(writer)
            else:
                if writer is None and not self._shrinker.settle_if_lowered():
                    break
        raise NoRoomError

    def _writer(self, namespace: str, n_bytes: int, n_records: int) -> SegmentWriter | None:
        """Return an open segment with room for so much, or None; enforces a limit that another process has lowered."""
        if self._filled_by_log():
            return None
        writer = self._appender.granted(namespace, n_bytes, n_records)
        while writer is None:
            with self._reclaimer.changes():
                writer = self._appender.reserve(namespace, n_bytes, n_records)
            if writer is None and not self._shrinker.settle_if_lowered():
                break
        return writer

    def _filled_by_log(self) -> bool:
        """Whether the index's log, which nobody can cut while somebody reads, leaves no room.

        Grants know nothing of it. What is deleted is deleted even so.
        """
        if not self._index.log.is_long():
            return False
        with self._reclaimer.changes():  # which has cut it by now, if that can be
            return self._index.log.is_long() and self._appender.room.is_nearly_over()

    def keep_sheets(self, namespace: str, sheets: Sequence[Sheet], expires_us: int) -> bool:
        """Append sheets of one namespace and make their entries findable, if that is all there is to do.

        Returns:
            False, with nothing changed, when one of the keys is kept already, values are too long for it, or there is
            no room for all together: then each entry is to be put by itself.

        Raises:
            OSError, CapacityError: The disk is full.
        """
        from lmstash.store.disk.writing.sheets import MOST_BYTES, most_bytes

        if any(sheet.values.shape[1] > MOST_BYTES for sheet in sheets):
            return False
        n_bytes, n_records = sum(map(most_bytes, sheets)), sum(map(len, sheets))
        ids = [row_ids(sheet.keys) for sheet in sheets]
        if len(set(chain.from_iterable(ids))) < n_records:
            return False  # one key twice: the later of them replaces the other, or does not
        with self._index.writing():
            self._index.finish()
            writer = None
            try:
                writer = self._writer(namespace, n_bytes, n_records)
                if writer is None:
                    return False
                self._commit_sheets(writer, sheets, ids, expires_us)
            except _OccupiedError:
                return False
            except _SegmentRemovedError:
                if writer is not None:
                    self._appender.forget(writer)
                return False
            except BaseException:
                self._index.finish()
                self._appender.roll_back()
                raise
            return True

    def _commit_sheets(
        self, writer: SegmentWriter, sheets: Sequence[Sheet], ids: Sequence[list[int]], expires_us: int
    ) -> None:
        from lmstash.store.disk.writing.sheets import lay_out

        now = int(time.time() * 1e6)
        first_slot, n_records, live_bytes = writer.first_slot + writer.count, 0, 0
        rows: list[RowRun] = []
        for sheet, each in zip(sheets, ids, strict=True):
            generation = self._appender.next_generations(now, len(sheet))
            place = writer.tail, writer.count
            laid = lay_out(sheet, each, writer, *place, generation=generation, now_us=now, expires_us=expires_us)
            writer.append(laid.buffers, laid.n_bytes, len(sheet), laid.listing)
            rows.append(laid.rows)
            live_bytes += laid.live_bytes
            n_records += len(sheet)
        with self._reclaimer.changes():
            if not all(map(self._index.add_rows, rows)):
                raise _OccupiedError
            if not self._index.advance_segment(writer.row, writer.tail, writer.count, n_records, live_bytes):
                raise _SegmentRemovedError
        self._recency.mark_new(first_slot, n_records)

    def delete(self, keys: Sequence[bytes]) -> int:
        """Remove entries; returns how many there were."""
        with self._index.writing():
            with self._reclaimer.changes():
                rows = list(self._index.find_for_change(keys).values())
                if rows:
                    self._reclaimer.recover()
                # A pin belongs to the key: with the key deleted, a rebuild must not find it.
                self._note_pins([row for row in rows if row.pinned], pinned=False)
                self._bury(rows)
                self._index.delete_rows(rows)
            self._forget_use(rows)
            return len(rows)

    def drop(self, row: Row) -> None:
        """Remove one entry if it still is where `row` says."""
        with self._index.writing(), self._reclaimer.changes():
            if self._index.find_for_change([row.key]).get(row.key) == row:
                self._reclaimer.recover()
                self._bury([row])
                self._index.delete_rows([row])
        self._recency.note_removal()  # who remembers that it is there has to ask again, now that it is gone

    def pin(self, keys: Sequence[bytes], pinned: bool) -> int:
        """Protect entries from eviction or stop doing so; returns how many are kept."""
        with self._index.writing(), self._reclaimer.changes():
            if self._filled_by_log():
                raise CapacityError("the index's log has filled the stash: a program reads it and does not stop.")
            rows = list(self._index.find_for_change(keys).values())
            changed = [row for row in rows if bool(row.pinned) != pinned]
            self._note_pins(changed, pinned=pinned)
            self._index.put_rows([row._replace(pinned=int(pinned)) for row in changed])
            if not pinned:
                self._recency.note_removal()  # what could not be evicted may be now
            return len(rows)

    def _commit(self, writer: SegmentWriter, rows: list[Row], replace: bool) -> None:
        with self._reclaimer.changes():
            occupants = self._index.occupants([row.k for row in rows])
            asked = {row.key for row in rows}
            old = {row.key: row for row in occupants if row.key in asked}
            replaced, fresh, doomed = occupants, rows, []
            if old and replace:
                # A pin belongs to the key.
                fresh = [row._replace(pinned=old[row.key].pinned) if row.key in old else row for row in rows]
            elif old:
                # Somebody was faster: theirs stays, unless it has expired.
                now = time.time() * 1e6
                stays = {key for key, row in old.items() if not 0 < row.exp <= now}
                replaced = [row for row in occupants if row.key not in stays]
                fresh = [row for row in rows if row.key not in stays]
                doomed = [row for row in rows if row.key in stays]
            doomed = doomed + replaced
            self._bury(doomed)
            # Said again beside the new record: the old pin may lie in a namespace that is pruned.
            self._note_pins([row for row in fresh if row.pinned], pinned=True)
            self._index.discount(replaced)
            self._index.put_rows(fresh)
            live_bytes = sum(row.record_bytes for row in fresh)
            if not self._index.advance_segment(writer.row, writer.tail, writer.count, len(fresh), live_bytes):
                raise _SegmentRemovedError
        if rows:
            self._recency.mark_new(rows[0].slot, len(rows))
        if doomed:
            self._forget_use(doomed)

    def _forget_use(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._recency.forget(row.slot)
        self._recency.note_removal()

    def _note_pins(self, rows: Sequence[Row], *, pinned: bool) -> None:
        kind = RecordType.PIN if pinned else RecordType.UNPIN
        self._appender.follow(max((row.gen for row in rows), default=0))  # what is older than the record says nothing
        for namespace, some in self._by_namespace(rows).items():
            self._appender.append_controls(namespace, kind, [(row.key, b"") for row in some])

    def _bury(self, rows: Sequence[Row]) -> None:
        """Append tombstones, so that no rebuild raises these records. Their room is forced: nothing moves."""
        if rows:
            homes = {segment.id: segment.name for segment in self._index.segments_for_change()}
            for namespace, some in self._by_namespace(rows).items():
                stones = [(row.key, TOMBSTONE.pack(row.gen, bytes.fromhex(homes[row.seg]))) for row in some]
                self._appender.append_controls(namespace, RecordType.TOMBSTONE, stones)

    def _by_namespace(self, rows: Sequence[Row]) -> dict[str, list[Row]]:
        out: dict[str, list[Row]] = {}
        if rows:
            spaces = {segment.id: segment.namespace for segment in self._index.segments_for_change()}
            for row in rows:
                if row.seg in spaces:
                    out.setdefault(spaces[row.seg], []).append(row)
        return out


def expiry_us(lifetime_seconds: float | None) -> int:
    """Return when what is put now expires, in microseconds since 1970; 0 for never."""
    return 0 if lifetime_seconds is None else max(1, int((time.time() + float(lifetime_seconds)) * 1e6))


def item_of(write: Write) -> Item:
    """Return `write` checked and ready to be appended.

    Raises:
        InvalidArgumentError: A field is not what a store takes.
    """
    meta, lifetime = check_write(write)
    buffers = byte_views(write.value)
    expires = expiry_us(lifetime)
    return Item(
        write.key,
        buffers,
        sum(map(len, buffers)),
        meta,
        write.parent,
        write.compute_seconds,
        write.n_tokens,
        expires,
    )
