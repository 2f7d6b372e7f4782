"""The next read of a file under way while the last one is used, without threads: asynchronous I/O (`io_submit(2)`).

A read around the page cache goes on by itself while the caller checks what has come. A thread that reads meanwhile
would do so too, but is woken too late for the few milliseconds that some megabytes take.

Many disks of virtual machines tell of all that they were asked only when they have done it all, even of what was asked
meanwhile. So reads are begun in groups, the next once the last is there, and each is three quarters of what is left: it
takes such a disk longer than the checks of the group before, and little is left to check when nothing is under way.

While reads are under way the kernel writes to the caller's memory, so whatever interrupts waits for them first.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Generator, Sequence

from lmstash.store.disk.reading.checked import fill

_CALLS = {"x86_64": (206, 207, 208, 209), "aarch64": (0, 1, 4, 2)}
"""Numbers of io_setup, io_destroy, io_getevents and io_submit."""
_MOST = 32
"""So many reads are under way at most."""
_IDLE = 8
_ASKED = struct.Struct("=QIIHhIQQqQII")
"""`struct iocb`: the number of the piece, ..., descriptor, address, length, offset, ..."""
_TOLD = struct.Struct("=QQqq")
"""`struct io_event`: the number of the piece, ..., bytes read or a negative error, ..."""
_idle: list[Reads] = []
_held: dict[Reads, memoryview] = {}
"""Memory that reads may be under way to: whatever happens, it stays until they have ended."""
_refused: list[bool] = []


class Reads:
    """A queue of reads. For one thread at a time, and for the process that made it.

    Raises:
        OSError: The kernel gives none, now or ever.
    """

    def __init__(self) -> None:
        self._process = os.getpid()
        self._calls = _CALLS[platform.machine()]
        self._library = ctypes.CDLL(None, use_errno=True)
        self._library.syscall.restype = ctypes.c_long
        self._asked = ctypes.create_string_buffer(_ASKED.size * _MOST)
        first = ctypes.addressof(self._asked)
        self._pointers = (ctypes.c_void_p * _MOST)(*range(first, first + len(self._asked) - 1, _ASKED.size))
        self._told = ctypes.create_string_buffer(_TOLD.size * _MOST)
        self._queue = ctypes.c_void_p()
        self._call(0, ctypes.c_long(_MOST), ctypes.byref(self._queue))

    def in_order(
        self, fd: int, offset: int, memory: memoryview, bounds: Sequence[int], least_bytes: int
    ) -> Generator[int]:
        """Read from `offset` on into memory, in pieces; yields the number of each in their order, once it is there.

        The queue is given back with the last piece; to let go of the iterator before ends the queue.

        Args:
            fd: Opened with `O_DIRECT`, whose rules for offsets, lengths and memory the pieces keep.
            offset: Where in the file the memory begins.
            memory: To read into.
            bounds: Where in memory the pieces begin, and where the last one ends.
            least_bytes: The file may end here, though it is read on to the end of the memory.

        Raises:
            CorruptEntryError: The file ends before.
            OSError: The disk failed.
        """
        n, started, under_way, mine = len(bounds) - 1, 0, 0, True
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        read: dict[int, int] = {}
        _held[self] = memory
        try:
            for number in range(n):
                while True:
                    if number not in read or started < n:  # the next group begins also while there is one to yield
                        for each, n_bytes in self._arrived(wait=number not in read) if under_way else ():
                            read[each] = n_bytes
                            under_way -= 1
                    if not under_way and started < n:
                        last = started + min(max(1, (n - started) * 3 // 4), _MOST)
                        under_way = self._start(fd, offset, address, bounds, started, last)
                        read.update(dict.fromkeys(range(started + under_way, last), 0))  # the kernel takes no more
                        started = last
                    if number in read:
                        break
                first, last = bounds[number], min(bounds[number + 1], least_bytes)
                if read.pop(number) < last - first:  # once more, for it to go on or say what is wrong
                    fill(fd, memory[first : bounds[number + 1]], offset + first, last - first)
                if number == n - 1:
                    self._give_back()
                    mine = False
                yield number
        except BaseException:
            if mine:
                self._end()
            raise

    def _start(self, fd: int, offset: int, address: int, bounds: Sequence[int], first: int, last: int) -> int:
        """Begin to read some pieces; returns how many of them are under way now."""
        for place, number in enumerate(range(first, last)):
            start, end = bounds[number], bounds[number + 1]
            where = address + start, end - start, offset + start
            _ASKED.pack_into(self._asked, place * _ASKED.size, number, 0, 0, 0, 0, fd, *where, 0, 0, 0)
        try:
            return self._call(3, self._queue, ctypes.c_long(last - first), self._pointers)
        except OSError:  # each is read in its turn then
            return 0

    def _arrived(self, *, wait: bool) -> list[tuple[int, int]]:
        """Return the numbers of the pieces that are there and how many bytes were read; waits for one if asked."""
        while True:
            try:
                n = self._call(2, self._queue, ctypes.c_long(wait), ctypes.c_long(_MOST), self._told, None)
            except OSError as error:
                if error.errno != errno.EINTR:
                    raise
            else:
                return [_TOLD.unpack_from(self._told, at * _TOLD.size)[0:3:2] for at in range(n)]

    def _give_back(self) -> None:
        """Let the next one have this queue; nothing is under way."""
        del _held[self]
        if len(_idle) < _IDLE:
            _idle.append(self)
        else:
            self._end()

    def _end(self) -> None:
        """Wait for all that is under way, and be no queue any more."""
        if self._process == os.getpid() and self._queue:
            self._call(1, self._queue)
            self._queue = ctypes.c_void_p()
        _held.pop(self, None)  # whatever interrupts before leaves the memory alone

    def __del__(self) -> None:  # of one whose memory is held nobody lets go
        with contextlib.suppress(AttributeError, TypeError, OSError):
            self._end()

    def _call(self, which: int, *arguments: object) -> int:
        found: int = self._library.syscall(ctypes.c_long(self._calls[which]), *arguments)
        if found < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return found


def reads() -> Reads | None:
    """Return a queue of reads to use once, or None where the system has none now. Costs 0.1 ms the first time."""
    if _refused or not sys.platform.startswith("linux") or platform.machine() not in _CALLS:
        return None
    if ctypes.sizeof(ctypes.c_void_p) != 8:  # a program of 32 bits has other numbers
        return None
    try:
        return _idle.pop()
    except IndexError:
        pass
    try:
        return Reads()
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.ENOMEM):  # too many in use; else not known, or not allowed
            _refused.append(True)
        return None


def _after_fork() -> None:
    _idle.clear()  # the parent's
    _held.clear()  # nothing reads into the child's memory


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
