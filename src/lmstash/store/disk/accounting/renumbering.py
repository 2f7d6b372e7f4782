"""Making the file of uses short again, once most of its slots belong to nothing.

Every process maps that file, so it is never cut: who touches a page beyond its end dies. Only a process that alone has
the folder open replaces it by a shorter one, in which the segments have their slots one after another.
"""

from __future__ import annotations

import contextlib
import os
import struct
from typing import Any

import apsw

from lmstash.store.disk.accounting.recency import FIRST_SLOT, SLOT_BYTES, region
from lmstash.store.disk.files.folder import Folder, write_private
from lmstash.store.disk.files.rows import PLACE

_ROWS = 10_000
"""So many are changed at a time."""


def renumber(folder: Folder) -> None:
    """Replace the file of uses by one as short as can be, if nobody has the folder open, this process included.

    What is cut short blurs the order of eviction, and nothing else. A full disk leaves all as it is.
    """
    connection = apsw.Connection(str(folder.index))
    fresh = folder.recency.with_name("recency.new")
    try:
        with contextlib.suppress(apsw.Error, OSError, struct.error, TypeError):  # the latter: damage
            # Others keep a lock on a database with a log for as long as they have it open, and it cannot go meanwhile.
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            if connection.execute("PRAGMA journal_mode = DELETE").get == "delete":
                with connection:
                    write_private(fresh, _moved(connection, folder.recency.read_bytes()))
                os.replace(fresh, folder.recency)
    finally:
        connection.close()
        with contextlib.suppress(OSError):
            os.unlink(fresh)


def _moved(connection: apsw.Connection, cells: bytes) -> bytes:
    """Give the segments slots one after another in the index, and return the cells as they lie then."""
    out = bytearray(cells[: FIRST_SLOT * SLOT_BYTES].ljust(FIRST_SLOT * SLOT_BYTES, b"\0"))
    shifts: dict[int, int] = {}
    found: list[Any] = connection.execute("SELECT id, first_slot, records FROM segments ORDER BY first_slot").fetchall()
    for segment, first, records in found:
        start, n_slots = len(out) // SLOT_BYTES, region(records)
        out += cells[first * SLOT_BYTES : (first + records) * SLOT_BYTES].ljust(n_slots * SLOT_BYTES, b"\0")
        connection.execute("UPDATE segments SET first_slot = ?, n_slots = ? WHERE id = ?", (start, n_slots, segment))
        shifts[segment] = start - first
    _shift(connection, shifts)
    return bytes(out)


def _shift(connection: apsw.Connection, shifts: dict[int, int]) -> None:
    """Add to the slots of the entries of each segment."""
    after, asked = -(2**63), f"SELECT k, place FROM entries WHERE k > ? ORDER BY k LIMIT {_ROWS}"
    found: list[Any] = connection.execute(asked.replace("k > ?", "k >= ?"), (after,)).fetchall()
    while found:
        moved: list[tuple[bytes, int]] = []
        for k, place in found:
            seg, off, head, size, slot = PLACE.unpack(place)
            if shift := shifts.get(seg, 0):
                moved.append((PLACE.pack(seg, off, head, size, slot + shift), k))
        connection.executemany("UPDATE entries SET place = ? WHERE k = ?", moved)
        found = connection.execute(asked, (found[-1][0],)).fetchall()
