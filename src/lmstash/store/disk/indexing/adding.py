"""Telling the index of new records: one by one, or of all records of a sheet in one statement.

Making rows from arrays costs less than handing over each of them.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

import apsw

from lmstash.store.base import KEY_BYTES
from lmstash.store.disk.files.rows import COLUMNS, PLACE

PUT = f"INSERT OR REPLACE INTO entries({COLUMNS}) VALUES(?,?,?,?,?,?)"
# The array's rows are numbered from 1.
_ADD_RUN = (
    f"INSERT INTO entries({COLUMNS}) SELECT value, substr(?2, {KEY_BYTES} * (rowid - 1) + 1, {KEY_BYTES}),"
    f" substr(?3, {PLACE.size} * (rowid - 1) + 1, {PLACE.size}), ?4 + rowid - 1, ?5, 0 FROM carray(?1)"
)


class RowRun(NamedTuple):
    """The rows of records that were made together."""

    ids: Sequence[int]
    keys: bytes
    """One after another."""
    places: bytes
    """The same."""
    gen: int
    """Of the first; the others' follow."""
    exp: int
    """Of all."""


def add_rows(connection: apsw.Connection, rows: RowRun) -> bool:
    """Insert rows; returns False where an id is taken already: then the transaction must be given up."""
    try:
        connection.execute(_ADD_RUN, (apsw.carray(array("q", rows.ids)), *rows[1:]))
    except apsw.ConstraintError:
        return False
    return True
