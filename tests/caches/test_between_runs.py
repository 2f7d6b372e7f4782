"""What is new in run after run is named; what stays, comes back or changes with the code is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import lmstash
from lmstash.caches import between_runs
from lmstash.caches.between_runs import RUNS, never_the_same
from lmstash.codecs.records import encode_record
from lmstash.store.base import Store
from lmstash.store.memory import MemoryStore


def run(store: Store, value: Any, of: str = "f", code: str = "c", salt: str | None = None) -> list[str]:
    between_runs._noted.clear()  # as in another process
    return never_the_same(store, of, code, {"a": value, "b": 1}, salt)


def runs(store: Store, *each: Any, code: str = "c") -> list[list[str]]:
    return [run(store, value, code=code) for value in each]


def test_a_value_is_named_once_it_was_new_in_three_runs() -> None:
    assert runs(MemoryStore(), 1, 2, 3, 4) == [[], [], ["a"], ["a"]]


@pytest.mark.parametrize(
    "values", [(1, 1, 1, 1), (1, 2, 1, 2, 1), (1, 2, 2, 3, 3, 4, 4), (1, 2, 1, 3, 1, 2, 3)], ids=str
)
def test_what_stays_or_comes_back_is_not_named(values: tuple[int, ...]) -> None:
    assert not any(runs(MemoryStore(), *values))


def test_an_edit_begins_anew_and_others_do_not_count() -> None:
    store = MemoryStore()
    assert not any(runs(store, 1, 2) + runs(store, 3, 4, code="d"))
    assert runs(store, 5, code="d") == [["a"]]
    assert run(store, 6, of="g", code="d") == []
    assert run(store, 6, code="d", salt="another") == []


def test_what_a_process_tries_is_one_run() -> None:
    store = MemoryStore()
    assert not any(never_the_same(store, "one process", "c", {"a": value}) for value in range(5))


def test_a_run_like_the_last_one_writes_nothing(tmp_path: Path) -> None:
    with lmstash.open(tmp_path) as stash:
        runs(stash.store, 1, 1, 1)
        assert (stash.stats.puts, stash.stats.hits, dict(stash.stats.misses)) == (1, 0, {})


@pytest.mark.parametrize(
    "kept",
    [
        b"",
        b"null",
        encode_record({"code": b"c"}),
        encode_record({"code": b"c", "values": [], "new in": {}, "earlier": {}}),
        encode_record({"code": b"c", "values": {}, "new in": {"a": "many"}, "earlier": {}}),
        encode_record({"code": b"c", "values": {}, "new in": {}, "earlier": {"a": None}}),
    ],
)
def test_a_note_that_makes_no_sense_is_written_anew(kept: bytes) -> None:
    store = MemoryStore()
    runs(store, 1)
    (info,) = store.entries(RUNS)
    store.put(info.key, kept, namespace=RUNS)
    assert runs(store, 2, 3, 4) == [[], [], ["a"]]
