"""A lost index costs no room that does not come back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
