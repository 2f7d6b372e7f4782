"""Memory for records, filling it from a file, and the checks that everything passes before it is served."""

from __future__ import annotations

import os

from lmstash.errors import CorruptEntryError
from lmstash.store.disk.files.format import Header, OtherKeyError, RecordType, check_payload, parse_head
from lmstash.store.disk.files.rows import Row
from lmstash.store.disk.files.segment import SegmentFile

PAGE_BYTES = 4096
_SMALL_BYTES = 16 << 10


def memory(n_bytes: int, *, align: int = 1) -> memoryview:
    """Return writable memory; `align` is a power of two."""
    if n_bytes < _SMALL_BYTES:
        return memoryview(bytearray(n_bytes))
    import numpy as np  # not filled first; loaded when it pays, so that opening a stash is quick

    array = np.empty(n_bytes + align - 1, np.uint8)
    start = -array.ctypes.data % align if align > 1 else 0
    return array.data[start : start + n_bytes]


def fill(fd: int, want: memoryview, offset: int, n_bytes: int) -> None:
    """Read into `want` from `offset` on, at least `n_bytes`.

    Raises:
        CorruptEntryError: The file ends before.
        OSError: The disk failed.
    """
    got = 0
    while got < n_bytes:
        n = os.preadv(fd, [want[got:]], offset + got)
        if n <= 0:
            raise CorruptEntryError("a payload is cut short")
        got += n


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
