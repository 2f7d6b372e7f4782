"""The tables of the index, and how those of an earlier schema become them.

In schema 1 the numbers of `rows.PLACE` were columns of their own.
"""

from __future__ import annotations

import apsw

from lmstash.store.disk.index_errors import APPLICATION_ID
from lmstash.store.disk.rows import PLACE, IndexDamagedError

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
_FROM_1 = f"""
ALTER TABLE entries RENAME TO older;
{_ENTRIES}
INSERT INTO entries {_OF_1} older ORDER BY k;
DROP TABLE older;
PRAGMA user_version = {SCHEMA_VERSION};
"""


def version_of(connection: apsw.Connection) -> int:
    """Return a database's schema; 0 where there is none yet."""
    return connection.execute("PRAGMA user_version").get


def make(connection: apsw.Connection) -> bool:
    """Make the tables, or of earlier ones those of today; returns whether there were none. Inside a transaction.

    Those of an earlier schema take 3 us an entry, and the log grows by all of them.

    Raises:
        IndexDamagedError: It is another program's database, or earlier rows make no sense.
    """
    version = version_of(connection)
    if version == 0:
        if connection.execute("SELECT count(*) FROM sqlite_schema").get:
            raise IndexDamagedError("index.db is another program's database")
        connection.execute(_ALL)
    elif version == 1:
        _name_places(connection)
        connection.execute(_FROM_1)
    return version == 0


def see_as_today(connection: apsw.Connection) -> None:
    """Have a connection that only reads see the tables of schema 1 as those of today."""
    _name_places(connection)
    connection.execute(f"CREATE TEMP VIEW entries AS {_OF_1} main.entries")


def _name_places(connection: apsw.Connection) -> None:
    connection.create_scalar_function("place", PLACE.pack, 5)
