"""Where each key is: an SQLite database, through apsw (its SQLite has the fix for the WAL-reset bug).

An entry's row id is a 64-bit hash of its key, so that one b-tree serves look-up and storage; the whole key is kept in
the row and compared. Two keys of one hash displace each other, which costs a miss and never a wrong hit.

One connection reads and one writes, each under its own lock, so that a long write holds up no look-up of this process.
While nothing is being written, look-ups use the one that writes: it keeps its pages when this process commits, and the
other would have to read them again.
"""

from __future__ import annotations

import contextlib
import threading
import time
from array import array
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import apsw

from lmstash.interrupts import held_here
from lmstash.store.disk.files.folder import Folder
from lmstash.store.disk.files.rows import (
    ABSENT,
    COLUMNS,
    EXPIRED,
    PLACE,
    SENSELESS,
    IndexDamagedError,
    Row,
    SegmentRow,
    checked,
    checked_id,
    checked_segment,
    columns_of,
    place_of,
    row_id,
    row_ids,
    row_of,
)
from lmstash.store.disk.guarded import Guarded
from lmstash.store.disk.indexing import schema
from lmstash.store.disk.indexing.adding import PUT, RowRun, add_rows
from lmstash.store.disk.indexing.connection import connect
from lmstash.store.disk.indexing.errors import APPLICATION_ID, Translated, in_our_words
from lmstash.store.disk.indexing.log import IndexLog

_FIND = f"SELECT {COLUMNS} FROM entries WHERE k = ?"
_ASKED = "FROM carray(?) AS asked CROSS JOIN entries ON entries.k = asked.value"
_FIND_MANY = f"SELECT {COLUMNS} {_ASKED}"
_EXPIRIES = f"SELECT key, exp {_ASKED}"
_PLACES = (
    "SELECT CAST(group_concat(CASE WHEN exp = 0 OR exp BETWEEN ?2 AND 0x7fffffffffffffff THEN place"
    f" WHEN exp IS NULL THEN x'{ABSENT.hex()}' WHEN exp BETWEEN 1 AND ?2 THEN x'{EXPIRED.hex()}'"
    f" ELSE x'{SENSELESS.hex()}' END, '') AS BLOB) FROM carray(?1) AS asked LEFT JOIN entries ON k = asked.value"
)
_PAGE = f"SELECT {COLUMNS} FROM entries WHERE k > ? ORDER BY k LIMIT 1000"
_KIB, _BESIDE_KIB = 128 << 10, 16 << 10
"""Of pages that are held, as far as they are used: the index of a million entries is about 100 MiB."""


class Index:
    """The database of one folder. Threads may share it; a forked child must make its own."""

    def __init__(self, folder: Folder, *, read_only: bool = False, log_bytes: int = 4 << 20) -> None:
        """Open the database, making it if it is missing.

        Args:
            folder: Whose database.
            read_only: Never write; on a folder that cannot be written, read what the last checkpoint left.
            log_bytes: About how long the write-ahead log may grow.

        Raises:
            IndexDamagedError: There is a file, but no sound database of ours in it.
            StoreUnavailableError: It cannot be opened.
        """
        self._folder = folder
        self._translated = Translated(folder)
        self._read_only = read_only
        self.on_end: Callable[[bool], None] = lambda committed: None
        """Told after each transaction whether it was committed; may be told twice."""
        self._outcome: bool | None = None
        self.made = False
        """Whether this object made the database, which then knows nothing of older files."""
        self.read_lock = threading.RLock()
        self.write_lock = threading.RLock()
        """Taken before the other one, if both are."""
        self._writing = False
        with self._translated:
            self.reader = connect(folder, _KIB if read_only else _BESIDE_KIB, read_only=read_only)
            self.writer = self.reader if read_only else connect(folder, _KIB)
            self.log = IndexLog(self.writer, folder, log_bytes)
            self._prepare()
        self.inode = folder.index_inode()

    def _prepare(self) -> None:
        version = schema.version_of(self.reader)
        if self._read_only and version == 1:
            schema.see_as_today(self.reader)
            version = schema.SCHEMA_VERSION
        while version in (0, 1) and not self._read_only:  # damage may say anything else
            with self.transaction():
                self.made |= schema.make_some(self.writer)
            version = schema.version_of(self.reader)
        if version != schema.SCHEMA_VERSION or self.reader.execute("PRAGMA application_id").get != APPLICATION_ID:
            raise IndexDamagedError(f"index.db has schema {version}, not {schema.SCHEMA_VERSION}")
        self.reader.execute("SELECT count(*) FROM segments")
        self.reader.execute(_FIND, (0,)).fetchall()

    # --- look-ups -------------------------------------------------------------------------------------------------

    def _quickest(self) -> apsw.Connection:
        """Return the connection to look up with, for as long as the caller holds `read_lock`."""
        return self.reader if self._writing else self.writer

    def find(self, key: bytes) -> Row | None:
        """Return where `key` is."""
        found = self.spot(key)
        return None if found is None else row_of(found)

    def spot(self, key: bytes) -> tuple[Any, ...] | None:
        """As `find`, a little faster: the columns, of which `row_of` makes a row.

        The cursor is a fresh one: of a kept one, what an interrupt or a finalizer comes between would stay open.
        """
        try:
            with self.read_lock:
                found = self._quickest().execute(_FIND, (row_id(key),)).fetchall()
        except apsw.Error as error:
            raise in_our_words(error, self._folder) from error
        return found[0] if found and found[0][1] == key else None

    def find_many(self, keys: Sequence[bytes]) -> dict[bytes, Row]:
        """Return where each key is that is there."""
        with self.read_lock, self._translated:
            return _find_many(self._quickest(), keys)

    def expiries(self, keys: Sequence[bytes]) -> dict[bytes, int]:
        """Return when each key that is there expires (0: never); others may be in it, too."""
        ids = array("q", row_ids(keys))
        with self.read_lock, self._translated:
            return dict(self._quickest().execute(_EXPIRIES, (apsw.carray(ids),))) if ids else {}

    def places(self, ids: Any, now_us: int) -> bytes:
        """Return the `PLACE` of each row id (an int64 array, not empty), or what `rows` has for one, one after another.

        Of a damaged index anything may come. Whoever reads a record compares its key.
        """
        with self.read_lock, self._translated:
            found = self._quickest().execute(_PLACES, (apsw.carray(ids), now_us + 1)).get
        if not isinstance(found, bytes) or len(found) != PLACE.size * len(ids):
            raise IndexDamagedError("rows have no places")
        return found

    def page(self, after: int | None) -> list[Row]:
        """Return up to 1,000 rows whose id follows `after`, in their order."""
        start = -(2**63) if after is None else after
        with self.read_lock, self._translated:
            sql = _PAGE.replace("k > ?", "k >= ?") if after is None else _PAGE
            return list(map(row_of, self.reader.execute(sql, (start,))))

    def rows(self) -> Iterator[Row]:
        """Yield every row, in pages, so that no long read holds up the log."""
        after: int | None = None
        while page := self.page(after):
            yield from page
            after = page[-1].k

    def segment(self, row: int) -> SegmentRow | None:
        """Return one segment."""
        with self.read_lock, self._translated:
            found = self.reader.execute("SELECT * FROM segments WHERE id = ?", (row,)).fetchall()
        return checked_segment(found[0]) if found else None

    def segments(self) -> list[SegmentRow]:
        """Return every segment, oldest first."""
        with self.read_lock, self._translated:
            return [checked_segment(each) for each in self.reader.execute("SELECT * FROM segments ORDER BY id")]

    def segments_for_change(self) -> list[SegmentRow]:
        """As `segments`, as the running transaction sees them."""
        return [checked_segment(each) for each in self.writer.execute("SELECT * FROM segments ORDER BY id")]

    def segment_for_change(self, row: int) -> SegmentRow | None:
        """As `segment`, as the running transaction sees it."""
        found = self.writer.execute("SELECT * FROM segments WHERE id = ?", (row,)).fetchall()
        return checked_segment(found[0]) if found else None

    def newest_segment(self) -> int:
        """Return the largest row id of a segment so far. Inside a transaction."""
        return self.writer.execute("SELECT coalesce(max(id), 0) FROM segments").get

    def promised(self) -> tuple[int, int, int]:
        """Return bytes granted to segments, their number, and granted bytes still unfilled. Inside a transaction."""
        found: Any = self.writer.execute(
            "SELECT coalesce(sum(granted), 0), count(*), coalesce(sum(CASE state WHEN 0 THEN granted - tail END), 0)"
            " FROM segments"
        ).fetchall()[0]
        return found

    def fact(self, name: str) -> Any:
        """Return a fact that concerns the whole store, or None."""
        with self.read_lock, self._translated:
            return self.reader.execute("SELECT value FROM facts WHERE name = ?", (name,)).get

    # --- changes: only inside `transaction()` ---------------------------------------------------------------------

    def is_interrupted(self) -> bool:
        """Whether this thread is changing something, so that who asks is a signal handler or finalizer come between."""
        return held_here(self.write_lock)

    def writing(self) -> Guarded[None]:
        """Use the connection that writes: one thread at a time, no look-up beside, its errors in our words. Nests."""
        return Guarded(self._keep_others_off())

    def _keep_others_off(self) -> Generator[None, None, None]:
        with self.write_lock, self._translated:
            outer = self._writing  # put back, not counted down: an interrupt may come before it is counted up
            try:
                with self.read_lock:  # whoever looks up with it now comes to an end
                    self._writing = True
                yield
            finally:
                self._writing = outer

    def transaction(self) -> Guarded[apsw.Connection]:
        """Run a group of changes that other processes see all at once or not at all. Nests."""
        return Guarded(self._transaction())

    def _transaction(self) -> Generator[apsw.Connection, None, None]:
        with self.writing():
            if self.writer.in_transaction:
                yield self.writer
                return
            self.finish()
            self.log.cut_if_long()
            committing = False
            try:
                self.writer.execute("BEGIN IMMEDIATE")
                yield self.writer
                committing = True
                self.writer.execute("COMMIT")
                self._outcome = True
            except BaseException as error:
                if self.writer.in_transaction:
                    self.writer.execute("ROLLBACK")
                    self._outcome = False
                else:  # an interrupt may come just after the commit
                    self._outcome = committing and not isinstance(error, apsw.Error)
                raise
            finally:
                self.finish()

    def finish(self) -> None:
        """Do what follows from the last transaction's outcome, if an interrupt has kept it from being done."""
        if self._outcome is not None:
            self.on_end(self._outcome)
            self._outcome = None

    def find_for_change(self, keys: Sequence[bytes]) -> dict[bytes, Row]:
        """As `find_many`, as the running transaction sees it."""
        if len(keys) == 1:
            found = self.writer.execute(_FIND, (row_id(keys[0]),)).fetchall()
            return {keys[0]: checked(found[0])} if found and found[0][1] == keys[0] else {}
        return _find_many(self.writer, keys, checked)

    def occupants(self, ids: Sequence[int]) -> list[Row]:
        """Return the rows that have these ids, whatever their keys, as the running transaction sees them."""
        if len(ids) == 1:
            return [checked(each) for each in self.writer.execute(_FIND, (ids[0],))]
        return [checked(each) for each in self.writer.execute(_FIND_MANY, (apsw.carray(array("q", ids)),))]

    def add_rows(self, rows: RowRun) -> bool:
        """Insert rows; returns False where an id is taken already: then the transaction must be given up."""
        return add_rows(self.writer, rows)

    def put_rows(self, rows: Sequence[Row]) -> None:
        """Insert or replace rows."""
        if len(rows) == 1:
            self.writer.execute(PUT, columns_of(rows[0]))
        elif rows:
            self.writer.executemany(PUT, map(columns_of, rows))

    def move_rows(self, rows: Sequence[Row], fresh: Sequence[Row]) -> None:
        """Point rows elsewhere, as far as they are where they were."""
        moves = [(place_of(new), old.k, place_of(old)) for old, new in zip(rows, fresh, strict=True)]
        self.writer.executemany("UPDATE entries SET place = ? WHERE k = ? AND place = ?", moves)

    def delete_rows(self, rows: Sequence[Row]) -> None:
        """Remove rows and what they counted for in their segments."""
        if rows:
            ids = apsw.carray(array("q", sorted(row.k for row in rows)))
            self.writer.execute("DELETE FROM entries WHERE k IN (SELECT value FROM carray(?))", (ids,))
            self.discount(rows)

    def discount(self, rows: Sequence[Row]) -> None:
        """Take rows that are no longer live out of their segments' counts."""
        totals: dict[int, list[int]] = {}
        for row in rows:
            total = totals.setdefault(row.seg, [0, 0])
            total[0] += 1
            total[1] += row.record_bytes
        self.writer.executemany(
            "UPDATE segments SET live = live - ?, live_bytes = live_bytes - ? WHERE id = ?",
            [(n, nbytes, seg) for seg, (n, nbytes) in totals.items()],
        )

    def rows_of_segment(self, row: int) -> list[Row]:
        """Return a segment's rows by reading the whole table: for segments whose own list is lost."""
        start = row.to_bytes(4, "little")
        found = self.writer.execute(f"SELECT {COLUMNS} FROM entries WHERE substr(place, 1, 4) = ?", (start,))
        return list(map(checked, found))

    def live_entries(self) -> int:
        """Return how many entries there are. Inside a transaction."""
        return self.writer.execute("SELECT coalesce(sum(live), 0) FROM segments").get

    def add_segment(
        self, name: str, namespace: str, state: int, granted: int, tail: int, first_slot: int, n_slots: int
    ) -> int:
        """Insert a segment and return its row id."""
        self.writer.execute(
            "INSERT INTO segments(name, namespace, state, granted, tail, first_slot, n_slots, created,"
            " records, live, live_bytes) VALUES(?,?,?,?,?,?,?,?,0,0,0)",
            (name, namespace, state, granted, tail, first_slot, n_slots, time.time()),
        )
        return checked_id(self.writer.last_insert_rowid())

    def advance_segment(self, row: int, tail: int, records: int, live: int, live_bytes: int) -> bool:
        """Note what was appended to a segment; returns whether the segment is still there."""
        self.writer.execute(
            "UPDATE segments SET tail = ?, records = ?, live = live + ?, live_bytes = live_bytes + ? WHERE id = ?",
            (tail, records, live, live_bytes, row),
        )
        return self.writer.changes() == 1

    def set_fact(self, name: str, value: Any) -> None:
        """Record a fact that concerns the whole store."""
        self.writer.execute("INSERT OR REPLACE INTO facts VALUES(?, ?)", (name, value))

    # --- upkeep ---------------------------------------------------------------------------------------------------

    def moved(self) -> bool:
        """Whether the file at the index's path is no longer the one that is open."""
        return self._folder.index_inode() != self.inode

    def sync(self) -> None:
        """Return once every committed change is on the medium."""
        with self.writing():
            self.writer.execute("PRAGMA synchronous = FULL")
            try:
                with self.transaction():
                    self.set_fact("flushed", time.time())
            finally:
                self.writer.execute("PRAGMA synchronous = NORMAL")

    def checkpoint(self) -> None:
        """Move the log into the database and cut it, if nobody is reading."""
        with self.writing():
            self.log.cut()

    def page_bytes(self) -> tuple[int, int]:
        """Return what the database's pages take, log aside, and what those take in which nothing is."""
        asked = ("page_size", "page_count", "freelist_count")
        with self.writing():
            size, count, free = (int(self.writer.execute(f"PRAGMA {each}").get) for each in asked)
        return size * count, size * free

    def compact(self) -> None:
        """Give back pages that are empty or half empty; not on a full disk. Costs a second for a million entries."""
        with self.writing(), contextlib.suppress(apsw.Error):
            self.writer.execute("VACUUM")
            self.log.cut()

    def close(self) -> None:
        """Close both connections."""
        with self.writing(), self.read_lock:
            self.writer.close()
            self.reader.close()

    def check(self) -> None:
        """Raise `IndexDamagedError` if the database is not whole. Reads all of it: a second for a million entries."""
        with self._translated, self.read_lock:
            [(found,)] = self.reader.execute("PRAGMA quick_check(1)").fetchall()
        if found != "ok":
            raise IndexDamagedError(f"index.db is not whole: {found}")


def _find_many(
    connection: apsw.Connection, keys: Sequence[bytes], make: Callable[[Sequence[Any]], Row] = row_of
) -> dict[bytes, Row]:
    asked = {key for key in keys if isinstance(key, bytes)}
    ids = array("q", [row_id(key) for key in asked])
    if not ids:
        return {}
    found = connection.execute(_FIND_MANY, (apsw.carray(ids),))
    return {row[1]: make(row) for row in found if row[1] in asked}
