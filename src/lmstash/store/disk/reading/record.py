"""Reading records: into memory that the caller owns, verified as it comes in.

Small records that lie close together are read in one call. A large payload is read chunk by chunk, each checked while
it is in the processor's cache; one that the page cache does not have is read around it (`cold_reading`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from lmstash.errors import CorruptEntryError
from lmstash.store.disk.files.format import CHUNK_BYTES, Header, check_chunk, check_chunk_table, parse_head
from lmstash.store.disk.files.rows import Row
from lmstash.store.disk.files.segment import SegmentFile
from lmstash.store.disk.reading import cold
from lmstash.store.disk.reading.checked import PAGE_BYTES, check_identity, check_record, fill, memory
from lmstash.store.disk.reading.page_cache import cached_share

GROUP_BYTES = 1 << 20
"""At most this much is read in one call for several records."""
_GAP_BYTES = 8 << 10
_CACHED_SHARE = 0.5
"""Payloads of which the page cache has less are read around it, as the megabyte in their middle tells."""
_ASKED_BYTES = 1 << 20
_LARGE_BYTES = 64 << 10
"""Records of this size or more are read on their own."""


def read_one(file: SegmentFile, row: Row) -> tuple[Header, memoryview]:
    """Return one record's header and payload (memory of its own), both checked.

    Raises:
        CorruptEntryError: Cut short, or a checksum fails, or the record is another key's.
        UnsupportedFormatError: A newer version wrote it.
        OSError: The disk failed.
    """
    if row.size > CHUNK_BYTES:
        return _read_large(file, row)
    buffer = memory(row.head + row.size)
    if os.preadv(file.fd, [buffer], row.off) != row.head + row.size:
        raise CorruptEntryError(f"{file.path.name} is cut short")
    return check_record(file, buffer, row)


def read_group(file: SegmentFile, rows: list[Row]) -> list[memoryview | None]:
    """Return the records of rows that lie close together, in one read; None where the file ends too early."""
    start = rows[0].off
    total = rows[-1].off + rows[-1].head + rows[-1].size - start
    buffer = memory(total)
    got = os.preadv(file.fd, [buffer], start)
    out: list[memoryview | None] = []
    for row in rows:
        first = row.off - start
        last = first + row.head + row.size
        out.append(buffer[first:last] if last <= got else None)
    return out


def groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Yield rows of one segment, sorted by offset, in groups that are worth one read."""
    group: list[Row] = []
    for row in sorted(rows, key=lambda each: each.off):
        if group:
            last = group[-1]
            near = row.off - (last.off + last.head + last.size) <= _GAP_BYTES
            if not near or row.size >= _LARGE_BYTES or row.off + row.head + row.size - group[0].off > GROUP_BYTES:
                yield group
                group = []
        group.append(row)
    if group:
        yield group


def _read_large(file: SegmentFile, row: Row) -> tuple[Header, memoryview]:
    start = row.off + row.head
    if start + row.size > os.fstat(file.fd).st_size:
        raise CorruptEntryError(f"{file.path.name} is cut short")
    aside = row.size >= cold.LEAST_BYTES and not start % PAGE_BYTES
    middle = start + (row.size - _ASKED_BYTES) // 2
    cached = not aside or cached_share(file.fd, middle, _ASKED_BYTES) >= _CACHED_SHARE
    if not cached and (direct := file.open_direct()) is not None:
        try:
            return cold.read_cold(direct, file, row)
        except OSError:  # some file systems open files so, and read none
            file.give_up_direct()
        finally:
            os.close(direct)
    header = parse_head(os.pread(file.fd, row.head, row.off))
    check_identity(file, header, row)
    check_chunk_table(header)
    payload = memory(row.size, align=PAGE_BYTES)
    for first in range(0, row.size, CHUNK_BYTES):
        chunk = payload[first : first + CHUNK_BYTES]
        fill(file.fd, chunk, start + first, len(chunk))
        check_chunk(header, first // CHUNK_BYTES, chunk)
    return header, payload
