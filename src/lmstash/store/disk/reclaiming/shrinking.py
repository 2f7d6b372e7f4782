"""Bringing a folder down to a size, for a limit that was lowered and for `evict`.

Making room for a put drops half a segment at a time. Here every segment gives what it holds of the least valuable
entries of all, so that what fits stays, whichever namespace it is of. The index gives back what they took in it.
"""

from __future__ import annotations

import contextlib

from lmstash.errors import CapacityError
from lmstash.events import EventLog
from lmstash.store.base import Removed
from lmstash.store.disk.files.rows import SegmentRow
from lmstash.store.disk.indexing.index import Index
from lmstash.store.disk.reclaiming.reclaim import Reclaimer
from lmstash.store.disk.writing.appender import Appender

_ROUNDS, _PLAIN_ROUNDS = 24, 4
"""After so many rounds each asks for twice what is wanted, and so ends."""
_LEAST_SPARE_BYTES = 64 << 10


class Shrinker:
    """Shrinks one folder. Takes the index's write lock, and a transaction for each segment: its file goes at once."""

    def __init__(self, index: Index, appender: Appender, reclaimer: Reclaimer, events: EventLog) -> None:
        """Take the parts of a store."""
        self._index = index
        self._appender = appender
        self._room = appender.room
        self._reclaimer = reclaimer
        self._events = events

    def evict(self, to_bytes: int) -> Removed:
        """Evict until the folder takes at most `to_bytes`."""
        with self._index.writing():
            return self._shrink(to_bytes, lends=self._room.refresh().over_bytes() > 0)

    def settle(self) -> None:
        """Evict until the folder keeps its limit, and the next put finds room without evicting more."""
        with self._index.writing():
            self._appender.unsettled = False
            if self._room.refresh().capacity_bytes is not None:
                self._shrink(None, lends=True)

    def settle_if_lowered(self) -> bool:
        """As `settle`, if a lowered limit has been found while room was asked for; returns whether it was so."""
        lowered = self._appender.unsettled
        if lowered:
            self.settle()
        return lowered

    def unlink_first(self) -> bool:
        """Unlink the least valuable segment that can go so: see `Reclaimer.unlink_first`."""
        with self._index.writing():
            with self._index.transaction():
                shares = self._reclaimer.shares(1) + self._reclaimer.shares(1 << 62)  # if not the least, then any
            return self._reclaimer.unlink_first(shares)

    def clear(self, namespace: str | None) -> Removed:
        """Remove whole segments: see `Reclaimer.drop`."""
        with self._index.writing():
            needs = IndexNeeds(self._index)
            removed = self._reclaimer.drop(namespace)
            with contextlib.suppress(OSError, CapacityError):
                self._reclaimer.recover()  # the index forgets the files that have gone
            if needs.spare_bytes():
                self._index.compact()
        return removed

    def _shrink(self, to_bytes: int | None, *, lends: bool) -> Removed:
        stats = self._events.stats
        before = stats.evicted_entries, stats.evicted_bytes
        with self._index.writing():
            with contextlib.suppress(OSError, CapacityError):  # a full disk: what is sealed goes first
                self._appender.seal_all()
            needs = IndexNeeds(self._index)
            for number in range(_ROUNDS):
                with self._index.transaction():
                    excess = self._excess_bytes(to_bytes, needs)
                    asked = excess << max(0, number - _PLAIN_ROUNDS)
                    shares = self._reclaimer.shares(asked, others=self._must(to_bytes)) if excess > 0 else []
                if not shares:
                    break
                for segment, share in shares:
                    if not self._take_somehow(segment, share, to_bytes, needs, lends=lends):
                        break
            if needs.spare_bytes():
                self._index.compact()
        self._index.checkpoint()
        return Removed(stats.evicted_entries - before[0], stats.evicted_bytes - before[1])

    def _take_somehow(
        self, segment: SegmentRow, share: int, to_bytes: int | None, needs: IndexNeeds, *, lends: bool
    ) -> bool:
        """As `_take`, on a disk that may be full."""
        try:
            return self._take(segment, share, to_bytes, needs, lends=lends)
        except (OSError, CapacityError):
            if lends:  # the disk has less room for copies than it said (quotas): so nothing is spared
                return self._take_somehow(segment, share, to_bytes, needs, lends=False)
            if self._must(to_bytes) and not self.unlink_first():
                raise
        return self._must(to_bytes)

    def _must(self, to_bytes: int | None) -> bool:
        """Whether it is for more than to let the next put find room."""
        return to_bytes is not None or self._room.over_bytes() > 0

    def _take(self, segment: SegmentRow, share: int, to_bytes: int | None, needs: IndexNeeds, *, lends: bool) -> bool:
        """Take its share from a segment; returns whether anything was still to be taken."""
        with self._reclaimer.changes(), self._room.lent() if lends else contextlib.nullcontext():
            excess = self._excess_bytes(to_bytes, needs)
            if excess <= 0:
                return False
            # Less than its share where others had to give more, for want of room for their copies.
            self._reclaimer.reclaim_share(segment, min(share, excess), must=self._must(to_bytes))
            self._appender.seal_all()  # what its copies were granted and do not need is no excess
        return True

    def _excess_bytes(self, to_bytes: int | None, needs: IndexNeeds) -> int:
        """Return how many bytes of segments have to go. Inside a transaction."""
        slots, spare_slots = self._room.slot_bytes()
        segments, entries = self._index.promised()[0], needs.needed_bytes() + slots
        spare = needs.spare_bytes() + spare_slots
        if to_bytes is not None:
            excess = max(self._room.held_bytes() - to_bytes, self._room.over_bytes()) - spare
        elif self._room.disabled:
            excess = segments + entries
        else:
            over, ahead = self._room.over_bytes(signed=True) - spare, self._room.ahead_bytes()
            # What is beside the segments may leave less than a put wants, or fill the limit alone: not their fault.
            excess = next((each for each in (over + ahead, over) if each < segments + entries), 0)
        return excess * segments // max(1, segments + entries)  # what is said of them shrinks with them


class IndexNeeds:
    """What the index's file must take, and what it takes beyond that: SQLite keeps pages in which nothing is."""

    def __init__(self, index: Index) -> None:
        """Measure what an entry takes now."""
        self._index = index
        with index.transaction():
            pages, free = index.page_bytes()
            self._entry_bytes = (pages - free) / max(1, index.live_entries())

    def needed_bytes(self) -> int:
        """Return what the entries that there are must take. Inside a transaction."""
        return int(self._index.live_entries() * self._entry_bytes)

    def spare_bytes(self) -> int:
        """Return what compacting gives back, 0 where that is not worth it."""
        pages, _free = self._index.page_bytes()
        spare = pages - self.needed_bytes()
        return spare if spare > max(pages // 4, _LEAST_SPARE_BYTES) else 0
