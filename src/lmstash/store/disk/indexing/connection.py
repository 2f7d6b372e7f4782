"""How a connection to the index's database is made."""

from __future__ import annotations

import os

import apsw

from lmstash.store.disk.files.folder import Folder
from lmstash.store.disk.indexing.log import wait


def connect(folder: Folder, cached_kib: int, *, read_only: bool = False) -> apsw.Connection:
    """Open a folder's database.

    Args:
        folder: Whose.
        cached_kib: How much of its pages is held, as far as they are used.
        read_only: Never write.

    Raises:
        apsw.Error: It cannot be opened.
    """
    path = str(folder.index)
    if not read_only:
        connection = apsw.Connection(path)
        os.chmod(path, 0o600)
        connection.set_busy_handler(wait)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
    else:
        flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
        uri = "file:" + path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
        try:
            connection = apsw.Connection(uri, flags=flags)
            connection.set_busy_handler(wait)
            connection.execute("SELECT count(*) FROM segments").fetchall()
        except (apsw.CantOpenError, apsw.IOError, apsw.ReadOnlyError, apsw.FullError):
            # A log needs a file beside it, which a full or read-only disk refuses: read what is checkpointed.
            # Rows that are out of date are caught by the records' own keys and checksums.
            connection = apsw.Connection(uri + "?immutable=1", flags=flags)
    connection.execute(f"PRAGMA cache_size = -{cached_kib}")
    connection.execute("PRAGMA temp_store = MEMORY")
    return connection
