"""The index's write-ahead log, kept short while several processes write without a pause.

SQLite begins the log anew only when a writer finds all of it moved into the database and nobody reading from it. Where
another process always commits between, or reads for long, that does not happen by itself and the log grows: on the
folder's limit, until nothing else fits ("checkpoint starvation", https://www.sqlite.org/wal.html). So a log that is
long is moved and cut while others are held off.
"""

from __future__ import annotations

import random
import time

import apsw

from lmstash.store.disk.folder import Folder

BUSY_SECONDS = 30.0
_LONG = 2
"""A log is long at this many times its size."""
_BRIEF_ATTEMPTS, _PATIENT_ATTEMPTS = 10, 50
"""Ten waits for a lock are about 10 ms, fifty 0.4 s."""
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
        self.cuts = 0
        """How often it was found to be long and cut."""
        connection.set_busy_handler(wait)
        self.keep_to(most_bytes)

    def keep_to(self, most_bytes: int) -> None:
        """Keep the log to another size from now on."""
        if most_bytes != self._most_bytes:
            self._most_bytes = most_bytes
            self._connection.execute(f"PRAGMA journal_size_limit = {most_bytes}")
            self._connection.wal_autocheckpoint(max(16, most_bytes // 4096))

    def is_long(self) -> bool:
        """Whether it takes far more than it usually does."""
        return self._folder.wal_bytes() > _LONG * self._most_bytes

    def cut(self) -> None:
        """Move the log into the database and cut it, once nobody reads or writes; not while somebody goes on to."""
        try:
            self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        except apsw.Error:
            return  # somebody reads or writes: the next one will

    def cut_if_long(self, *, patient: bool = False) -> None:
        """As `cut`, if it is long, waiting for others for 10 ms at most, or 0.4 s."""
        if not self.is_long() or time.monotonic() < self._not_before or self._connection.in_transaction:
            return
        most, started = _PATIENT_ATTEMPTS if patient else _BRIEF_ATTEMPTS, time.monotonic()
        try:
            self._connection.set_busy_handler(lambda attempt: attempt < most and wait(attempt))
            self.cut()
        finally:
            self._connection.set_busy_handler(wait)
        if self.is_long():
            now = time.monotonic()
            self._not_before = now + _PAUSE * (now - started)
        else:
            self.cuts += 1


def wait(attempt: int) -> bool:
    """Wait for a lock: short sleeps with jitter, since a writer holds it for tens of microseconds."""
    delay = min(0.0002 * 1.4 ** min(attempt, 12), 0.01)
    if attempt * 0.006 > BUSY_SECONDS:
        return False
    time.sleep(delay * _jitter.uniform(0.5, 1.5))
    return True
