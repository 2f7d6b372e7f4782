"""What this process's memory is mapped from, and whether only this process can change it.

Weights lie either in memory of the process's own or, as transformers loads safetensors, on the pages of a file that is
mapped privately. The first can be written to by this process alone. The second shows whatever anybody writes to the
file, until this process writes to the page; so such memory counts only together with the file's stamp.
"""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import time
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

from lmstash.identity.content.files import FRESH_NS, Stamp, stamp_of

Range = tuple[int, int]
"""First address, and the one behind the last."""

_FILE_SYSTEMS = frozenset({b"ext2", b"ext3", b"ext4", b"xfs", b"btrfs", b"f2fs"})
"""Local ones that change a file's times with every write, also through a map. Others may be written to by another
machine, keep no such times (tmpfs), or hide one that does not (overlay)."""
_MAPPINGS_SHARE = 4
"""Of the mappings that the system allows a process at most this part may exist."""


class Backing:
    """What some memory is mapped from, as it was when this was made. Not to be changed; threads may share it.

    Costs about 1 ms for a process with 1,000 mappings.

    Raises:
        NotPrivateError: Somebody else can change the memory, or nobody can say.
        OSError, ValueError: The system cannot be asked.
    """

    def __init__(self, ranges: Sequence[Range]) -> None:
        n_mappings, mappings = _private_mappings()
        allowed = int(Path("/proc/sys/vm/max_map_count").read_bytes()) // _MAPPINGS_SHARE
        if n_mappings + 2 * len(ranges) > allowed:  # watching a part of a mapping splits it
            raise NotPrivateError
        starts = [start for start, _end, _file in mappings]
        files: set[tuple[int, int, bytes]] = set()
        self.of_files: list[Range] = []
        """What of the memory lies on pages of files."""
        for start, end in ranges:
            place = bisect_right(starts, start) - 1
            while start < end:  # one range may lie on several mappings side by side
                if place < 0 or place >= len(mappings) or not mappings[place][0] <= start < mappings[place][1]:
                    raise NotPrivateError
                _start, stop, file = mappings[place]
                if file is not None:
                    files.add(file)
                    self.of_files.append((start, min(stop, end)))
                start, place = stop, place + 1
        self._files = [(os.fsdecode(path), _settled(device, inode, path)) for device, inode, path in files]

    def unchanged(self) -> bool:
        """Return whether the files, if any, are still what they were. Costs 2 us a file."""
        return all(stamp_of(path) == stamp for path, stamp in self._files)


class NotPrivateError(Exception):
    """Memory that not only this process can change, or that cannot be watched."""


def process_status(name: bytes) -> int:
    """Return a number that the system tells of this process.

    Raises:
        OSError, ValueError, IndexError: It does not.
    """
    lines = Path("/proc/self/status").read_bytes().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(name + b":"))


def has_pins() -> bool:
    """Return whether devices may write to memory of this process past its page tables (RDMA, io_uring), or who knows.

    Memory pinned for a GPU is not counted here: torch tells that one.
    """
    try:
        return process_status(b"VmPin") + process_status(b"VmLck") > 0  # some drivers count theirs as locked
    except (OSError, ValueError, IndexError):
        return True


def _private_mappings() -> tuple[int, list[tuple[int, int, tuple[int, int, bytes] | None]]]:
    """Return how many mappings there are, and of those that are private, by address, first address, end and file.

    A file is told by device, inode and path.
    """
    out: list[tuple[int, int, tuple[int, int, bytes] | None]] = []
    lines = Path("/proc/self/maps").read_bytes().splitlines()
    for line in lines:
        place, access, _offset, device, inode, *path = line.split(None, 5)
        if access[3:4] != b"p":
            continue
        start, end = (int(each, 16) for each in place.split(b"-"))
        file = None
        if inode != b"0":
            major, minor = (int(each, 16) for each in device.split(b":"))
            file = os.makedev(major, minor), int(inode), path[0] if path else b""
        out.append((start, end, file))
    return len(lines), out


def _settled(device: int, inode: int, path: bytes) -> Stamp:
    """Return the stamp of a mapped file, from which on whatever changes the file changes the stamp."""
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        # A file that was replaced or deleted is mapped still, but cannot be looked at any more.
        status = os.fstat(number)
        if (status.st_dev, status.st_ino) != (device, inode) or not stat.S_ISREG(status.st_mode):
            raise NotPrivateError
        # A write changes the times when it begins and may last; through a map the first one to a page does alone.
        if _file_system(device) not in _FILE_SYSTEMS or _may_have_writers(number):
            raise NotPrivateError
        stamp = Stamp.of(os.fstat(number))
    finally:
        os.close(number)
    # Within one tick of the file system's clock a second change leaves the stamp as it was.
    if time.time_ns() - max(stamp.mtime_ns, stamp.ctime_ns) < FRESH_NS:
        raise NotPrivateError
    return stamp


def _may_have_writers(number: int) -> bool:
    """Return whether anybody has a file open or mapped for writing, or it is not ours to ask."""
    try:
        # A lease, given up at once. Who opens the file just then waits for that, and we are told: by a signal that is
        # ignored, in place of one that ends the process.
        fcntl.fcntl(number, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(number, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(number, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except (OSError, AttributeError):
        return True
    return False


def _file_system(device: int) -> bytes | None:
    """Return the type of the file system on a device."""
    wanted = b"%d:%d" % (os.major(device), os.minor(device))
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        fields = line.split()
        if fields[2] == wanted and b"-" in fields:
            return fields[fields.index(b"-") + 1]
    return None
