"""Reading the values of many small records of any lengths: as few calls as can be, and array operations for the checks.

Records of one segment come into one piece of memory: neighbours by one read, others by one each. Then every record's
key, type, lengths, namespace and payload checksum are checked, as a single one's are.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import repeat

import numpy as np

from lmstash.events import EventLog
from lmstash.store.disk.accounting.recency import Recency
from lmstash.store.disk.files.format import HEADER, RECORD_ALIGN, xxh3
from lmstash.store.disk.files.segment import SegmentFile
from lmstash.store.disk.indexing.index import Index
from lmstash.store.disk.indexing.locating import located
from lmstash.store.disk.indexing.tables import HEAD, HEADER_DTYPE, OFF, SEG, SIZE, SLOT, as_expected, sane_seconds
from lmstash.store.disk.reading.lookup import Lookup

_SMALL_BYTES = 16 << 10
"""Records of this size or more are read by the slow path: their bytes cost more than their object."""
_GAP_BYTES = 8 << 10
_MEMORY_BYTES = 1 << 20
"""At most this much is read at a time, so that a value that is held on to holds no more."""
_WORD = 8
_HEADER_WORDS = np.arange(HEADER.size // _WORD)
assert HEADER.size % _WORD == 0 == RECORD_ALIGN % _WORD


class ValueReader:
    """Reads one folder. Threads may share it."""

    def __init__(self, index: Index, recency: Recency, lookup: Lookup, events: EventLog) -> None:
        """Take the parts of a store; `lookup` serves what is odd, and knows why a record cannot be served."""
        self._index = index
        self._recency = recency
        self._lookup = lookup
        self._events = events

    def values(self, keys: Sequence[bytes]) -> list[memoryview | None]:
        """Return the values of distinct keys as read-only views, None where there is none; counts hits and misses.

        Faults of disk and index are raised. Small values share memory of up to 1 MiB, which lives as long as any of
        them. Costs about 3 us a value where neighbours are asked for together, 7 where they are not.
        """
        out: list[memoryview | None] = [None] * len(keys)
        found, places, wanted, odd = located(self._index, self._events, keys)
        slow = (found[:, SIZE] >= _SMALL_BYTES) | (found[:, HEAD] >= _SMALL_BYTES)
        odd += places[slow].tolist()
        found, places = found[~slow], places[~slow]
        sizes = (found[:, HEAD] + found[:, SIZE]).cumsum()
        bounds = (found[1:, SEG] != found[:-1, SEG]).nonzero()[0] + 1
        for first, last in zip([0, *bounds.tolist()], [*bounds.tolist(), len(found)], strict=True):
            while first < last:
                before = int(sizes[first - 1]) if first else 0
                stop = min(last, max(int(np.searchsorted(sizes, before + _MEMORY_BYTES // 2)), first + 1))
                self._read(found[first:stop], places[first:stop], wanted, out, odd)
                first = stop
        # Expired, large, damaged, moved or gone: the slow path serves it, or says why not, and heals.
        for place, loaded in zip(odd, self._lookup.load_many([keys[each] for each in odd]), strict=True):
            out[place] = None if loaded is None else loaded[1].toreadonly()
        return out

    def _read(
        self, rows: np.ndarray, places: np.ndarray, keys: np.ndarray, out: list[memoryview | None], odd: list[int]
    ) -> None:
        """Read records of one segment, sorted by offset; names those that cannot be served in `odd`."""
        if not len(rows):
            return
        file = self._lookup.file(int(rows[0, SEG]))
        if file is None:
            odd.extend(places.tolist())
            return
        try:
            memory, starts, whole_there = _read_runs(file, rows)
        except OSError:  # this stretch of the disk fails: others may not
            odd.extend(places.tolist())
            return
        heads, sizes = rows[:, HEAD], rows[:, SIZE]
        whole = memory.data.toreadonly()
        words = memory.view(np.uint64)[starts[:, None] // _WORD + _HEADER_WORDS]
        fixed = words.view(HEADER_DTYPE)[:, 0]
        begins = (starts + heads).tolist()
        values = [whole[begin : begin + size] for begin, size in zip(begins, sizes.tolist(), strict=True)]
        good = as_expected(file, rows, keys[places], fixed) & whole_there
        good &= fixed["checksum"] == np.fromiter(map(xxh3, values), np.uint64, len(values))
        if good.all():
            for place, value in zip(places.tolist(), values, strict=True):
                out[place] = value
            self._count(file, rows, fixed, keys, places)
        else:
            for place, value, sound in zip(places.tolist(), values, good.tolist(), strict=True):
                if sound:
                    out[place] = value
                else:
                    odd.append(place)
            self._count(file, rows[good], fixed[good], keys, places[good])

    def _count(
        self, file: SegmentFile, rows: np.ndarray, fixed: np.ndarray, keys: np.ndarray, places: np.ndarray
    ) -> None:
        self._recency.touch_array(rows[:, SLOT])
        seconds = sane_seconds(fixed["seconds"])
        if self._events.listening:
            for key, size, each in zip(keys[places], rows[:, SIZE].tolist(), seconds.tolist(), strict=True):
                self._events.hit(file.namespace, key.tobytes(), size, each)
        else:
            self._events.hits(len(rows), int(rows[:, SIZE].sum()), float(seconds.sum()))


def _read_runs(file: SegmentFile, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return memory with the records, where in it each begins, and which of them the file held whole."""
    offsets = rows[:, OFF]
    ends = offsets + rows[:, HEAD] + rows[:, SIZE]
    gaps = offsets[1:] - ends[:-1]
    cuts = ((gaps > _GAP_BYTES) | (gaps < 0)).nonzero()[0] + 1
    firsts = np.concatenate(([0], cuts))
    lasts = np.concatenate((cuts, [len(rows)])) - 1
    lengths = -(-(ends[lasts] - offsets[firsts]) // _WORD) * _WORD  # so that every header begins at a whole word
    run_ends = lengths.cumsum()
    wanted = lengths.tolist()
    # For a few hundred bytes each, this takes three quarters of the time of reading into memory that is there.
    pieces = list(map(os.pread, repeat(file.fd), wanted, offsets[firsts].tolist()))
    got = list(map(len, pieces))
    if got != wanted:
        pieces = [piece.ljust(length, b"\0") for piece, length in zip(pieces, wanted, strict=True)]
    memory = np.frombuffer(b"".join(pieces), np.uint8)
    run = np.repeat(np.arange(len(firsts)), lasts - firsts + 1)
    starts = offsets - offsets[firsts][run] + (run_ends - lengths)[run]
    if got == wanted:
        return memory, starts, np.ones(len(rows), np.bool_)
    reached = run_ends - lengths + np.array(got)
    return memory, starts, starts + rows[:, HEAD] + rows[:, SIZE] <= reached[run]
