"""`docs/format.md` is enough to read a stash: a reader made of its tables, which knows nothing of the code."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import xxhash

from lmstash.store.base import Write
from lmstash.store.disk.store import DiskStore
from lmstash.testing import sample_bytes, sample_key

DOCUMENT = Path(__file__).parents[4] / "docs" / "format.md"
SIZES = {"u8": 1, "u16": 2, "u32": 4, "u64": 8, "f64": 8}
Row = dict[str, Any]


def table(heading: str) -> list[list[str]]:
    """The cells of the first table under a heading, without backquotes."""
    text = DOCUMENT.read_text(encoding="utf-8")
    section = re.split(rf"^#+ {re.escape(heading)}$", text, flags=re.MULTILINE)[1]
    lines = [line for line in re.split(r"^#", section, flags=re.MULTILINE)[0].splitlines() if line.startswith("|")]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines[2:]]


LAYOUTS = {
    name: [(int(offset), int(size), kind, field) for offset, size, kind, field, _meaning in table(name)]
    for name in ("Segment header", "Record header", "Tombstone payload", "Footer entry", "Trailer")
}
TYPES = {int(number): name for number, name, *_rest in table("Types")}
FLAGS = {name: int(bit) for bit, name, _meaning in table("Flags")}


def unpack(name: str, buffer: bytes) -> Row:
    out: Row = {}
    for offset, size, kind, field in LAYOUTS[name]:
        part = buffer[offset : offset + size]
        assert len(part) == size
        out[field] = (
            part
            if kind == "bytes"
            else struct.unpack("<d", part)[0]
            if kind == "f64"
            else int.from_bytes(part, "little")
        )
    return out


def length(name: str) -> int:
    offset, size, _kind, _field = LAYOUTS[name][-1]
    return offset + size


def checksum(data: bytes) -> int:
    return xxhash.xxh3_64_intdigest(data)


def up(number: int, to: int) -> int:
    return (number + to - 1) // to * to


def read_record(data: bytes, offset: int) -> Row:
    """One record, with every promise of the document checked."""
    record = unpack("Record header", data[offset:])
    assert record["magic"] == b"LMSr"
    assert record["version"] == 1
    assert record["reserved"] == 0
    start = offset + length("Record header")
    n_bytes, large = record["payload_bytes"], 1 << 20
    n_sums = up(n_bytes, large) // large if record["flags"] & FLAGS["CHUNKED"] else 0
    assert bool(n_sums) == (n_bytes > large)
    end = start + record["meta_bytes"] + 8 * n_sums
    assert checksum(data[offset + 8 : end]) == record["header_checksum"]
    record["meta"] = data[start : start + record["meta_bytes"]]
    sums = data[start + record["meta_bytes"] : end]
    first = offset + record["head_bytes"]
    align = 16 if n_bytes < 4096 else 64 if n_bytes < large else 4096
    assert first == up(end, align)
    assert not any(data[end:first])
    payload = data[first : first + n_bytes]
    assert len(payload) == n_bytes
    if n_sums:
        assert checksum(sums) == record["payload_checksum"]
        chunks = [checksum(payload[each : each + large]) for each in range(0, n_bytes, large)]
        assert [*struct.unpack(f"<{n_sums}Q", sums)] == chunks
    else:
        assert checksum(payload) == record["payload_checksum"]
    record["payload"] = payload
    record["offset"] = offset
    record["end"] = up(first + n_bytes, 16)
    assert not any(data[first + n_bytes : record["end"]])
    return record


def read_segment(path: Path) -> tuple[str, list[Row], bool]:
    """Namespace, records, and whether the segment is sealed."""
    data = path.read_bytes()
    header = unpack("Segment header", data)
    assert header["magic"] == b"LMSTSEG\n"
    assert (header["version"], header["flags"]) == (1, 0)
    assert header["segment_id"].hex() + ".seg" == path.name
    assert header["checksum"] == checksum(data[: length("Segment header") - 8])
    namespace = header["namespace"][: header["namespace_bytes"]]
    assert not any(header["namespace"][header["namespace_bytes"] :])
    trailer = unpack("Trailer", data[-length("Trailer") :])
    sealed = trailer["magic"] == b"LMSTEND\n"
    records: list[Row] = []
    if sealed:
        assert trailer["checksum"] == checksum(data[-length("Trailer") : -8])
        footer = data[trailer["footer_offset"] : -length("Trailer")]
        assert len(footer) == trailer["entry_count"] * length("Footer entry")
        assert trailer["footer_checksum"] == checksum(footer)
        for ordinal, start in enumerate(range(0, len(footer), length("Footer entry"))):
            listed = unpack("Footer entry", footer[start:])
            record = read_record(data, listed["offset"])
            for field in ("type", "head_bytes", "key", "generation", "expires_us", "payload_bytes"):
                assert listed[field] == record[field], field
            assert listed["flags"] & FLAGS["PINNED"] == record["flags"] & FLAGS["PINNED"]
            assert listed["ordinal"] == ordinal
            assert not any(listed["padding"])
            records.append(record)
        assert (records[-1]["end"] if records else length("Segment header")) == trailer["footer_offset"]
    else:
        offset = length("Segment header")
        while data[offset + 8 : offset + 12] == b"LMSr":
            records.append(read_record(data, offset))
            offset = records[-1]["end"]
    assert [each["offset"] for each in records] == [length("Segment header"), *(each["end"] for each in records)][:-1]
    assert all(each["namespace_hash"] == checksum(namespace) for each in records)
    return namespace.decode(), records, sealed


def rebuild(folder: Path) -> dict[bytes, Row]:
    """What the document's rules say is kept, with `namespace` and `pinned` added."""
    entries: dict[bytes, list[Row]] = {}
    killed: set[tuple[bytes, int]] = set()
    pins: dict[bytes, tuple[int, bool]] = {}
    stones: dict[bytes, list[tuple[int, int]]] = {}
    for path in sorted((folder / "segments").glob("*.seg")):
        namespace, records, _sealed = read_segment(path)
        for record in records:
            kind, key = TYPES[record["type"]], record["key"]
            if kind == "ENTRY":
                entries.setdefault(key, []).append({**record, "namespace": namespace})
                continue
            assert (record["meta"], record["parent"]) == (b"", bytes(32))
            if kind == "TOMBSTONE":
                assert len(record["payload"]) == length("Tombstone payload")
                named = unpack("Tombstone payload", record["payload"])["killed_generation"]
                killed.add((key, named))
                stones.setdefault(key, []).append((record["generation"], named))
            else:
                assert record["payload"] == b""
                pins[key] = max(pins.get(key, (0, False)), (record["generation"], kind == "PIN"))
    out: dict[bytes, Row] = {}
    for key, records in entries.items():
        left = [each for each in records if (key, each["generation"]) not in killed]
        if left:
            out[key] = max(left, key=lambda each: each["generation"])
            said, pinned = pins.get(key, (0, False))
            entry = out[key]
            began = entry["generation"]
            while before := [named for own, named in stones.get(key, []) if named < began < own]:
                began = max(before)
            entry["pinned"] = pinned if said > began else bool(entry["flags"] & FLAGS["PINNED"])
    return out


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DiskStore]:
    store = DiskStore(tmp_path / "stash", capacity_bytes=64 << 20)
    yield store
    store.close()


def put_all_kinds(store: DiskStore) -> None:
    sizes = [0, 1, 15, 16, 100, 4095, 4096, 65_000, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20]
    store.put_many(
        [
            Write(
                sample_key(number),
                sample_bytes(size, number),
                ("kind/a", "kind/b", "üñí/c")[number % 3],
                meta={"number": number, "text": "ä" * number} if number % 2 else None,
                parent=sample_key(number - 1) if number % 4 else b"",
                compute_seconds=number / 8,
                n_tokens=number * 1000,
                ttl_seconds=10_000 if number % 5 == 0 else None,
            )
            for number, size in enumerate(sizes)
        ]
    )
    store.put(sample_key(0), b"replaced", namespace="kind/a")
    store.put(sample_key(1), b"moved to another namespace", namespace="kind/a")
    store.pin_many([sample_key(number) for number in (2, 3, 4)])
    store.pin_many([sample_key(3)], pinned=False)
    store.put(sample_key(4), b"replaced, and pinned all the same")
    store.delete_many([sample_key(5), sample_key(6)])
    store.pin_many([sample_key(7)])
    store.delete(sample_key(7))
    store.put(sample_key(7), b"back, and pinned no more")


def check(store: DiskStore, folder: Path) -> None:
    found = rebuild(folder)
    infos = {info.key: info for info in store.entries()}
    assert infos.keys() == found.keys()
    for key, record in found.items():
        info, entry = infos[key], store.fetch_many([key])[0]
        assert entry is not None
        assert bytes(entry.value) == record["payload"]
        assert entry.meta_bytes == record["meta"]
        assert (info.namespace, info.pinned) == (record["namespace"], record["pinned"])
        assert (entry.parent or bytes(32)) == record["parent"]
        assert (entry.n_tokens, entry.compute_seconds) == (record["n_tokens"], record["compute_seconds"])
        assert entry.created == record["created_us"] / 1e6
        assert (entry.expires or 0) == record["expires_us"] / 1e6


def test_the_tables_leave_no_gap():
    for name, fields in LAYOUTS.items():
        end = 0
        for offset, size, kind, field in fields:
            assert offset == end, (name, field)
            assert SIZES.get(kind, size) == size, (name, field)
            end = offset + size


def test_an_open_stash_is_what_the_document_says(store: DiskStore, tmp_path: Path):
    put_all_kinds(store)
    assert False in {sealed for *_rest, sealed in map(read_segment, (tmp_path / "stash/segments").iterdir())}
    check(store, tmp_path / "stash")


def test_a_sealed_stash_is_what_the_document_says(store: DiskStore, tmp_path: Path):
    put_all_kinds(store)
    store.evict(1 << 40)  # seals what is open
    assert {sealed for *_rest, sealed in map(read_segment, (tmp_path / "stash/segments").iterdir())} == {True}
    check(store, tmp_path / "stash")


def test_a_closed_stash_is_what_the_document_says(store: DiskStore, tmp_path: Path):
    put_all_kinds(store)
    store.close()
    again = DiskStore(tmp_path / "stash", read_only=True)
    check(again, tmp_path / "stash")
    again.close()


def test_an_evicted_stash_is_what_the_document_says(tmp_path: Path):
    store = DiskStore(tmp_path / "stash", capacity_bytes=8 << 20)
    for turn in range(8):
        put_all_kinds(store)
        store.put_many([Write(sample_key(1000 + 50 * turn + n), sample_bytes(20_000, n)) for n in range(50)])
    assert store.events.stats.evicted_entries > 0
    check(store, tmp_path / "stash")
    store.close()


def test_the_description_says_format_and_limit(store: DiskStore, tmp_path: Path):
    description = json.loads((tmp_path / "stash" / "stash.json").read_bytes())
    assert (description["format"], description["capacity_bytes"]) == (1, 64 << 20)
    assert DOCUMENT.read_text(encoding="utf-8").startswith("# The format of a stash folder, version 1\n")
