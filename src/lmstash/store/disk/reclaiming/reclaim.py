"""Evicting and reclaiming are one act: take the least valuable segment, copy forward what is worth keeping, unlink it.

Cost does not grow with the cache: ranking samples 64 slots a segment, and only the chosen segment's own list of keys is
read. The design follows log-structured stores (Rosenblum and Ousterhout, 1992) with the cleaner's choice made by use
instead of by emptiness.
"""

from __future__ import annotations

import contextlib
import os
import time
from bisect import bisect_left
from collections.abc import Callable
from operator import attrgetter

import apsw

from lmstash.errors import CapacityError
from lmstash.events import EventLog
from lmstash.store.base import Removed, matches
from lmstash.store.disk.accounting.doomed import doom
from lmstash.store.disk.accounting.recency import Recency
from lmstash.store.disk.files.folder import Folder
from lmstash.store.disk.files.format import FOOTER_ENTRY, SEGMENT_HEADER_BYTES, TOMBSTONE, Located, RecordType
from lmstash.store.disk.files.rows import OPEN, SEALED, Row, SegmentRow, checked_segment
from lmstash.store.disk.files.segment import read_footer, scan
from lmstash.store.disk.guarded import Guarded
from lmstash.store.disk.indexing.index import Index
from lmstash.store.disk.reclaiming.moving import Mover
from lmstash.store.disk.writing.appender import Appender
from lmstash.store.policies.base import Policy

_SPARE_QUANTILE = 0.5
"""An entry of the chosen segment is spared if it is worth more than this share of all entries."""
_MOST_SPARED = 0.5
"""At most this share of the chosen segment is copied, so that each eviction makes progress."""
_MOST_PINNED = 0.75
"""A segment with at least this share of pinned bytes gives too little room to be moved."""
_MOST_KEPT = 15
"""Of sixteenths of what a segment may keep when a folder shrinks."""
_MOST_PASSES = 8
"""So often what was spared is looked through again, for a value that is large beside the limit."""
_MANY_SMALL = 8
_BY_OFFSET = attrgetter("off")
_SCAN_SHARE = 4
"""A segment that holds at least a fourth of all entries is found by reading the whole table."""


class Reclaimer:
    """Makes room in one folder. The caller holds the store's write lock."""

    def __init__(
        self,
        folder: Folder,
        index: Index,
        recency: Recency,
        appender: Appender,
        policy: Policy,
        events: EventLog,
        recover: Callable[[], bool],
        on_unlink: Callable[[int], None],
    ) -> None:
        """Take the parts of a store.

        Args:
            folder: The folder.
            index: Its index.
            recency: Its slots.
            appender: Copies what is spared.
            policy: Ranks entries.
            events: Counts.
            recover: Finishes what dead processes left undone, which must precede every removal.
            on_unlink: Lets go of a segment (by row id) before its file is unlinked.
        """
        self._folder = folder
        self._index = index
        self._recency = recency
        self._appender = appender
        self._policy = policy
        self._events = events
        self.recover = recover
        self._on_unlink = on_unlink
        self._mover = Mover(folder, index, recency, appender)
        self._doomed: list[SegmentRow] = []
        self._pinned: dict[int, int] = {}
        """Segments that pins fill, and how many removals there had been when that was seen."""
        appender.make_room = self.make_room
        index.on_end = self._end

    @property
    def dooms(self) -> bool:
        """Whether the running transaction removes segments, whose files take their room until it is committed."""
        return bool(self._doomed)

    def make_room(self, n_bytes: int, forced: bool, busy: set[int]) -> bool:
        """Evict until `n_bytes` may be granted; returns whether they may. Inside a transaction."""
        free = self._free_bytes(forced=forced)
        if free is None or free >= n_bytes:
            return True
        if forced or not self._appender.room.could_ever_fit(n_bytes):
            return False  # what is copied forward never evicts in turn: it lives on the reserve
        if not self._doomed:
            self.recover()
        for _pass in range(_MOST_PASSES):
            # Each pass looks at the segments that were there when it began, once: so it ends.
            newest, stuck = self._index.newest_segment(), set[int]()
            before = free = self._free_bytes()
            while free is not None and free < n_bytes:
                if not self._reclaim_least(busy, stuck, newest):
                    break
                free = self._free_bytes()
            if free is None or free >= n_bytes:
                return True
            if before is None or free <= before:
                return False
        return False

    def shares(self, excess: int, *, others: bool = False) -> list[tuple[SegmentRow, int]]:
        """Return the segments that have to give something that `excess` bytes come back, and how much of it each.

        The least valuable entries of all go, wherever they lie; with `others`, also in segments that other writers have
        open, who find them gone when they next write. First come the segments that give most of what they hold: they
        leave the least to copy. Inside a transaction.
        """
        segments = self._candidates(set(), self._index.newest_segment())
        if others:
            known = self._index.segments_for_change()
            ours = {writer.row for writer in self._appender.writers.values()}
            segments += [each for each in known if each.state == OPEN and each.id not in ours]
        parts: list[tuple[float, float, int, int]] = []
        for number, each in enumerate(segments):
            sample = self._values(each) or [0.0]
            size = -(-each.granted // len(sample))
            parts += [(value, place / len(sample), number, size) for place, value in enumerate(sample)]
        given = [0] * len(segments)
        for _value, _place, number, size in sorted(parts):  # of equal value, as much of each segment
            if excess <= 0:
                break
            given[number] += min(size, excess)
            excess -= size
        found = [(each, min(share, each.granted)) for each, share in zip(segments, given, strict=True) if share]
        return sorted(found, key=lambda pair: pair[1] / max(1, pair[0].granted), reverse=True)

    def reclaim_share(self, segment: SegmentRow, share: int, *, must: bool) -> None:
        """Take about `share` bytes from a segment, the least valuable first, if it is still there. In a transaction.

        With `must`, take more where there is no room to copy what may stay; without it, take nothing then.
        """
        self.recover()
        now = self._index.segment_for_change(segment.id)  # whoever has it open may have gone on
        if now is None or now.name != segment.name:
            return
        segment = now
        listed, rows = self._contents(segment)
        slack = self._slack_bytes()
        pinned = sum(row.record_bytes for row in rows if row.pinned)
        budget = (segment.granted - share) * _MOST_KEPT // 16  # a little of what might stay goes, too: so that it ends
        if pinned <= slack and (must or budget <= slack) and not (rows and all(row.pinned for row in rows)):
            self._reclaim(segment, listed, rows, threshold=-1.0, budget=min(budget, slack))

    def unlink_first(self, shares: list[tuple[SegmentRow, int]]) -> bool:
        """Unlink a segment before the index hears of it, whose log a full disk has no room for; returns whether it did.

        Only one that holds nothing but entries, none of them pinned: others have something that must be copied first.
        """
        with self.changes():
            self.recover()
            chosen = next((each for each, _share in shares if self._holds_only_entries(each)), None)
            if chosen is not None:
                self._on_unlink(chosen.id)
                os.unlink(self._folder.segment(chosen.name))
        if chosen is None:
            return False
        # If there is no room for this either, the index catches up when it next meets a file that is gone.
        with contextlib.suppress(OSError, CapacityError), self.changes():
            if self._index.segment_for_change(chosen.id) is not None:
                self._reclaim(chosen, None, self._index.rows_of_segment(chosen.id), budget=0)
        return True

    def _holds_only_entries(self, segment: SegmentRow) -> bool:
        now = self._index.segment_for_change(segment.id)
        if now is None or now.state == OPEN:
            return False
        listed, rows = self._contents(segment)
        return listed is not None and not any(
            [*(each.type != RecordType.ENTRY for each in listed), *(row.pinned for row in rows)]
        )

    def tidy(self) -> None:
        """Unlink segments in which nothing lives, and rewrite those that are mostly dead or small and many."""
        chosen: list[SegmentRow] = []
        small: dict[str, list[SegmentRow]] = {}
        for each in self._index.segments():
            if each.state != SEALED:
                continue
            if each.live == 0 or each.live_bytes < (each.tail - SEGMENT_HEADER_BYTES) // 2:
                chosen.append(each)
            elif each.granted < self._appender.room.sizes.segment_bytes // 4:
                small.setdefault(each.namespace, []).append(each)
        for group in small.values():
            if len(group) > _MANY_SMALL:
                chosen += group
        for each in chosen:
            with self.changes():  # each on its own, so that the old file goes before the next copy is made
                self._rewrite(each)

    def drop(self, namespace: str | None) -> Removed:
        """Remove the whole segments of `namespace` (see `lmstash.store.base.matches`) with all that lives in them."""
        with self._index.writing(), self.changes():
            self.recover()
            # All that there are now: the tombstones among them name records among them, and need not be kept.
            segments = [each for each in self._index.segments_for_change() if matches(each.namespace, namespace)]
            for each in segments:
                writer = self._appender.writers.get(each.namespace)
                if writer is not None and writer.row == each.id:
                    self._appender.forget(writer)
                is_open = each.state == OPEN
                self._index.delete_rows(self._index.rows_of_segment(each.id) if is_open else self._contents(each)[1])
                self._remove(each)
        self._recency.note_removal()
        return Removed(sum(each.live for each in segments), sum(each.live_bytes for each in segments))

    def changes(self) -> Guarded[apsw.Connection]:
        """Run a transaction; files that it dooms are unlinked once it is committed, and not before."""
        return self._index.transaction()

    def _end(self, committed: bool) -> None:
        if committed:
            self._appender.commit()
            self.unlink_doomed()
        else:
            self._doomed.clear()
            self._appender.roll_back()

    def unlink_doomed(self) -> None:
        """Unlink the files of segments whose removal is committed."""
        while self._doomed:
            segment = self._doomed[-1]
            with contextlib.suppress(OSError):
                self._on_unlink(segment.id)
                os.unlink(self._folder.segment(segment.name))
            self._doomed.pop()

    def _reclaim_least(self, busy: set[int], stuck: set[int], newest: int) -> bool:
        """Reclaim the least valuable segment, or find that pins fill it; returns whether there was any left to try.

        Args:
            busy: Open segments (row ids) that must stay open.
            stuck: Segments not to look at again; grows.
            newest: Segments with a larger row id are copies made meanwhile: not looked at.
        """
        removals = self._recency.removals()
        stuck.update(row for row, seen in self._pinned.items() if seen == removals)
        segments = self._candidates(stuck, newest)
        if not segments and self._appender.seal_all(busy):
            segments = self._candidates(stuck, newest)
        if not segments:
            return False
        samples = [self._values(each) for each in segments]
        ranked = sorted(value for sample in samples for value in sample if value > 0)
        scale = max(1, len(ranked))

        def worth(number: int) -> tuple[float, int]:
            # The mean rank of a segment's slots among all slots; dead and expired entries are worth nothing.
            sample = samples[number]
            ranks = sum(bisect_left(ranked, value) / scale for value in sample if value > 0)
            return ranks / max(1, len(sample)), segments[number].id

        victim = segments[min(range(len(segments)), key=worth)]
        threshold = ranked[int(len(ranked) * _SPARE_QUANTILE)] if ranked else 0.0
        listed, rows = self._contents(victim)
        pinned = sum(row.record_bytes for row in rows if row.pinned)
        slack = self._slack_bytes()
        if pinned > victim.granted * _MOST_PINNED or (rows and all(row.pinned for row in rows)):
            stuck.add(victim.id)
            self._pinned[victim.id] = removals
        elif pinned > slack:
            stuck.add(victim.id)
        else:
            budget = min(int(victim.granted * _MOST_SPARED), slack)
            self._reclaim(victim, listed, rows, threshold=threshold, budget=budget)
        return True

    def _free_bytes(self, *, forced: bool = False) -> int | None:
        """Return what may be granted for what is written when the running transaction's doomed files have gone."""
        free = self._appender.room.free_bytes(forced=forced)
        return None if free is None else free + sum(self._folder.blocks(each.name) for each in self._doomed)

    def _slack_bytes(self) -> int:
        """Return what may be copied now: doomed files take room until the transaction is committed."""
        room = self._appender.room
        free = room.free_bytes(forced=True)
        return 1 << 62 if free is None else max(0, free - (0 if room.lent_bytes else room.surge_bytes()))

    def _candidates(self, stuck: set[int], newest: int) -> list[SegmentRow]:
        sql = "SELECT * FROM segments WHERE state = ? AND id <= ? ORDER BY id"
        rows = self._index.writer.execute(sql, (SEALED, newest))
        return [segment for each in rows if (segment := checked_segment(each)).id not in stuck]

    def _values(self, segment: SegmentRow) -> list[float]:
        return [self._value(cell) for cell in self._recency.sample(segment.first_slot, segment.records)]

    def _value(self, cell: int) -> float:
        return self._policy.value(cell >> 16, cell & 0xFFFF) if cell else 0.0

    def _rewrite(self, segment: SegmentRow) -> None:
        """Copy forward all that lives in a segment, and doom the file; not if there is no room, or it is gone."""
        if self._index.segment(segment.id) is not None and segment.live_bytes <= self._slack_bytes():
            listed, rows = self._contents(segment)
            self._reclaim(segment, listed, rows, threshold=-1.0, budget=segment.granted)

    def _reclaim(
        self,
        segment: SegmentRow,
        listed: list[Located] | None,
        rows: list[Row],
        *,
        threshold: float = 0.0,
        budget: int,
    ) -> None:
        """Copy forward what is worth it (or all), drop the rest, and doom the file."""
        now = int(time.time() * 1e6)
        spared: list[Row] = []
        cells = self._recency.read_many([row.slot for row in rows])
        order = [(row.pinned, cell) for row, cell in zip(rows, cells, strict=True)]
        for number in sorted(range(len(rows)), key=order.__getitem__, reverse=True):
            row = rows[number]
            if row.exp and row.exp <= now and not row.pinned:
                continue
            n_bytes = row.record_bytes + FOOTER_ENTRY.size
            if row.pinned or (budget >= n_bytes and self._value(cells[number]) > threshold):
                budget -= n_bytes
                spared.append(row)
        kept = self._mover.move(segment, sorted(spared, key=_BY_OFFSET))
        self._carry_controls(segment, listed)
        gone = [row for row in rows if row.k not in kept]
        self._index.delete_rows(gone)
        self._remove(segment)
        if gone:
            self._recency.note_removal()
            self._events.evict(segment.namespace, len(gone), sum(row.record_bytes for row in gone))

    def _contents(self, segment: SegmentRow) -> tuple[list[Located] | None, list[Row]]:
        """Return what a segment lists (tombstones and pins at least), and the rows of what lives in it."""
        if segment.live * _SCAN_SHARE >= self._index.live_entries():
            # Most of what there is: reading the whole table is faster than looking up each key.
            return self._listed(segment, entries=False), self._index.rows_of_segment(segment.id)
        listed = self._listed(segment)
        return listed, self._live_rows(segment, listed)

    def _listed(self, segment: SegmentRow, *, entries: bool = True) -> list[Located] | None:
        try:
            fd = os.open(self._folder.segment(segment.name), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            listed = read_footer(fd, entries=entries) if segment.state == SEALED else None
            if listed is None:
                listed = [each for each in scan(fd, segment.namespace) if each.end <= segment.tail]
            return listed
        finally:
            os.close(fd)

    def _live_rows(self, segment: SegmentRow, listed: list[Located] | None) -> list[Row]:
        if listed is None or segment.state == OPEN:
            return self._index.rows_of_segment(segment.id)
        keys = list({each.key for each in listed if each.type == RecordType.ENTRY})
        rows = [row for row in self._index.find_for_change(keys).values() if row.seg == segment.id] if keys else []
        # A footer that was damaged and scanned anew may list less than the index knows.
        return rows if len(rows) == segment.live else self._index.rows_of_segment(segment.id)

    def _carry_controls(self, segment: SegmentRow, listed: list[Located] | None) -> None:
        """Append again the tombstones and pins that still mean something."""
        controls = [each for each in listed or () if each.type != RecordType.ENTRY]
        if not controls:
            return
        homes = {name for (name,) in self._index.writer.execute("SELECT name FROM segments")} - {segment.name}
        fd = os.open(self._folder.segment(segment.name), os.O_RDONLY | os.O_CLOEXEC)
        try:
            for each in controls:
                payload = os.pread(fd, each.payload_bytes, each.offset + each.head_bytes)
                if each.type == RecordType.TOMBSTONE:
                    needed = len(payload) == TOMBSTONE.size and TOMBSTONE.unpack(payload)[1].hex() in homes
                else:
                    found = self._index.find_for_change([each.key]).get(each.key)
                    needed = found is not None and found.pinned == (each.type == RecordType.PIN)
                    self._appender.follow(found.gen if found is not None else 0)
                if needed:
                    # A tombstone keeps its own place in time, a pin must be newer than the entry.
                    kept = each.generation if each.type == RecordType.TOMBSTONE else 0
                    again = [(each.key, payload)]
                    self._appender.append_controls(segment.namespace, RecordType(each.type), again, generation=kept)
        finally:
            os.close(fd)

    def _remove(self, segment: SegmentRow) -> None:
        doom(self._index, segment)
        self._doomed.append(segment)
        self._pinned.pop(segment.id, None)
