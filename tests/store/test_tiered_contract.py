"""RAM in front of a folder keeps the protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from lmstash.events import EventLog
from lmstash.store.base import Entry
from lmstash.store.disk.store import DiskStore
from lmstash.store.memory import MemoryStore
from lmstash.store.tiered import TieredStore
from lmstash.testing import StoreContract, sample_key


class TestTieredStore(StoreContract):
    persistent = True
    notes_each_use = False  # what RAM serves is told to the disk now and then

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


class InterruptedStore(MemoryStore):
    """Lets something happen between reading a value and handing it out, as another thread would."""

    def __init__(self) -> None:
        super().__init__()
        self.number_of_removals = 0
        self.meanwhile: Callable[[], object] | None = None

    def removals(self) -> int:
        return self.number_of_removals

    def delete_many(self, keys: Sequence[bytes]) -> int:
        removed = super().delete_many(keys)
        self.number_of_removals += 1
        return removed

    def fetch_many(self, keys: Sequence[bytes]) -> list[Entry | None]:
        found = super().fetch_many(keys)
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return found


def test_a_value_that_is_removed_while_it_is_promoted_does_not_stay_in_ram():
    slow = InterruptedStore()
    tiers = TieredStore(MemoryStore(), slow)
    tiers.put(sample_key(1), b"removed")
    tiers.put(sample_key(2), b"other")

    def meanwhile() -> None:
        slow.delete_many([sample_key(1)])
        tiers.get(sample_key(2))  # another thread's read: it notices the removal first

    slow.meanwhile = meanwhile
    tiers.get(sample_key(1))
    assert not slow.contains(sample_key(1))
    assert tiers.get(sample_key(1)) is None


def test_what_another_process_removes_is_not_served_from_ram_by_a_reader(tmp_path: Path):
    writer = DiskStore(tmp_path / "stash", capacity_bytes=None)
    writer.put(sample_key(1), b"old")
    writer.put(sample_key(2), b"old")
    reader = TieredStore(MemoryStore(1 << 20), DiskStore(tmp_path / "stash", read_only=True))
    for number in (1, 2, 1, 2):
        assert reader.get(sample_key(number)) is not None
    writer.delete(sample_key(1))
    writer.put(sample_key(2), b"new")
    found = reader.get(sample_key(2))
    assert found is not None
    assert bytes(found) == b"new"
    assert reader.get(sample_key(1)) is None
    reader.close()
    writer.close()


def test_an_entry_is_the_same_from_either_tier(tmp_path: Path):
    tiers = TieredStore(MemoryStore(1 << 20), DiskStore(tmp_path / "stash", capacity_bytes=None))
    tiers.put(sample_key(1), b"value", meta={"a": 1}, parent=sample_key(2), compute_seconds=2.5, n_tokens=7)
    [from_disk], [from_ram] = tiers.fetch_many([sample_key(1)]), tiers.fetch_many([sample_key(1)])
    assert from_disk is not None
    assert from_ram is not None
    assert replace(from_disk, created=from_ram.created) == from_ram
    assert tiers.fast.info().entries == 1
    tiers.close()
