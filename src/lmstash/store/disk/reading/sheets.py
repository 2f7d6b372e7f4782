"""Reading many small records at once: one call to the system for neighbours, and array operations for their checks.

Neighbours are read into two kinds of memory by one scattered read: each value straight to its row of a sheet, and what
lies between the values (headers, padding, dead records) to the side. Every record's key, type, lengths, namespace and
payload checksum are checked, as a single one's are. Values that come apart are read one group ahead.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TypeVar

import numpy as np

from lmstash.errors import FormatError
from lmstash.events import EventLog
from lmstash.store.base import KEY_BYTES
from lmstash.store.disk.accounting.recency import Recency
from lmstash.store.disk.files.format import CHUNK_BYTES, HEADER, xxh3
from lmstash.store.disk.files.rows import Row
from lmstash.store.disk.files.segment import SegmentFile
from lmstash.store.disk.indexing.index import Index
from lmstash.store.disk.indexing.locating import located
from lmstash.store.disk.indexing.tables import HEAD, HEADER_DTYPE, OFF, SEG, SIZE, SLOT, as_expected, sane_seconds
from lmstash.store.disk.reading.lookup import Lookup, entry_of
from lmstash.store.disk.reading.record import read_one
from lmstash.store.sheets import APART_BYTES, Apart, Found, found_of

_T = TypeVar("_T")
_GROUP_BYTES = 4 << 20
"""At most this much is read at a time: it stays in the processor's cache until it is used, and is enough to make the
checks of a group, 0.15 ms, cheap."""
_APART_GROUP_BYTES = 8 << 20
"""The same for those that come apart, which nobody copies: fewer groups have fewer checks to begin."""
_SLICE_BYTES = 512 << 10
"""So much is read and hashed at a time: a core's own cache holds it, where hashing takes a third of the time."""
_SCATTERED_ROWS = 480
"""Two stretches a record, and the system takes 1,024 stretches."""
_LEAST_GROUPS = 3
"""So many are read ahead."""
_FAILING_BYTES = 1 << 20
"""A group that cannot be read is tried again in halves until so little is lost with what fails."""
_GAP_BYTES = 8 << 10
_KEYS_AT_ONCE = 16384


class SheetReader:
    """Reads one folder in sheets. Threads may share it."""

    def __init__(self, index: Index, recency: Recency, lookup: Lookup, events: EventLog) -> None:
        """Take the parts of a store; `lookup` serves what is odd, and knows why a record cannot be served."""
        self._index = index
        self._recency = recency
        self._lookup = lookup
        self._events = events

    def sheets(self, keys: Sequence[bytes], *, apart: bool = False) -> Iterator[Found | Apart]:
        """Yield what is kept of distinct keys; counts hits and misses. Faults of disk and index are raised.

        What lies together on the disk comes together, so ask for all keys at once: little is held at a time.
        """
        for start in range(0, len(keys), _KEYS_AT_ONCE):
            for found in self._look_up(keys[start : start + _KEYS_AT_ONCE], apart):
                found.places += start
                yield found

    def _look_up(self, keys: Sequence[bytes], apart: bool) -> Iterator[Found | Apart]:
        found, places, wanted, odd = located(self._index, self._events, keys)
        groups = list(_groups(found, apart))
        with _Ahead(len(groups) if apart else 0) as ahead:
            waiting: Callable[[], Iterator[Apart]] | None = None
            for first, last in groups:
                rows, there = found[first:last], places[first:last]
                if apart and len(rows) > 1 and rows[0, SIZE] >= APART_BYTES:
                    before, waiting = waiting, self._start_apart(rows, there, wanted, odd, ahead)
                    if before is not None:
                        yield from before()
                else:
                    yield from self._read(rows, there, wanted, odd)
            if waiting is not None:
                yield from waiting()
        # Expired, damaged, moved or gone: the slow path says which, and heals.
        names = [keys[each] for each in odd]
        loaded = zip(names, self._lookup.load_many(names), strict=True)
        yield from found_of([None if one is None else entry_of(key, one) for key, one in loaded], odd, apart=apart)

    def _read(self, rows: np.ndarray, places: np.ndarray, keys: np.ndarray, odd: list[int]) -> Iterator[Found]:
        """Yield the records of one group; names those that cannot be served in `odd`."""
        file = self._lookup.file(int(rows[0, SEG]))
        if file is None:
            odd.extend(places.tolist())
            return
        if len(rows) == 1:
            yield from self._read_alone(file, rows[0], places, keys[places[0]].tobytes(), odd)
            return
        try:
            blocks = _blocks(file, rows)
        except OSError:  # this stretch of the disk fails: others may not
            if _span(rows) <= _FAILING_BYTES:
                odd.extend(places.tolist())
                return
            for half in _halves(rows):
                yield from self._read(rows[half], places[half], keys, odd)
            return
        for members, block in blocks:
            there = places[members]
            good = _check(file, rows[members], keys[there], block)
            values, fixed = block.values, block.fixed
            if not good.all():
                odd.extend(there[~good].tolist())
                members, values, there, fixed = members[good], values[good], there[good], fixed[good]
            if len(there):
                parents = fixed["parent"]
                found = Found(there, values, file.namespace, parents if parents.any() else None)
                sizes = rows[members, SIZE]
                self._count(file.namespace, there, rows[members, SLOT], sizes, fixed["seconds"], keys)
                yield found

    def _start_apart(
        self, rows: np.ndarray, places: np.ndarray, keys: np.ndarray, odd: list[int], ahead: _Ahead
    ) -> Callable[[], Iterator[Apart]]:
        """Begin to read a group, each value to memory of its own; what is returned does what `_read` does."""
        file = self._lookup.file(int(rows[0, SEG]))
        if file is None:
            odd.extend(places.tolist())
            return lambda: iter(())
        values = [np.empty(size, np.uint8) for size in rows[:, SIZE].tolist()]
        views = [each.data for each in values]
        reading = ahead.start(partial(_read_into, file, rows, views))

        def finish() -> Iterator[Apart]:
            try:
                fixed, n_read = reading()
            except OSError:  # as in `_read`
                if _span(rows) <= _FAILING_BYTES:
                    odd.extend(places.tolist())
                    return
                for half in _halves(rows):
                    yield from self._start_apart(rows[half], places[half], keys, odd, _Ahead(0))()
                return
            good = as_expected(file, rows, keys[places], fixed)
            good[n_read:] = False
            good &= fixed["checksum"] == np.fromiter(map(xxh3, views), np.uint64, len(views))
            if not good.all():
                odd.extend(places[~good].tolist())
            sizes = rows[good, SIZE]
            self._count(file.namespace, places[good], rows[good, SLOT], sizes, fixed["seconds"][good], keys)
            parents = fixed["parent"] if fixed["parent"].any() else None
            for size in np.unique(sizes):
                members = (good & (rows[:, SIZE] == size)).nonzero()[0]
                alike = [values[each] for each in members.tolist()]
                yield Apart(places[members], alike, file.namespace, None if parents is None else parents[members])

        return finish

    def _read_alone(
        self, file: SegmentFile, row: np.ndarray, place: np.ndarray, key: bytes, odd: list[int]
    ) -> Iterator[Found]:
        seg, off, head, size, slot = row.tolist()
        try:
            header, payload = read_one(file, Row(0, key, seg, off, head, size, slot, 0, 0, 0))
        except (FormatError, OSError):
            odd.extend(place.tolist())
            return
        self._recency.touch(slot)
        self._events.hit(file.namespace, key, size, header.compute_seconds)
        parents = np.frombuffer(header.parent, np.uint8).reshape(1, KEY_BYTES) if header.parent else None
        yield Found(place, np.frombuffer(payload, np.uint8).reshape(1, size), file.namespace, parents)

    def _count(
        self,
        namespace: str,
        places: np.ndarray,
        slots: np.ndarray,
        sizes: np.ndarray,
        seconds: np.ndarray,
        keys: np.ndarray,
    ) -> None:
        """Count values that are about to be handed out."""
        self._recency.touch_array(slots)
        seconds = sane_seconds(seconds)
        if self._events.listening:
            for place, n_bytes, each in zip(places.tolist(), sizes.tolist(), seconds.tolist(), strict=True):
                self._events.hit(namespace, keys[place].tobytes(), n_bytes, each)
        else:
            self._events.hits(len(places), int(sizes.sum()), float(seconds.sum()))


class _Ahead:
    """Reads one group in a thread of its own while what was read before is checked and used."""

    def __init__(self, n_groups: int) -> None:
        """Expect so many groups; where there are few, no thread is begun."""
        self._pool = ThreadPoolExecutor(1, "lmstash-read") if n_groups >= _LEAST_GROUPS else None
        self._process = os.getpid()  # a fork has no such thread

    def __enter__(self) -> _Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            with contextlib.suppress(RuntimeError):  # the collector dropped the call in this very thread
                self._pool.shutdown(wait=os.getpid() == self._process)

    def start(self, read: Callable[[], _T]) -> Callable[[], _T]:
        """Begin to read; what is returned waits for it, and returns or raises what it did."""
        if self._pool is None or os.getpid() != self._process:
            return read
        try:
            begun = self._pool.submit(read)
        except RuntimeError:  # no more threads, or the interpreter is ending
            self._pool.shutdown(wait=False, cancel_futures=True)  # nor may a later thread read what is queued now
            self._pool = None
            return read
        return lambda: read() if begun.cancelled() or os.getpid() != self._process else begun.result()


@dataclass(slots=True)
class _Block:
    """Records of one length as they were read."""

    values: np.ndarray
    """`[n, size]`, each row contiguous."""
    fixed: np.ndarray
    """The fixed part of each header, `[n]` of `HEADER_DTYPE`."""
    n_read: int
    """The first so many were read whole."""
    sums: np.ndarray
    """The checksum of each value, `[n]`."""


def _span(rows: np.ndarray) -> int:
    """Return the bytes that rows, sorted by offset, lie in; 0 for one alone, which cannot be divided."""
    return int(rows[-1, OFF] + rows[-1, HEAD] + rows[-1, SIZE] - rows[0, OFF]) if len(rows) > 1 else 0


def _halves(rows: np.ndarray) -> tuple[slice, slice]:
    return slice(0, len(rows) // 2), slice(len(rows) // 2, len(rows))


def _groups(rows: np.ndarray, apart: bool) -> Iterator[tuple[int, int]]:
    """Yield first and last (exclusive) of rows, sorted by segment and offset, that are worth one read.

    Those of a group are all small, or all of middle size; what is larger is a group of its own.
    """
    ends = rows[:, OFF] + rows[:, HEAD] + rows[:, SIZE]
    large = (rows[:, SIZE] >= APART_BYTES) + (rows[:, SIZE] > CHUNK_BYTES).astype(np.int8)
    cuts = (rows[1:, SEG] != rows[:-1, SEG]) | (rows[1:, OFF] - ends[:-1] > _GAP_BYTES)
    cuts |= (large[1:] != large[:-1]) | (large[1:] > 1)
    cuts |= rows[1:, OFF] < ends[:-1]  # records that overlap are damage: each is read on its own, and one fails
    bounds = [0, *(cuts.nonzero()[0] + 1).tolist(), len(rows)]
    offsets = rows[:, OFF]
    for start, stop in pairwise(bounds):
        first = start
        while first < stop:
            room = _APART_GROUP_BYTES if apart and large[first] else _GROUP_BYTES
            last = int(np.searchsorted(ends[first:stop], offsets[first] + room, "right")) + first
            last = max(last, first + 1)
            yield first, last
            first = last


def _blocks(file: SegmentFile, rows: np.ndarray) -> list[tuple[np.ndarray, _Block]]:
    """Read neighbours; returns which rows are in each block."""
    if rows[0, HEAD] != rows[1, HEAD] and len(rows) > 2:  # the first of a segment lies closer to what is before it
        rest = _even(file, rows[1:])
        if rest is not None:
            return [*_scattered(file, rows[:1]), *_behind(1, rest)]
    even = _even(file, rows)
    if even is not None:
        return even
    parts = range(0, len(rows), _SCATTERED_ROWS)
    return [each for at in parts for each in _behind(at, _scattered(file, rows[at : at + _SCATTERED_ROWS]))]


def _behind(n: int, blocks: list[tuple[np.ndarray, _Block]]) -> list[tuple[np.ndarray, _Block]]:
    """Return blocks of rows as those of rows behind `n` others."""
    return [(members + n, block) for members, block in blocks]


def _even(file: SegmentFile, rows: np.ndarray) -> list[tuple[np.ndarray, _Block]] | None:
    """Read records of one length at even distances, as `put_sheets` lays them: their memory is a table already."""
    first, head, size = rows[0, OFF : SIZE + 1].tolist()
    distances = rows[1:, OFF] - rows[:-1, OFF]
    stride = int(distances.min())
    uneven = (rows[:, SIZE] != size) | (rows[:, HEAD] != head)
    if uneven.any() or (distances % stride).any() or stride < head + size:
        return None
    n_lines = (int(rows[-1, OFF]) - first) // stride + 1
    memory = np.empty(n_lines * stride, np.uint8)
    table = memory.reshape(n_lines, stride)
    cells, starts = table[:, head : head + size], rows[:, OFF] - first
    lines = None if n_lines == len(rows) else starts // stride
    values, ends = cells if lines is None else np.empty((len(rows), size), np.uint8), starts + head + size
    sums, got = np.empty(len(rows), np.uint64), 0
    for start, stop in _slices(ends):
        end = int(ends[stop - 1])
        got += os.preadv(file.fd, [memory.data[got:end]], first + got)
        if lines is not None:
            values[start:stop] = cells[lines[start:stop]]
        sums[start:stop] = np.fromiter(map(xxh3, values[start:stop]), np.uint64, stop - start)
        if got < end:
            break
    heads = table[:, : HEADER.size] if lines is None else table[lines, : HEADER.size]
    fixed = np.ascontiguousarray(heads).view(HEADER_DTYPE)[:, 0]
    return [(np.arange(len(rows)), _Block(values, fixed, int(np.searchsorted(ends, got, "right")), sums))]


def _slices(ends: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield first and last (exclusive) of records, which end at `ends`, that are read and hashed at a time."""
    start = reached = 0
    while start < len(ends):
        stop = max(start + 1, int(np.searchsorted(ends, reached + _SLICE_BYTES, "right")))
        yield start, stop
        start, reached = stop, int(ends[stop - 1])


def _scattered(file: SegmentFile, rows: np.ndarray) -> list[tuple[np.ndarray, _Block]]:
    """Read neighbours of any lengths: each value to its row of a table, and what lies between them to the side."""
    sizes = rows[:, SIZE]
    alike = [(sizes == size).nonzero()[0] for size in np.unique(sizes).tolist()]
    tables = [np.empty((len(members), int(sizes[members[0]])), np.uint8) for members in alike]
    targets: list[memoryview] = [memoryview(b"")] * len(rows)
    for members, table in zip(alike, tables, strict=True):
        flat, size = table.reshape(-1).data, table.shape[1]
        for number, member in enumerate(members.tolist()):
            targets[member] = flat[number * size : (number + 1) * size]
    sums = np.empty(len(rows), np.uint64)
    fixed, n_read = _read_into(file, rows, targets, sums)
    out: list[tuple[np.ndarray, _Block]] = []
    for members, table in zip(alike, tables, strict=True):
        out.append((members, _Block(table, fixed[members], int(np.searchsorted(members, n_read)), sums[members])))
    return out


def _read_into(
    file: SegmentFile, rows: np.ndarray, targets: Sequence[memoryview], sums: np.ndarray | None = None
) -> tuple[np.ndarray, int]:
    """Read neighbours: each value to its target, and what lies between them to the side.

    Their checksums go to `sums`; without it all is read in one call, and the interpreter's lock asked for once.

    Returns:
        The fixed part of each header, `[n]` of `HEADER_DTYPE`, and how many of the rows, the first ones, were read
        whole.
    """
    first = int(rows[0, OFF])
    value_at = rows[:, OFF] + rows[:, HEAD]
    value_end = value_at + rows[:, SIZE]
    between = value_at.copy()
    between[1:] -= value_end[:-1]
    between[0] -= first
    ends = between.cumsum()
    heads = np.empty(int(ends[-1]), np.uint8)
    side = heads.data
    reached, at = first, 0
    for start, stop in [(0, len(rows))] if sums is None else _slices(value_end - first):
        stretches: list[memoryview] = []
        for end, target in zip(ends[start:stop].tolist(), targets[start:stop], strict=True):
            stretches.append(side[at:end])
            if len(target):
                stretches.append(target)
            at = end
        reached += os.preadv(file.fd, stretches, reached)
        if sums is not None:
            sums[start:stop] = np.fromiter(map(xxh3, targets[start:stop]), np.uint64, stop - start)
        if reached < value_end[stop - 1]:
            break
    starts = ends - rows[:, HEAD]
    fixed = heads[starts[:, None] + np.arange(HEADER.size)].view(HEADER_DTYPE)[:, 0]
    return fixed, int(np.searchsorted(value_end, reached, "right"))


def _check(file: SegmentFile, rows: np.ndarray, keys: np.ndarray, block: _Block) -> np.ndarray:
    """Return which records are sound and the ones asked for.

    What is used of a header is compared with what the index and the asker know, and the value with its checksum, so the
    header's own checksum would add nothing: it is left to those who read the facts.

    Args:
        file: They lie in.
        rows: What the index says of them.
        keys: What they were asked for by, `[n, 32]`.
        block: What was read.
    """
    fixed = block.fixed
    good = as_expected(file, rows, keys, fixed)
    good[block.n_read :] = False
    good &= fixed["checksum"] == block.sums
    return good


assert APART_BYTES <= CHUNK_BYTES  # such records carry no table of chunk sums
