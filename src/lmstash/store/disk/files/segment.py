"""Segment files: appending to one's own, reading anybody's, scanning one that was left unsealed."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import resource
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lmstash.errors import FormatError
from lmstash.store.base import Buffer
from lmstash.store.disk.files.format import (
    FOOTER_ENTRY,
    HEADER,
    RECORD_ALIGN,
    RECORD_MAGIC,
    SEGMENT_HEADER_BYTES,
    TRAILER,
    Located,
    footer_bytes,
    namespace_hash,
    pack_footer,
    pack_segment_header,
    parse_footer,
    parse_head,
    parse_segment_header,
    parse_trailer,
    xxh3,
)

_OPEN_FILES = 256
_USUAL_DESCRIPTORS = 1024
"""As many may a process have open on most systems."""
_IOV = 512
_STRETCH_BYTES = 8 << 20
_EAGER_BYTES = 1 << 20
_SCAN_WINDOW = 1 << 20
"""Longer than any record's header (facts are limited to half of it)."""


class SegmentWriter:
    """This process's open segment of one namespace. Holding its lock says that its writer lives."""

    def __init__(self, path: Path, name: str, namespace: str, *, row: int, first_slot: int, n_slots: int) -> None:
        """Create the file, lock it and write its header.

        Raises:
            OSError: The disk is full, or permission was lost.
        """
        self.path = path
        self.name = name
        self.namespace = namespace
        self.namespace_hash = namespace_hash(namespace)
        self.row = row
        self.first_slot = first_slot
        self.n_slots = n_slots
        self.granted = 0
        self.tail = SEGMENT_HEADER_BYTES
        self.count = 0
        """Records written, which is the next record's ordinal."""
        self.listing = bytearray()
        """What the footer will list."""
        self.dirty = True
        self._committed = (0, 0, 0, 0)
        self._started = 0
        """Up to where the kernel was asked to begin writing to the disk."""
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            header = pack_segment_header(bytes.fromhex(name), namespace, int(time.time() * 1e6))
            write_all(self.fd, [header], 0)
        except BaseException:
            os.close(self.fd)
            with contextlib.suppress(OSError):
                os.unlink(path)
            raise

    def room_for(self, n_bytes: int, n_records: int) -> int:
        """Return the file size after `n_records` more of `n_bytes` together, and the footer."""
        return self.tail + n_bytes + footer_bytes(self.listed + n_records)

    @property
    def listed(self) -> int:
        """Records that the footer will list."""
        return len(self.listing) // FOOTER_ENTRY.size

    def append(self, buffers: Sequence[Buffer], n_bytes: int, n_records: int, listing: bytes) -> None:
        """Write buffers at the tail. The tail advances even if the index never hears of them."""
        self._started = write_all(self.fd, buffers, self.tail, self._started)
        self.listing += listing
        self.tail += n_bytes
        self.count += n_records
        self.dirty = True

    def commit(self) -> None:
        """Note that the index has heard of everything up to here."""
        self._committed = (self.tail, self.count, self.listed, self.granted)

    def roll_back(self) -> bool:
        """Cut off what the index has not heard of; returns whether it has heard of this segment at all."""
        if self._committed[0] == 0:
            self.abandon()
            with contextlib.suppress(OSError):
                os.unlink(self.path)
            return False
        self.tail, self.count, listed, self.granted = self._committed
        self._started = min(self._started, self.tail)
        del self.listing[listed * FOOTER_ENTRY.size :]
        with contextlib.suppress(OSError):
            os.ftruncate(self.fd, self.tail)
        return True

    def sync(self) -> None:
        """Return once what was written is on the medium."""
        if self.dirty:
            sync_data(self.fd)
            self.dirty = False

    def seal(self) -> int:
        """Write the footer and return the file's final size. The lock stays: `roll_back` may still take it back."""
        return seal_file(self.fd, self.listing, self.tail)

    def abandon(self) -> None:
        """Let go of the file as it is."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        """Let go of a file whose store was dropped unclosed, so that others may seal it."""
        with contextlib.suppress(OSError, AttributeError):
            self.abandon()


class SegmentFile:
    """One segment opened for reading; closed when nobody refers to it any more."""

    __slots__ = ("_direct", "fd", "namespace", "namespace_hash", "path")

    def __init__(self, path: Path, namespace: str) -> None:
        """Open the file. Raises OSError."""
        self.path = path
        self.namespace = namespace
        self.namespace_hash = namespace_hash(namespace)
        self._direct = hasattr(os, "O_DIRECT")
        self.fd = -1
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def open_direct(self) -> int | None:
        """Return a descriptor that bypasses the page cache, to be closed, or None where the file system has none."""
        if self._direct:
            try:
                return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
            except OSError:
                self._direct = False
        return None

    def give_up_direct(self) -> None:
        """Bypass the page cache no more: this file cannot be read so."""
        self._direct = False

    def __del__(self) -> None:
        if self.fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self.fd)


class SegmentFiles:
    """Segments opened for reading, the most recently used 256. The caller's lock guards it."""

    def __init__(self) -> None:
        """Start with none open."""
        self._files: OrderedDict[int, SegmentFile] = OrderedDict()

    def get(self, row: int) -> SegmentFile | None:
        """Return the file of segment `row` if it is open."""
        file = self._files.get(row)
        if file is not None:
            with contextlib.suppress(KeyError):  # a signal handler may have closed the store meanwhile
                self._files.move_to_end(row)
        return file

    def add(self, row: int, file: SegmentFile) -> SegmentFile:
        """Keep `file` open as segment `row`."""
        self._files[row] = file
        while len(self._files) > descriptors(_OPEN_FILES):
            self._files.popitem(last=False)
        return file

    def drop(self, row: int) -> None:
        """Stop keeping segment `row` open."""
        self._files.pop(row, None)

    def drop_unlinked(self) -> None:
        """Stop keeping open what has no name any more."""
        for row, file in list(self._files.items()):
            if os.fstat(file.fd).st_nlink == 0:
                self._files.pop(row, None)

    def clear(self) -> None:
        """Stop keeping any open."""
        self._files.clear()


def descriptors(most: int) -> int:
    """Return how many descriptors may stay open where `most` may: fewer where a process may have less than usual."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return most if not 0 <= limit < _USUAL_DESCRIPTORS else max(4, most * limit // _USUAL_DESCRIPTORS)


def write_all(fd: int, buffers: Sequence[Buffer], offset: int, started: int | None = None) -> int:
    """Write `buffers` one after another at `offset`, however many calls that takes.

    The kernel is asked to start on long writes at once, so that a later flush finds most of them done; many short ones
    are a long one, too.

    Args:
        fd: The file.
        buffers: What to write.
        offset: Where.
        started: Up to where the kernel was asked before; None where that is nobody's concern.

    Returns:
        Up to where it has been asked now.
    """
    group: list[Buffer] = []
    size, asked = 0, offset if started is None else started

    def write() -> None:
        nonlocal group, size, offset, asked
        offset = _write_group(fd, group, size, offset)
        group, size = [], 0
        if offset - asked >= _EAGER_BYTES:
            start_writeback(fd, asked, offset - asked)
            asked = offset

    for buffer in buffers:
        view = memoryview(buffer).cast("B") if len(buffer) > _STRETCH_BYTES else buffer
        for start in range(0, max(len(view), 1), _STRETCH_BYTES):
            part = view[start : start + _STRETCH_BYTES] if view is not buffer else view
            group.append(part)
            size += len(part)
            if size >= _STRETCH_BYTES or len(group) >= _IOV:
                write()
    if group:
        write()
    return asked


def _write_group(fd: int, group: list[Buffer], size: int, offset: int) -> int:
    """Write buffers at `offset`; returns where they end."""
    end = offset + size
    left = group
    while offset < end:
        written = os.pwritev(fd, left, offset)
        offset += written
        if offset < end:  # a short write: go on behind it
            while written >= len(left[0]):
                written -= len(left[0])
                left = left[1:]
            left = [memoryview(left[0])[written:], *left[1:]]
    return offset


def start_writeback(fd: int, offset: int, n_bytes: int) -> None:
    """Ask the kernel to begin writing a range to the disk, without waiting for it (Linux; elsewhere nothing)."""
    call = _sync_file_range()
    if call is not None:
        call(fd, offset, n_bytes, 2)  # SYNC_FILE_RANGE_WRITE


@functools.cache
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    import ctypes

    try:
        call = ctypes.CDLL(None).sync_file_range
    except (OSError, AttributeError):
        return None
    call.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return call


def sync_data(fd: int) -> None:
    """Return once a file's data is on the medium."""
    getattr(os, "fdatasync", os.fsync)(fd)  # macOS has no fdatasync


def seal_file(fd: int, listing: Buffer, tail: int) -> int:
    """Write footer and trailer at `tail`, cut what lies beyond, and return the file's size."""
    footer = pack_footer(listing, tail)
    write_all(fd, [footer], tail)
    os.ftruncate(fd, tail + len(footer))
    return tail + len(footer)


def lock_if_abandoned(path: Path) -> int | None:
    """Return a descriptor that holds the segment's lock if no living process does, else None."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


def read_footer(fd: int, *, entries: bool = True) -> list[Located] | None:
    """Return the records that a sealed segment lists, or None if it is unsealed or its footer is damaged.

    Without `entries`, only tombstones and pins, which are few and found fast.
    """
    size = os.fstat(fd).st_size
    trailer = parse_trailer(os.pread(fd, TRAILER.size, max(0, size - TRAILER.size)))
    if trailer is None:
        return None
    offset, count, total = trailer
    if offset + footer_bytes(count) != size:
        return None
    footer = os.pread(fd, footer_bytes(count) - TRAILER.size, offset)
    if len(footer) != footer_bytes(count) - TRAILER.size or xxh3(footer) != total:
        return None
    if entries:
        return parse_footer(footer)
    types, step = footer[:: FOOTER_ENTRY.size], FOOTER_ENTRY.size  # the type is a line's first byte
    lines = [footer[number * step : (number + 1) * step] for number, kind in enumerate(types) if kind != 1]
    return parse_footer(b"".join(lines))


def read_segment_header(fd: int) -> tuple[str, str]:
    """Return (name, namespace) of the segment. Raises `FormatError` if it is none."""
    segment_id, namespace, _created = parse_segment_header(os.pread(fd, SEGMENT_HEADER_BYTES, 0))
    return segment_id.hex(), namespace


def scan(fd: int, namespace: str, start: int = SEGMENT_HEADER_BYTES, ordinal: int = 0) -> Iterator[Located]:
    """Yield the whole records of a segment from `start` on, reading headers only.

    Where a header is damaged the search goes on behind it: records begin at multiples of 16 and carry checksums.
    """
    size = os.fstat(fd).st_size
    owner = namespace_hash(namespace)
    offset, window, window_start = start, b"", start
    while offset + HEADER.size <= size:
        try:
            try:
                header = parse_head(window, offset - window_start)
            except FormatError:
                # The window ends inside this header, or there is no record: a fresh one tells.
                window, window_start = os.pread(fd, _SCAN_WINDOW, offset), offset
                header = parse_head(window, 0)
        except FormatError:
            offset, window = _next_magic(fd, offset + RECORD_ALIGN, size), b""
            continue
        located = Located(
            header.type,
            header.flags,
            header.head_bytes,
            header.key,
            header.generation,
            header.expires_us,
            offset,
            header.payload_bytes,
            ordinal,
        )
        if offset + header.head_bytes + header.payload_bytes > size or header.namespace_hash != owner:
            offset += RECORD_ALIGN
            continue
        yield located
        offset = located.end
        ordinal += 1
        if offset - window_start > len(window):
            window, window_start = b"", offset


def _next_magic(fd: int, offset: int, size: int) -> int:
    """Return where the next record may begin, at `offset` or behind it; `size` if nowhere."""
    while offset < size:
        window = os.pread(fd, _SCAN_WINDOW, offset)
        found = window.find(RECORD_MAGIC, 8)
        while found >= 0:
            if (found - 8) % RECORD_ALIGN == 0:
                return offset + found - 8
            found = window.find(RECORD_MAGIC, found + 1)
        offset += max(len(window) - RECORD_ALIGN, RECORD_ALIGN) // RECORD_ALIGN * RECORD_ALIGN
    return size
