"""Promises about how long a value is kept: expiry, pins, the byte limit, and opening again."""

from __future__ import annotations

import time

import pytest

from lmstash.errors import CapacityError, StoreError
from lmstash.events import DropReason, MissReason
from lmstash.store.base import Store, Write
from lmstash.testing.samples import OpenStore, sample_bytes, sample_key

_VALUE_BYTES = 64 << 10


def fill(store: Store, first: int, count: int, n_bytes: int = _VALUE_BYTES) -> list[bytes]:
    """Put `count` values, each in a call of its own, and return their keys."""
    keys = [sample_key(number) for number in range(first, first + count)]
    for number, key in enumerate(keys, first):
        store.put(key, sample_bytes(n_bytes, number))
    return keys


def check_all(store: Store, first: int, keys: list[bytes], n_bytes: int = _VALUE_BYTES) -> int:
    """Check that what is left of `fill` is right, and return how many values are left."""
    found = store.get_many(keys)
    for number, each in enumerate(found, first):
        assert each is None or bytes(each) == sample_bytes(n_bytes, number)
    return sum(each is not None for each in found)


class KeepingContract:
    """Expiry, pins, limits, eviction, reopening."""

    persistent: bool = False
    bounded: bool = True
    pinning: bool = True
    room_bytes: int = 8 << 20

    # --- expiry ---------------------------------------------------------------------------------------------------

    def test_a_value_expires(self, open_store: OpenStore) -> None:
        """It is then neither served nor contained, and the miss says why."""
        store, key, other = open_store(), sample_key(1), sample_key(2)
        store.put(key, b"short", ttl_seconds=0.2)
        store.put(other, b"long", ttl_seconds=1000)
        assert store.contains_many([key, other]) == [True, True]
        time.sleep(0.25)
        assert store.contains_many([key, other]) == [False, True]
        assert store.get(key) is None
        assert store.get_many([other, key])[1] is None
        assert store.fetch_many([key, other, key, sample_key(3)])[0] is None
        assert store.events.stats.misses[MissReason.EXPIRED] == 4

    @pytest.mark.parametrize("ttl_seconds", [0, -1, -1e12])
    def test_a_value_without_time_left_is_not_served(self, open_store: OpenStore, ttl_seconds: float) -> None:
        """A deadline in the past is no error."""
        store, key = open_store(), sample_key(1)
        store.put(key, b"value", ttl_seconds=ttl_seconds)
        assert store.get(key) is None
        assert not store.contains(key)

    @pytest.mark.parametrize("ttl_seconds", [None, 1e9, float("inf")])
    def test_a_value_with_all_the_time_is_served(self, open_store: OpenStore, ttl_seconds: float | None) -> None:
        """None and infinity are for ever."""
        store, key = open_store(), sample_key(1)
        assert store.put(key, b"value", ttl_seconds=ttl_seconds) is True
        assert store.contains(key)
        entry = store.fetch_many([key])[0]
        assert entry is not None
        assert entry.expires is None or entry.expires > time.time() + 1e8

    @pytest.mark.parametrize("replace", [True, False])
    def test_an_expired_value_gives_way(self, open_store: OpenStore, replace: bool) -> None:
        """Even to a write that would leave a living one alone."""
        store, key = open_store(), sample_key(1)
        store.put(key, b"old", ttl_seconds=0)
        assert store.put_many([Write(key, b"new")], replace=replace) == 1
        found = store.get(key)
        assert found is not None
        assert bytes(found) == b"new"

    # --- pins -----------------------------------------------------------------------------------------------------

    def test_pins_are_counted_and_shown(self, open_store: OpenStore) -> None:
        """A key that is not kept is not pinned; unpinning counts alike."""
        if not self.pinning:
            pytest.skip("this store does not pin")
        store = open_store()
        keys = fill(store, 0, 3, 10)
        assert store.pin_many([keys[0], keys[1], sample_key(99)]) == 2
        assert {each.key for each in store.entries() if each.pinned} == {keys[0], keys[1]}
        assert store.pin_many([keys[0]], pinned=False) == 1
        assert {each.key for each in store.entries() if each.pinned} == {keys[1]}

    def test_a_pin_belongs_to_the_key(self, open_store: OpenStore) -> None:
        """It stays when the value is replaced, and goes with a deletion."""
        if not self.pinning:
            pytest.skip("this store does not pin")
        store, key = open_store(), sample_key(1)
        store.put(key, b"old")
        store.pin_many([key])
        store.put(key, b"new")
        assert [each.pinned for each in store.entries()] == [True]
        store.delete(key)
        store.put(key, b"newer")
        assert [each.pinned for each in store.entries()] == [False]

    def test_what_is_pinned_is_not_evicted(self, open_store: OpenStore) -> None:
        """Neither by a call of `evict` nor by the limit; what is unpinned goes again."""
        if not (self.pinning and self.bounded):
            pytest.skip("this store does not pin, or has no limit")
        store = open_store(self.room_bytes)
        keys = fill(store, 0, 10)
        assert store.pin_many(keys[:5]) == 5
        store.evict(0)
        assert store.contains_many(keys) == [True] * 5 + [False] * 5
        fill(store, 100, 2 * self.room_bytes // _VALUE_BYTES)
        assert check_all(store, 0, keys[:5]) == 5
        store.pin_many(keys[:5], pinned=False)
        store.evict(0)
        assert not any(store.contains_many(keys))

    def test_a_store_full_of_pins_takes_no_more(self, open_store: OpenStore) -> None:
        """The new value is dropped with a reason, the pinned ones stay, and nothing hangs."""
        if not (self.pinning and self.bounded):
            pytest.skip("this store does not pin, or has no limit")
        store = open_store(self.room_bytes)
        kept: list[bytes] = []
        for number in range(2 * self.room_bytes // _VALUE_BYTES):
            key = sample_key(number)
            if store.put(key, sample_bytes(_VALUE_BYTES, number)):
                kept.append(key)
                store.pin_many([key])
        assert store.events.stats.drops[DropReason.NO_ROOM] > 0
        assert 0 < len(kept) < 2 * self.room_bytes // _VALUE_BYTES
        assert all(store.contains_many(kept))
        assert self.taken(store) <= self.room_bytes

    # --- the limit ------------------------------------------------------------------------------------------------

    def taken(self, store: Store) -> int:
        """Return what the store takes, by its own account."""
        return store.info().physical_bytes

    def test_the_limit_holds_at_all_times(self, open_store: OpenStore) -> None:
        """After each put, for small and large values alike; what is left is right."""
        if not self.bounded:
            pytest.skip("this store has no limit")
        store = open_store(self.room_bytes)
        sizes = [10, _VALUE_BYTES, 1000, 5 * _VALUE_BYTES, 0, 300]
        for number in range(3 * self.room_bytes // _VALUE_BYTES):
            store.put(sample_key(number), sample_bytes(sizes[number % len(sizes)], number))
            assert self.taken(store) <= self.room_bytes
        assert store.events.stats.evicted_entries > 0
        left = list(store.entries())
        assert left
        assert store.info().entries == len(left)
        numbers = {sample_key(number): number for number in range(3 * self.room_bytes // _VALUE_BYTES)}
        for info in left:
            found = store.get(info.key)
            number = numbers[info.key]
            assert found is not None
            assert bytes(found) == sample_bytes(sizes[number % len(sizes)], number)

    def test_what_was_just_put_is_kept(self, open_store: OpenStore) -> None:
        """At a full limit the new comes in and the old goes."""
        if not self.bounded:
            pytest.skip("this store has no limit")
        store = open_store(self.room_bytes)
        for number in range(2 * self.room_bytes // _VALUE_BYTES):
            assert store.put(sample_key(number), sample_bytes(_VALUE_BYTES, number)) is True
            assert store.contains(sample_key(number))
        assert not store.contains(sample_key(0))

    def test_what_is_in_use_outlives_what_is_not(self, open_store: OpenStore) -> None:
        """A few values that are read all the time stay, however much is put beside them."""
        if not self.bounded:
            pytest.skip("this store has no limit")
        store = open_store(self.room_bytes)
        hot = fill(store, 0, 3)
        for number in range(3 * self.room_bytes // _VALUE_BYTES):
            store.put(sample_key(100 + number), sample_bytes(_VALUE_BYTES, number))
            assert check_all(store, 0, hot) == 3
        assert store.events.stats.evicted_entries > 0

    def test_a_value_larger_than_the_limit_is_dropped_alone(self, open_store: OpenStore) -> None:
        """With a reason; the writes beside it and what was kept before stay."""
        if not self.bounded:
            pytest.skip("this store has no limit")
        store = open_store(self.room_bytes)
        keys = fill(store, 0, 5)
        large = sample_bytes(self.room_bytes + 1)
        writes = [Write(sample_key(50), b"before"), Write(sample_key(51), large), Write(sample_key(52), b"after")]
        assert store.put_many(writes) == 2
        assert store.contains_many([*keys, *(each.key for each in writes)]) == [True] * 6 + [False, True]
        assert store.events.stats.drops == {DropReason.TOO_LARGE: 1}

    def test_a_limit_of_nothing_keeps_nothing(self, open_store: OpenStore) -> None:
        """And reads are plain misses."""
        if not self.bounded:
            pytest.skip("this store has no limit")
        store = open_store(0)
        assert store.put(sample_key(1), b"value") is False
        assert store.get(sample_key(1)) is None
        assert store.info().entries == 0
        assert store.events.stats.drops == {DropReason.DISABLED: 1}

    def test_a_dropped_value_raises_in_strict_mode(self, open_store: OpenStore) -> None:
        """The message says what to do."""
        if not self.bounded:
            pytest.skip("this store has no limit")
        store = open_store(self.room_bytes, strict=True)
        with pytest.raises(CapacityError):
            store.put(sample_key(1), sample_bytes(self.room_bytes + 1))

    def test_a_smaller_limit_is_enforced_at_once(self, open_store: OpenStore) -> None:
        """What was used last stays; and a larger one lets more in."""
        if not self.bounded:
            pytest.skip("this store has no limit")
        store = open_store(4 * self.room_bytes)
        count = 2 * self.room_bytes // _VALUE_BYTES
        keys = fill(store, 0, count)
        assert all(store.contains_many(keys))
        store.set_capacity(self.room_bytes)
        assert store.info().capacity_bytes == self.room_bytes
        assert self.taken(store) <= self.room_bytes
        assert 0 < check_all(store, 0, keys) < count
        assert store.contains(keys[-1])
        store.set_capacity(None)
        assert store.info().capacity_bytes is None
        assert all(store.contains_many(fill(store, 1000, count)))

    def test_evict_makes_room_and_says_how_much(self, open_store: OpenStore) -> None:
        """The entries it names are gone, and counted as evicted."""
        store = open_store()
        keys = fill(store, 0, 40)
        taken = self.taken(store)
        removed = store.evict(taken // 2)
        left = check_all(store, 0, keys)
        assert removed.entries == 40 - left > 0
        assert removed.nbytes >= removed.entries * _VALUE_BYTES
        assert store.events.stats.evicted_entries == removed.entries
        assert left == 0 or self.taken(store) <= taken // 2

    def test_evicting_what_is_not_there_does_nothing(self, open_store: OpenStore) -> None:
        """A target above what is taken removes nothing."""
        store = open_store()
        keys = fill(store, 0, 10)
        assert store.evict(1 << 40).entries == 0
        assert all(store.contains_many(keys))

    # --- opening again --------------------------------------------------------------------------------------------

    def test_what_is_kept_is_there_again(self, open_store: OpenStore) -> None:
        """After closing, and while another handle is open: values, facts, pins, expiry, limit, removals."""
        if not self.persistent:
            pytest.skip("this store does not outlive its handle")
        store = open_store(4 * self.room_bytes)
        keys = fill(store, 0, 8)
        store.put(sample_key(50), b"value", meta={"a": 1}, parent=keys[0], ttl_seconds=1000, n_tokens=3)
        store.put(sample_key(51), b"expired", ttl_seconds=0)
        store.delete(keys[7])
        if self.pinning:
            store.pin_many([keys[0]])
        for closed in (False, True):
            if closed:
                store.close()
            again = open_store(4 * self.room_bytes)
            assert again.contains_many(keys) == [True] * 7 + [False]
            assert check_all(again, 0, keys) == 7
            entry = again.fetch_many([sample_key(50)])[0]
            assert entry is not None
            assert (bytes(entry.value), entry.meta, entry.parent, entry.n_tokens) == (b"value", {"a": 1}, keys[0], 3)
            assert not again.contains(sample_key(51))
            assert [each.key for each in again.entries() if each.pinned] == ([keys[0]] if self.pinning else [])
            again.close()

    def test_what_a_closed_store_cannot_remove_it_says(self, open_store: OpenStore) -> None:
        """Strict or not: an owner who wants entries gone must not be told that there were none."""
        if not self.persistent:
            pytest.skip("this store does not outlive its handle")
        store = open_store()
        fill(store, 0, 2)
        store.close()
        for remove in (store.clear, store.prune, lambda: store.prune(lambda info: True)):
            with pytest.raises(StoreError):
                remove()

    def test_two_handles_see_each_other(self, open_store: OpenStore) -> None:
        """What one puts, replaces and removes is so for the other at once."""
        if not self.persistent:
            pytest.skip("this store does not outlive its handle")
        first, second = open_store(4 * self.room_bytes), open_store(4 * self.room_bytes)
        key = sample_key(1)
        for number in range(6):
            writer, reader = (first, second) if number % 2 else (second, first)
            writer.put(key, b"value %d" % number)
            found = reader.get(key)
            assert found is not None
            assert bytes(found) == b"value %d" % number
        assert first.delete(key) is True
        assert second.get(key) is None
        assert second.contains(key) is False
        assert second.delete(key) is False
