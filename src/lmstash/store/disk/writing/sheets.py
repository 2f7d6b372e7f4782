"""Writing many small records at once: a sheet becomes records, index rows and footer lines by array operations.

The records of a sheet lie at even distances where their facts are of about one length (the gap before a payload may be
longer than it must): they are read back as a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmstash.store.base import Buffer
from lmstash.store.disk.files.format import (
    CHUNK_BYTES,
    FOOTER_ENTRY,
    FORMAT_VERSION,
    HEADER,
    NO_PARENT,
    RECORD_ALIGN,
    RECORD_MAGIC,
    RecordType,
    aligned,
    payload_align,
    xxh3,
)
from lmstash.store.disk.files.segment import SegmentWriter
from lmstash.store.disk.indexing.adding import RowRun
from lmstash.store.disk.indexing.tables import HEADER_DTYPE, PLACE_DTYPE
from lmstash.store.sheets import HEAD_BYTES, Sheet

LISTING_DTYPE = np.dtype(
    [
        ("type", "u1"),
        ("flags", "u1"),
        ("pad", "V2"),
        ("head", "<u4"),
        ("key", "V32"),
        ("generation", "<u8"),
        ("expires", "<u8"),
        ("offset", "<u8"),
        ("payload", "<u8"),
        ("ordinal", "<u4"),
    ]
)
"""`format.FOOTER_ENTRY` as numpy says it."""
assert LISTING_DTYPE.itemsize == FOOTER_ENTRY.size
assert HEADER.size <= HEAD_BYTES

MOST_BYTES = CHUNK_BYTES
"""Longer values carry tables of chunk sums: they are written one by one."""
_UNEVEN_SHARE = 8
"""Facts are padded to one length as long as that takes less than this part of a record."""
_ALONE_BYTES = 32 << 10
"""Values of this size or more are written from where they are."""
_JOINED = 256
_SUM_BYTES = 8
"""A header begins with its checksum."""


@dataclass(slots=True)
class Laid:
    """A sheet as it goes into a segment."""

    buffers: list[Buffer]
    n_bytes: int
    rows: RowRun
    """For the index."""
    listing: bytes
    live_bytes: int
    """As the index counts what lives in a segment."""


def most_bytes(sheet: Sheet) -> int:
    """Return an upper bound of what the records of a sheet take."""
    n_bytes = sheet.values.shape[1]
    meta = max(map(len, sheet.metas), default=0)
    align = payload_align(n_bytes)
    record = HEADER.size + meta + align + n_bytes + RECORD_ALIGN
    return len(sheet) * (record if sheet.block is None else max(record, sheet.block.shape[1])) + align


def lay_out(
    sheet: Sheet,
    ids: Sequence[int],
    writer: SegmentWriter,
    offset: int,
    ordinal: int,
    *,
    generation: int,
    now_us: int,
    expires_us: int,
) -> Laid:
    """Return the records of a sheet for the segment of `writer`.

    Args:
        sheet: What to keep.
        ids: `rows.row_ids` of its keys.
        writer: Its segment.
        offset: Where the first record starts.
        ordinal: How many records precede it.
        generation: Of the first; each next one is larger by one.
        now_us: When they are made.
        expires_us: When they expire; 0 for never.
    """
    n, size = sheet.values.shape
    align = payload_align(size)
    metas: Sequence[bytes] = sheet.metas or [b""] * n
    meta_bytes = np.fromiter(map(len, metas), np.int64, n)
    plain = HEADER.size + meta_bytes
    longest = int(plain.max())
    padded = aligned(size, RECORD_ALIGN)
    block, even = sheet.block, bool((longest - plain.min()) * _UNEVEN_SHARE < size)
    if block is not None and (not even or block.shape[1] - padded < longest or block.shape[1] % align):
        block = None
    if even:
        plain[:] = longest if block is None else block.shape[1] - padded
    # Payloads start at multiples of `align`, so each start follows from the one before.
    steps = -(-(padded + plain) // align) * align
    steps[0] = aligned(offset + int(plain[0]), align)
    payloads = steps.cumsum()
    starts = payloads - 0
    starts[1:] = payloads[:-1] + padded
    starts[0] = offset
    heads = payloads - starts

    fixed = np.zeros(n, HEADER_DTYPE)
    fixed["magic"], fixed["version"], fixed["type"] = RECORD_MAGIC, FORMAT_VERSION, RecordType.ENTRY
    fixed["head"], fixed["meta"], fixed["payload"] = heads, meta_bytes, size
    fixed["key"] = np.frombuffer(b"".join(sheet.keys), np.uint8).reshape(n, 32)
    if sheet.parents:
        joined = b"".join([parent or NO_PARENT for parent in sheet.parents])
        fixed["parent"] = np.frombuffer(joined, np.uint8).reshape(n, 32)
    fixed["generation"] = np.arange(generation, generation + n)
    fixed["created"], fixed["expires"] = now_us, expires_us
    if sheet.compute_seconds:
        fixed["seconds"] = sheet.compute_seconds
    if sheet.n_tokens:
        fixed["tokens"] = sheet.n_tokens
    fixed["namespace"] = writer.namespace_hash
    fixed["checksum"] = np.fromiter(map(xxh3, sheet.values), np.uint64, n)

    front = _fronts(fixed, metas, meta_bytes)
    buffers: list[Buffer]
    if block is not None:
        buffers = _filled(front, block, int(heads[0]), padded, size)
    elif padded < _ALONE_BYTES and (plain == longest).all():
        buffers = [_table(front, sheet.values, int(heads[0]), aligned(padded + longest, align), padded)]
    else:
        buffers = _pieces(front, [row.data for row in sheet.values], heads, bytes(padded - size))

    listing = np.zeros(n, LISTING_DTYPE)
    for name in ("type", "head", "generation", "expires", "payload"):
        listing[name] = fixed[name]
    listing["key"] = fixed["key"].reshape(-1).view("V32")
    listing["offset"], listing["ordinal"] = starts, np.arange(ordinal, ordinal + n)
    places = np.empty(n, PLACE_DTYPE)
    places["seg"], places["off"], places["head"], places["size"] = writer.row, starts, heads, size
    places["slot"] = np.arange(n) + (writer.first_slot + ordinal)
    rows = RowRun(ids, fixed["key"].tobytes(), places.tobytes(), generation, expires_us)
    end = int(payloads[-1]) + padded
    return Laid(buffers, end - offset, rows, listing.tobytes(), int((heads + padded).sum()))


def _fronts(fixed: np.ndarray, metas: Sequence[bytes], meta_bytes: np.ndarray) -> np.ndarray:
    """Return headers and facts as `[n, n_bytes]`, zeros behind shorter facts; fills in the headers' checksums."""
    n, longest = len(fixed), int(meta_bytes.max())
    front = np.empty((n, HEADER.size + longest), np.uint8)
    front[:, : HEADER.size] = fixed.view(np.uint8).reshape(n, HEADER.size)
    if longest:
        joined = b"".join([meta.ljust(longest, b"\0") for meta in metas])
        front[:, HEADER.size :] = np.frombuffer(joined, np.uint8).reshape(n, longest)
    flat = front.reshape(-1).data
    starts = range(0, front.size, front.shape[1])
    ends = (np.arange(n) * front.shape[1] + HEADER.size + meta_bytes).tolist()
    sums = [xxh3(flat[start + _SUM_BYTES : end]) for start, end in zip(starts, ends, strict=True)]
    front[:, :_SUM_BYTES] = np.array(sums, "<u8").view(np.uint8).reshape(n, _SUM_BYTES)
    return front


def _filled(front: np.ndarray, block: np.ndarray, first: int, padded: int, size: int) -> list[Buffer]:
    """Return records whose payloads lie in a block: what goes between them is written there.

    Args:
        front: Their headers and facts.
        block: As `sheets.blank_values` makes it.
        first: Bytes before the first payload.
        padded: What a payload takes.
        size: A payload.
    """
    before, width = block.shape[1] - padded, front.shape[1]
    block[:, :width] = front
    block[:, width:before] = 0
    block[:, before + size :] = 0
    return [front[0].tobytes().ljust(first, b"\0"), block.reshape(-1).data[before:]]


def _table(front: np.ndarray, values: np.ndarray, first: int, stride: int, padded: int) -> memoryview:
    """Return records whose facts are of one length as one buffer.

    Args:
        front: Their headers and facts.
        values: Their payloads.
        first: Where the first payload begins.
        stride: From one payload to the next.
        padded: What a payload takes.
    """
    n, size = values.shape
    whole = np.empty(first + n * stride, np.uint8)  # the last record has no other's head behind it
    whole[:first] = 0
    whole[: front.shape[1]] = front[0]
    table = whole[first:].reshape(n, stride)
    table[:, :size] = values
    table[:, size:] = 0
    table[:-1, padded : padded + front.shape[1]] = front[1:]
    return whole.data[: first + (n - 1) * stride + padded]


def _pieces(front: np.ndarray, values: Sequence[Buffer], heads: np.ndarray, gap: bytes) -> list[Buffer]:
    """Return records as pieces, long values where they are."""
    out: list[Buffer] = []
    before, width = b"", front.shape[1]
    flat = front.tobytes()
    for number, (value, head) in enumerate(zip(values, heads.tolist(), strict=True)):
        start = number * width
        out.append(before + flat[start : start + min(width, head)] + bytes(max(0, head - width)))
        if len(value):
            out.append(value)
        before = gap
    if gap:
        out.append(gap)
    if len(values[0]) >= _ALONE_BYTES:
        return out
    return [b"".join(out[at : at + _JOINED]) for at in range(0, len(out), _JOINED)]  # cheaper than many small vectors
