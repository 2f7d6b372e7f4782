"""Has memory been written to? The kernel is asked (Linux 6.7 and later), in place of reading all of it again.

By userfaultfd's asynchronous write protection: pages are marked, whoever writes to one lifts its mark (a fault of a
microsecond, which the kernel settles alone), and the ioctl `PAGEMAP_SCAN` says whether any mark is gone: in a
millisecond for half a gigabyte. Documented in the kernel's `admin-guide/mm/userfaultfd.rst` and `pagemap.rst`.

Marks lie on a process's own pages, so memory that somebody can write to by another way is never watched: shared, of a
file that is not at rest (see `mappings`), or pinned for a device. Where the kernel does not know it, forbids it (as
Docker does by default), or fails a trial, nothing is watched.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import platform
import struct
import threading
import time
import weakref
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path

from lmstash.identity.memory.mappings import Backing, NotPrivateError, Range, has_pins, process_status

_SYSCALLS = {"x86_64": 323, "aarch64": 282}
_USER_MODE_ONLY = 1
_WP_UNPOPULATED, _WP_ASYNC = 1 << 13, 1 << 15
_API, _REGISTER = 0xC018AA3F, 0xC020AA00
_MODE_WP = 1 << 1
_SCAN = 0xC0606610
_MARK, _ONLY_WATCHED = 1 << 0, 1 << 1
_WRITTEN, _FILE, _PRESENT = 1 << 1, 1 << 2, 1 << 3
_SCAN_WORDS = struct.Struct("=12Q")
_REGION = struct.Struct("=3Q")
_REGIONS = 256
_MOST_RANGES = 4096
_PATIENCE_SECONDS = 10.0


class WrittenPages:
    """Tells whether memory was written to since it was last marked. For one thread at a time.

    It says nothing of what the memory holds: to rely on that, mark it, and read it afterwards.

    Args:
        ranges: Whole pages, by rising address, which must stay allocated.
    """

    def __init__(self, ranges: Sequence[Range]) -> None:
        self._ranges = [each for each in ranges if each[0] < each[1]]
        self._starts = [start for start, _end in self._ranges]
        self._backing: Backing | None = None
        self._state: bool | None = None
        """As `written` has it: None while nothing is marked, True from when a page is known to be written to."""
        self._not_before = 0.0
        """When to try again, by the monotonic clock, after memory could not be watched: finding out costs 5 ms."""

    def mark(self) -> bool:
        """Count all pages as unwritten from now on; returns whether they are watched. Does not raise.

        Costs 5 ms for half a gigabyte.
        """
        global _marking
        self._state = self._backing = None
        if not 0 < len(self._ranges) <= _MOST_RANGES or time.monotonic() < self._not_before:
            return False
        self._not_before = time.monotonic() + _PATIENCE_SECONDS  # if it does not come to marking
        try:
            if has_pins():
                return False
            backing = Backing(self._ranges)
            with _asking() as kernel:
                if kernel is None:
                    return False
                for each in self._ranges:
                    kernel.register(each)
                _watches.add(self)
                _marking = self  # until everybody has heard of it, whatever interrupts this
                _note([each for each in self._ranges if kernel.mark(each)], but=self)
                self._backing, self._state = backing, False
                _marking = None
        except (NotPrivateError, OSError, ValueError):  # or another's userfaultfd has it, or too many mappings
            return False
        self._not_before = 0.0
        return True

    def written(self) -> bool | None:
        """Return whether a page was written to, or may have been, since `mark`; None where nobody can say.

        Does not raise.
        """
        with _asking() as kernel:
            backing = self._backing
            if self._state is not False or kernel is None or backing is None:
                return self._state or None
            try:
                if not backing.unchanged():
                    self._state = True
                elif not all(map(kernel.as_marked, self._ranges)):
                    # A page that is only not there may have been swapped out, or dropped.
                    self._state = any(map(kernel.written, self._ranges)) or None
            except OSError:  # something else is mapped there now
                self._state = True
            return self._state

    def holds_no_copies(self) -> bool:
        """Return whether, of the pages of files, none is a copy that this process has written to.

        Where a copy is dropped, the mark stays, and the file shows again. Costs 5 ms for half a gigabyte.
        """
        with _asking() as kernel:
            if kernel is None or self._backing is None:
                return False
            try:
                return not any(map(kernel.has_copies, self._backing.of_files))
            except OSError:
                return False

    def forget(self, *, patiently: bool = False) -> None:
        """Watch nothing any more; `patiently`, do not try again soon."""
        self._state = None
        if patiently:
            self._not_before = time.monotonic() + _PATIENCE_SECONDS

    def _overlaps(self, pages: Range) -> bool:
        place = bisect_right(self._starts, pages[0]) - 1
        if place >= 0 and pages[0] < self._ranges[place][1]:
            return True
        return place + 1 < len(self._ranges) and self._starts[place + 1] < pages[1]


def whole_pages(start: int, end: int) -> Range:
    """Return the pages that lie wholly in some memory; an empty range if there are none."""
    first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    return first, max(first, last)


class _Kernel:
    """This process's userfaultfd.

    Raises:
        OSError: Here, or from any method: the kernel refuses.
    """

    def __init__(self) -> None:
        self.process = os.getpid()
        library = ctypes.CDLL(None, use_errno=True)
        number = _SYSCALLS[platform.machine()]
        self._fd: int = library.syscall(number, os.O_CLOEXEC | os.O_NONBLOCK | _USER_MODE_ONLY)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "userfaultfd")
        self._pages = -1
        try:
            fcntl.ioctl(self._fd, _API, bytearray(struct.pack("=3Q", 0xAA, _WP_ASYNC | _WP_UNPOPULATED, 0)))
            self._pages = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self.close()
            raise
        self._links = self._read_links()
        self._regions = ctypes.create_string_buffer(_REGIONS * _REGION.size)

    def close(self) -> None:
        """Watch nothing any more."""
        for number in (self._fd, self._pages):
            if number >= 0:
                os.close(number)

    def close_inherited(self) -> None:
        """Close what a fork has copied, if it is still that: the program may have closed it, and use the numbers."""
        with contextlib.suppress(OSError):
            if self._read_links() == self._links:
                self.close()

    def _read_links(self) -> list[str]:
        return [os.readlink(f"/proc/self/fd/{number}") for number in (self._fd, self._pages)]

    def register(self, pages: Range) -> None:
        """Let pages be marked."""
        start, end = pages
        fcntl.ioctl(self._fd, _REGISTER, bytearray(struct.pack("=4Q", start, end - start, _MODE_WP, 0)))

    def mark(self, pages: Range) -> bool:
        """Mark pages; returns whether some were not. What is written meanwhile loses its mark again."""
        start, end = pages
        some = False
        while start < end:
            n_found, start = self._scan(start, end, _MARK | _ONLY_WATCHED, want=_WRITTEN)
            some = some or n_found > 0
        return some

    def as_marked(self, pages: Range) -> bool:
        """Return whether every page is there and has its mark: they are one stretch of one kind then."""
        n_found, _reached = self._scan(*pages, _ONLY_WATCHED, want=_PRESENT, tell=_PRESENT | _WRITTEN, regions=2)
        return n_found == 1 and _REGION.unpack_from(self._regions) == (*pages, _PRESENT)

    def written(self, pages: Range) -> bool:
        """Return whether a page has no mark."""
        return self._scan(*pages, _ONLY_WATCHED, want=_WRITTEN, regions=1)[0] > 0

    def has_copies(self, pages: Range) -> bool:
        """Return whether a page is not of a file, or not there."""
        n_found, _reached = self._scan(*pages, _ONLY_WATCHED, want=_PRESENT | _FILE, regions=2)
        return n_found != 1 or _REGION.unpack_from(self._regions)[:2] != pages

    def _scan(
        self, start: int, end: int, flags: int, *, want: int, tell: int = 0, regions: int = _REGIONS
    ) -> tuple[int, int]:
        """Look for pages of the kinds `want`; those side by side that do not differ in `tell` are one region.

        Returns:
            How many regions there are, as far as the look went for that many, and how far it went.

        Raises:
            OSError: Also where a page is not watched.
        """
        place = ctypes.addressof(self._regions)
        words = (_SCAN_WORDS.size, flags, start, end, 0, place, regions, 0, 0, want, 0, tell or want)
        asked = bytearray(_SCAN_WORDS.pack(*words))
        n_found = fcntl.ioctl(self._pages, _SCAN, asked)
        reached: int = _SCAN_WORDS.unpack(asked)[4]
        if not n_found and reached < end:
            raise OSError("a look at pages ended early")
        return n_found, reached


def _tells(kernel: _Kernel, file: int = -1) -> bool:
    """Try whether a kernel notices what it has to, on memory of its own or of a file."""
    n_bytes = 8 * mmap.PAGESIZE if file < 0 else os.fstat(file).st_size // mmap.PAGESIZE * mmap.PAGESIZE
    flags = mmap.MAP_PRIVATE | (mmap.MAP_ANONYMOUS if file < 0 else 0)
    with mmap.mmap(file, n_bytes, flags=flags) as memory:
        if file < 0:
            memory[:] = b"\1" * n_bytes
        view = ctypes.c_char.from_buffer(memory)
        start = ctypes.addressof(view)
        pages = start, start + n_bytes
        try:
            kernel.register(pages)
            good = kernel.mark(pages)
            sum(memory[:: mmap.PAGESIZE])  # reading lifts no mark
            good &= kernel.as_marked(pages) and kernel.has_copies(pages) == (file < 0)
            for place in (0, n_bytes // 2 + 5, n_bytes - 1):
                memory[place] ^= 1
                good &= not kernel.as_marked(pages) and kernel.written(pages)
                good &= kernel.mark(pages) and kernel.as_marked(pages) and kernel.has_copies(pages)
            memory.madvise(mmap.MADV_DONTNEED)
            good &= not kernel.as_marked(pages)
        except OSError:
            return False
        finally:
            del view
    return good


_lock = threading.RLock()
_inside = False
"""Whether the lock's holder is asking: a signal's handler, or a finalizer, may come in between."""
_watches: weakref.WeakSet[WrittenPages] = weakref.WeakSet()
_marking: WrittenPages | None = None
"""Who marks pages, until all others have been told which of these were written to."""
_made: _Kernel | None = None
_refused = False


@contextlib.contextmanager
def _asking() -> Iterator[_Kernel | None]:
    """Give this process's kernel to one at a time; None where there is none to ask now."""
    global _inside, _marking
    with _lock:
        if _inside:
            yield None
            return
        _inside = True
        try:
            if _marking is not None:  # it was interrupted
                _note(_marking._ranges)
                _marking = None
            yield _kernel()
        finally:
            _inside = False


def _note(pages: Sequence[Range], but: WrittenPages | None = None) -> None:
    """Tell all who watch that some pages were written to, and have new marks."""
    for each in list(_watches):
        if each is not but and each._state is False and any(map(each._overlaps, pages)):
            each._state = True


def _kernel() -> _Kernel | None:
    """Return what to ask; None where nothing can be watched. Called with the lock held."""
    global _made, _refused
    if _made is not None and _made.process == os.getpid():
        return _made
    if _refused or platform.system() != "Linux" or platform.machine() not in _SYSCALLS:
        return None
    _made = None
    try:
        # Where system calls are filtered, one that is not allowed may end the process.
        made = None if process_status(b"Seccomp") else _Kernel()
    except (OSError, ValueError, IndexError, AttributeError) as error:
        _refused = getattr(error, "errno", None) not in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
        return None
    if made is None:
        _refused = True
        return None
    try:
        with open(Path(__file__), "rb") as file:
            good = _tells(made) and _tells(made, file.fileno())
    except (OSError, ValueError):
        good = False
    if good:
        _made = made
    else:
        _refused = True
        made.close()
    return _made


def _after_fork() -> None:
    global _lock, _inside, _marking, _made
    _lock, _inside, _marking = threading.RLock(), False, None
    if _made is not None:  # through it the parent's marks would be set
        _made.close_inherited()
        _made = None
    for each in list(_watches):
        each.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
