"""Records and segments as bytes: golden bytes that must never change, round trips, and hostile bytes."""

from __future__ import annotations

import hashlib
import struct
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmstash.errors import CorruptEntryError, FormatError, UnsupportedFormatError
from lmstash.store.disk.files import format as fmt
from lmstash.store.disk.files import segment
from lmstash.store.disk.files.segment import read_footer, scan, seal_file, write_all
from lmstash.testing import sample_bytes

KEY = bytes(range(32))
PARENT = bytes(range(32, 64))
GOLDEN_RECORD = (
    "ba56df1d8218b58b4c4d537201010200a0000000070000000500000000000000000102030405060708090a0b0c0d0e0f"
    "101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f"
    "080706050403020100401e18240a06000080982817650600000000000000f83f4d000000000000005d8b2c5a8e2f191e"
    "fddc625c55e855957b2261223a317d0068656c6c6f"
)
NAMESPACE = "kind/owner"
HASH = fmt.namespace_hash(NAMESPACE)
u8, u16, u32, u64 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32, 64))
keys = st.binary(min_size=32, max_size=32)


def record(payload: bytes, *, offset: int = 512, key: bytes = KEY, meta: bytes = b"", generation: int = 7) -> bytes:
    """A whole entry as it lies in a segment at `offset`."""
    checksum, sums = fmt.checksum_payload([payload], len(payload))
    head = fmt.pack_head(
        fmt.RecordType.ENTRY,
        key,
        offset=offset,
        payload_bytes=len(payload),
        checksum=checksum,
        chunk_sums=sums,
        meta=meta,
        generation=generation,
        created_us=1,
        namespace_hash=HASH,
    )
    whole = head + payload
    return whole + bytes(-len(whole) % 16)


def resummed(head: bytes, **changes: int) -> bytes:
    """The head with fields changed and its checksum made right again: what only an attacker writes."""
    names = [
        "total", "magic", "version", "kind", "flags", "head_bytes", "meta_bytes", "payload_bytes", "key", "parent",
        "generation", "created_us", "expires_us", "compute_seconds", "n_tokens", "reserved", "namespace_hash",
        "checksum",
    ]  # fmt: skip
    fields = dict(zip(names, fmt.HEADER.unpack_from(head), strict=True)) | changes
    fresh = fmt.HEADER.pack(*fields.values()) + head[fmt.HEADER.size :]
    n_chunks = -(-fields["payload_bytes"] // fmt.CHUNK_BYTES) if fields["flags"] & fmt.FLAG_CHUNKED else 0
    end = min(fmt.HEADER.size + fields["meta_bytes"] + 8 * n_chunks, len(fresh))
    return struct.pack("<Q", fmt.xxh3(fresh[8:end])) + fresh[8:]


# --- golden bytes -------------------------------------------------------------------------------------------------


def golden_record() -> bytes:
    checksum, sums = fmt.checksum_payload([b"he", b"llo"], 5)
    head = fmt.pack_head(
        fmt.RecordType.ENTRY,
        KEY,
        offset=512,
        payload_bytes=5,
        checksum=checksum,
        chunk_sums=sums,
        meta=b'{"a":1}',
        parent=PARENT,
        generation=0x0102030405060708,
        created_us=1_700_000_000_000_000,
        expires_us=1_800_000_000_000_000,
        compute_seconds=1.5,
        n_tokens=77,
        namespace_hash=HASH,
        pinned=True,
    )
    return head + b"hello"


def golden_segment() -> bytes:
    """Header, a small entry, a chunked entry, a tombstone, footer, trailer."""
    out = fmt.pack_segment_header(bytes(range(16)), NAMESPACE, 1_700_000_000_000_000)
    listed: list[fmt.Located] = []
    large = bytes(range(256)) * 4096 + b"x"
    tombstone = fmt.TOMBSTONE.pack(3, bytes(range(16)))
    for kind, payload in (
        (fmt.RecordType.ENTRY, b"hello"),
        (fmt.RecordType.ENTRY, large),
        (fmt.RecordType.TOMBSTONE, tombstone),
    ):
        checksum, sums = fmt.checksum_payload([payload], len(payload))
        head = fmt.pack_head(
            kind,
            KEY,
            offset=len(out),
            payload_bytes=len(payload),
            checksum=checksum,
            chunk_sums=sums,
            generation=len(listed) + 1,
            created_us=1_700_000_000_000_000,
            namespace_hash=HASH,
        )
        flags = fmt.FLAG_CHUNKED if sums else 0
        listed.append(fmt.Located(kind, flags, len(head), KEY, len(listed) + 1, 0, len(out), len(payload), len(listed)))
        out += head + payload
        out += bytes(-len(out) % 16)
    return out + fmt.pack_footer(fmt.pack_listing(listed), len(out))


def test_a_record_of_format_1_is_these_bytes():
    assert golden_record().hex() == GOLDEN_RECORD


def test_a_segment_of_format_1_is_these_bytes():
    segment = golden_segment()
    assert len(segment) == 1_053_148
    assert hashlib.sha256(segment).hexdigest() == "e5ba88d9efa89a33fa953412b1eadb87ef3b79c0fba3d6369973d8a745b2f537"


def test_the_sizes_of_format_1():
    sizes = [each.size for each in (fmt.HEADER, fmt.SEGMENT_HEADER, fmt.FOOTER_ENTRY, fmt.TRAILER, fmt.TOMBSTONE)]
    assert sizes == [152, 40, 76, 40, 24]
    assert [int(each) for each in fmt.RecordType] == [1, 2, 3, 4]
    assert (fmt.FLAG_CHUNKED, fmt.FLAG_PINNED, fmt.FLAG_MAC, fmt.FLAG_ENCRYPTED) == (1, 2, 4, 8)


# --- round trips --------------------------------------------------------------------------------------------------


@given(
    key=keys,
    parent=st.one_of(st.just(b""), keys.filter(lambda each: each != bytes(32))),
    meta=st.binary(max_size=300),
    payload_bytes=st.one_of(st.integers(0, 5000), st.integers(1 << 20, 5 << 20)),
    offset=st.integers(32, 1 << 40).map(lambda each: each * 16),
    generation=u64,
    created_us=u64,
    expires_us=u64,
    compute_seconds=st.floats(allow_nan=False),
    n_tokens=u32,
    pinned=st.booleans(),
)
def test_what_is_packed_is_parsed(
    key: bytes,
    parent: bytes,
    meta: bytes,
    payload_bytes: int,
    offset: int,
    generation: int,
    created_us: int,
    expires_us: int,
    compute_seconds: float,
    n_tokens: int,
    pinned: bool,
):
    sums = b"".join(struct.pack("<Q", each) for each in range(-(-payload_bytes // fmt.CHUNK_BYTES)))
    sums = sums if payload_bytes > fmt.CHUNK_BYTES else b""
    head = fmt.pack_head(
        fmt.RecordType.ENTRY,
        key,
        offset=offset,
        payload_bytes=payload_bytes,
        checksum=11,
        chunk_sums=sums,
        meta=meta,
        parent=parent,
        generation=generation,
        created_us=created_us,
        expires_us=expires_us,
        compute_seconds=compute_seconds,
        n_tokens=n_tokens,
        namespace_hash=HASH,
        pinned=pinned,
    )
    header = fmt.parse_head(head)
    flags = (fmt.FLAG_CHUNKED if sums else 0) | (fmt.FLAG_PINNED if pinned else 0)
    assert header == fmt.Header(
        fmt.RecordType.ENTRY, flags, len(head), payload_bytes, key, parent, generation, created_us, expires_us,
        compute_seconds, n_tokens, HASH, 11, meta, sums,
    )  # fmt: skip
    assert (offset + len(head)) % fmt.payload_align(payload_bytes) == 0
    assert len(head) - fmt.HEADER.size - len(meta) - len(sums) < fmt.payload_align(payload_bytes)
    assert header.record_bytes % 16 == 0
    assert fmt.parse_head(b"junk" + head, 4) == header


@given(st.integers(0, (2 << 20) + 3), st.lists(st.integers(0, 2 << 20), max_size=4))
def test_checksums_do_not_depend_on_how_the_value_is_cut(n_bytes: int, cuts: list[int]):
    value = sample_bytes(n_bytes)
    whole = fmt.checksum_payload([value], n_bytes)
    places = [0, *sorted(min(each, n_bytes) for each in cuts), n_bytes]
    parts = [memoryview(value)[first:last] for first, last in pairwise(places)]
    assert fmt.checksum_payload(parts, n_bytes) == whole
    assert len(whole[1]) == (8 * -(-n_bytes // fmt.CHUNK_BYTES) if n_bytes > fmt.CHUNK_BYTES else 0)


@pytest.mark.parametrize("n_bytes", [0, 5, 4096, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_a_payload_is_checked_to_the_last_byte(n_bytes: int):
    value = bytearray(n_bytes)
    header = fmt.parse_head(record(bytes(value)))
    fmt.check_payload(header, memoryview(value))
    for place in {0, n_bytes // 2, n_bytes - 1} if n_bytes else ():
        value[place] ^= 1
        with pytest.raises(CorruptEntryError):
            fmt.check_payload(header, memoryview(value))
        value[place] ^= 1
    for wrong in (bytes(n_bytes + 1), bytes(n_bytes - 1) if n_bytes else b"x"):
        with pytest.raises(CorruptEntryError):
            fmt.check_payload(header, memoryview(wrong))


@given(st.text(min_size=1, max_size=80), st.binary(min_size=16, max_size=16), u64)
def test_a_segment_header_round_trips(namespace: str, segment_id: bytes, created_us: int):
    try:
        encoded = namespace.encode()
    except UnicodeEncodeError:
        return
    if len(encoded) <= 256:
        packed = fmt.pack_segment_header(segment_id, namespace, created_us)
        assert len(packed) == 512
        assert fmt.parse_segment_header(packed) == (segment_id, namespace, created_us)


@given(st.lists(st.builds(fmt.Located, st.integers(1, 4), st.integers(0, 3), u32, keys, u64, u64, u64, u64, u32)), u64)
def test_a_footer_round_trips(records: list[fmt.Located], offset: int):
    packed = fmt.pack_footer(fmt.pack_listing(records), offset)
    assert len(packed) == fmt.footer_bytes(len(records))
    assert fmt.parse_trailer(b"before" + packed) == (offset, len(records), fmt.xxh3(packed[: -fmt.TRAILER.size]))
    assert fmt.parse_footer(packed[: -fmt.TRAILER.size]) == records


# --- hostile bytes ------------------------------------------------------------------------------------------------


@given(st.binary(max_size=400), st.integers(0, 400))
def test_junk_is_no_record(junk: bytes, start: int):
    # Junk that has the magic by chance speaks of a version nobody knows: also a format error, never a record.
    with pytest.raises((CorruptEntryError, UnsupportedFormatError)):
        fmt.parse_head(junk, start)
    with pytest.raises((CorruptEntryError, UnsupportedFormatError)):
        fmt.parse_segment_header(junk.ljust(512, b"\0"))
    assert fmt.parse_trailer(junk) is None


@given(st.data())
def test_a_flipped_bit_in_a_head_is_seen(data: st.DataObject):
    good = record(b"hello", meta=b'{"a":1}')
    end = fmt.HEADER.size + 7
    place, bit = data.draw(st.integers(0, end - 1)), data.draw(st.integers(0, 7))
    bad = bytearray(good)
    bad[place] ^= 1 << bit
    with pytest.raises(FormatError):
        fmt.parse_head(bad)


@given(st.integers(0, 511), st.integers(0, 7))
def test_a_flipped_bit_in_a_segment_header_is_seen(place: int, bit: int):
    bad = bytearray(fmt.pack_segment_header(bytes(16), NAMESPACE, 5))
    bad[place] ^= 1 << bit
    with pytest.raises(FormatError):
        fmt.parse_segment_header(bytes(bad))


@given(st.data())
def test_a_flipped_bit_in_a_trailer_is_seen(data: st.DataObject):
    good = fmt.pack_footer(b"", 512)
    place, bit = data.draw(st.integers(0, len(good) - 1)), data.draw(st.integers(0, 7))
    bad = bytearray(good)
    bad[place] ^= 1 << bit
    assert fmt.parse_trailer(bytes(bad)) is None


@given(st.integers(0, 600))
def test_a_head_that_is_cut_short_is_seen(length: int):
    good = record(bytes(600), meta=b'{"a":' + b"1" * 300 + b"}")
    if length < fmt.HEADER.size + 306:
        with pytest.raises(CorruptEntryError):
            fmt.parse_head(good[:length])


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "version": u8, "kind": u8, "flags": u16, "head_bytes": u32, "meta_bytes": u32, "payload_bytes": u64,
            "checksum": u64, "namespace_hash": u64, "expires_us": u64,
        },
    )
)  # fmt: skip
def test_a_forged_head_with_a_right_checksum_gives_a_header_or_a_format_error(changes: dict[str, int]):
    forged = resummed(record(bytes(3000)), **changes)
    try:
        header = fmt.parse_head(forged)
        payload = memoryview(forged)[header.head_bytes : header.head_bytes + header.payload_bytes]
        fmt.check_payload(header, payload)
    except FormatError:
        return
    assert header.payload_bytes == 3000


def test_a_chunked_flag_must_fit_the_size():
    for changes in ({"flags": fmt.FLAG_CHUNKED}, {"payload_bytes": fmt.CHUNK_BYTES + 1}):
        with pytest.raises(CorruptEntryError):
            fmt.parse_head(resummed(record(bytes(3000)), **changes))


@pytest.mark.parametrize("changes", [{"version": 2}, {"flags": 4}, {"flags": 8}, {"flags": 1 << 15}])
def test_what_a_newer_version_wrote_says_so(changes: dict[str, int]):
    with pytest.raises(UnsupportedFormatError, match="upgrade lmstash"):
        fmt.parse_head(resummed(record(b"hello"), **changes))


def forged_segment_header(name: bytes, name_bytes: int, version: int = 1) -> bytes:
    head = fmt.SEGMENT_HEADER.pack(fmt.SEGMENT_MAGIC, version, 0, name_bytes, bytes(16), 0) + name
    head = head.ljust(504, b"\0")
    return head + struct.pack("<Q", fmt.xxh3(head))


@pytest.mark.parametrize(
    ("name", "name_bytes"),
    [(b"", 0), (b"x", 2**32 - 1), (b"x" * 400, 400), (b"\xff\xfe", 2), (b"a\x00b"[:1], 500)],
)
def test_a_forged_segment_header_names_no_namespace(name: bytes, name_bytes: int):
    with pytest.raises(CorruptEntryError):
        fmt.parse_segment_header(forged_segment_header(name, name_bytes))


def test_a_newer_segment_says_so():
    with pytest.raises(UnsupportedFormatError, match="upgrade lmstash"):
        fmt.parse_segment_header(forged_segment_header(b"kind/a", 6, version=2))


# --- scanning -----------------------------------------------------------------------------------------------------


def write_segment(path: Path, n_records: int = 6) -> tuple[list[int], bytes]:
    """An unsealed segment; returns where its records begin, and where the last ends, and its bytes."""
    data = fmt.pack_segment_header(bytes(16), NAMESPACE, 1)
    places = [len(data)]
    for number in range(n_records):
        size = (0, 100, 5000, (1 << 20) + 100, 3, 70_000)[number % 6]
        data += record(bytes([number]) * size, offset=len(data), key=bytes([number]) * 32, generation=number)
        places.append(len(data))
    path.write_bytes(data)
    return places, data


def scanned(path: Path, namespace: str = NAMESPACE) -> list[fmt.Located]:
    with path.open("rb") as file:
        return list(scan(file.fileno(), namespace))


def test_a_scan_finds_every_record(tmp_path: Path):
    places, _data = write_segment(tmp_path / "a", 20)
    found = scanned(tmp_path / "a")
    assert [each.offset for each in found] == places[:-1]
    assert [each.end for each in found] == places[1:]
    assert [each.ordinal for each in found] == list(range(20))
    assert [each.key for each in found] == [bytes([number]) * 32 for number in range(20)]


def test_a_scan_keeps_to_the_segment_s_namespace(tmp_path: Path):
    write_segment(tmp_path / "a")
    assert scanned(tmp_path / "a", "kind/other") == []


@given(cut=st.integers(0, 1_140_000))
def test_a_scan_of_a_segment_cut_short_finds_what_is_whole(tmp_path_factory: pytest.TempPathFactory, cut: int):
    path = tmp_path_factory.getbasetemp() / "cut"
    _places, data = write_segment(path)
    whole = scanned(path)
    path.write_bytes(data[:cut])
    expected = [each for each in whole if each.offset + each.head_bytes + each.payload_bytes <= cut]
    assert scanned(path) == expected


def test_sealing_cuts_what_is_not_whole_and_lists_the_rest(tmp_path: Path):
    path = tmp_path / "a"
    places, data = write_segment(path)
    path.write_bytes(data[:-50_000] + b"torn")
    with path.open("r+b") as file:
        records = list(scan(file.fileno(), NAMESPACE))
        assert read_footer(file.fileno()) is None
        size = seal_file(file.fileno(), fmt.pack_listing(records), records[-1].end)
        assert read_footer(file.fileno()) == records
    assert len(records) == 5
    assert path.stat().st_size == size == places[-2] + fmt.footer_bytes(5)
    assert path.read_bytes()[: places[-2]] == data[: places[-2]]


@given(st.data())
def test_a_damaged_footer_is_no_footer(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    path = tmp_path_factory.getbasetemp() / "footer"
    segment = golden_segment()
    start = len(segment) - fmt.footer_bytes(3)
    bad = bytearray(segment)
    if data.draw(st.booleans()):
        bad[data.draw(st.integers(start, len(segment) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del bad[data.draw(st.integers(0, len(segment) - 1)) :]
    path.write_bytes(bad)
    with path.open("rb") as file:
        assert read_footer(file.fileno()) is None
        assert all(each.end <= start for each in scan(file.fileno(), NAMESPACE))


@given(st.lists(st.binary(max_size=40), max_size=30))
def test_buffers_are_written_one_after_another(tmp_path_factory: pytest.TempPathFactory, parts: list[bytes]):
    path = tmp_path_factory.getbasetemp() / "written"
    with path.open("w+b") as file:
        write_all(file.fileno(), parts, 7)
    assert path.read_bytes() == (bytes(7) + b"".join(parts) if any(parts) else b"")


def test_more_buffers_and_bytes_than_one_call_takes_are_written(tmp_path: Path):
    parts = [b"%d," % number for number in range(2000)] + [bytes(range(256)) * 80_000]
    with (tmp_path / "a").open("w+b") as file:
        write_all(file.fileno(), parts, 0)
    assert (tmp_path / "a").read_bytes() == b"".join(parts)


def test_the_kernel_is_asked_to_begin_once_for_each_megabyte_however_it_is_written(tmp_path: Path, monkeypatch):
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(segment, "start_writeback", lambda _fd, start, n_bytes: asked.append((start, n_bytes)))
    page, offset, started = bytes(1000), 0, 0
    with (tmp_path / "a").open("w+b") as file:
        for parts in ([page] * 300, [page] * 2000, [bytes(3 << 20)], [page], [bytes(20 << 20), page], [page] * 600):
            started = segment.write_all(file.fileno(), parts, offset, started)
            offset += sum(map(len, parts))
    ends = [start + n_bytes for start, n_bytes in asked]
    assert [start for start, _ in asked] == [0, *ends[:-1]]  # one after another, nothing twice
    assert ends[-1] == started
    assert offset - started < 1 << 20
    assert min(n_bytes for _, n_bytes in asked) >= 1 << 20
