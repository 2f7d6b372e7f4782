"""Reading a large record that the page cache does not have: around it (`O_DIRECT`), header and payload together.

What a disk is fastest with is never to be without a long read. So two threads take stretches of a long payload in
turns: while one checks what it has read, the other's read is under way. The first stretch brings the header with it,
since a read of its own would cost as much as a few hundred kilobytes do.
"""

from __future__ import annotations

import threading

from lmstash.store.disk.checked import PAGE_BYTES, check_identity, fill, memory
from lmstash.store.disk.format import CHUNK_BYTES, Header, check_chunk, check_chunk_table, parse_head
from lmstash.store.disk.rows import Row
from lmstash.store.disk.segment import SegmentFile

LEAST_BYTES = 2 << 20
"""Payloads of this size or more are read so."""
_STRETCH_BYTES = 4 * CHUNK_BYTES
_ALONE_BYTES = 8 * CHUNK_BYTES
"""Payloads up to this size are read at once by the calling thread: another one starts no faster than they are read."""


def read_cold(fd: int, file: SegmentFile, row: Row) -> tuple[Header, memoryview]:
    """Return header and payload of a record, both checked, read by `fd`, which bypasses the page cache.

    Raises:
        CorruptEntryError, UnsupportedFormatError, OSError: As `reading.read_one`.
    """
    return _ColdRead(fd, file, row).run()


class _ColdRead:
    """One such read, under way."""

    def __init__(self, fd: int, file: SegmentFile, row: Row) -> None:
        self._fd = fd
        self._file = file
        self._row = row
        self._first = row.off // PAGE_BYTES * PAGE_BYTES
        """Where in the file the memory begins: a page that holds the record's begin."""
        self._lead = row.off + row.head - self._first
        """What lies in memory before the payload."""
        self._whole = memory(-(-(self._lead + row.size) // PAGE_BYTES) * PAGE_BYTES, align=PAGE_BYTES)
        self._stretch = row.size if row.size <= _ALONE_BYTES else _STRETCH_BYTES
        self._starts = iter(range(0, row.size, self._stretch))  # threads may share an iterator over a range
        self._header: Header | None = None
        self._parsed = threading.Event()
        self._failure: BaseException | None = None

    def run(self) -> tuple[Header, memoryview]:
        other = None
        if self._stretch < self._row.size:
            other = threading.Thread(target=self._work, name="lmstash-read", daemon=True)
            try:
                other.start()
            except RuntimeError:  # no more threads: this one does it all
                other = None
        self._work()
        if other is not None:
            try:
                other.join()
            except BaseException as error:  # an interrupt; the other must not go on with a descriptor that is closed
                self._failure = error
                other.join()
        if self._failure is not None:
            raise self._failure
        assert self._header is not None
        return self._header, self._whole[self._lead : self._lead + self._row.size]

    def _work(self) -> None:
        try:
            for start in self._starts:
                last = min(start + self._stretch, self._row.size)
                self._read(self._lead + start if start else 0, self._lead + last)
                if start == 0:
                    self._parse()
                self._parsed.wait()
                if self._header is None or self._failure is not None:
                    return
                self._check(self._header, start, last)
        except BaseException as error:
            if self._failure is None or not isinstance(error, Exception):  # an interrupt is never lost
                self._failure = error
            self._parsed.set()

    def _read(self, first: int, last: int) -> None:
        """Read so much of the memory, and up to the end of its last page."""
        want = self._whole[first : -(-last // PAGE_BYTES) * PAGE_BYTES]
        fill(self._fd, want, self._first + first, last - first)

    def _parse(self) -> None:
        header = parse_head(self._whole[self._row.off - self._first : self._lead])
        check_identity(self._file, header, self._row)
        check_chunk_table(header)
        self._header = header
        self._parsed.set()

    def _check(self, header: Header, start: int, last: int) -> None:
        payload = self._whole[self._lead : self._lead + self._row.size]
        for at in range(start, last, CHUNK_BYTES):
            check_chunk(header, at // CHUNK_BYTES, payload[at : min(at + CHUNK_BYTES, last)])
