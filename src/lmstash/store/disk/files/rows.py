"""Rows of the index: where an entry is, what a segment holds, and whether such numbers can be."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

from lmstash.store.disk.files.format import xxh3

OPEN, SEALED = 0, 1
_HALF = 1 << 63
_MOST_HEAD_BYTES = 1 << 20
_MOST_SLOTS = _MOST_SEGMENTS = 1 << 32
FAR = 1 << 48
"""Neither offsets nor sizes come so far."""


class IndexDamagedError(Exception):
    """The database cannot be read as what it should be; it can be rebuilt from the segments."""


SURE_DAMAGE = (IndexDamagedError, UnicodeDecodeError)
"""SQLite says that the index is damaged, or it holds what we never put there."""
DAMAGE = (*SURE_DAMAGE, TypeError, OverflowError, struct.error)
"""What a damaged index may look like too; but so may a caller's mistake, for which nothing is made anew."""


class Row(NamedTuple):
    """Where one entry is."""

    k: int
    key: bytes
    seg: int
    off: int
    head: int
    size: int
    slot: int
    gen: int
    exp: int
    pinned: int

    @property
    def record_bytes(self) -> int:
        """What the record takes in its segment."""
        return -(-(self.head + self.size) // 16) * 16


PLACE = struct.Struct("<IQIQI")
"""Segment, offset, head, size and slot of a row in one column: SQLite strings those of thousands of rows together in a
third of the time that it takes to hand over their numbers."""
ABSENT, EXPIRED, SENSELESS = b"nothing" * 4, b"expired" * 4, b"damaged" * 4
"""What is said in place of one: no damage makes these, and none of them can be a place."""
assert PLACE.size == len(ABSENT)
COLUMNS = "k, key, place, gen, exp, pinned"
"""Of the table of entries."""


class SegmentRow(NamedTuple):
    """One segment as the index knows it."""

    id: int
    name: str
    namespace: str
    state: int
    granted: int
    tail: int
    records: int
    live: int
    live_bytes: int
    first_slot: int
    n_slots: int
    created: float


def sane(row: Row) -> bool:
    """Whether a row's numbers can be what they are said to be; if not, the database is damaged."""
    try:
        return (
            int is type(row.k) is type(row.seg) is type(row.off) is type(row.head) is type(row.size) is type(row.slot)
            and 0 <= row.off < FAR
            and 0 < row.head <= _MOST_HEAD_BYTES
            and 0 <= row.size < FAR
            and 0 <= row.slot < _MOST_SLOTS
            and row.gen >= 0
            and row.exp >= 0
        )
    except TypeError:
        return False


def row_id(key: bytes) -> int:
    """Return the row id of `key`."""
    return xxh3(key) - _HALF


def row_ids(keys: Sequence[bytes]) -> list[int]:
    """Return `row_id` of each."""
    return [xxh3(key) - _HALF for key in keys]


def row_of(found: Sequence[Any]) -> Row:
    """Return what SQLite found as a row, whose numbers may still make no sense. May raise `IndexDamagedError`."""
    k, key, place, gen, exp, pinned = found
    try:
        seg, off, head, size, slot = PLACE.unpack(place)
    except (struct.error, TypeError) as error:
        raise IndexDamagedError(f"a row has no place: {error}") from None
    return Row(k, key, seg, off, head, size, slot, gen, exp, pinned)


def columns_of(row: Row) -> tuple[Any, ...]:
    """Return a row as it is written."""
    return row.k, row.key, place_of(row), row.gen, row.exp, row.pinned


def place_of(row: Row) -> bytes:
    """Return where an entry is, in the form of the index."""
    return PLACE.pack(*row[2:7])


def checked(found: Sequence[Any]) -> Row:
    """Return what SQLite found as a row. Raises `IndexDamagedError` if no row can be so."""
    row = row_of(found)
    if not isinstance(row.key, bytes) or not sane(row):
        raise IndexDamagedError(f"a row makes no sense: {row}")
    return row


def checked_id(segment: int) -> int:
    """Return the row id of a segment. Raises `IndexDamagedError` if no place could name it."""
    if not 0 <= segment < _MOST_SEGMENTS:
        raise IndexDamagedError(f"no segment can be {segment}")
    return segment


def checked_segment(found: Sequence[Any]) -> SegmentRow:
    """Return what SQLite found as a segment's row. Raises `IndexDamagedError` if no segment can be so."""
    row = SegmentRow._make(found)
    sizes = (row.state, row.granted, row.tail, row.records, row.first_slot, row.n_slots)
    if not (
        isinstance(row.name, str)
        and len(row.name) == 32
        and row.name.isalnum()
        and isinstance(row.namespace, str)
        and isinstance(row.created, float)
        and all(isinstance(each, int) and each >= 0 for each in sizes)
        and isinstance(row.id, int)
        and 0 <= row.id < _MOST_SEGMENTS
        and isinstance(row.live, int)
        and isinstance(row.live_bytes, int)
        and row.first_slot + row.n_slots < _MOST_SLOTS
    ):
        raise IndexDamagedError(f"a segment's row makes no sense: {row}")
    return row
