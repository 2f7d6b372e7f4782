"""The store that fails on purpose: it fails as told, and else keeps the protocol."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lmstash.errors import StoreUnavailableError
from lmstash.events import DropReason, EventLog, MissReason
from lmstash.store.base import Write
from lmstash.store.memory import MemoryStore
from lmstash.testing import FaultyStore, StoreContract, sample_key


class TestFaultyStoreWithoutFaults(StoreContract):
    @pytest.fixture
    def open_store(self) -> Callable[..., FaultyStore]:
        def open_store(
            capacity_bytes: int | None = None, *, strict: bool = False, events: EventLog | None = None
        ) -> FaultyStore:
            return FaultyStore(MemoryStore(capacity_bytes, strict=strict, events=events))

        return open_store


KEYS = [sample_key(number) for number in range(200)]
WRITES = [Write(key, b"value") for key in KEYS]


def test_lost_keys_are_counted_misses_in_place():
    store = FaultyStore(MemoryStore(), miss_rate=0.5)
    store.put_many(WRITES)
    found = store.get_many(KEYS)
    lost = sum(each is None for each in found)
    assert 50 < lost < 150
    assert {bytes(each) for each in found if each is not None} == {b"value"}
    assert store.events.stats.misses == {MissReason.UNAVAILABLE: lost}
    assert store.events.stats.hits == 200 - lost
    fetched = store.fetch_many(KEYS)
    assert all(each is None or each.key == key for each, key in zip(fetched, KEYS, strict=True))


def test_lost_values_are_counted_drops():
    store = FaultyStore(MemoryStore(), drop_rate=0.5)
    kept = store.put_many(WRITES)
    assert 50 < kept < 150
    assert store.info().entries == kept
    assert store.events.stats.drops == {DropReason.UNAVAILABLE: 200 - kept}


def test_every_call_can_raise_but_close():
    store = FaultyStore(MemoryStore(), error_rate=1.0)
    calls = [
        lambda: store.get(KEYS[0]),
        lambda: store.get_many(KEYS),
        lambda: store.fetch_many(KEYS),
        lambda: store.contains(KEYS[0]),
        lambda: store.put(KEYS[0], b"value"),
        lambda: store.put_many(WRITES),
        lambda: store.delete(KEYS[0]),
        lambda: store.pin_many(KEYS),
        lambda: store.entries(),
        lambda: store.prune(),
        lambda: store.evict(0),
        lambda: store.set_capacity(None),
        lambda: store.info(),
        lambda: store.verify(),
        lambda: store.clear(),
        lambda: store.flush(),
    ]
    for call in calls:
        with pytest.raises(OSError, match="on purpose"):
            call()
    store.close()


def test_the_error_is_the_one_asked_for():
    store = FaultyStore(MemoryStore(), error_rate=1.0, error=StoreUnavailableError("away"))
    with pytest.raises(StoreUnavailableError, match="away"):
        store.get(KEYS[0])


def test_the_same_seed_fails_alike():
    def lost(seed: int) -> list[bool]:
        store = FaultyStore(MemoryStore(), miss_rate=0.3, seed=seed)
        store.store.put_many(WRITES)
        return [each is None for each in store.get_many(KEYS)]

    assert lost(1) == lost(1) != lost(2)


def test_importing_the_package_loads_neither_pytest_nor_a_store():
    import subprocess
    import sys

    code = (
        "import sys, lmstash.testing; print([n for n in ('pytest', 'apsw', 'lmstash.store.disk') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
