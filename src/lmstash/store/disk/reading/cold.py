"""Reading a large record that the page cache does not have: around it (`O_DIRECT`), header and payload together.

A payload is read chunk by chunk, and while some are checked the next are under way (`kernel_reads`). The first read
brings the header with it, since a read of its own would cost as much as a few hundred kilobytes do.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing

from lmstash.store.disk.files.format import CHUNK_BYTES, Header, check_chunk, check_chunk_table, parse_head
from lmstash.store.disk.files.rows import Row
from lmstash.store.disk.files.segment import SegmentFile
from lmstash.store.disk.reading import kernel_reads
from lmstash.store.disk.reading.checked import PAGE_BYTES, check_identity, fill, memory

LEAST_BYTES = 2 << 20
"""Payloads of this size or more are read so."""


def read_cold(fd: int, file: SegmentFile, row: Row) -> tuple[Header, memoryview]:
    """Return header and payload of a record, both checked, read by `fd`, which bypasses the page cache.

    The payload begins at a page of the file.

    Raises:
        CorruptEntryError, UnsupportedFormatError, OSError: As `reading.read_one`.
    """
    offset = row.off // PAGE_BYTES * PAGE_BYTES  # a page that holds the record's begin
    lead = row.off + row.head - offset
    end = lead + row.size
    whole = memory(-(-end // PAGE_BYTES) * PAGE_BYTES, align=PAGE_BYTES)
    payload = whole[lead:end]
    header: Header | None = None
    with closing(_chunks(fd, offset, whole, lead, end)) as chunks:  # what interrupts the waiting is not lost
        for number in chunks:
            if header is None:
                header = parse_head(whole[row.off - offset : lead])
                check_identity(file, header, row)
                check_chunk_table(header)
            check_chunk(header, number, payload[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES])
    assert header is not None
    return header, payload


def _chunks(fd: int, offset: int, whole: memoryview, lead: int, end: int) -> Generator[int]:
    """Read it all; yields the number of each chunk of the payload once it is there, the first one with what leads."""
    bounds = [0, *range(lead + CHUNK_BYTES, end, CHUNK_BYTES), len(whole)]
    queue = kernel_reads.reads()
    if queue is not None:
        yield from queue.in_order(fd, offset, whole, bounds, end)
        return
    fill(fd, whole, offset, end)
    yield from range(len(bounds) - 1)
