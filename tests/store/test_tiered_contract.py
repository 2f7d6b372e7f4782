"""RAM in front of a folder keeps the protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lmstash.events import EventLog
from lmstash.store.disk.store import DiskStore
from lmstash.store.memory import MemoryStore
from lmstash.store.tiered import TieredStore
from lmstash.testing import StoreContract


class TestTieredStore(StoreContract):
    persistent = True

    @pytest.fixture
    def open_store(self, tmp_path: Path) -> Iterator[Callable[..., TieredStore]]:
        opened: list[TieredStore] = []

        def open_store(
            capacity_bytes: int | None = None, *, strict: bool = False, events: EventLog | None = None
        ) -> TieredStore:
            slow = DiskStore(tmp_path / "stash", capacity_bytes=capacity_bytes, strict=strict, events=events)
            opened.append(TieredStore(MemoryStore(1 << 20), slow))
            return opened[-1]

        yield open_store
        for store in opened:
            store.close()
