"""The RAM tier keeps the protocol, and evicts in exact order of use."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lmstash.events import EventLog
from lmstash.store.base import Write
from lmstash.store.memory import ENTRY_OVERHEAD_BYTES, MemoryStore
from lmstash.testing import StoreContract, sample_key


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def open_store(self) -> Callable[..., MemoryStore]:
        def open_store(
            capacity_bytes: int | None = None, *, strict: bool = False, events: EventLog | None = None
        ) -> MemoryStore:
            return MemoryStore(capacity_bytes, strict=strict, events=events)

        return open_store


def kept(store: MemoryStore) -> list[int]:
    return [number for number in range(20) if store.contains(sample_key(number))]


def test_the_least_recently_used_goes_first():
    store = MemoryStore(3 * (10 + ENTRY_OVERHEAD_BYTES))
    for number in range(3):
        store.put(sample_key(number), b"0123456789")
    store.get(sample_key(0))
    store.put(sample_key(3), b"0123456789")
    assert kept(store) == [0, 2, 3]
    store.get_many([sample_key(2), sample_key(0)])
    store.put(sample_key(4), b"0123456789")
    assert kept(store) == [0, 2, 4]


def test_asking_whether_it_is_there_is_no_use():
    store = MemoryStore(2 * (10 + ENTRY_OVERHEAD_BYTES))
    store.put(sample_key(0), b"0123456789")
    store.put(sample_key(1), b"0123456789")
    assert store.contains(sample_key(0))
    store.put(sample_key(2), b"0123456789")
    assert kept(store) == [1, 2]


def test_overhead_counts_against_the_limit():
    store = MemoryStore(10 * ENTRY_OVERHEAD_BYTES)
    for number in range(20):
        store.put(sample_key(number), b"")
    assert kept(store) == list(range(10, 20))
    assert store.info().physical_bytes == 10 * ENTRY_OVERHEAD_BYTES


def test_replacing_at_a_full_limit_evicts_only_what_is_needed():
    store = MemoryStore(3 * (10 + ENTRY_OVERHEAD_BYTES))
    for number in range(3):
        store.put(sample_key(number), b"0123456789")
    store.put(sample_key(2), b"9876543210")
    assert kept(store) == [0, 1, 2]


def test_removals_change_with_whatever_is_removed_or_replaced_and_not_otherwise():
    store = MemoryStore(200_000)
    keys = [bytes([n]) * 32 for n in range(4)]
    seen = [store.removals()]

    def changed() -> bool:
        seen.append(store.removals())
        return seen[-1] != seen[-2]

    store.put_many([Write(key, bytes(1000), "n") for key in keys])
    assert not changed()
    store.get(keys[0])
    store.put(keys[0], b"", namespace="n")
    assert changed()
    store.put_many([Write(keys[0], b"again", "n")], replace=False)
    assert not changed()
    store.delete(keys[0])
    assert changed()
    store.delete(keys[0])
    assert not changed()
    store.evict(1500)
    assert changed()
    store.put(keys[1], bytes(1000), namespace="n")
    assert store.put(keys[0], bytes(200_000 - ENTRY_OVERHEAD_BYTES), namespace="n")  # takes the room of others
    assert changed()
    store.clear()
    assert changed()
    store.put(keys[0], b"", namespace="n")
    store.close()
    assert changed()
