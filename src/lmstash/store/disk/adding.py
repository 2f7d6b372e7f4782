"""Telling the index of new records: row by row, or of many that lie at even distances in one statement.

Making the rows of a sheet from an array of ids and a dozen numbers costs less than handing over each row.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import apsw

from lmstash.store.disk.rows import COLUMNS

_ADD = f"INSERT INTO entries({COLUMNS}) VALUES(?,?,?,?,?,?,?,?,?,?)"
PUT = _ADD.replace("INSERT", "INSERT OR REPLACE")
# The array's rows are numbered from 1.
_ADD_RUN = (
    f"INSERT INTO entries({COLUMNS}) SELECT value, substr(?2, 32 * rowid - 31, 32), ?3,"
    " ?4 + (rowid - 1) * ?5 - iif(rowid = 1, ?6, ?7), iif(rowid = 1, ?6, ?7), ?8, ?9 + rowid - 1, ?10 + rowid - 1,"
    " ?11, 0 FROM carray(?1)"
)
_id = itemgetter(0)


class RowRun(NamedTuple):
    """The rows of records that lie side by side, with their payloads at even distances."""

    ids: Sequence[int]
    keys: bytes
    """One after another."""
    seg: int
    payload: int
    """Where the first one begins."""
    stride: int
    """From each to the next."""
    first_head: int
    """What lies before the first payload, from where its record begins."""
    head: int
    """The same for all others."""
    size: int
    slot: int
    """Of the first; the others' follow."""
    gen: int
    """The same."""
    exp: int


def add_rows(connection: apsw.Connection, rows: Sequence[tuple[Any, ...]] | RowRun) -> bool:
    """Insert rows; returns False where an id is taken already: then the transaction must be given up."""
    try:
        if isinstance(rows, RowRun):
            connection.execute(_ADD_RUN, (apsw.carray(array("q", rows.ids)), *rows[1:]))
        else:
            connection.executemany(_ADD, sorted(rows, key=_id))  # neighbours in the table one after another
    except apsw.ConstraintError:
        return False
    return True
