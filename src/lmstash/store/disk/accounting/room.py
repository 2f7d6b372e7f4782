"""The byte limit: what the folder takes, what is still free, and what a writer may be granted.

The limit is physical (index, log, recency and folders included) and holds at all times: before a writer writes it is
granted room, in a transaction that every process sees. Grants are steps of a segment, so that most puts need none.
What is still to come while granted room fills up (index pages, the log) is set aside beforehand.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from numbers import Real
from typing import Any, cast

from lmstash.errors import CapacityError
from lmstash.settings import DEFAULT_CAPACITY_BYTES
from lmstash.store.disk.accounting.doomed import doomed_bytes
from lmstash.store.disk.accounting.recency import FIRST_SLOT, SLOT_BYTES, region
from lmstash.store.disk.files.folder import Folder
from lmstash.store.disk.files.format import FOOTER_ENTRY, TRAILER
from lmstash.store.disk.files.rows import OPEN, IndexDamagedError
from lmstash.store.disk.guarded import Guarded
from lmstash.store.disk.indexing.index import Index

MIN_CAPACITY_BYTES = 1 << 20
"""A folder with a smaller limit keeps nothing: index and log alone take about that much."""
GROUP_ROWS = 512
"""At most this many values share a transaction, which bounds how far it makes the index's log grow."""
_PAGE_BYTES = 4096
_SPARE_SHARE = 8
_SEGMENT_EXTRA_BYTES = 8192
"""What a file may take beyond its length: its last block and an extent block."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes that follow from a limit."""

    segment_bytes: int
    step_bytes: int
    """Room is granted to a segment in steps of this."""
    reserve_bytes: int
    """Kept free for copying forward what eviction spares."""
    log_bytes: int
    segment_slots: int
    group_rows: int
    """At most so many values of a sheet share a transaction, which bounds how far it makes the log grow."""

    @classmethod
    def of(cls, capacity_bytes: int | None) -> Sizes:
        """Return the sizes for a limit (None: unlimited)."""
        capacity = 2**45 if capacity_bytes is None else capacity_bytes
        segment = min(max(capacity // 128, 1 << 20), 256 << 20, max(capacity // 16, 64 << 10))
        log = min(max(capacity // 32, 128 << 10), 16 << 20)
        return cls(
            segment_bytes=segment,
            step_bytes=min(max(segment // 8, 64 << 10), 4 << 20),
            reserve_bytes=2 * segment,
            log_bytes=log,
            segment_slots=min(max(segment // 512 // 512 * 512, 512), 65536),
            group_rows=min(max(log // 2 // _PAGE_BYTES, GROUP_ROWS), 2048),
        )


class Room:
    """The limit of one folder. Call inside an index transaction."""

    def __init__(self, folder: Folder, index: Index) -> None:
        """Take the limit from the index."""
        self._folder = folder
        self._index = index
        self.lent_bytes = 0
        """What copies may take beyond the limit."""
        self.refresh()

    def refresh(self) -> Room:
        """Read the limit anew (another process may have changed it), and return the room."""
        capacity = self._index.fact("capacity")
        if capacity not in (None, "unlimited") and not (isinstance(capacity, int) and capacity >= 0):
            raise IndexDamagedError(f"no limit can be {capacity!r}")
        self.capacity_bytes: int | None = None if capacity in (None, "unlimited") else capacity
        self.sizes = Sizes.of(self.capacity_bytes)
        self._index.log.keep_to(self.sizes.log_bytes)
        return self

    @property
    def disabled(self) -> bool:
        """Whether the limit is too small to keep anything."""
        return self.capacity_bytes is not None and self.capacity_bytes < MIN_CAPACITY_BYTES

    def taken_bytes(self) -> int:
        """Return what the folder takes or has been promised."""
        granted, segments, unfilled = self._index.promised()
        # Records as small as can be fill the index with up to half of their own size.
        promised = granted + segments * _SEGMENT_EXTRA_BYTES + unfilled // 2
        return promised + doomed_bytes(self._index, self._folder) + self._fixed_bytes()

    def held_bytes(self) -> int:
        """Return what the folder holds, without what is only promised and without the log, which a checkpoint cuts."""
        granted, _segments, unfilled = self._index.promised()
        return granted - unfilled + self._folder.overhead_bytes() - self._folder.wal_bytes()

    def free_bytes(self, *, forced: bool = False) -> int | None:
        """Return what may still be granted; None is unlimited.

        Args:
            forced: Count the reserve too (for copying forward, and for tombstones).
        """
        if self.capacity_bytes is None:
            return None
        reserve = -self.lent_bytes if forced else self.sizes.reserve_bytes + self.surge_bytes()
        return self.capacity_bytes - reserve - self.taken_bytes()

    def is_nearly_over(self) -> bool:
        """Whether more than half of the reserve is taken, the log as long as it is."""
        free = self.free_bytes(forced=True)
        return free is not None and free < self.sizes.reserve_bytes // 2

    def surge_bytes(self) -> int:
        """Return by how much one transaction may make the log longer than it is to be.

        One that evicts a segment changes a row for each of its records, and each may lie in a page of its own.
        """
        return max(0, min(self._folder.index_bytes(), self.sizes.segment_slots * _PAGE_BYTES) - self.sizes.log_bytes)

    def over_bytes(self, *, signed: bool = False) -> int:
        """Return what is taken beyond the limit once a log that is long has been cut.

        Args:
            signed: Where the limit holds, return what it leaves, negative, and not 0.
        """
        if self.capacity_bytes is None:
            return 0
        longer = max(0, self._folder.wal_bytes() - self.sizes.log_bytes)
        over = self.taken_bytes() - longer - self.capacity_bytes
        return over if signed else max(0, over)

    def ahead_bytes(self) -> int:
        """Return what must be free for a usual put to evict nothing: the reserve, and what a new segment is granted."""
        sizes = self.sizes
        return sizes.reserve_bytes + sizes.step_bytes + _SEGMENT_EXTRA_BYTES + sizes.segment_slots * SLOT_BYTES

    def slot_bytes(self) -> tuple[int, int]:
        """Return what the slots of the segments must take in the file of uses, and what it takes beyond that.

        Of the second 0 where it is little beside the limit: only then does `renumbering` give it back.
        """
        with self._index.writing():
            records: list[Any] = self._index.writer.execute("SELECT records FROM segments").fetchall()
        needed = sum(region(n) for (n,) in records) * SLOT_BYTES
        spare = self._folder.slot_bytes() - FIRST_SLOT * SLOT_BYTES - needed
        return needed, spare if self.capacity_bytes is not None and spare > self.capacity_bytes // _SPARE_SHARE else 0

    def take_back_grants(self) -> None:
        """Take back what was promised and is not filled: whoever has it asks anew once the limit has changed."""
        ended = f"(tail + records * {FOOTER_ENTRY.size} + {TRAILER.size} + 4095) / 4096 * 4096"
        self._index.writer.execute(f"UPDATE segments SET granted = min(granted, {ended}) WHERE state = ?", (OPEN,))

    def lent(self) -> Guarded[None]:
        """Let copies take room that a lowered limit does not give: their source goes when they are done.

        As much as the limit, of what the disk has free.
        """
        return Guarded(self._lend())

    def _lend(self) -> Generator[None, None, None]:
        try:
            if self.capacity_bytes is not None:
                self.lent_bytes = self.over_bytes() + min(self.capacity_bytes, self._folder.disk_free_bytes() // 2)
            yield
        finally:
            self.lent_bytes = 0

    def could_ever_fit(self, n_bytes: int) -> bool:
        """Whether a value of `n_bytes` would fit an otherwise empty folder."""
        if self.capacity_bytes is None:
            return True
        fixed = self._fixed_bytes() + self.sizes.reserve_bytes
        return n_bytes + n_bytes // 64 + _SEGMENT_EXTRA_BYTES * 4 + fixed <= self.capacity_bytes

    def _fixed_bytes(self) -> int:
        """Return what is taken beside the segments, with the log as long as it is or usually becomes."""
        return self._folder.overhead_bytes() + max(0, self.sizes.log_bytes - self._folder.wal_bytes())


def check_capacity(asked: Any) -> Any:
    """Return a limit as an int where it is any kind of number; raise where it is too small for anything.

    Obeyed, that would only empty a folder. 0 says that this is meant.

    Raises:
        CapacityError: It is under `MIN_CAPACITY_BYTES`, and not 0.
    """
    if isinstance(asked, Real):
        asked = int(cast(float, asked))  # numpy's cannot be written down
    if isinstance(asked, int) and 0 < asked < MIN_CAPACITY_BYTES:
        raise CapacityError(
            f"no folder can keep to a limit of {asked:,} bytes: index and log alone take more. The least is "
            f"{MIN_CAPACITY_BYTES:,} bytes (capacity_bytes='1MB'); 0 keeps nothing."
        )
    return asked


def default_capacity_bytes(folder: Folder) -> int:
    """Return the limit of a new folder: 50 GiB, or half of the free disk if that is less, but enough to keep to."""
    return max(MIN_CAPACITY_BYTES, min(DEFAULT_CAPACITY_BYTES, folder.disk_free_bytes() // 2))
