"""The mapped file of last uses: what one process notes another sees, and no slot outside the file is touched."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from lmstash.store.disk.accounting import recency as module
from lmstash.store.disk.accounting.recency import FIRST_SLOT, SLOT_BYTES, Recency, hits, last_used
from lmstash.store.disk.files.folder import Folder


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_a_touch_notes_time_and_count(folder: Folder):
    slots = Recency(folder)
    slots.grow(1024)
    before = time.time()
    for _ in range(3):
        slots.touch(700)
    cell = slots.read(700)
    assert hits(cell) == 3
    assert before - 0.002 <= last_used(cell) <= time.time()
    assert slots.read(701) == 0


def test_many_are_touched_as_one_is(folder: Folder):
    slots = Recency(folder)
    slots.grow(1024)
    slots.touch_many([600, 602, 602])
    slots.touch_many([])
    assert [hits(slots.read(slot)) for slot in (600, 601, 602)] == [1, 0, 2]


def test_the_count_stops_before_it_spills_into_the_time(folder: Folder):
    slots = Recency(folder)
    slots.grow(1024)
    slots.touch(600)
    slots._slots[600] |= 0xFFFE
    stamp = last_used(slots.read(600))
    for _ in range(3):
        slots.touch(600)
    slots.touch_many([600])
    assert hits(slots.read(600)) == 0xFFFF
    assert stamp <= last_used(slots.read(600)) <= time.time()


def test_new_entries_have_a_time_and_no_hits(folder: Folder):
    slots = Recency(folder)
    slots.grow(1024)
    slots.mark_new(600, 10)
    slots.mark_new(620, 0)
    assert all(hits(slots.read(slot)) == 0 and last_used(slots.read(slot)) > 1e9 for slot in range(600, 610))
    assert [slots.read(slot) for slot in (599, 610, 620)] == [0, 0, 0]


def test_history_moves_with_an_entry_and_is_forgotten_with_it(folder: Folder):
    slots = Recency(folder)
    slots.grow(1024)
    slots.touch(600)
    slots.copy_many([600], 800)
    assert slots.read(800) == slots.read(600) > 0
    slots.forget(600, 2)
    assert slots.read(600) == 0
    assert slots.read(800) > 0


def test_what_one_handle_notes_another_sees(folder: Folder):
    first, second = Recency(folder), Recency(folder)
    first.grow(4096)
    first.touch(4000)
    assert hits(second.read(4000)) == 1
    second.touch(4000)
    second.touch_many([3999])
    assert [hits(first.read(slot)) for slot in (4000, 3999)] == [2, 1]
    assert first.removals() == second.removals()
    second.note_removal()
    assert first.removals() == second.removals() == 1


def test_a_file_that_grows_keeps_what_it_holds_and_what_is_mapped(folder: Folder):
    slots = Recency(folder)
    slots.grow(1024)
    slots.touch(700)
    cell = slots.read(700)
    slots.grow(100_000)
    slots.grow(5)
    assert slots.read(700) == cell
    assert Recency(folder).read(700) == cell
    assert folder.recency.stat().st_size == 100_000 * SLOT_BYTES


def test_a_slot_beyond_the_file_is_left_alone(folder: Folder):
    slots = Recency(folder)
    slots.touch(10**9)
    slots.touch_many([10**9, FIRST_SLOT - 1])
    slots.mark_new(10**9, 5)
    slots.forget(10**9)
    slots.copy_many([3], 10**9)
    assert slots.read(10**9) == 0
    assert slots.sample(10**9, 100) == []
    assert folder.recency.stat().st_size == FIRST_SLOT * SLOT_BYTES


def test_the_file_has_real_blocks_and_only_its_owner_reads_it(folder: Folder):
    Recency(folder).grow(50_000)
    status = folder.recency.stat()
    assert status.st_blocks * 512 >= 50_000 * SLOT_BYTES
    assert status.st_mode & 0o777 == 0o600


def test_a_full_disk_is_an_error_and_never_a_hole(folder: Folder, monkeypatch: pytest.MonkeyPatch):
    slots = Recency(folder)
    slots.touch(5)

    def full(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module.os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        slots.grow(1_000_000)
    slots.touch(5)
    assert hits(slots.read(5)) == 2
    slots.touch(900_000)
    assert folder.recency.stat().st_size == FIRST_SLOT * SLOT_BYTES


def test_a_file_cut_in_the_middle_of_a_slot_is_used_up_to_there(folder: Folder):
    folder.recency.write_bytes(bytes(FIRST_SLOT * SLOT_BYTES + 5))
    slots = Recency(folder)
    slots.grow(FIRST_SLOT + 1)
    slots.touch(FIRST_SLOT)
    assert hits(slots.read(FIRST_SLOT)) == 1


@pytest.mark.parametrize("count", [1, 63, 64, 65, 512, 65_536])
def test_a_sample_is_spread_over_the_region(folder: Folder, count: int):
    slots = Recency(folder)
    slots.grow(70_000)
    slots.mark_new(1000, count)
    sample = slots.sample(1000, count)
    assert min(count, 64) <= len(sample) <= 128
    assert all(sample)
    slots.forget(1000 + count // 2, count - count // 2)
    if count > 1:
        assert 0 < sum(map(bool, slots.sample(1000, count))) < len(sample)


def test_reading_only_notes_nothing_and_needs_no_file(folder: Folder):
    slots = Recency(folder, read_only=True)
    for slot in (5, 5000):
        slots.touch(slot)
        slots.touch_many([slot])
        slots.mark_new(slot, 3)
        slots.forget(slot)
    slots.note_removal()
    assert slots.read(5000) == slots.removals() == 0
    assert slots.sample(5000, 10) == []
    assert not folder.recency.exists()
