"""The disk store keeps the protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lmstash.events import EventLog
from lmstash.store.disk.store import DiskStore
from lmstash.testing import StoreContract


class TestDiskStore(StoreContract):
    persistent = True

    @pytest.fixture
    def open_store(self, tmp_path: Path) -> Iterator[Callable[..., DiskStore]]:
        opened: list[DiskStore] = []

        def open_store(
            capacity_bytes: int | None = None, *, strict: bool = False, events: EventLog | None = None
        ) -> DiskStore:
            opened.append(DiskStore(tmp_path / "stash", capacity_bytes=capacity_bytes, strict=strict, events=events))
            return opened[-1]

        yield open_store
        for store in opened:
            store.close()
