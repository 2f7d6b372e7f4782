"""Sheets on the disk: what the contract cannot see. Records like any others, faults like any others."""

import json
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lmstash.store.base import Entry, Write
from lmstash.store.disk.files import format as fmt
from lmstash.store.disk.files.rows import Row, place_of, row_id
from lmstash.store.disk.files.segment import read_footer, scan
from lmstash.store.disk.indexing import tables
from lmstash.store.disk.reading import sheets as sheet_reading
from lmstash.store.disk.store import DiskStore
from lmstash.store.disk.writing import sheets as sheet_writing
from lmstash.store.sheets import Sheet, fetch_sheets, found_of, put_sheets
from lmstash.testing import sample_bytes, sample_key
from lmstash.testing.sheets import expected, fetched, sample_sheet

MIDDLE = [(70_000, False), (70_000, True)]
"""Bytes of a value, and whether it comes in memory of its own."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "stash"


def only_segment(folder: Path) -> Path:
    [path] = (folder / "segments").iterdir()
    return path


@pytest.mark.parametrize(("uneven", "spaced"), [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("n_bytes", [0, 1, 16, 300, 4095, 4096, 5000, 70_000, fmt.CHUNK_BYTES])
@pytest.mark.parametrize("n", [1, 7])
def test_the_records_are_those_that_single_puts_write(folder, n, n_bytes, uneven, spaced):
    sheet = sample_sheet(n, n_bytes, uneven=uneven, spaced=spaced)
    with_sheet, singly = DiskStore(folder / "sheet"), DiskStore(folder / "singly")
    put_sheets(with_sheet, [sheet])
    singly.put_many(sheet.writes())
    records = []
    for store in (with_sheet, singly):
        store.close()
        with only_segment(store._folder.path).open("rb") as file:
            data = file.read()
            listed = read_footer(file.fileno())
            assert listed == list(scan(file.fileno(), "sheets/contract"))[: len(listed)]
            heads = [fmt.parse_head(data, each.offset) for each in listed]
            for each, head in zip(listed, heads, strict=True):
                start = each.offset + each.head_bytes
                fmt.check_payload(head, memoryview(data)[start : start + each.payload_bytes])
                assert start % fmt.payload_align(n_bytes) == 0
        records.append([head._replace(head_bytes=0, generation=0, created_us=0) for head in heads])
    assert records[0] == records[1]


@pytest.mark.parametrize(("uneven", "spaced"), [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("n_bytes", [0, 300, 4096, 5000, 70_000])
@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_the_index_is_told_where_each_record_is(folder, n, n_bytes, uneven, spaced):
    store = DiskStore(folder)
    sheets = [sample_sheet(n, n_bytes, first=first, spaced=spaced) for first in (0, 50)]
    if uneven:
        sheets[0].metas = [b'{"text":"%s"}' % (b"x" * (300 * (number % 2))) for number in range(n)]
    put_sheets(store, sheets)
    opened = store._ready()
    [segment] = opened.index.segments()
    rows = sorted(opened.index.rows_of_segment(segment.id), key=lambda row: row.off)
    with only_segment(folder).open("rb") as file:
        records = list(scan(file.fileno(), "sheets/contract"))
    assert [each.key for each in records] == [*sheets[0].keys, *sheets[1].keys]
    assert rows == [
        Row(
            row_id(each.key), each.key, segment.id, each.offset, each.head_bytes, each.payload_bytes,
            segment.first_slot + number, each.generation, each.expires_us, 0,
        )
        for number, each in enumerate(records)
    ]  # fmt: skip


@pytest.mark.parametrize("n_bytes", [100, 5000, 70_000])
def test_values_with_room_between_them_are_written_from_where_they_are(folder, n_bytes, monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("values were copied")

    monkeypatch.setattr(sheet_writing, "_table", refuse)
    monkeypatch.setattr(sheet_writing, "_pieces", refuse)
    sheet = sample_sheet(7, n_bytes, spaced=True)
    store = DiskStore(folder)
    assert put_sheets(store, [sheet]) == 7
    assert put_sheets(store, [sample_sheet(7, n_bytes, first=50, spaced=True)]) == 7
    assert fetched(store, list(sheet.keys)) == expected(sheet)
    (folder / "index.db").unlink()  # found again from the segments
    store = DiskStore(folder)
    assert fetched(store, list(sheet.keys)) == expected(sheet)
    assert store.verify().ok


@pytest.mark.parametrize("offset", [64, 80, 560, 4096, 4112])
@pytest.mark.parametrize("n_bytes", [5, 300, 4096, 5001, 69_909])
def test_no_more_is_written_than_was_asked_for(n_bytes, offset):
    writer = SimpleNamespace(namespace_hash=1, first_slot=0, row=1)
    for n in (1, 2, 9):
        for spaced in (False, True):
            sheet = sample_sheet(n, n_bytes, spaced=spaced)
            laid = sheet_writing.lay_out(sheet, list(range(n)), writer, offset, 0, generation=1, now_us=1, expires_us=0)
            assert sum(map(len, laid.buffers)) == laid.n_bytes <= sheet_writing.most_bytes(sheet)


@pytest.mark.parametrize("n_bytes", [16, 32, 48, 64])
def test_facts_of_different_lengths_that_end_in_one_gap(folder, n_bytes):
    keys = [sample_key(number) for number in range(9)]
    metas = [b'{"a":"%s"}' % (b"x" * (3 * number)) for number in range(9)]
    values = np.arange(9 * n_bytes, dtype=np.uint8).reshape(9, n_bytes)
    with_sheet = DiskStore(folder)
    put_sheets(with_sheet, [Sheet(keys, values, "sheets/contract", metas)])
    entries = with_sheet.fetch_many(keys)
    assert [each.meta_bytes for each in entries] == metas
    assert [bytes(each.value) for each in entries] == [each.tobytes() for each in values]
    with_sheet.close()


def test_both_ways_of_laying_out_agree_with_the_format():
    assert tables.HEADER_DTYPE.itemsize == fmt.HEADER.size
    names = [name for name in tables.HEADER_DTYPE.names if name not in ("key", "parent")]
    numbers = np.zeros(1, tables.HEADER_DTYPE)
    for number, name in enumerate(names, 1):
        numbers[name] = b"LMSr" if name == "magic" else number
    packed = fmt.HEADER.unpack(numbers.tobytes())
    plain = [each for each in packed if not isinstance(each, bytes)]
    assert plain == [number for number, name in enumerate(names, 1) if name != "magic"]
    listing = np.zeros(1, sheet_writing.LISTING_DTYPE)
    named = [name for name in sheet_writing.LISTING_DTYPE.names if name not in ("pad", "key")]
    for number, name in enumerate(named, 1):
        listing[name] = number
    found = fmt.FOOTER_ENTRY.unpack(listing.tobytes())
    assert [each for each in found if not isinstance(each, bytes)] == list(range(1, len(named) + 1))


@pytest.mark.parametrize("where", ["key", "payload", "header", "checksum", "tail"])
@pytest.mark.parametrize(("n_bytes", "apart"), [(100, False), (5000, False), *MIDDLE])
def test_a_damaged_record_is_a_counted_miss_and_its_neighbours_are_served(folder, where, n_bytes, apart):
    store, sheet = DiskStore(folder), sample_sheet(50, n_bytes)
    put_sheets(store, [sheet])
    path, row = only_segment(folder), store._opened.index.find(sheet.keys[20])
    at = {
        "key": row.off + 40,
        "checksum": row.off + fmt.HEADER.size - 3,
        "payload": row.off + row.head + n_bytes // 2,
        "header": row.off + 12,
        "tail": row.off + row.head + n_bytes - 1,
    }[where]
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 0x40]))
    there = expected(sheet)
    del there[sheet.keys[20]]
    assert fetched(store, list(sheet.keys), apart=apart) == there
    assert store.events.stats.damaged == 1
    assert store.events.stats.misses["damaged"] == 1
    assert not store.contains(sheet.keys[20])
    assert put_sheets(store, [sheet.part(20, 21)]) == 1
    assert fetched(store, list(sheet.keys), apart=apart) == expected(sheet)


def test_damage_beside_a_value_costs_the_value_nothing_and_is_found(folder):
    store, sheet = DiskStore(folder), sample_sheet(50, 5000)
    put_sheets(store, [sheet])
    row = store._opened.index.find(sheet.keys[20])
    with only_segment(folder).open("r+b") as file:
        file.seek(row.off + fmt.HEADER.size + 3)
        file.write(b"\xff")
    assert fetched(store, list(sheet.keys)) == expected(sheet)
    assert len(store.verify().damaged) == 1
    assert store.fetch_many([sheet.keys[20]]) == [None]


@pytest.mark.parametrize(("n_bytes", "apart"), [(5000, False), *MIDDLE])
def test_records_exchanged_under_each_others_keys_are_not_served(folder, n_bytes, apart):
    store, sheet = DiskStore(folder), sample_sheet(40, n_bytes)
    put_sheets(store, [sheet])
    index = store._opened.index
    first, second = (index.find(sheet.keys[each]) for each in (5, 6))
    with index.transaction() as connection:
        for row, other in ((first, second), (second, first)):
            connection.execute("UPDATE entries SET place = ? WHERE k = ?", (place_of(other), row.k))
    there = expected(sheet)
    del there[sheet.keys[5]], there[sheet.keys[6]]
    assert fetched(store, list(sheet.keys), apart=apart) == there
    assert store.events.stats.misses["mismatch"] == 2


@pytest.mark.parametrize(("n_bytes", "apart"), [(5000, False), *MIDDLE])
def test_a_truncated_segment_loses_only_what_lay_behind(folder, n_bytes, apart):
    store, sheet = DiskStore(folder), sample_sheet(100, n_bytes)
    put_sheets(store, [sheet])
    row = store._opened.index.find(sheet.keys[60])
    os.truncate(only_segment(folder), row.off + row.head + 17)
    assert fetched(store, list(sheet.keys), apart=apart) == dict(list(expected(sheet).items())[:60])
    assert sum(store.events.stats.misses.values()) == 40


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("step", [1, 2, 3])
def test_of_a_stretch_longer_than_what_is_hashed_at_a_time_each_record_is_checked(folder, step, uneven):
    n, n_bytes = 400, 5000
    assert n * n_bytes > 3 * sheet_reading._SLICE_BYTES
    store, sheet = DiskStore(folder), sample_sheet(n, n_bytes, uneven=uneven)
    put_sheets(store, [sheet])
    asked = list(sheet.keys)[::step]
    there = {key: value for key, value in expected(sheet).items() if key in asked}
    assert fetched(store, asked) == there
    rows = {number: store._opened.index.find(sheet.keys[number]) for number in (0, 102, 108, 216, 330)}
    os.truncate(only_segment(folder), rows[330].off + rows[330].head + 17)
    with only_segment(folder).open("r+b") as file:
        for number in (0, 102, 108, 216):
            at = rows[number].off + rows[number].head + 7 * number
            file.seek(at)
            byte = file.read(1)
            file.seek(at)
            file.write(bytes([byte[0] ^ 1]))
    lost = [sheet.keys[0], sheet.keys[102], sheet.keys[108], sheet.keys[216], *sheet.keys[330:]]
    assert fetched(store, asked) == {key: value for key, value in there.items() if key not in lost}
    assert sum(store.events.stats.misses.values()) == len(set(lost) & set(asked))


def test_a_deleted_segment_is_misses(folder):
    store, sheet = DiskStore(folder), sample_sheet(100, 5000)
    put_sheets(store, [sheet])
    store.close()
    only_segment(folder).unlink()
    store = DiskStore(folder)
    assert fetched(store, list(sheet.keys)) == {}
    assert put_sheets(store, [sheet]) == 100
    assert fetched(store, list(sheet.keys)) == expected(sheet)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *[(name, value) for name in ("off", "size") for value in (5, 2**62, 2**64 - 5)],
        *[(name, value) for name in ("seg", "head", "slot") for value in (0, 5, 2**32 - 1)],
        *[("exp", value) for value in (-5, 2**62, "text", 1.5)],
        *[("place", value) for value in ("text", b"", bytes(27), bytes(28), bytes(29), b"\xff" * 28, 1.5)],
    ],
)
def test_an_index_that_makes_no_sense_is_rebuilt_or_a_miss_never_wrong(folder, tools, column, value):
    store, sheet = DiskStore(folder), sample_sheet(30, 700)
    put_sheets(store, [sheet])
    store.flush()
    index = store._opened.index
    with index.transaction() as connection:
        assert tools.spoil_rows(connection, column, value, index.find(sheet.keys[3]).k) == 1
    got = fetched(store, list(sheet.keys))
    assert got.items() <= expected(sheet).items()
    assert len(got) >= 29


def test_the_index_is_rebuilt_from_what_sheets_wrote(folder):
    store, sheet = DiskStore(folder), sample_sheet(600, 90, uneven=True)
    put_sheets(store, [sheet])
    store.delete_many(sheet.keys[:10])
    store.close()
    (folder / "index.db").unlink()
    store = DiskStore(folder)
    assert fetched(store, list(sheet.keys)) == dict(list(expected(sheet).items())[10:])
    assert store.info().entries == 590


def test_what_a_killed_process_left_unsealed_is_found(folder, tmp_path):
    store, sheet = DiskStore(folder), sample_sheet(600, 90, uneven=True)
    put_sheets(store, [sheet])
    import shutil

    shutil.copytree(folder, tmp_path / "copy")
    copy = DiskStore(tmp_path / "copy")
    assert fetched(copy, list(sheet.keys)) == expected(sheet)
    assert copy.verify().ok


def test_more_than_the_limit_takes_evicts_and_never_exceeds_it(folder):
    capacity = 4 << 20
    store = DiskStore(folder, capacity_bytes=capacity)
    for part in range(30):
        assert put_sheets(store, [sample_sheet(200, 4000, first=200 * part)]) == 200
        taken = sum(path.lstat().st_blocks * 512 for path in (folder, *folder.rglob("*")))
        assert taken <= capacity
    assert store.events.stats.evicted_entries > 3000
    last = sample_sheet(200, 4000, first=200 * 29)
    assert fetched(store, list(last.keys)) == expected(last)


def test_a_disk_that_is_full_drops_with_a_count(folder, monkeypatch):
    store, sheet = DiskStore(folder), sample_sheet(20, 500)

    def full(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwritev", full)
    assert put_sheets(store, [sheet]) == 0
    assert store.events.stats.drops["disk_full"] == 20
    monkeypatch.undo()
    assert put_sheets(store, [sheet]) == 20
    assert fetched(store, list(sheet.keys)) == expected(sheet)


def test_a_closed_store_misses_and_drops(folder):
    store, sheet = DiskStore(folder), sample_sheet(20, 500)
    put_sheets(store, [sheet])
    store.close()
    assert fetched(store, list(sheet.keys)) == {}
    assert store.events.stats.misses["unavailable"] == 20
    assert put_sheets(store, [sheet]) == 0
    assert store.events.stats.drops["unavailable"] == 20


def test_uses_are_noted(folder):
    store, sheet = DiskStore(folder), sample_sheet(200, 500)
    put_sheets(store, [sheet])
    for _ in range(3):
        fetched(store, list(sheet.keys[:50]))
    hits = {info.key: info.hits for info in store.entries()}
    assert [hits[key] for key in sheet.keys] == [3] * 50 + [0] * 150


@pytest.mark.parametrize("lengths", [(300, 301, 5000, 0), (70_000, 300, 66_000, 90_001), (70_000, 80_000, 66_000)])
def test_dead_records_and_other_lengths_between_are_passed_over(folder, lengths):
    store = DiskStore(folder)
    values = {sample_key(each): sample_bytes(lengths[each % len(lengths)], each) for each in range(400)}
    facts = [{"n": "x" * (number % 7)} for number in range(400)]
    rows = zip(values.items(), facts, strict=True)
    store.put_many([Write(key, value, "sheets/contract", meta) for (key, value), meta in rows])
    store.delete_many(list(values)[::5])
    asked = [key for number, key in enumerate(values) if number % 3]
    there = {key: (values[key], b"") for number, key in enumerate(values) if number % 3 and number % 5}
    assert fetched(store, asked) == there


@pytest.mark.parametrize("damaged", [None, 0, 1])
def test_the_first_record_of_a_segment_leaves_the_others_a_table(folder, monkeypatch, damaged):
    sheet = sample_sheet(20, 5000)
    store = DiskStore(folder)
    put_sheets(store, [sheet])
    alone: list[int] = []
    scattered = sheet_reading._scattered
    monkeypatch.setattr(
        sheet_reading, "_scattered", lambda file, rows: [alone.append(len(rows)), scattered(file, rows)][1]
    )
    wanted = expected(sheet)
    if damaged is not None:
        wanted.pop(sheet.keys[damaged])
        data = bytearray(only_segment(folder).read_bytes())
        data[data.index(sheet.values[damaged].tobytes())] ^= 1
        only_segment(folder).write_bytes(data)
    assert fetched(store, list(sheet.keys)) == wanted
    assert alone[:1] == [1]
    assert store.events.stats.hits == len(wanted)


def test_a_value_apart_holds_no_other_however_it_was_read():
    together = memoryview(bytearray(range(256)) * 4096)
    entries = [
        Entry(sample_key(n), together[100_000 * n : 100_000 * n + 70_000], "a/b", b"", 0.0, 0, 0.0, None, b"")
        for n in range(3)
    ]
    (found,) = found_of(entries, range(3), apart=True)
    assert [value.tobytes() for value in found.values] == [bytes(each.value) for each in entries]
    assert all(value.base is None or memoryview(value.base).nbytes == 70_000 for value in found.values)


def test_facts_are_described(folder):
    store, sheet = DiskStore(folder), sample_sheet(10, 50)
    put_sheets(store, [sheet])
    infos = {info.key: info for info in store.entries("sheets/contract")}
    assert [json.dumps(infos[key].meta) for key in sheet.keys] == [json.dumps(json.loads(each)) for each in sheet.metas]
    assert [infos[key].nbytes for key in sheet.keys] == [50] * 10


def test_a_sheet_of_no_entries_is_nothing(folder):
    store = DiskStore(folder)
    assert put_sheets(store, [Sheet([], np.empty((0, 9), np.uint8), "sheets/contract")]) == 0
    assert list(fetch_sheets(store, [])) == []


@pytest.mark.parametrize("replace", [True, False])
def test_a_key_in_two_sheets_of_one_call_is_kept_once(folder, replace):
    store, first, second = DiskStore(folder), sample_sheet(20, 100), sample_sheet(20, 100)
    second.values = second.values[::-1].copy()
    assert put_sheets(store, [first, second], replace=replace) == 40
    assert store.info().entries == 20
    assert fetched(store, list(first.keys)) == expected(second if replace else first)


def fail_at(bad, monkeypatch):
    """Let every read fail that the byte at this offset is part of."""
    good_read = os.preadv

    def failing(fd, buffers, offset, *flags):
        if offset <= bad < offset + sum(map(len, buffers)):
            raise OSError(5, "Input/output error")
        return good_read(fd, buffers, offset, *flags)

    monkeypatch.setattr(os, "preadv", failing)


def test_a_stretch_of_the_disk_that_fails_costs_only_what_lies_there(folder, monkeypatch):
    store, sheet = DiskStore(folder), sample_sheet(900, 4000)
    put_sheets(store, [sheet])
    bad = store._opened.index.find(sheet.keys[100]).off
    fail_at(bad, monkeypatch)
    got = fetched(store, list(sheet.keys))
    assert sheet.keys[100] not in got
    assert len(got) >= 600
    assert got.items() <= expected(sheet).items()
    assert store.events.stats.hits + sum(store.events.stats.misses.values()) == 900


@pytest.fixture
def in_many_groups(folder, monkeypatch):
    """A store whose values come apart in groups of four, which are read ahead; and its sheet."""
    monkeypatch.setattr(sheet_reading, "_APART_GROUP_BYTES", 300_000)
    store, sheet = DiskStore(folder), sample_sheet(40, 70_000)
    put_sheets(store, [sheet])
    return store, sheet


def test_groups_are_read_ahead_in_another_thread(in_many_groups, monkeypatch):
    store, sheet = in_many_groups
    readers = []
    good_read = os.preadv

    def watched(fd, buffers, offset, *flags):
        readers.append(threading.current_thread().name)
        return good_read(fd, buffers, offset, *flags)

    monkeypatch.setattr(os, "preadv", watched)
    assert fetched(store, list(sheet.keys), apart=True) == expected(sheet)
    assert sum(name.startswith("lmstash-read") for name in readers) == 10
    assert not any(each.name.startswith("lmstash-read") for each in threading.enumerate())


def test_a_group_that_fails_ahead_costs_only_itself(in_many_groups, monkeypatch):
    store, sheet = in_many_groups
    bad = store._opened.index.find(sheet.keys[17]).off
    fail_at(bad, monkeypatch)
    got = fetched(store, list(sheet.keys), apart=True)
    assert sheet.keys[17] not in got
    assert len(got) >= 36
    assert got.items() <= expected(sheet).items()


def test_of_a_large_group_that_fails_most_is_served(folder, monkeypatch):
    store, sheet = DiskStore(folder), sample_sheet(100, 70_000)
    put_sheets(store, [sheet])
    fail_at(store._opened.index.find(sheet.keys[17]).off, monkeypatch)
    got = fetched(store, list(sheet.keys), apart=True)
    assert sheet.keys[17] not in got
    assert len(got) >= 100 - sheet_reading._FAILING_BYTES // 70_000
    assert got.items() <= expected(sheet).items()


def test_where_no_thread_can_begin_groups_are_read_one_after_another(in_many_groups, monkeypatch):
    store, sheet = in_many_groups

    def refuse(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert fetched(store, list(sheet.keys), apart=True) == expected(sheet)


def test_where_a_thread_begins_late_nothing_is_read_into_what_was_handed_out(in_many_groups, monkeypatch):
    store, sheet = in_many_groups
    begin, failed = threading.Thread.start, []

    def refuse_once(thread):
        if thread.name.startswith("lmstash-read") and not failed:
            failed.append(thread)
            raise RuntimeError("can't start new thread")
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse_once)
    got = {}
    for found in fetch_sheets(store, list(sheet.keys), apart=True):
        for place, value in zip(found.places.tolist(), found.values, strict=True):
            got[place] = value
            value[:] = 7  # they are the caller's own
        time.sleep(0.01)
    assert failed
    assert len(got) == 40
    assert all((value == 7).all() for value in got.values())


def test_who_stops_reading_leaves_no_thread(in_many_groups):
    store, sheet = in_many_groups
    reading = fetch_sheets(store, list(sheet.keys), apart=True)
    next(reading)
    reading.close()
    assert not any(each.name.startswith("lmstash-read") for each in threading.enumerate())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_fork_reads_what_was_to_be_read_ahead(in_many_groups):
    store, sheet = in_many_groups
    reading = fetch_sheets(store, list(sheet.keys), apart=True)
    there = len(next(reading).places)
    child = os.fork()
    if not child:
        there += sum(len(each.places) for each in reading)
        os._exit(0 if there == 40 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert there + sum(len(each.places) for each in reading) == 40


def test_a_flipped_number_beside_a_value_does_not_spoil_the_counters(folder):
    store, sheet = DiskStore(folder), sample_sheet(30, 500)
    put_sheets(store, [sheet])
    row = store._opened.index.find(sheet.keys[3])
    with only_segment(folder).open("r+b") as file:
        file.seek(row.off + 120)  # compute seconds: 8 bytes
        file.write(np.array([np.nan]).tobytes())
    fetched(store, list(sheet.keys))
    assert store.events.stats.seconds_saved == pytest.approx(sum(sheet.compute_seconds) - sheet.compute_seconds[3])
