"""Promises about values: what was put comes back, byte for byte, and belongs to whoever receives it."""

from __future__ import annotations

import array
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from lmstash.store.base import Buffer, Entry, Store, Write
from lmstash.testing.samples import OpenStore, sample_bytes, sample_key

_MIB = 1 << 20
_SIZES = [0, 1, 15, 16, 17, 4095, 4096, 4097, 65_537, _MIB - 1, _MIB, _MIB + 1, 9 * _MIB + 5]
_NUMBERS = array.array("i", range(60))

BUFFERS: dict[str, tuple[Callable[[], Any], bytes]] = {
    "bytes": (lambda: b"abc", b"abc"),
    "bytearray": (lambda: bytearray(b"abc"), b"abc"),
    "memoryview": (lambda: memoryview(b"abc"), b"abc"),
    "writable memoryview": (lambda: memoryview(bytearray(b"abc")), b"abc"),
    "memoryview of integers": (lambda: memoryview(_NUMBERS), _NUMBERS.tobytes()),
    "memoryview with two axes": (lambda: memoryview(_NUMBERS).cast("B").cast("i", [6, 10]), _NUMBERS.tobytes()),
    "every other number": (lambda: memoryview(_NUMBERS)[::2], _NUMBERS[::2].tobytes()),
    "backwards": (lambda: memoryview(b"abc")[::-1], b"cba"),
    "no numbers": (lambda: memoryview(_NUMBERS)[:0], b""),
    "no buffers": (lambda: [], b""),
    "one buffer in a list": (lambda: [b"abc"], b"abc"),
    "several of all kinds": (
        lambda: (b"ab", b"", bytearray(b"c"), memoryview(_NUMBERS), memoryview(_NUMBERS)[::3], memoryview(b"z")),
        b"abc" + _NUMBERS.tobytes() + _NUMBERS[::3].tobytes() + b"z",
    ),
    "parts that cross a mebibyte": (
        lambda: [sample_bytes(_MIB - 3, 1), b"12345", sample_bytes(2 * _MIB, 2), b"6"],
        sample_bytes(_MIB - 3, 1) + b"12345" + sample_bytes(2 * _MIB, 2) + b"6",
    ),
}


def fetch(store: Store, key: bytes) -> Entry:
    """Return the entry of a key that must be kept."""
    entry = store.fetch_many([key])[0]
    assert entry is not None, "an entry that was put is not there"
    return entry


def values(found: Sequence[memoryview | None]) -> list[bytes | None]:
    """Return what was found as bytes."""
    return [None if each is None else bytes(each) for each in found]


class ValuesContract:
    """Put, get, fetch, contains and delete, one at a time and many at once."""

    def test_what_was_never_put_is_not_there(self, open_store: OpenStore) -> None:
        """None, false and nothing removed, without an error."""
        store, key = open_store(), sample_key(1)
        assert store.get(key) is None
        assert store.get_many([key]) == [None]
        assert store.fetch_many([key]) == [None]
        assert store.contains(key) is False
        assert store.delete(key) is False
        assert store.delete_many([key]) == 0
        assert store.pin_many([key]) == 0

    @pytest.mark.parametrize("n_bytes", _SIZES)
    def test_a_value_of_any_size_comes_back_as_it_was(self, open_store: OpenStore, n_bytes: int) -> None:
        """By every way of reading."""
        store, key, value = open_store(), sample_key(1), sample_bytes(n_bytes)
        assert store.put(key, value) is True
        assert values([store.get(key)]) == [value]
        assert values(store.get_many([key])) == [value]
        assert bytes(fetch(store, key).value) == value
        assert store.contains(key) is True

    @pytest.mark.parametrize("kind", BUFFERS)
    def test_every_kind_of_buffer_is_taken(self, open_store: OpenStore, kind: str) -> None:
        """Bytes-like objects of any item size and layout, and several of them one after another."""
        make, expected = BUFFERS[kind]
        store, key = open_store(), sample_key(1)
        assert store.put(key, make()) is True
        assert values([store.get(key)]) == [expected]

    def test_values_of_mixed_sizes_are_read_together(self, open_store: OpenStore) -> None:
        """In the order asked for, with None where there is nothing."""
        store = open_store()
        kept = {sample_key(number): sample_bytes(size, number) for number, size in enumerate(_SIZES)}
        assert store.put_many([Write(key, value) for key, value in kept.items()]) == len(kept)
        asked = [key for pair in zip(reversed(kept), map(sample_key, range(100, 200)), strict=False) for key in pair]
        assert values(store.get_many(asked)) == [kept.get(key) for key in asked]
        fetched = store.fetch_many(asked)
        assert [None if each is None else bytes(each.value) for each in fetched] == [kept.get(key) for key in asked]
        assert [each.key for each in fetched if each is not None] == [key for key in asked if key in kept]
        assert store.contains_many(asked) == [key in kept for key in asked]

    def test_thousands_of_small_values_are_kept_apart(self, open_store: OpenStore) -> None:
        """Put by a generator, over namespaces that take turns."""
        store, n = open_store(), 2_000
        kept = {sample_key(number): b"value %d" % number for number in range(n)}
        writes = (Write(key, value, namespace=f"kind/{number % 3}") for number, (key, value) in enumerate(kept.items()))
        assert store.put_many(writes) == n
        asked = list(kept)[::-1]
        assert values(store.get_many(asked)) == [kept[key] for key in asked]

    def test_keys_that_share_a_part_are_never_mixed_up(self, open_store: OpenStore) -> None:
        """Whatever part of a key a store orders or shards by, the whole of it decides."""
        store = open_store()
        keys = [bytes(32), b"\xff" * 32]
        keys += [bytes(each) + bytes([mark]) * (32 - each) for each in (4, 8, 16, 24, 31) for mark in (1, 2)]
        keys += [bytes([mark]) * (32 - each) + bytes(each) for each in (4, 8, 16, 24, 31) for mark in (1, 2)]
        keys = list(dict.fromkeys(keys))
        for number, key in enumerate(keys):
            assert store.put(key, b"value %d" % number) is True
        assert values(store.get_many(keys)) == [b"value %d" % number for number in range(len(keys))]
        assert store.info().entries == len(list(store.entries())) == len(keys)
        assert store.delete(keys[0]) is True
        assert store.contains_many(keys) == [False] + [True] * (len(keys) - 1)

    def test_what_is_kept_beside_a_value_comes_back(self, open_store: OpenStore) -> None:
        """Facts, parent, cost, tokens, namespace and times."""
        store, key, parent = open_store(), sample_key(1), sample_key(2)
        meta = {"tags": ["a", "ü"], "layer": 3, "text": "line\nline", "none": None, "deep": {"x": [1.5, True]}}
        fields: dict[str, Any] = {"namespace": "activations/0123456789abcdef", "meta": meta, "parent": parent}
        assert store.put(key, b"value", **fields, compute_seconds=1.25, n_tokens=77, ttl_seconds=1000) is True
        entry = fetch(store, key)
        assert (entry.key, entry.parent, entry.namespace) == (key, parent, "activations/0123456789abcdef")
        assert (entry.meta, entry.compute_seconds, entry.n_tokens) == (meta, 1.25, 77)
        assert entry.expires is not None
        assert entry.expires - entry.created == pytest.approx(1000, abs=1)

    def test_what_was_not_said_comes_back_empty(self, open_store: OpenStore) -> None:
        """The defaults of `Write`."""
        store, key = open_store(), sample_key(1)
        store.put(key, b"value")
        entry = fetch(store, key)
        assert (entry.meta, entry.parent, entry.compute_seconds, entry.n_tokens) == ({}, b"", 0.0, 0)
        assert (entry.namespace, entry.expires) == ("user", None)

    def test_facts_that_are_encoded_already_are_kept_as_they_are(self, open_store: OpenStore) -> None:
        """Bytes are taken as JSON."""
        store, key = open_store(), sample_key(1)
        store.put(key, b"value", meta=b'{"a": [1, 2]}')
        assert fetch(store, key).meta == {"a": [1, 2]}

    def test_the_later_value_of_a_key_is_served(self, open_store: OpenStore) -> None:
        """Shorter or longer, in the same namespace or another, with its own facts."""
        store, key = open_store(), sample_key(1)
        for number, size in enumerate((10, 5_000, 0, 2 * _MIB, 3)):
            namespace = f"kind/{number % 2}"
            assert store.put(key, sample_bytes(size, number), namespace=namespace, meta={"number": number}) is True
            entry = fetch(store, key)
            assert (bytes(entry.value), entry.namespace) == (sample_bytes(size, number), namespace)
            assert entry.meta == {"number": number}
            assert [each.namespace for each in store.entries()] == [namespace]
        assert store.info().entries == 1

    def test_the_last_of_one_call_wins(self, open_store: OpenStore) -> None:
        """Every write of the call counts as kept."""
        store, key, other = open_store(), sample_key(1), sample_key(2)
        writes = [Write(key, b"first"), Write(other, b"other"), Write(key, b"second"), Write(key, b"last")]
        assert store.put_many(writes) == 4
        assert values(store.get_many([key, other])) == [b"last", b"other"]

    def test_without_replace_what_is_kept_stays(self, open_store: OpenStore) -> None:
        """And counts as kept; within one call the first stays."""
        store, key, other = open_store(), sample_key(1), sample_key(2)
        store.put(key, b"kept")
        writes = [Write(key, b"later"), Write(other, b"first"), Write(other, b"second")]
        assert store.put_many(writes, replace=False) == 3
        assert values(store.get_many([key, other])) == [b"kept", b"first"]

    def test_nothing_to_do_is_done(self, open_store: OpenStore) -> None:
        """Empty lists are fine everywhere."""
        store = open_store()
        assert store.put_many([]) == store.put_many([], replace=False) == 0
        assert store.get_many([]) == []
        assert store.fetch_many([]) == []
        assert store.contains_many([]) == []
        assert store.delete_many([]) == store.pin_many([]) == 0

    def test_a_removed_value_is_gone_and_can_be_put_again(self, open_store: OpenStore) -> None:
        """Each key that there was counts once, however often it is named."""
        store, keys = open_store(), [sample_key(number) for number in range(5)]
        store.put_many([Write(key, b"old") for key in keys])
        assert store.delete(keys[0]) is True
        assert store.delete(keys[0]) is False
        assert store.delete_many([keys[0], keys[1], keys[1], keys[2], sample_key(99)]) == 2
        assert values(store.get_many(keys)) == [None, None, None, b"old", b"old"]
        assert store.contains_many(keys) == [False, False, False, True, True]
        assert store.info().entries == 2
        store.put(keys[0], b"new")
        assert values([store.get(keys[0])]) == [b"new"]

    @pytest.mark.parametrize("n_keys", [1, 2, 8])
    @pytest.mark.parametrize("n_bytes", [100, 3 * _MIB])
    def test_what_a_caller_writes_into_changes_nothing(self, open_store: OpenStore, n_keys: int, n_bytes: int) -> None:
        """Neither the store, nor what others were given, nor the same key's second copy of one call."""
        store = open_store()
        keys = [sample_key(number) for number in range(n_keys)]
        store.put_many([Write(key, sample_bytes(n_bytes, number)) for number, key in enumerate(keys)])
        fetched = store.fetch_many([*keys, keys[0]])
        views = store.get_many(keys)
        spoilt = fetched[0]
        assert spoilt is not None
        assert not spoilt.value.readonly
        spoilt.value[:] = b"x" * n_bytes
        expected = [sample_bytes(n_bytes, number) for number in range(n_keys)]
        assert [bytes(each.value) for each in fetched[1:] if each is not None] == [*expected[1:], expected[0]]
        assert values(views) == expected
        assert values(store.get_many(keys)) == expected
        assert store.verify().ok

    def test_what_get_returns_cannot_be_written_into(self, open_store: OpenStore) -> None:
        """It may be memory that others see."""
        store, keys = open_store(), [sample_key(number) for number in range(6)]
        store.put_many([Write(key, b"value") for key in keys])
        found = [store.get(keys[0]), *store.get_many(keys)]
        assert all(each is not None and each.readonly for each in found)

    def test_a_value_that_is_held_outlives_its_entry(self, open_store: OpenStore) -> None:
        """Removal, overwriting, clearing and closing leave what was handed out alone."""
        store, keys = open_store(), [sample_key(number) for number in range(4)]
        expected = [sample_bytes(200_000, number) for number in range(4)]
        store.put_many([Write(key, value) for key, value in zip(keys, expected, strict=True)])
        held = store.get_many(keys)
        fetched = store.fetch_many(keys)
        store.delete(keys[0])
        store.put(keys[1], bytes(200_000))
        store.clear()
        store.put_many([Write(key, bytes(200_000)) for key in keys])
        store.close()
        assert values(held) == expected
        assert [bytes(each.value) for each in fetched if each is not None] == expected

    def test_a_value_may_be_reused_by_the_caller_once_it_is_put(self, open_store: OpenStore) -> None:
        """`put` has taken its bytes when it returns."""
        store = open_store()
        buffers: list[Buffer] = [bytearray(b"a" * size) for size in (10, 70_000, 2 * _MIB)]
        keys = [sample_key(number) for number in range(3)]
        store.put_many([Write(key, buffer) for key, buffer in zip(keys, buffers, strict=True)])
        store.put(sample_key(9), buffers)
        for buffer in buffers:
            memoryview(buffer)[:] = b"b" * len(buffer)
        assert values(store.get_many(keys)) == [b"a" * len(buffer) for buffer in buffers]
        assert values([store.get(sample_key(9))]) == [b"a" * sum(map(len, buffers))]
