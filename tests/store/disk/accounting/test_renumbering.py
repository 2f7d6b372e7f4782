"""The file of uses gets short again, when nobody else has the folder open, and says the same of each entry."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lmstash.store.base import Write
from lmstash.store.disk.accounting.renumbering import renumber
from lmstash.store.disk.store import DiskStore
from lmstash.testing.samples import sample_bytes, sample_key

MB = 10**6
N, N_BYTES = 3000, 10_000


def fill(folder: Path) -> None:
    """Values of 300 namespaces, and a file of uses as it was when each segment had 4,096 slots for good."""
    with closing(DiskStore(folder, capacity_bytes=None, strict=True)) as store:
        for first in range(300):
            writes = (
                Write(sample_key(number), sample_bytes(N_BYTES, number), f"kind/{first}")
                for number in range(first, N, 300)
            )
            assert store.put_many(writes) == N // 300
    with closing(DiskStore(folder)) as store, store._opened.index.transaction() as connection:
        store._opened.recency.grow(400 * 4096)
        segments = connection.execute("SELECT id, first_slot FROM segments").fetchall()
        for place, (segment, first) in enumerate(segments, 1):
            cells = store._opened.recency.read_many(list(range(first, first + 512)))
            for slot, cell in enumerate(cells, place * 4096 + 100_000):
                store._opened.recency._slots[slot] = cell
            shift = place * 4096 + 100_000 - first
            connection.execute("UPDATE segments SET first_slot = first_slot + ? WHERE id = ?", (shift, segment))
            rows = store._opened.index.rows_of_segment(segment)
            store._opened.index.move_rows(rows, [row._replace(slot=row.slot + shift) for row in rows])


def uses(store: DiskStore) -> dict[bytes, tuple[float, int]]:
    return {each.key: (each.last_used, each.hits) for each in store.entries()}


def test_a_folder_whose_file_of_uses_is_long_keeps_what_fits_into_a_lowered_limit(tmp_path: Path, tools: Any):
    fill(tmp_path)
    assert os.stat(tmp_path / "recency").st_size > 12 * MB
    for limit in (20 * MB, 12 * MB):
        with closing(DiskStore(tmp_path, capacity_bytes=limit, strict=True)) as store:
            assert tools.folder_bytes(tmp_path) <= limit
            left = [value for value in store.get_many([sample_key(n) for n in range(N)]) if value is not None]
            assert len(left) * N_BYTES > 0.5 * limit
            assert store.put_many([Write(sample_key(N), sample_bytes(N_BYTES, N), "kind/0")]) == 1
            assert store.verify().ok


def test_each_entry_keeps_when_it_was_used(tmp_path: Path):
    fill(tmp_path)
    with closing(DiskStore(tmp_path)) as store:
        keys = [sample_key(number) for number in range(N)]
        store.touch_many(keys[::7])
        before = uses(store)
        removals = store.removals()
    renumber(store._folder)
    assert os.stat(tmp_path / "recency").st_size == (512 + 300 * 512) * 8
    with closing(DiskStore(tmp_path, strict=True)) as store:
        assert uses(store) == before
        assert store.removals() == removals
        assert store.put_many([Write(sample_key(N), b"new", "kind/new")]) == 1
        assert uses(store).items() >= before.items()
        assert store.get_many(keys) == [sample_bytes(N_BYTES, number) for number in range(N)]


@pytest.mark.parametrize("mine", [True, False], ids=["this process", "another process"])
def test_nothing_is_touched_while_somebody_has_the_folder_open(tmp_path: Path, mine: bool, in_child: Any):
    fill(tmp_path)
    with closing(DiskStore(tmp_path)) as store:
        before, inode = uses(store), os.stat(tmp_path / "recency").st_ino
        if mine:
            renumber(store._folder)
        else:
            in_child(lambda: renumber(store._folder))
        assert os.stat(tmp_path / "recency").st_ino == inode
        assert uses(store) == before
        assert store.put_many([Write(sample_key(N), b"new", "kind/new")]) == 1
