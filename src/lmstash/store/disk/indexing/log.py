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
from typing import Protocol

import apsw

from lmstash.store.disk.files.folder import Folder

BUSY_SECONDS = 30.0
_LONG = 2
"""A log is long at this many times its size."""
_PATIENCE_SECONDS = 0.4
"""So long others are waited for to cut a log that is long."""
_PAUSE = 3
"""After an attempt in vain comes none for so many times that: somebody reads for long."""
_jitter = random.Random()
"""A generator of its own: the program's draws what it would draw without a cache."""


class Pauses(Protocol):
    """What all processes know: until when nobody is to try to cut the log, in milliseconds since 1970."""

    def paused_until(self) -> int:
        """Return it."""
        ...

    def pause_until(self, milliseconds: int) -> None:
        """Let all know."""
        ...


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
        self.pauses: Pauses = _OwnPauses()
        """To be replaced by what processes share: each would have its own turn of holding all others up."""
        self._deadline: float | None = None
        """Until when others are waited for, while a log is being cut."""
        connection.set_busy_handler(self._wait)
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
        """Move the log into the database and cut it, waiting 0.4 s at most for who reads or writes.

        They wait, too: SQLite holds the write lock meanwhile. So after an attempt in vain no process tries for a while.
        """
        now, pause = int(time.time() * 1000), int(_PAUSE * _PATIENCE_SECONDS * 1000)
        if now < self.pauses.paused_until() <= now + pause:  # a clock may have been set back
            return
        deadline = time.monotonic() + _PATIENCE_SECONDS
        try:
            for attempt in itertools.count():
                self._deadline = deadline
                try:
                    self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
                    return
                except apsw.BusyError:  # where another moves it just now, SQLite itself never waits
                    if not self._wait(attempt):
                        break
                except apsw.Error:  # the disk is full, say: whoever writes next is told
                    return
        finally:
            self._deadline = None
        self.pauses.pause_until(int(time.time() * 1000) + pause)

    def cut_if_long(self) -> None:
        """As `cut`, if it is long. Before a transaction, which waits for others, too.

        After one would not do: where several processes write without a pause, the next has begun by then.
        """
        self._deadline = None  # an interrupt may have left it
        if self.is_long():
            self.cut()

    def _wait(self, attempt: int) -> bool:
        """Wait for a lock for a while; returns whether to go on."""
        now, deadline = time.monotonic(), self._deadline
        if deadline is not None and now >= deadline:
            return False
        return wait(attempt)


def wait(attempt: int) -> bool:
    """Wait for a lock: short sleeps with jitter, since a writer holds it for tens of microseconds."""
    if attempt * 0.01 > BUSY_SECONDS:
        return False
    time.sleep(min(0.0002 * 1.4 ** min(attempt, 12), 0.01) * _jitter.uniform(0.5, 1.5))
    return True


class _OwnPauses:
    def __init__(self) -> None:
        self._until = 0

    def paused_until(self) -> int:
        return self._until

    def pause_until(self, milliseconds: int) -> None:
        self._until = milliseconds
