"""Records and segments as bytes: format 1, specified in `docs/format.md`.

Pure: bytes in, bytes out. Every checksum is XXH3-64 (https://github.com/Cyan4973/xxHash), which finds accidents, not
attackers; flag bits for a MAC and for encryption are reserved.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import xxhash

from lmstash.errors import CorruptEntryError, UnsupportedFormatError
from lmstash.store.base import MAX_NAMESPACE_BYTES, Buffer

FORMAT_VERSION = 1
RECORD_MAGIC = b"LMSr"
SEGMENT_MAGIC = b"LMSTSEG\n"
TRAILER_MAGIC = b"LMSTEND\n"
CHUNK_BYTES = 1 << 20
"""Payloads longer than this carry one checksum for each chunk, so that ranges verify alone and in parallel."""
RECORD_ALIGN = 16

FLAG_CHUNKED = 1
FLAG_PINNED = 2
FLAG_MAC = 4
FLAG_ENCRYPTED = 8
KNOWN_FLAGS = FLAG_CHUNKED | FLAG_PINNED

# header checksum, magic, version, type, flags, head bytes, meta bytes, payload bytes, key, parent, generation,
# created us, expires us, compute seconds, tokens, reserved, namespace hash, payload checksum
HEADER = struct.Struct("<Q4sBBHIIQ32s32sQQQdIIQQ")
# magic, version, flags, namespace bytes, id, created us; the namespace; a checksum in the last 8 of 512 bytes
SEGMENT_HEADER = struct.Struct("<8sHHI16sQ")
SEGMENT_HEADER_BYTES = 512
# type, flags, head bytes, key, generation, expires us, offset, payload bytes, ordinal
FOOTER_ENTRY = struct.Struct("<BBxxI32sQQQQI")
# magic, footer offset, entry count, footer checksum, checksum of the four fields before
TRAILER = struct.Struct("<8sQQQQ")
# killed generation, id of the segment that holds the killed record
TOMBSTONE = struct.Struct("<Q16s")

NO_PARENT = bytes(32)
_SUM = struct.Struct("<Q")
xxh3 = xxhash.xxh3_64_intdigest


class OtherKeyError(CorruptEntryError):
    """A sound record that is not the one the index promised."""


class RecordType(IntEnum):
    """What a record is."""

    ENTRY = 1
    TOMBSTONE = 2
    PIN = 3
    UNPIN = 4


_ESSENCE = struct.Struct("<8sIIQ32s56xd8xQQ")
"""What a look-up compares, from the magic on: the lengths and flags before the key; cost, namespace and checksum."""
PLAIN_ENTRY = RECORD_MAGIC + struct.pack("<BBH", FORMAT_VERSION, RecordType.ENTRY, 0)
"""What follows the checksum in the header of an entry without flags."""
assert _ESSENCE.size == HEADER.size - 8


class Header(NamedTuple):
    """One record's header, checked."""

    type: int
    flags: int
    head_bytes: int
    """From the record's start to its payload."""
    payload_bytes: int
    key: bytes
    parent: bytes
    generation: int
    created_us: int
    expires_us: int
    compute_seconds: float
    n_tokens: int
    namespace_hash: int
    checksum: int
    meta: bytes
    chunk_sums: bytes
    """8 bytes for each `CHUNK_BYTES` of payload, or empty."""

    @property
    def record_bytes(self) -> int:
        """From the record's start to the next record's start."""
        return aligned(self.head_bytes + self.payload_bytes, RECORD_ALIGN)


@dataclass(slots=True)
class Located:
    """A record and where it lies in its segment: what a footer lists."""

    type: int
    flags: int
    head_bytes: int
    key: bytes
    generation: int
    expires_us: int
    offset: int
    payload_bytes: int
    ordinal: int
    """How many records of the segment precede it."""

    @property
    def end(self) -> int:
        """Offset of the next record."""
        return self.offset + aligned(self.head_bytes + self.payload_bytes, RECORD_ALIGN)


def aligned(number: int, to: int) -> int:
    """Round `number` up to a multiple of `to`."""
    return -(-number // to) * to


def payload_align(payload_bytes: int) -> int:
    """Return what the file offset of a payload is a multiple of."""
    if payload_bytes < 4096:
        return 16
    return 64 if payload_bytes < CHUNK_BYTES else 4096


def checksum_payload(buffers: list[Buffer], payload_bytes: int) -> tuple[int, bytes]:
    """Return the payload checksum and the chunk sums (empty for one chunk or less)."""
    if payload_bytes <= CHUNK_BYTES:
        if len(buffers) == 1:
            return xxh3(buffers[0]), b""
        state = xxhash.xxh3_64()
        for buffer in buffers:
            state.update(buffer)
        return state.intdigest(), b""
    sums: list[int] = []
    state, room = xxhash.xxh3_64(), CHUNK_BYTES
    for buffer in buffers:
        view = memoryview(buffer).cast("B")
        while len(view):
            part = view[:room]
            state.update(part)
            room -= len(part)
            view = view[len(part) :]
            if room == 0:
                sums.append(state.intdigest())
                state, room = xxhash.xxh3_64(), CHUNK_BYTES
    if room < CHUNK_BYTES:
        sums.append(state.intdigest())
    table = struct.pack(f"<{len(sums)}Q", *sums)
    return xxh3(table), table


def pack_head(
    kind: int,
    key: bytes,
    *,
    offset: int,
    payload_bytes: int,
    checksum: int,
    chunk_sums: bytes = b"",
    meta: bytes = b"",
    parent: bytes = b"",
    generation: int,
    created_us: int,
    expires_us: int = 0,
    compute_seconds: float = 0.0,
    n_tokens: int = 0,
    namespace_hash: int,
    pinned: bool = False,
) -> bytes:
    """Return everything of a record that precedes its payload, for a record that starts at `offset`."""
    body = meta + chunk_sums
    plain = HEADER.size + len(body)
    align = payload_align(payload_bytes)
    head_bytes = aligned(offset + plain, align) - offset
    fixed = HEADER.pack(
        0,
        RECORD_MAGIC,
        FORMAT_VERSION,
        kind,
        (FLAG_CHUNKED if chunk_sums else 0) | (FLAG_PINNED if pinned else 0),
        head_bytes,
        len(meta),
        payload_bytes,
        key,
        parent or NO_PARENT,
        generation,
        created_us,
        expires_us,
        compute_seconds,
        n_tokens,
        0,
        namespace_hash,
        checksum,
    )[8:]
    head = fixed + body
    return b"".join((_SUM.pack(xxh3(head)), head, bytes(head_bytes - plain)))


def parse_head(buffer: Buffer, start: int = 0) -> Header:
    """Return the header at `start` of `buffer`, checked.

    Raises:
        CorruptEntryError: The bytes are not a record, are cut short, or fail their checksum.
        UnsupportedFormatError: A newer format, or a flag this version does not know.
    """
    try:
        (
            total,
            magic,
            version,
            kind,
            flags,
            head_bytes,
            meta_bytes,
            payload_bytes,
            key,
            parent,
            generation,
            created_us,
            expires_us,
            compute_seconds,
            n_tokens,
            _reserved,
            namespace_hash,
            checksum,
        ) = HEADER.unpack_from(buffer, start)
    except struct.error:
        raise CorruptEntryError("a record header is cut short") from None
    if magic != RECORD_MAGIC:
        raise CorruptEntryError("no record begins here")
    if version != FORMAT_VERSION or flags & ~KNOWN_FLAGS:
        raise UnsupportedFormatError(f"record format {version} with flags {flags:#x}: upgrade lmstash to read it")
    if bool(flags & FLAG_CHUNKED) != (payload_bytes > CHUNK_BYTES):
        raise CorruptEntryError("a record header contradicts its lengths")
    n_chunks = -(-payload_bytes // CHUNK_BYTES) if flags & FLAG_CHUNKED else 0
    first = start + HEADER.size
    end = first + meta_bytes + 8 * n_chunks
    if end > start + head_bytes or end > len(buffer):
        raise CorruptEntryError("a record header contradicts its lengths")
    view = memoryview(buffer)
    if xxh3(view[start + 8 : end]) != total:
        raise CorruptEntryError("a record header fails its checksum")
    return Header(
        kind,
        flags,
        head_bytes,
        payload_bytes,
        key,
        b"" if parent == NO_PARENT else parent,
        generation,
        created_us,
        expires_us,
        compute_seconds,
        n_tokens,
        namespace_hash,
        checksum,
        bytes(view[first : first + meta_bytes]) if meta_bytes else b"",
        bytes(view[first + meta_bytes : end]) if n_chunks else b"",
    )


def check_small(buffer: bytearray, payload: memoryview, key: bytes, head: int, owner: int) -> float | None:
    """Return the compute seconds of the one-chunk record that fills `buffer`; None if it is not the one expected.

    Args:
        buffer: The record.
        payload: Its payload in there.
        key: Its key.
        head: Bytes of its header.
        owner: Digest of its namespace.
    """
    begin, found_head, _, found_size, found, seconds, namespace, checksum = _ESSENCE.unpack_from(buffer, 8)
    size = len(payload)
    if begin != PLAIN_ENTRY or found_head != head or found_size != size or found != key or namespace != owner:
        return None  # another record, or a pinned one: the slow way tells
    return seconds if seconds >= 0 and xxh3(payload) == checksum else None


def check_payload(header: Header, payload: memoryview) -> None:
    """Raise `CorruptEntryError` unless `payload` is what the header promises."""
    if len(payload) != header.payload_bytes:
        raise CorruptEntryError("a payload is cut short")
    if not header.chunk_sums:
        if xxh3(payload) != header.checksum:
            raise CorruptEntryError("a payload fails its checksum")
        return
    check_chunk_table(header)
    for index, start in enumerate(range(0, len(payload), CHUNK_BYTES)):
        check_chunk(header, index, payload[start : start + CHUNK_BYTES])


def check_chunk_table(header: Header) -> None:
    """Raise unless the chunk sums agree with the payload checksum."""
    if xxh3(header.chunk_sums) != header.checksum:
        raise CorruptEntryError("a table of chunk checksums fails its checksum")


def check_chunk(header: Header, index: int, chunk: memoryview) -> None:
    """Raise unless `chunk` is the payload's chunk number `index`."""
    if xxh3(chunk) != _SUM.unpack_from(header.chunk_sums, 8 * index)[0]:
        raise CorruptEntryError(f"chunk {index} of a payload fails its checksum")


def pack_segment_header(segment_id: bytes, namespace: str, created_us: int) -> bytes:
    """Return the first 512 bytes of a segment."""
    name = namespace.encode()
    head = SEGMENT_HEADER.pack(SEGMENT_MAGIC, FORMAT_VERSION, 0, len(name), segment_id, created_us) + name
    head = head.ljust(SEGMENT_HEADER_BYTES - 8, b"\0")
    return head + _SUM.pack(xxh3(head))


def parse_segment_header(buffer: bytes) -> tuple[bytes, str, int]:
    """Return (segment id, namespace, created us).

    Raises:
        CorruptEntryError: The bytes do not begin a segment.
        UnsupportedFormatError: A newer format.
    """
    if len(buffer) < SEGMENT_HEADER_BYTES or not buffer.startswith(SEGMENT_MAGIC):
        raise CorruptEntryError("no segment begins here")
    _magic, version, _flags, name_bytes, segment_id, created_us = SEGMENT_HEADER.unpack_from(buffer)
    if version != FORMAT_VERSION:
        raise UnsupportedFormatError(f"segment format {version}: upgrade lmstash to read it")
    if _SUM.unpack_from(buffer, SEGMENT_HEADER_BYTES - 8)[0] != xxh3(buffer[: SEGMENT_HEADER_BYTES - 8]):
        raise CorruptEntryError("a segment header fails its checksum")
    name = buffer[SEGMENT_HEADER.size : SEGMENT_HEADER.size + name_bytes]
    try:
        namespace = name.decode()
    except UnicodeDecodeError:
        namespace = ""
    if not 0 < name_bytes <= MAX_NAMESPACE_BYTES or not namespace:
        raise CorruptEntryError("a segment header names no namespace")
    return segment_id, namespace, created_us


def pack_listing(records: Iterable[Located]) -> bytes:
    """Return records as a footer lists them."""
    return b"".join(
        FOOTER_ENTRY.pack(
            each.type,
            each.flags,
            each.head_bytes,
            each.key,
            each.generation,
            each.expires_us,
            each.offset,
            each.payload_bytes,
            each.ordinal,
        )
        for each in records
    )


def pack_footer(listing: Buffer, offset: int) -> bytes:
    """Return footer and trailer of a segment whose records, listed in `listing`, end at `offset`."""
    count = len(listing) // FOOTER_ENTRY.size
    trailer = TRAILER.pack(TRAILER_MAGIC, offset, count, xxh3(listing), 0)[:-8]
    return bytes(listing) + trailer + _SUM.pack(xxh3(trailer))


def footer_bytes(n_records: int) -> int:
    """Return the size of footer and trailer for `n_records`."""
    return n_records * FOOTER_ENTRY.size + TRAILER.size


def parse_trailer(buffer: bytes) -> tuple[int, int, int] | None:
    """Return (footer offset, entry count, footer checksum) from a segment's last bytes, or None."""
    if len(buffer) < TRAILER.size:
        return None
    magic, offset, count, footer_sum, total = TRAILER.unpack(buffer[-TRAILER.size :])
    if magic != TRAILER_MAGIC or total != xxh3(buffer[-TRAILER.size : -8]):
        return None
    return offset, count, footer_sum


def parse_footer(buffer: bytes) -> list[Located]:
    """Return what a footer lists (its checksum was checked by the caller)."""
    return [
        Located(kind, flags, head, key, generation, expires, offset, size, ordinal)
        for kind, flags, head, key, generation, expires, offset, size, ordinal in FOOTER_ENTRY.iter_unpack(buffer)
    ]


def namespace_hash(namespace: str) -> int:
    """Return what ties a record to its segment's namespace."""
    return xxh3(namespace.encode())
