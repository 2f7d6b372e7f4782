"""The index's write-ahead log, kept short while several processes write without a pause.

SQLite begins the log anew only when a writer finds all of it moved into the database and nobody reading from it. Where
another process always commits between, or reads for long, that does not happen by itself and the log grows: on the
folder's limit, until nothing else fits ("checkpoint starvation", https://www.sqlite.org/wal.html). So a log that is
long is moved and cut while others are held off.
"""

from __future__ import annotations

import itertools
import random
import time

import apsw

from lmstash.store.disk.folder import Folder

BUSY_SECONDS = 30.0
_LONG = 2
"""A log is long at this many times its size."""
_ATTEMPTS = 50
"""So many waits for a lock are about 0.4 s."""
_PAUSE = 3
"""After an attempt in vain comes none for so many times what it took: somebody reads for long."""
_jitter = random.Random()
"""A generator of its own: the program's draws what it would draw without a cache."""


class IndexLog:
    """The log of one database. The caller holds the lock of the connection."""

    def __init__(self, connection: apsw.Connection, folder: Folder, most_bytes: int) -> None:
        """Keep the log to a size.

        Args:
            connection: Writes the database.
            folder: Whose log it is.
            most_bytes: What it usually takes; more where one transaction writes more.
        """
        self._connection = connection
        self._folder = folder
        self._most_bytes = 0
        self._not_before = 0.0
        connection.set_busy_handler(wait)
        self.keep_to(most_bytes)

    def keep_to(self, most_bytes: int) -> None:
        """Keep the log to another size from now on."""
        if most_bytes != self._most_bytes:
            self._most_bytes = most_bytes
            self._connection.execute(f"PRAGMA journal_size_limit = {most_bytes}")
            self._connection.wal_autocheckpoint(max(16, most_bytes // 4096))

    def _is_long(self) -> bool:
        """Whether it takes far more than it usually does."""
        return self._folder.wal_bytes() > _LONG * self._most_bytes

    def cut(self) -> bool:
        """Move the log into the database and cut it; returns whether somebody who reads or writes was in the way."""
        try:
            self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        except apsw.BusyError:
            return True
        except apsw.Error:
            pass  # the disk is full, say: whoever writes next is told
        return False

    def begin(self) -> None:
        """Begin a transaction, on a log that is not long if others let it be cut: they are waited for 0.4 s at most.

        Not after a transaction: where several processes write without a pause, the next has begun by then.
        """
        self._connection.execute("BEGIN IMMEDIATE")
        if self._is_long() and time.monotonic() >= self._not_before:  # only now is nobody making it longer
            self._connection.execute("ROLLBACK")
            self._cut_patiently()
            self._connection.execute("BEGIN IMMEDIATE")

    def _cut_patiently(self) -> None:
        started, attempts = time.monotonic(), itertools.count()

        def wait_a_little(_attempt: int = 0) -> bool:
            attempt = next(attempts)
            return attempt < _ATTEMPTS and wait(attempt)

        try:
            self._connection.set_busy_handler(wait_a_little)
            while self.cut() and self._is_long() and wait_a_little():
                pass  # another moves it just now, for which SQLite itself never waits
        finally:
            self._connection.set_busy_handler(wait)
        if self._is_long():
            now = time.monotonic()
            self._not_before = now + _PAUSE * (now - started)


def wait(attempt: int) -> bool:
    """Wait for a lock: short sleeps with jitter, since a writer holds it for tens of microseconds."""
    delay = min(0.0002 * 1.4 ** min(attempt, 12), 0.01)
    if attempt * 0.006 > BUSY_SECONDS:
        return False
    time.sleep(delay * _jitter.uniform(0.5, 1.5))
    return True
