"""Reading records: into memory that the caller owns, verified as it comes in.

Small records that lie close together are read in one call. A large payload is read chunk by chunk, each checked while
it is in the processor's cache. When the page cache does not have it, the cache is bypassed (`O_DIRECT`) and some
threads read and check in turns, which is what a disk is fastest with.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterable, Iterator

from lmstash.errors import CorruptEntryError
from lmstash.store.disk.format import (
    CHUNK_BYTES,
    Header,
    OtherKeyError,
    RecordType,
    check_chunk,
    check_chunk_table,
    check_payload,
    parse_head,
)
from lmstash.store.disk.rows import Row
from lmstash.store.disk.segment import SegmentFile

GROUP_BYTES = 1 << 20
"""At most this much is read in one call for several records."""
_GAP_BYTES = 8 << 10
_LARGE_BYTES = 64 << 10
"""Records of this size or more are read on their own."""
_DIRECT_BYTES = 2 << 20
"""Payloads of this size or more are read around the page cache when it does not have them."""
_SMALL_BYTES = 16 << 10
_STRIDE = 8 * CHUNK_BYTES
_LANES = 4
"""Most threads that read a cold payload, each checking while others read: as fast with six or eight."""
_PAGE = 4096
_PAGES_ASKED = 3
_draw = random.Random().random  # a host that seeds the module's own generator shall find it as it left it


def memory(n_bytes: int, *, align: int = 1) -> memoryview:
    """Return writable memory; `align` is a power of two."""
    if n_bytes < _SMALL_BYTES:
        return memoryview(bytearray(n_bytes))
    import numpy as np  # not filled first; loaded when it pays, so that opening a stash is quick

    array = np.empty(n_bytes + align - 1, np.uint8)
    start = -array.ctypes.data % align if align > 1 else 0
    return array.data[start : start + n_bytes]


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


def check_record(file: SegmentFile, buffer: memoryview, row: Row) -> tuple[Header, memoryview]:
    """Return header and payload of the record that fills `buffer`, both checked."""
    header = parse_head(buffer)
    check_identity(file, header, row)
    payload = buffer[row.head : row.head + row.size]
    check_payload(header, payload)
    return header, payload


def check_identity(file: SegmentFile, header: Header, row: Row) -> None:
    """Raise `CorruptEntryError` unless a header is that of the record that the index names."""
    if header.key != row.key or header.type != RecordType.ENTRY or header.namespace_hash != file.namespace_hash:
        raise OtherKeyError("a record is not the one the index says")
    if header.head_bytes != row.head or header.payload_bytes != row.size:
        raise CorruptEntryError("a record's lengths are not those the index says")


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
    head = os.pread(file.fd, row.head, row.off)
    header = parse_head(head)
    check_identity(file, header, row)
    check_chunk_table(header)
    if row.size > os.fstat(file.fd).st_size:
        raise CorruptEntryError(f"{file.path.name} is cut short")
    padded = -(-row.size // _PAGE) * _PAGE
    whole = memory(padded, align=_PAGE)
    start = row.off + row.head
    if row.size >= _DIRECT_BYTES and not is_cached(file.fd, start, row.size) and (direct := file.direct()) is not None:
        _read_cold(direct, start, whole, header)
    else:
        _read_strides(file.fd, start, whole[: row.size], header, 0, 1)
    return header, whole[: row.size]


def is_cached(fd: int, offset: int, n_bytes: int) -> bool:
    """Whether the page cache seems to have all of these bytes, by a few pages of them (asked without waiting for any).

    Where the pages are is drawn each time: what was read before leaves some behind, its readahead among them, and so
    does the question.
    """
    flag = getattr(os, "RWF_NOWAIT", 0)
    if not flag:
        return True
    page = bytearray(1)
    try:
        return all(
            os.preadv(fd, [page], offset + int(_draw() * n_bytes), flag) == 1 for _question in range(_PAGES_ASKED)
        )
    except BlockingIOError:
        return False
    except OSError:
        return True


def _read_cold(fd: int, start: int, whole: memoryview, header: Header) -> None:
    failures: list[BaseException] = []
    lanes = min(_LANES, -(-header.payload_bytes // _STRIDE))

    def work(lane: int) -> None:
        try:
            _read_strides(fd, start, whole, header, lane, lanes)
        except BaseException as error:
            failures.append(error)

    others = [threading.Thread(target=work, args=(lane,), name="lmstash-read", daemon=True) for lane in range(1, lanes)]
    for each in others:
        each.start()
    work(0)
    for each in others:
        each.join()
    if failures:
        raise failures[0]


def _read_strides(fd: int, start: int, whole: memoryview, header: Header, lane: int, lanes: int) -> None:
    """Read and check every `lanes`-th stride of a payload, from the `lane`-th on."""
    size = header.payload_bytes
    step = min(_STRIDE, size) if lanes > 1 else CHUNK_BYTES
    for first in range(lane * step, size, lanes * step):
        last = min(first + step, size)
        want = whole[first : min(first + step, len(whole))]
        got = 0
        while got < last - first:
            n = os.preadv(fd, [want[got:]], start + first + got)
            if n <= 0:
                raise CorruptEntryError("a payload is cut short")
            got += n
        for chunk in range(first // CHUNK_BYTES, -(-last // CHUNK_BYTES)):
            check_chunk(header, chunk, whole[chunk * CHUNK_BYTES : min((chunk + 1) * CHUNK_BYTES, size)])
