"""Look-ups use the pages that this process has at hand, and wait for nobody who writes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import apsw
import pytest

from lmstash.store.base import Write
from lmstash.store.disk.store import DiskStore

COUNT = 5000


@pytest.fixture
def store(tmp_path: Path, tools: Any) -> Iterator[DiskStore]:
    with contextlib.closing(DiskStore(tmp_path, strict=True)) as opened:
        opened.put_many([Write(tools.key(number), b"old") for number in range(COUNT)])
        yield opened


def pages_read(store: DiskStore) -> int:
    """How many pages of the index were not at hand since this was last asked."""
    index = store._opened.index
    return sum(each.status(apsw.SQLITE_DBSTATUS_CACHE_MISS, True)[0] for each in (index.reader, index.writer))


def test_a_commit_of_this_process_takes_no_pages_from_look_ups(store: DiskStore, tools: Any) -> None:
    keys = [tools.key(number) for number in range(COUNT)]
    assert None not in store.get_many(keys)
    pages_read(store)
    for number in range(5):
        assert store.put(tools.key(COUNT + number), b"new")
        for key in keys[number::50]:
            assert store.get(key) == b"old"
        assert all(store.contains_many(keys))
    assert pages_read(store) < 20  # of about a hundred, each time


def test_a_look_up_beside_a_transaction_waits_for_nobody_and_sees_what_is_committed(
    store: DiskStore, tools: Any
) -> None:
    index, key = store._opened.index, tools.key(1)
    with ThreadPoolExecutor(1) as other:
        with index.transaction():
            row = index.find_for_change([key])[key]
            index.delete_rows([row])
            assert index.find(key) == row, "nor does it matter who looks"
            assert other.submit(store.get, key).result(10) == b"old"
            assert other.submit(store.get_many, [key]).result(10) == [b"old"]
        assert other.submit(store.get, key).result(10) is None


def test_a_writer_waits_for_a_look_up_on_its_connection(store: DiskStore) -> None:
    index, began = store._opened.index, threading.Event()

    def write() -> bool:
        began.set()
        with index.transaction():
            return True

    with ThreadPoolExecutor(1) as other:
        with index.read_lock:
            writer = other.submit(write)
            began.wait(10)
            with pytest.raises(TimeoutError):
                writer.result(0.2)
        assert writer.result(10)
