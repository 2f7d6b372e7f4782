"""Thousands of keys at once: what is no key, and what a damaged index says, is a miss that is counted once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lmstash.store.base import Write
from lmstash.store.disk.files.rows import ABSENT, EXPIRED, PLACE, SENSELESS
from lmstash.store.disk.store import DiskStore
from lmstash.store.sheets import fetch_sheets
from lmstash.testing import sample_bytes, sample_key

THERE, ASKED = 40, 50
KEYS = [sample_key(number) for number in range(ASKED)]


def by_values(store: DiskStore, keys: list[bytes]) -> dict[bytes, bytes]:
    found = store.get_many(keys)
    return {key: bytes(value) for key, value in zip(keys, found, strict=True) if value is not None}


def by_sheets(store: DiskStore, keys: list[bytes]) -> dict[bytes, bytes]:
    out: dict[bytes, bytes] = {}
    for found in fetch_sheets(store, keys):
        out |= {keys[place]: bytes(found.values[row]) for row, place in enumerate(found.places.tolist())}
    return out


def one_by_one(store: DiskStore, keys: list[bytes]) -> dict[bytes, bytes]:
    return {key: bytes(value) for key in keys if (value := store.get(key)) is not None}


@pytest.fixture(params=[by_values, by_sheets, one_by_one])
def fetch(request: pytest.FixtureRequest) -> Callable[[DiskStore, list[bytes]], dict[bytes, bytes]]:
    return request.param


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DiskStore]:
    store = DiskStore(tmp_path / "stash")
    store.put_many([Write(KEYS[n], sample_bytes(100, n), "kind/0") for n in range(THERE)])
    yield store
    store.close()


EXPECTED = {KEYS[n]: sample_bytes(100, n) for n in range(THERE)}


def counted(store: DiskStore) -> int:
    return store.events.stats.hits + sum(store.events.stats.misses.values())


@pytest.mark.parametrize(
    "odd",
    [[b"k%d" % n for n in range(20)], [b"a" * 31, b"b" * 33], [b""], [b"x" * 64] * 1, [b"y" * 32000]],
    ids=["short", "31 and 33", "empty", "64", "long"],
)
@pytest.mark.parametrize("beside", [True, False])
def test_what_is_no_key_is_a_miss(store: DiskStore, fetch: Any, odd: list[bytes], beside: bool) -> None:
    keys = [*KEYS[:20], *odd, *KEYS[20:]] if beside else odd
    assert fetch(store, keys) == (EXPECTED if beside else {})
    assert counted(store) == len(keys)


def test_no_keys_are_nothing(store: DiskStore, fetch: Any) -> None:
    assert fetch(store, []) == {}
    assert counted(store) == 0


def test_what_is_said_in_place_of_one_can_be_none() -> None:
    heads = {PLACE.unpack(each)[2] for each in (ABSENT, EXPIRED, SENSELESS)}
    assert len(heads) == 3
    assert min(heads) > 1 << 20


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("off", 2**60),
        ("head", 0),
        ("size", 2**50),
        ("exp", -5),
        ("exp", "soon"),
        ("exp", b"soon"),
        ("place", "a text of twenty-eight signs"),
        ("place", bytes(28)),
        ("place", b"\xff" * 28),
        ("place", b"short"),
    ],
)
def test_damage_is_healed_and_every_key_counts_once(store: DiskStore, fetch: Any, name: str, value: Any, tools: Any):
    index = store._opened.index
    with index.transaction() as connection:
        assert tools.spoil_rows(connection, name, value, index.find(KEYS[7]).k) == 1
    found = fetch(store, KEYS)
    assert found.items() <= EXPECTED.items()
    assert counted(store) == ASKED
    assert fetch(store, KEYS) == EXPECTED
    assert counted(store) == 2 * ASKED


def test_two_places_whose_lengths_make_up_for_each_other_are_damage(store: DiskStore, fetch: Any, tools: Any) -> None:
    index = store._opened.index
    with index.transaction() as connection:
        for key, place in ((KEYS[7], bytes(14)), (KEYS[30], bytes(42))):
            tools.spoil_rows(connection, "place", place, index.find(key).k)
    assert fetch(store, KEYS).items() <= EXPECTED.items()
    assert counted(store) == ASKED
    assert fetch(store, KEYS) == EXPECTED


def test_an_expired_entry_is_an_expired_miss(store: DiskStore, fetch: Any, tools: Any) -> None:
    index = store._opened.index
    with index.transaction() as connection:
        tools.spoil_rows(connection, "exp", 1, index.find(KEYS[7]).k)
        tools.spoil_rows(connection, "exp", 2**62, index.find(KEYS[8]).k)
    assert fetch(store, KEYS) == {key: value for key, value in EXPECTED.items() if key != KEYS[7]}
    assert store.events.stats.misses == {"absent": ASKED - THERE, "expired": 1}
