"""A lost index costs no room that does not come back."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmstash.store.disk.files.folder import Folder
from lmstash.store.disk.store import DiskStore


def test_an_index_lost_under_living_writers_leaves_room_for_values(tmp_path: Path, tools: Any) -> None:
    """The file of uses is never cut: what a rebuild adds to it for segments that are still open stays taken."""
    folder, capacity = tmp_path / "stash", 2 << 20
    stores = [DiskStore(folder, capacity_bytes=capacity) for _ in range(4)]
    for number, store in enumerate(stores):
        assert store.put(tools.key(number), tools.value(number, 1000), namespace=f"kind/{number}")
    for path in folder.glob("index.db*"):
        path.unlink()
    fresh = DiskStore(folder)
    assert all(fresh.contains_many([tools.key(number) for number in range(4)]))
    assert fresh.put(tools.key(9), tools.value(9, 20_000))
    for number, store in enumerate(stores):
        assert store.put(tools.key(number, "more "), tools.value(number, 1000), namespace=f"kind/{number}")
    assert tools.folder_bytes(folder) <= capacity
    for store in [*stores, fresh]:
        store.close()


def test_a_folder_that_has_lost_its_limit_on_a_full_disk_keeps_what_it_holds(
    tmp_path: Path, tools: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the free disk is less than it holds, or than any folder can keep to."""
    folder = tmp_path / "stash"
    with closing(DiskStore(folder, capacity_bytes=64 << 20)) as store:
        for number in range(100):
            assert store.put(tools.key(number), tools.value(number, 50_000))
    for path in (*folder.glob("index.db*"), folder / "stash.json"):
        path.unlink()
    monkeypatch.setattr(Folder, "disk_free_bytes", lambda self: 1_500_000)
    with closing(DiskStore(folder)) as store:
        assert sum(store.contains_many([tools.key(number) for number in range(100)])) >= 95
        assert store.put(tools.key(100), tools.value(100, 1000))
    with closing(DiskStore(tmp_path / "new")) as store:
        assert (store.info().capacity_bytes or 0) >= 1 << 20
        assert store.put(tools.key(0), tools.value(0, 1000))


def test_a_limit_may_be_a_number_of_numpy_s(tmp_path: Path, tools: Any) -> None:
    with closing(DiskStore(tmp_path / "stash", capacity_bytes=np.int64(8 << 20), strict=True)) as store:
        assert store.put(tools.key(0), tools.value(0, 1000))
        store.set_capacity(np.int64(16 << 20))
        assert store.get(tools.key(0)) is not None
        assert store.info().capacity_bytes == 16 << 20
