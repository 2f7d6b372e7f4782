"""A limit that is lowered: it holds at once, and what fits into it stays, the least valuable going first."""

from __future__ import annotations

import json
import os
import shutil
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lmstash.store.base import Write
from lmstash.store.disk.reclaiming.shrinking import Shrinker
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


def test_a_lowering_that_was_cut_short_is_finished_by_the_next_opener(tmp_path: Path, tools: Any, in_child: Any):
    with closing(fill(tmp_path, 300, 40_000)):
        pass

    def die_over_it() -> None:
        Shrinker.settle = lambda self: os._exit(0)  # the limit is noted, and then comes the kill
        DiskStore(tmp_path, capacity_bytes=4 * MB)

    with pytest.raises(json.JSONDecodeError):
        in_child(die_over_it)
    assert tools.folder_bytes(tmp_path) > 10 * MB
    with closing(DiskStore(tmp_path, strict=True)) as store:
        assert tools.folder_bytes(tmp_path) <= 4 * MB
        left = kept(store, 300, 40_000)
        assert len(left) * 40_000 > 0.6 * 4 * MB
        assert put(store, range(300, 301), 40_000) == 1
        assert kept(store, 300, 40_000) == left


def test_a_writer_under_which_the_limit_is_lowered_spares_what_fits(tmp_path: Path, tools: Any, start_child: Any):
    """Its grants are of the old limit, and it must not make room for its next value as for any other."""
    noted = tmp_path / "noted"
    with closing(fill(tmp_path / "stash", 300, 40_000, n_namespaces=4)) as store:
        writing = store._opened
        child = start_child(_note_a_limit, tmp_path / "stash", noted)
        assert child.result() is None
        assert tools.folder_bytes(tmp_path / "stash") > 10 * MB
        assert put(store, range(300, 301), 40_000, 4) == 1
        assert store._opened is writing
        assert tools.folder_bytes(tmp_path / "stash") <= 6 * MB
        left = kept(store, 300, 40_000)
        assert len(left) * 40_000 > 0.6 * 6 * MB
        assert set(range(260, 300)) <= set(left)


def _note_a_limit(folder: Path, noted: Path) -> None:
    Shrinker.settle = lambda self: None
    DiskStore(folder, capacity_bytes=6 * MB)
    noted.touch()


@pytest.mark.parametrize("n_namespaces", [1, 4])
def test_the_first_put_after_a_lowering_evicts_nothing(tmp_path: Path, tools: Any, n_namespaces: int):
    with closing(fill(tmp_path, 4000, 3_000, n_namespaces)) as store:
        store.set_capacity(tools.folder_bytes(tmp_path) // 2)
        left = kept(store, 4000, 3_000)
        assert put(store, range(4000, 4001), 100, n_namespaces) == 1
        assert kept(store, 4000, 3_000) == left


def test_a_nearly_full_disk_is_emptied_by_lowering_the_limit(mount: Any, tools: Any):
    disk = mount(size="32m")
    with closing(fill(disk / "stash", 500, 40_000, n_namespaces=4)):
        pass
    other = disk / "somebody's"
    with other.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - 40_960)
    with closing(DiskStore(disk / "stash", capacity_bytes=10 * MB, strict=True)) as store:
        assert tools.folder_bytes(disk / "stash") <= 10 * MB
        assert len(kept(store, 500, 40_000)) * 40_000 > 0.4 * 10 * MB
        assert put(store, range(500, 510), 40_000, 4) == 10
        assert store.verify().ok


@pytest.mark.parametrize("again", [False, True], ids=["by the open store", "by opening it again"])
def test_over_several_namespaces_the_oldest_go_and_no_namespace_as_a_whole(tmp_path: Path, tools: Any, again: bool):
    store = DiskStore(tmp_path, capacity_bytes=None, strict=True)
    for part in range(4):
        for start in range(1000 * part, 1000 * (part + 1), 100):
            assert put(store, range(start, start + 100), 5_000, 8) == 100
    if again:
        store.close()
        store = DiskStore(tmp_path, capacity_bytes=10 * MB, strict=True)
    else:
        store.set_capacity(10 * MB)
    with closing(store):
        left = kept(store, 4000, 5_000)
        assert len(left) * 5_000 > 0.6 * 10 * MB
        assert set(range(3000, 4000)) <= set(left)
        assert tools.folder_bytes(tmp_path) <= 10 * MB


def test_the_limit_holds_while_values_are_put_after_it_was_lowered(tmp_path: Path, watch: Any):
    """Evicting for them makes the index's log long, for which the lowering has left the reserve."""
    with closing(fill(tmp_path, 20_000, 300)):
        pass
    with closing(DiskStore(tmp_path, capacity_bytes=4 * MB, strict=True)) as store, watch(tmp_path) as seen:
        for start in range(30_000, 31_200, 20):
            assert put(store, range(start, start + 20), 300) == 20
            seen.look()
    assert seen.most <= 4 * MB


def test_the_index_shrinks_with_what_it_knows(tmp_path: Path, tools: Any):
    with closing(fill(tmp_path, 20_000, 8)) as store:
        before = os.stat(tmp_path / "index.db").st_size
        store.set_capacity(2 * MB)
        left = kept(store, 20_000, 8)
        assert len(left) > 2000
        assert os.stat(tmp_path / "index.db").st_size < before * len(left) / 20_000 * 1.5
        assert store.verify().ok
        store.clear()
        assert os.stat(tmp_path / "index.db").st_size < 100_000
        assert put(store, range(100), 8) == 100


@pytest.mark.parametrize("by", ["limit", "evict"])
def test_what_another_writer_has_open_gives_its_share_at_once(tmp_path: Path, tools: Any, by: str):
    """It may be idle for hours: a notebook. When it writes again, it finds its segment gone."""
    folder = tmp_path / "stash"
    with closing(DiskStore(folder, capacity_bytes=None, strict=True)) as idle:
        for start in range(0, 200, 10):
            assert put(idle, range(start, start + 10), 48_000) == 10
            time.sleep(0.002)  # uses are told apart by milliseconds
        assert idle.pin_many([sample_key(7)]) == 1
        assert idle.delete(sample_key(199))
        assert tools.folder_bytes(folder) > 9 * MB
        with closing(DiskStore(folder, strict=True)) as other:
            if by == "limit":
                other.set_capacity(2 * MB)
            else:
                other.evict(2 * MB)
            assert tools.folder_bytes(folder) <= 2 * MB
            left = kept(other, 200, 48_000)
            assert len(left) > 20
            assert 7 in left
            assert 199 not in left
            assert set(range(190, 199)) <= set(left)
            assert kept(idle, 200, 48_000) == left
            assert put(idle, range(300, 303), 48_000) == 3
            assert kept(other, 303, 48_000)[-3:] == [300, 301, 302]
            if by == "limit":
                assert tools.folder_bytes(folder) <= 2 * MB
    (folder / "index.db").unlink()  # what is rebuilt from the segments alone knows of the tombstone, too
    with closing(DiskStore(folder, strict=True)) as store:
        again = kept(store, 303, 48_000)
        assert 199 not in again
        assert 7 in again
        assert store.verify().ok
