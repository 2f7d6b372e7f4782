"""When each entry was last used, and how often: eight bytes an entry in a file that every process maps.

A hit costs one eight-byte store into shared memory and no write to the index. Slots are handed out in regions, one for
each segment, so that a segment's slots are freed with it. The file is filled with real blocks (`posix_fallocate`)
before it is mapped and never cut (see `renumbering`), since touching a hole on a full disk, or a page beyond the end,
is SIGBUS.

A slot holds milliseconds since 1970 shifted left by 16, and a hit count that stops at 65,535. Lost updates between
processes only blur the order of eviction.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import time
from typing import TYPE_CHECKING

from lmstash.store.disk.files.folder import Folder

if TYPE_CHECKING:
    import numpy as np

SLOT_BYTES = 8
REGION_UNIT = 512
"""Regions are multiples of this many slots."""
FIRST_SLOT = REGION_UNIT
"""Slots before this one are the store's own; slot 0 counts removals, slot 1 changes of the limit, and slot 2 says until
when nobody is to try to cut the index's log."""
_SAMPLE = 64


class Recency:
    """The mapped file. Threads and processes share it; a store opened for reading only may have none."""

    def __init__(self, folder: Folder, *, read_only: bool = False) -> None:
        """Map the file, making it if it is missing."""
        self._path = folder.recency
        self._read_only = read_only
        self._slots: memoryview = memoryview(bytearray(0)).cast("Q")
        self._map: mmap.mmap | None = None
        self._inode = 0
        if read_only:
            self._slots = memoryview(bytearray(SLOT_BYTES * FIRST_SLOT)).cast("Q")
        else:
            self.grow(FIRST_SLOT)

    def grow(self, n_slots: int) -> None:
        """Make sure that slots below `n_slots` exist. Raises OSError when the disk is full."""
        if self._read_only or n_slots <= len(self._slots):
            return
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            status = os.fstat(fd)
            self._inode, size = status.st_ino, status.st_size // SLOT_BYTES * SLOT_BYTES
            if size < n_slots * SLOT_BYTES:
                _fill_with_blocks(fd, size, n_slots * SLOT_BYTES)
                size = n_slots * SLOT_BYTES
            fresh = mmap.mmap(fd, size)
        finally:
            os.close(fd)
        self._map, self._slots = fresh, memoryview(fresh).cast("Q")

    def replaced(self) -> bool:
        """Whether the file that is mapped is no longer the folder's: somebody was alone there, and made it shorter."""
        return not self._read_only and os.stat(self._path).st_ino != self._inode

    def close(self) -> None:
        """Let go of the file. Later uses are noted nowhere."""
        stale, mapped = self._slots, self._map
        self._read_only, self._map = True, None
        self._slots = memoryview(bytearray(SLOT_BYTES * FIRST_SLOT)).cast("Q")
        with contextlib.suppress(BufferError):
            stale.release()
            if mapped is not None:
                mapped.close()

    def touch(self, slot: int) -> None:
        """Note a use of the entry in `slot`, now."""
        try:
            slots = self._slots
            if slot >= len(slots):
                if self._read_only or not self._catch_up(slot):
                    return
                slots = self._slots
            slots[slot] = (int(time.time() * 1000) << 16) | min((slots[slot] & 0xFFFF) + 1, 0xFFFF)
        except ValueError:  # another thread, or a signal handler, has just closed the store
            return

    def touch_array(self, slots: np.ndarray) -> None:
        """As `touch_many`, for an array of distinct slots."""
        if not len(slots) or (slots.max() >= len(self._slots) and (self._read_only or not self._catch_up(slots.max()))):
            return
        import numpy as np

        try:
            cells = np.frombuffer(self._slots, np.uint64)
        except ValueError:  # another thread has just closed the store
            return
        if slots.max() >= len(cells):
            return
        used = np.minimum((cells[slots] & np.uint64(0xFFFF)) + np.uint64(1), np.uint64(0xFFFF))
        cells[slots] = np.uint64(int(time.time() * 1000) << 16) | used

    def touch_many(self, slots: list[int]) -> None:
        """Note a use of many entries, now."""
        if not slots or (max(slots) >= len(self._slots) and (self._read_only or not self._catch_up(max(slots)))):
            return
        cells, now = self._slots, int(time.time() * 1000) << 16
        with contextlib.suppress(ValueError, IndexError):  # another thread has just closed the store
            for slot in slots:
                cells[slot] = now | min((cells[slot] & 0xFFFF) + 1, 0xFFFF)

    def mark_new(self, first: int, count: int) -> None:
        """Note that `count` entries from slot `first` were just put."""
        self._fill(first, count, int(time.time() * 1000) << 16)

    def copy_many(self, sources: list[int], target: int) -> None:
        """Give entries that moved, to `target` and the slots after it, the histories they had in `sources`."""
        last = target + len(sources) - 1
        if last < len(self._slots) or self._catch_up(last):
            cells = self._slots
            for number, content in enumerate(self.read_many(sources), target):
                cells[number] = content

    def forget(self, first: int, count: int = 1) -> None:
        """Mark slots as worth nothing: their entries are gone."""
        self._fill(first, count, 0)

    def read(self, slot: int) -> int:
        """Return a slot's content, 0 where there is none."""
        with contextlib.suppress(ValueError, IndexError):  # another thread has just closed the store
            if slot < len(self._slots) or self._catch_up(slot):
                return self._slots[slot]
        return 0

    def read_many(self, slots: list[int]) -> list[int]:
        """Return what `read` does of each."""
        with contextlib.suppress(ValueError, IndexError):  # as `read`
            if not slots or max(slots) < len(self._slots) or self._catch_up(max(slots)):
                return list(map(self._slots.__getitem__, slots))
        return list(map(self.read, slots))

    def sample(self, first: int, count: int) -> list[int]:
        """Return 64 to 127 slots spread evenly over a region, or all where there are fewer."""
        if count <= 0 or (first + count > len(self._slots) and not self._catch_up(first + count - 1)):
            return []
        return self._slots[first : first + count : max(1, count // _SAMPLE)].tolist()

    def removals(self) -> int:
        """Return a number that changes whenever an entry is removed or replaced, by any process."""
        return self._slots[0]

    def note_removal(self) -> None:
        """Change what `removals` returns."""
        if not self._read_only:
            self._slots[0] = (self._slots[0] + 1) & 0xFFFFFFFFFFFFFFFF

    def limits(self) -> int:
        """Return a number that changes whenever the limit is changed, by any process."""
        return self._slots[1]

    def note_limit(self) -> None:
        """Change what `limits` returns."""
        if not self._read_only:
            self._slots[1] = (self._slots[1] + 1) & 0xFFFFFFFFFFFFFFFF

    def paused_until(self) -> int:
        """Return until when nobody is to try to cut the index's log, in milliseconds since 1970."""
        return self._slots[2]

    def pause_until(self, milliseconds: int) -> None:
        """Change what `paused_until` returns."""
        if not self._read_only:
            self._slots[2] = milliseconds

    def _fill(self, first: int, count: int, value: int) -> None:
        if self._read_only or count <= 0:
            return
        if first + count > len(self._slots) and not self._catch_up(first + count - 1):
            return
        self._slots[first : first + count] = memoryview(value.to_bytes(8, "little") * count).cast("Q")

    def _catch_up(self, slot: int) -> bool:
        """Map what another process has added; returns whether `slot` exists now."""
        if self._read_only:
            return False
        try:
            if os.stat(self._path).st_size // SLOT_BYTES <= slot:
                return False
            self.grow(slot + 1)
        except OSError:
            return False
        return slot < len(self._slots)


def region(n_records: int) -> int:
    """Return how many slots a segment of so many records has."""
    return max(-(-n_records // REGION_UNIT), 1) * REGION_UNIT


def _fill_with_blocks(fd: int, start: int, end: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, end)
        return
    while start < end:  # macOS
        start += os.pwrite(fd, bytes(min(end - start, 1 << 20)), start)


def last_used(cell: int) -> float:
    """Return the Unix seconds in a slot's content."""
    return (cell >> 16) / 1000


def hits(cell: int) -> int:
    """Return the hit count in a slot's content."""
    return cell & 0xFFFF
