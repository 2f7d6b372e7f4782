"""Single flight: of all who ask the same at one time, one computes, and the others get that answer.

Threads and tasks of one process wait for a future. Processes that share a folder hold a lock on one byte of a file, the
byte that the key names: no lock is left behind by a process that dies, and no file is needed for a key (byte-range
locks of open files, `F_OFD_SETLK` of Linux; elsewhere `lockf`). There are 32 files, since for each the kernel looks at
all of a file's locks: 4,096 in one file cost 55 us each, in 32 files 5.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import struct
import threading
import weakref
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final

from lmstash.forks import renew_after_fork

_FILES = 32
_FLOCK = struct.Struct("hhqqi4x")
_OFD_SETLK = getattr(fcntl, "F_OFD_SETLK", None)

ABANDONED: Final = b""
"""What those who wait get where the computation was called off, not tried in vain: they may lead it now."""


class Work:
    """What one call of the host's function computes: one flight, or those of a batch.

    Attributes:
        size: How many flights.
        waited_in_vain: How many seconds somebody has waited for one of them, and then gave up.
        pools: Pools of threads (the `id` of what stands for each) that work for this call, and wait for its flights.
        told: Whether the log says that it is waited for.
    """

    __slots__ = ("pools", "size", "told", "waited_in_vain")

    def __init__(self, size: int) -> None:
        """Nobody waits yet."""
        self.size = size
        self.waited_in_vain = 0.0
        self.pools: set[int] = set()
        self.told = False


class Flight:
    """One computation under way.

    Attributes:
        landed: For those who wait: what it gave, encoded; None where they have to compute for themselves; `ABANDONED`.
        work: The call that computes it, while that runs.
    """

    __slots__ = ("_loop", "key", "landed", "locked", "thread", "work")

    def __init__(self, key: bytes) -> None:
        """Belongs to the calling thread."""
        self.key = key
        self.landed: Future[bytes | None] | None = None
        self.locked = False
        self.thread = threading.get_ident()
        self.work: Work | None = None
        # Weakly, or a task that nobody goes on with would never be collected, which ends its flight.
        loop = asyncio._get_running_loop()
        self._loop: weakref.ref[asyncio.AbstractEventLoop] | None = None
        if loop is not None:
            with contextlib.suppress(TypeError):  # a loop of somebody's that bears no such reference
                self._loop = weakref.ref(loop)

    def is_of(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether it was begun in this event loop."""
        return self._loop is not None and self._loop() is loop

    def is_halted(self) -> bool:
        """Whether it was begun in an event loop that does not run: a task of it does not go on."""
        loop = None if self._loop is None else self._loop()
        return self._loop is not None and (loop is None or not loop.is_running())

    def own(self) -> bool:
        """Whether to wait for it would be to wait for oneself: it waits for what runs here."""
        return self in _computing.get()


@contextlib.contextmanager
def computing(flights: Iterable[Flight]) -> Iterator[None]:
    """Say that what is called within, and the tasks that it starts, compute for these flights."""
    mine = frozenset(flights)
    work = Work(len(mine))
    for each in mine:
        each.work = work
    _computing.set(_computing.get() | mine)
    try:
        yield
    finally:  # a generator may be closed elsewhere than it ran, so what was set before is not put back
        _computing.set(_computing.get() - mine)


class Flights:
    """All computations under way over one store. Threads may share it; a forked child starts with none."""

    def __init__(self, folder: Path | None) -> None:
        """Share with the processes that use `folder`, if there is one."""
        self._folder = folder
        self._fds: list[int] = [-1] * _FILES
        self._aloft: dict[bytes, Flight] = {}
        self._lock = threading.RLock()  # a signal handler may ask in the middle of it
        _alive.add(self)
        renew_after_fork(self, _lock=threading.RLock)

    def join(self, key: bytes) -> tuple[Flight, bool]:
        """Return the flight of a key, and whether the caller leads it (then it must `end` it; else it may wait)."""
        with self._lock:
            flight = self._aloft.get(key)
            if flight is not None:
                if flight.landed is None:
                    flight.landed = Future()
                return flight, False
            flight = self._aloft[key] = Flight(key)
            return flight, True

    def lock(self, flight: Flight) -> bool:
        """Keep other processes from computing the same; returns whether none does."""
        if self._folder is None or flight.locked:
            return True
        try:
            flight.locked = self._set(flight.key, fcntl.F_WRLCK)
        except OSError:  # no room, no permission, a file system without locks: each process for itself
            return True
        return flight.locked

    def end(self, flight: Flight, answer: bytes | None = None) -> None:
        """Tell those who wait. What is to be kept must be kept by now."""
        with self._lock:
            if self._aloft.get(flight.key) is flight:
                del self._aloft[flight.key]
        if flight.locked:
            flight.locked = False
            with contextlib.suppress(OSError):
                self._set(flight.key, fcntl.F_UNLCK)
        if flight.landed is not None and not flight.landed.done():
            flight.landed.set_result(answer)

    def _set(self, key: bytes, kind: int) -> bool:
        file, place = key[7] % _FILES, int.from_bytes(key[:7], "big")
        fd = self._fds[file]
        if fd < 0:
            fd = self._open(file)
        try:
            if _OFD_SETLK is not None:
                fcntl.fcntl(fd, _OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, place, 1, 0))
            else:
                flags = fcntl.LOCK_UN if kind == fcntl.F_UNLCK else fcntl.LOCK_EX | fcntl.LOCK_NB
                fcntl.lockf(fd, flags, 1, place)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _open(self, file: int) -> int:
        with self._lock:
            if self._fds[file] < 0:
                assert self._folder is not None
                path = self._folder / f"flights-{file:02}.lock"
                self._fds[file] = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            return self._fds[file]

    def _after_fork(self) -> None:
        # The parent's locks are its own: the child's copies of the descriptors would outlive them.
        self._close()
        self._aloft = {}

    def _close(self) -> None:
        fds, self._fds = self._fds, [-1] * _FILES
        for fd in fds:
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)

    def __del__(self) -> None:
        self._close()


def flights_of(store: Any) -> Flights:
    """Return the flights over a store: all who use this object share them."""
    with _making:
        found = _by_store.get(store)
        if found is None:
            folder = getattr(store, "folder_path", None)
            writable = folder is not None and not getattr(store, "read_only", False)
            found = _by_store[store] = Flights(folder if writable else None)
        return found


_computing: ContextVar[frozenset[Flight]] = ContextVar("lmstash flights", default=frozenset())
_by_store: weakref.WeakKeyDictionary[Any, Flights] = weakref.WeakKeyDictionary()
_alive: weakref.WeakSet[Flights] = weakref.WeakSet()
_making = threading.RLock()


def _after_fork() -> None:
    global _making
    _making = threading.RLock()
    for each in list(_alive):
        each._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
