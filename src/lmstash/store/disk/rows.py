"""Rows of the index: where an entry is, what a segment holds, and whether such numbers can be."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

from lmstash.store.disk.format import xxh3

OPEN, SEALED = 0, 1
_HALF = 1 << 63
_MOST_HEAD_BYTES = 1 << 20
_MOST_SLOTS = 1 << 40


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


COLUMNS = ", ".join(Row._fields)
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
            and row.off >= 0
            and 0 < row.head <= _MOST_HEAD_BYTES
            and row.size >= 0
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


def checked(found: Sequence[Any]) -> Row:
    """Return what SQLite found as a row. Raises `IndexDamagedError` if no row can be so."""
    row = Row._make(found)
    if not isinstance(row.key, bytes) or not sane(row):
        raise IndexDamagedError(f"a row makes no sense: {row}")
    return row


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
        and isinstance(row.live, int)
        and isinstance(row.live_bytes, int)
        and row.first_slot + row.n_slots < _MOST_SLOTS
    ):
        raise IndexDamagedError(f"a segment's row makes no sense: {row}")
    return row
