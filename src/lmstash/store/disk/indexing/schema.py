"""The tables of the index, and how those of an earlier schema become them.

In schema 1 the numbers of `rows.PLACE` were columns of their own.
"""

from __future__ import annotations

import apsw

from lmstash.store.disk.files.rows import PLACE, IndexDamagedError
from lmstash.store.disk.indexing.errors import APPLICATION_ID

SCHEMA_VERSION = 2

_ENTRIES = """
CREATE TABLE entries(
    k INTEGER PRIMARY KEY, key BLOB NOT NULL, place BLOB NOT NULL, gen INTEGER NOT NULL, exp INTEGER NOT NULL,
    pinned INTEGER NOT NULL);
"""
_ALL = f"""
CREATE TABLE segments(
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, namespace TEXT NOT NULL, state INTEGER NOT NULL,
    granted INTEGER NOT NULL, tail INTEGER NOT NULL, records INTEGER NOT NULL, live INTEGER NOT NULL,
    live_bytes INTEGER NOT NULL, first_slot INTEGER NOT NULL, n_slots INTEGER NOT NULL, created REAL NOT NULL);
{_ENTRIES}
CREATE TABLE facts(name TEXT PRIMARY KEY, value) WITHOUT ROWID;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""
_OF_1 = "SELECT k, key, place(seg, off, head, size, slot) AS place, gen, exp, pinned FROM"
_ROWS = 4096
"""So many are taken over at a time, in a transaction of their own: the log stays short."""


def version_of(connection: apsw.Connection) -> int:
    """Return a database's schema; 0 where there is none yet."""
    return connection.execute("PRAGMA user_version").get


def make_some(connection: apsw.Connection) -> bool:
    """Make the tables, or some of today's rows of those of an earlier schema; returns whether there were no tables.

    To be called, in transactions of its own, until the version is today's. Takes 3 us an entry of an earlier schema.

    Raises:
        IndexDamagedError: It is another program's database, or out of order.
    """
    version = version_of(connection)
    if version == 0:
        if connection.execute("SELECT count(*) FROM sqlite_schema").get:
            raise IndexDamagedError("index.db is another program's database")
        connection.execute(_ALL)
    elif version == 1:
        _name_places(connection)
        if not _is_under_way(connection):
            connection.execute(f"ALTER TABLE entries RENAME TO older; {_ENTRIES}")
        last: int | None = connection.execute(f"SELECT max(k) FROM (SELECT k FROM older ORDER BY k LIMIT {_ROWS})").get
        if last is None:
            connection.execute(f"DROP TABLE older; PRAGMA user_version = {SCHEMA_VERSION}")
        else:
            connection.execute(f"INSERT OR REPLACE INTO entries {_OF_1} older WHERE k <= ?", (last,))
            connection.execute("DELETE FROM older WHERE k <= ?", (last,))  # the new rows take their pages
            if not connection.changes():  # or it would never end
                raise IndexDamagedError("rows of an earlier schema cannot be removed")
    return version == 0


def see_as_today(connection: apsw.Connection) -> None:
    """Have a connection that only reads see the tables of schema 1 as those of today."""
    _name_places(connection)
    some = "SELECT * FROM main.entries UNION ALL " if _is_under_way(connection) else ""
    table = "older" if some else "entries"
    connection.execute(f"CREATE TEMP VIEW entries AS {some}{_OF_1} main.{table}")


def is_outdated(connection: apsw.Connection) -> bool:
    """Whether somebody has taken over the tables that `see_as_today` was for. Does not raise."""
    try:
        viewed = connection.execute("SELECT count(*) FROM sqlite_temp_schema WHERE name = 'entries'").get
        return viewed > 0 and version_of(connection) != 1
    except apsw.Error:
        return False


def _is_under_way(connection: apsw.Connection) -> bool:
    """Return whether somebody has begun to take rows over, and has not ended."""
    return connection.execute("SELECT count(*) FROM main.sqlite_schema WHERE name = 'older'").get > 0


def _name_places(connection: apsw.Connection) -> None:
    connection.create_scalar_function("place", PLACE.pack, 5)
