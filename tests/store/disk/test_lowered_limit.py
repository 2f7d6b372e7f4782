"""A limit that is lowered: it holds at once, and what fits into it stays, the least valuable going first."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lmstash.store.base import Write
from lmstash.store.disk.store import DiskStore
from lmstash.testing.samples import sample_bytes, sample_key

MB = 10**6


def put(store: DiskStore, numbers: range, n_bytes: int, n_namespaces: int = 1) -> int:
    return store.put_many(
        Write(sample_key(number), sample_bytes(n_bytes, number), f"kind/{number % n_namespaces}") for number in numbers
    )


def fill(folder: Path, n_entries: int, n_bytes: int, n_namespaces: int = 1) -> DiskStore:
    store = DiskStore(folder, capacity_bytes=None, strict=True)
    for start in range(0, n_entries, 100):
        put(store, range(start, min(start + 100, n_entries)), n_bytes, n_namespaces)
    return store


def kept(store: DiskStore, n_entries: int, n_bytes: int) -> list[int]:
    values = store.get_many([sample_key(number) for number in range(n_entries)])
    for number, value in enumerate(values):
        assert value is None or value == sample_bytes(n_bytes, number)
    return [number for number, value in enumerate(values) if value is not None]


@pytest.mark.parametrize("again", [False, True], ids=["by the open store", "by opening it again"])
@pytest.mark.parametrize(
    ("n_entries", "n_bytes", "limit"),
    [
        pytest.param(300, 200_000, 59 * MB, id="a little less"),
        pytest.param(300, 200_000, 30 * MB, id="half"),
        pytest.param(1500, 200_000, 290 * MB, id="two segments, a little less"),
        pytest.param(1500, 200_000, 100 * MB, id="two segments, a third"),
        pytest.param(2000, 1_500, 2_147_483, id="small values, a smaller store"),
        pytest.param(20_000, 300, 4 * MB, id="smallest values"),
    ],
)
def test_what_fits_stays_and_the_newest_first(
    tmp_path: Path, tools: Any, n_entries: int, n_bytes: int, limit: int, again: bool
):
    store = fill(tmp_path, n_entries, n_bytes)
    assert tools.folder_bytes(tmp_path) > limit
    if again:
        store.close()
        store = DiskStore(tmp_path, capacity_bytes=limit, strict=True)
    else:
        store.set_capacity(limit)
    assert tools.folder_bytes(tmp_path) <= limit
    left = kept(store, n_entries, n_bytes)
    per_entry = n_bytes + 512  # its header, and its row in the index
    assert len(left) * per_entry > 0.6 * limit or n_bytes < 2000
    assert len(left) > 0.1 * limit / per_entry
    newest = range(n_entries - len(left) // 2, n_entries)
    assert set(newest) <= set(left)
    assert put(store, range(n_entries, n_entries + 1), n_bytes) == 1
    assert tools.folder_bytes(tmp_path) <= limit
    store.close()
    assert tools.folder_bytes(tmp_path) <= limit


def test_a_disk_without_room_for_copies_is_no_reason_to_break_the_limit(
    mount: Any, tools: Any, monkeypatch: pytest.MonkeyPatch
):
    """Disks with quotas say that they have room, and refuse it."""
    disk = mount(size="8m")
    with closing(fill(disk / "stash", 100, 40_000)) as store:
        free = shutil.disk_usage(disk).free
        (disk / "somebody's").write_bytes(bytes(free - 100_000))
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 30))
        store.set_capacity(3 * MB)
        monkeypatch.undo()
        assert tools.folder_bytes(disk / "stash") <= 3 * MB
        (disk / "somebody's").unlink()
        assert put(store, range(100, 110), 40_000) == 10
        assert kept(store, 110, 40_000)[-10:] == list(range(100, 110))


def test_many_namespaces_of_few_entries_fit_into_a_small_limit(tmp_path: Path, tools: Any):
    with closing(fill(tmp_path, 60, 2_000, n_namespaces=20)) as store:
        store.set_capacity(2 * MB)
        assert tools.folder_bytes(tmp_path) <= 2 * MB
        assert len(kept(store, 60, 2_000)) == 60


def test_a_namespace_of_many_entries_gets_longer_segments(tmp_path: Path):
    with closing(fill(tmp_path, 40_000, 8)) as store:
        assert len(list(tmp_path.rglob("*.seg"))) <= 6  # of 4096, 4096, 8192, 16384 and 32768 entries
        assert len(kept(store, 40_000, 8)) == 40_000
