"""Reading many small records at once: one call to the system for neighbours, and array operations for their checks.

Neighbours are read into two kinds of memory by one scattered read: each value straight to its row of a sheet, and what
lies between the values (headers, padding, dead records) to the side. Every record's key, type, lengths, namespace and
payload checksum are checked, as a single one's are.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np

from lmstash.errors import FormatError
from lmstash.events import EventLog, MissReason
from lmstash.store.base import KEY_BYTES
from lmstash.store.disk.format import (
    CHUNK_BYTES,
    FLAG_PINNED,
    FORMAT_VERSION,
    HEADER,
    PLAIN_ENTRY,
    RECORD_MAGIC,
    xxh3,
)
from lmstash.store.disk.index import Index
from lmstash.store.disk.lookup import Lookup, entry_of
from lmstash.store.disk.reading import read_one
from lmstash.store.disk.recency import Recency
from lmstash.store.disk.rows import IndexDamagedError, Row
from lmstash.store.disk.segment import SegmentFile
from lmstash.store.sheets import APART_BYTES, Apart, Found, found_of

HEADER_DTYPE = np.dtype(
    [
        ("total", "<u8"),
        ("magic", "S4"),
        ("version", "u1"),
        ("type", "u1"),
        ("flags", "<u2"),
        ("head", "<u4"),
        ("meta", "<u4"),
        ("payload", "<u8"),
        ("key", "u1", 32),
        ("parent", "u1", 32),
        ("generation", "<u8"),
        ("created", "<u8"),
        ("expires", "<u8"),
        ("seconds", "<f8"),
        ("tokens", "<u4"),
        ("reserved", "<u4"),
        ("namespace", "<u8"),
        ("checksum", "<u8"),
    ]
)
"""`format.HEADER` as numpy says it."""
assert HEADER_DTYPE.itemsize == HEADER.size
_FIRST_WORD = int.from_bytes(PLAIN_ENTRY, "little")
_ALL_BUT_PINNED = np.uint64(2**64 - 1 - (FLAG_PINNED << 48))
_KEY_WORDS = slice(4, 8)
"""Where the key is among the words of a header."""


def headers_at(data: bytes, starts: list[int]) -> tuple[list[bytes], list[int], list[int], list[int], list[int]] | None:
    """Return key, type, flags, head bytes and payload bytes of the records that start there; None if one does not."""
    if starts[-1] + HEADER.size > len(data):
        return None
    columns = np.array(starts)[:, None] + np.arange(HEADER.size)
    fixed = np.frombuffer(data, np.uint8)[columns].view(HEADER_DTYPE)[:, 0]
    if (fixed["magic"] != RECORD_MAGIC).any() or (fixed["version"] != FORMAT_VERSION).any():
        return None
    names = fixed["key"].tobytes()
    keys = [names[at : at + KEY_BYTES] for at in range(0, len(names), KEY_BYTES)]
    return keys, *(fixed[name].tolist() for name in ("type", "flags", "head", "payload"))


_GROUP_BYTES = 4 << 20
"""At most this much is read at a time: it stays in the processor's cache until it is used, and is enough to make the
checks of a group, 0.15 ms, cheap."""
_APART_GROUP_BYTES = 8 << 20
"""The same for those that come apart, which nobody copies: fewer groups have fewer checks to begin."""
_GROUP_ROWS = 480
"""Two stretches a record, and the system takes 1,024 stretches."""
_GAP_BYTES = 8 << 10
_KEYS_AT_ONCE = 16384
_MOST_SECONDS = 1e9
_K, _SEG, _OFF, _HEAD, _SIZE, _SLOT, _EXP = range(7)
_FAR = 1 << 48


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
        ids = np.fromiter(map(xxh3, keys), np.uint64, len(keys)) ^ np.uint64(1 << 63)
        order = ids.view(np.int64).argsort()
        ids = ids.view(np.int64)[order]  # neighbours in the index are found faster one after another
        found = table_of(self._index.locate(ids))
        places = order[np.searchsorted(ids, found[:, _K])]
        if len(found) < len(keys):
            there = np.zeros(len(keys), np.bool_)
            there[places] = True
            self._events.misses([keys[each] for each in (~there).nonzero()[0].tolist()], MissReason.ABSENT)
        if not len(found):
            return
        expired = (found[:, _EXP] > 0) & (found[:, _EXP] <= int(time.time() * 1e6))
        odd: list[int] = places[expired].tolist()
        order = np.lexsort((found[:, _OFF], found[:, _SEG]))
        if odd:
            order = order[~expired[order]]
        found, places = found[order], places[order]
        wanted = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES)
        for first, last in _groups(found, apart):
            rows, there = found[first:last], places[first:last]
            if apart and len(rows) > 1 and rows[0, _SIZE] >= APART_BYTES:
                yield from self._read_apart(rows, there, wanted, odd)
            else:
                yield from self._read(rows, there, wanted, odd)
        # Expired, damaged, moved or gone: the slow path says which, and heals.
        names = [keys[each] for each in odd]
        loaded = zip(names, self._lookup.load_many(names), strict=True)
        yield from found_of([None if one is None else entry_of(key, one) for key, one in loaded], odd, apart=apart)

    def _read(self, rows: np.ndarray, places: np.ndarray, keys: np.ndarray, odd: list[int]) -> Iterator[Found]:
        """Yield the records of one group; names those that cannot be served in `odd`."""
        file = self._lookup.file(int(rows[0, _SEG]))
        if file is None:
            odd.extend(places.tolist())
            return
        if len(rows) == 1:
            yield from self._read_alone(file, rows[0], places, keys[places[0]].tobytes(), odd)
            return
        try:
            blocks = _even(file, rows) or _scattered(file, rows)
        except OSError:  # this stretch of the disk fails: others may not
            odd.extend(places.tolist())
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
                sizes = rows[members, _SIZE]
                self._count(file.namespace, there, rows[members, _SLOT], sizes, fixed["seconds"], keys)
                yield found

    def _read_apart(self, rows: np.ndarray, places: np.ndarray, keys: np.ndarray, odd: list[int]) -> Iterator[Apart]:
        """As `_read`, each value in memory of its own."""
        file = self._lookup.file(int(rows[0, _SEG]))
        if file is None:
            odd.extend(places.tolist())
            return
        values = [np.empty(size, np.uint8) for size in rows[:, _SIZE].tolist()]
        views = [each.data for each in values]
        try:
            fixed, n_read = _read_into(file, rows, views)
        except OSError:
            odd.extend(places.tolist())
            return
        good = as_expected(file, rows, keys[places], fixed)
        good[n_read:] = False
        good &= fixed["checksum"] == np.fromiter(map(xxh3, views), np.uint64, len(views))
        if not good.all():
            odd.extend(places[~good].tolist())
        sizes = rows[good, _SIZE]
        self._count(file.namespace, places[good], rows[good, _SLOT], sizes, fixed["seconds"][good], keys)
        parents = fixed["parent"] if fixed["parent"].any() else None
        for size in np.unique(sizes):
            members = (good & (rows[:, _SIZE] == size)).nonzero()[0]
            alike = [values[each] for each in members.tolist()]
            yield Apart(places[members], alike, file.namespace, None if parents is None else parents[members])

    def _read_alone(
        self, file: SegmentFile, row: np.ndarray, place: np.ndarray, key: bytes, odd: list[int]
    ) -> Iterator[Found]:
        k, seg, off, head, size, slot, exp = row.tolist()
        try:
            header, payload = read_one(file, Row(k, key, seg, off, head, size, slot, 0, exp, 0))
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


@dataclass(slots=True)
class _Block:
    """Records of one length as they were read."""

    values: np.ndarray
    """`[n, size]`."""
    memory: memoryview
    """Holds the values."""
    value_starts: list[int]
    """Where in it each value begins."""
    fixed: np.ndarray
    """The fixed part of each header, `[n]` of `HEADER_DTYPE`."""
    n_read: int
    """The first so many were read whole."""


def table_of(rows: list[tuple[object, ...]]) -> np.ndarray:
    """Return what the index said as `[n, 7]` int64. Raises `IndexDamagedError` if no rows can be so."""
    try:
        table = np.fromiter(chain.from_iterable(rows), np.int64, 7 * len(rows)).reshape(-1, 7)
    except (TypeError, ValueError, OverflowError) as error:
        raise IndexDamagedError(f"rows make no sense: {error}") from None
    numbers = table[:, _SEG:]
    sane = (numbers >= 0) & (numbers < _FAR)
    sane[:, _EXP - 1] = numbers[:, _EXP - 1] >= 0
    if not sane.all() or (table[:, _HEAD] > 1 << 20).any() or (table[:, _HEAD] < HEADER.size).any():
        raise IndexDamagedError("rows make no sense")
    return table


def _groups(rows: np.ndarray, apart: bool) -> Iterator[tuple[int, int]]:
    """Yield first and last (exclusive) of rows, sorted by segment and offset, that are worth one read.

    Those of a group are all small, or all of middle size; what is larger is a group of its own.
    """
    ends = rows[:, _OFF] + rows[:, _HEAD] + rows[:, _SIZE]
    large = (rows[:, _SIZE] >= APART_BYTES) + (rows[:, _SIZE] > CHUNK_BYTES).astype(np.int8)
    cuts = (rows[1:, _SEG] != rows[:-1, _SEG]) | (rows[1:, _OFF] - ends[:-1] > _GAP_BYTES)
    cuts |= (large[1:] != large[:-1]) | (large[1:] > 1)
    cuts |= rows[1:, _OFF] < ends[:-1]  # records that overlap are damage: each is read on its own, and one fails
    bounds = [0, *(cuts.nonzero()[0] + 1).tolist(), len(rows)]
    offsets = rows[:, _OFF]
    for start, stop in pairwise(bounds):
        first = start
        while first < stop:
            room = _APART_GROUP_BYTES if apart and large[first] else _GROUP_BYTES
            last = int(np.searchsorted(ends[first:stop], offsets[first] + room, "right")) + first
            last = min(max(last, first + 1), first + _GROUP_ROWS)
            yield first, last
            first = last


def _even(file: SegmentFile, rows: np.ndarray) -> list[tuple[np.ndarray, _Block]] | None:
    """Read records of one length at even distances, as `put_sheets` lays them: their memory is a table already."""
    first, head, size = rows[0, _OFF : _SIZE + 1].tolist()
    distances = rows[1:, _OFF] - rows[:-1, _OFF]
    stride = int(distances.min())
    uneven = (rows[:, _SIZE] != size) | (rows[:, _HEAD] != head)
    if uneven.any() or (distances % stride).any() or stride < head + size:
        return None
    n_lines = (int(rows[-1, _OFF]) - first) // stride + 1
    memory = np.empty(n_lines * stride, np.uint8)
    whole = memory.data
    got = os.preadv(file.fd, [whole[: (n_lines - 1) * stride + head + size]], first)
    table = memory.reshape(n_lines, stride)
    starts = rows[:, _OFF] - first
    lines = slice(None) if n_lines == len(rows) else starts // stride
    fixed = np.ascontiguousarray(table[:, : HEADER.size][lines]).view(HEADER_DTYPE)[:, 0]
    values = table[:, head : head + size][lines]
    n_read = int(np.searchsorted(starts + head + size, got, "right"))
    return [(np.arange(len(rows)), _Block(values, whole, (starts + head).tolist(), fixed, n_read))]


def _scattered(file: SegmentFile, rows: np.ndarray) -> list[tuple[np.ndarray, _Block]]:
    """Read neighbours of any lengths: each value to its row of a table, and what lies between them to the side."""
    sizes = rows[:, _SIZE]
    alike = [(sizes == size).nonzero()[0] for size in np.unique(sizes).tolist()]
    tables = [np.empty((len(members), int(sizes[members[0]])), np.uint8) for members in alike]
    targets: list[memoryview] = [memoryview(b"")] * len(rows)
    for members, table in zip(alike, tables, strict=True):
        flat, size = table.reshape(-1).data, table.shape[1]
        for number, member in enumerate(members.tolist()):
            targets[member] = flat[number * size : (number + 1) * size]
    fixed, n_read = _read_into(file, rows, targets)
    out: list[tuple[np.ndarray, _Block]] = []
    for members, table in zip(alike, tables, strict=True):
        size = table.shape[1]
        begins = [number * size for number in range(len(table))]
        whole = int(np.searchsorted(members, n_read))
        out.append((members, _Block(table, table.reshape(-1).data, begins, fixed[members], whole)))
    return out


def _read_into(file: SegmentFile, rows: np.ndarray, targets: Sequence[memoryview]) -> tuple[np.ndarray, int]:
    """Read neighbours: each value to its target, and what lies between them to the side.

    Returns:
        The fixed part of each header, `[n]` of `HEADER_DTYPE`, and how many of the rows, the first ones, were read
        whole.
    """
    first = int(rows[0, _OFF])
    value_at = rows[:, _OFF] + rows[:, _HEAD]
    value_end = value_at + rows[:, _SIZE]
    between = value_at.copy()
    between[1:] -= value_end[:-1]
    between[0] -= first
    ends = between.cumsum()
    heads = np.empty(int(ends[-1]), np.uint8)
    side = heads.data
    stretches: list[memoryview] = []
    start = 0
    for end, target in zip(ends.tolist(), targets, strict=True):
        stretches.append(side[start:end])
        if len(target):
            stretches.append(target)
        start = end
    reached = first + os.preadv(file.fd, stretches, first)
    starts = ends - rows[:, _HEAD]
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
    memory, size, fixed = block.memory, block.values.shape[1], block.fixed
    good = as_expected(file, rows, keys, fixed)
    good[block.n_read :] = False
    sums = [xxh3(memory[begin : begin + size]) for begin in block.value_starts]
    good &= fixed["checksum"] == np.array(sums, np.uint64)
    return good


def as_expected(file: SegmentFile, rows: np.ndarray, keys: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """Return which headers say what the index and the asker know: for `rows` asked for by `keys` (`[n, 32]`)."""
    words = fixed.view("<u8").reshape(-1, HEADER.size // 8)  # fields of fewer bytes compare slowly
    good = (words[:, 1] & _ALL_BUT_PINNED) == _FIRST_WORD
    good &= (words[:, _KEY_WORDS] == keys.view("<u8")).all(axis=1)
    plain = HEADER.size + fixed["meta"].astype(np.int64)
    good &= (fixed["head"] == rows[:, _HEAD]) & (fixed["payload"] == rows[:, _SIZE]) & (plain <= rows[:, _HEAD])
    return good & (fixed["namespace"] == file.namespace_hash)


def sane_seconds(seconds: np.ndarray) -> np.ndarray:
    """Return what headers say that values took to compute, 0 where it makes no sense: no checksum covers it here."""
    return np.where((seconds >= 0) & (seconds < _MOST_SECONDS), seconds, 0.0)


assert APART_BYTES <= CHUNK_BYTES  # such records carry no table of chunk sums
