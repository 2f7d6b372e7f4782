"""Reading a large record that the page cache does not have: around it (`O_DIRECT`), header and payload together.

What a disk is fastest with is never to be without a read. So a payload is read in pieces, and while one is checked the
next is under way (`kernel_reads`). The first piece brings the header with it, since a read of its own would cost as
much as a few hundred kilobytes do.
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
_PIECE_CHUNKS = 2
"""Of each piece but the first, which is of one chunk: then there is something to check soon."""


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
    payload, n_chunks = whole[lead:end], -(-row.size // CHUNK_BYTES)
    header: Header | None = None
    n_checked = 0
    with closing(_pieces(fd, offset, whole, lead, end)) as pieces:  # what interrupts the waiting is not lost
        for number in pieces:
            if header is None:
                header = parse_head(whole[row.off - offset : lead])
                check_identity(file, header, row)
                check_chunk_table(header)
            n_there = min(1 + number * _PIECE_CHUNKS, n_chunks)
            for chunk in range(n_checked, n_there):
                check_chunk(header, chunk, payload[chunk * CHUNK_BYTES : (chunk + 1) * CHUNK_BYTES])
            n_checked = n_there
    assert header is not None
    return header, payload


def _pieces(fd: int, offset: int, whole: memoryview, lead: int, end: int) -> Generator[int]:
    """Read it all; yields the number of each piece of the payload once it is there, the first one with what leads."""
    bounds = [0, *range(lead + CHUNK_BYTES, end, _PIECE_CHUNKS * CHUNK_BYTES), len(whole)]
    queue = kernel_reads.reads()
    if queue is not None:
        yield from queue.in_order(fd, offset, whole, bounds, end)
        return
    fill(fd, whole, offset, end)
    yield from range(len(bounds) - 1)
