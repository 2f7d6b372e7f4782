"""The write-ahead log stays short, or becomes so again, however others read and write beside."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw

from lmstash.store.base import Write
from lmstash.store.disk.room import Sizes
from lmstash.store.disk.store import DiskStore

CAPACITY_BYTES = 4 << 20
LOG_BYTES = Sizes.of(CAPACITY_BYTES).log_bytes


def log_bytes(folder: Path) -> int:
    return os.path.getsize(folder / "index.db-wal")


@contextlib.contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Another program that reads and reads, so that the log cannot be begun anew."""
    connection = apsw.Connection(str(folder / "index.db"), flags=apsw.SQLITE_OPEN_READONLY)
    connection.execute("BEGIN")
    connection.execute("SELECT count(*) FROM entries").fetchall()
    try:
        yield
    finally:
        connection.close()


def test_a_log_that_a_reader_let_grow_is_cut_when_it_has_gone(tmp_path: Path, tools: Any) -> None:
    store = DiskStore(tmp_path, capacity_bytes=CAPACITY_BYTES)
    with reading(tmp_path):
        number = 0
        while log_bytes(tmp_path) < 3 * LOG_BYTES:
            assert store.put(tools.key(number), tools.value(number, 100))
            number += 1
    time.sleep(2)  # longer than the pause after the last attempt
    assert store.put(tools.key(number), tools.value(number, 100))
    assert log_bytes(tmp_path) <= LOG_BYTES
    assert store.get(tools.key(0)) == tools.value(0, 100)
    store.close()


def test_a_store_that_the_log_has_filled_keeps_values_again(tmp_path: Path, tools: Any) -> None:
    """Without room there is no commit, and without a commit nothing would cut the log."""
    store = DiskStore(tmp_path, capacity_bytes=CAPACITY_BYTES)
    with reading(tmp_path):
        number = 0
        while store.put(tools.key(number), tools.value(number, 100)):
            number += 1
            assert number < 20_000
        assert tools.folder_bytes(tmp_path) <= CAPACITY_BYTES
        assert log_bytes(tmp_path) > CAPACITY_BYTES // 2
    time.sleep(2)  # longer than the pause after the last attempt
    assert store.put(tools.key(1), tools.value(1, 3000))
    assert log_bytes(tmp_path) <= LOG_BYTES
    assert store.get(tools.key(1)) == tools.value(1, 3000)
    assert store.verify().ok
    store.close()


def test_puts_hardly_wait_for_a_reader_that_stays(tmp_path: Path, tools: Any) -> None:
    store = DiskStore(tmp_path, capacity_bytes=CAPACITY_BYTES)
    with reading(tmp_path):
        number, slowest = 0, []
        while log_bytes(tmp_path) < 6 * LOG_BYTES:
            started = time.monotonic()
            assert store.put(tools.key(number), tools.value(number, 100))
            slowest.append(time.monotonic() - started)
            number += 1
        slowest.sort()
        assert slowest[len(slowest) // 2] < 0.005, "most puts do not wait"
        assert slowest[-1] < 1
    store.close()


def test_the_log_stays_short_while_two_processes_never_pause(
    tmp_path: Path, start_child: Callable[..., Any], tools: Any
) -> None:
    store = DiskStore(tmp_path, capacity_bytes=CAPACITY_BYTES)

    def clear_again_and_again() -> int:
        other = DiskStore(tmp_path)
        until, longest = time.monotonic() + 2, 0
        while time.monotonic() < until:
            other.clear()
            longest = max(longest, log_bytes(tmp_path))
        other.close()
        return longest

    child = start_child(clear_again_and_again)
    until, number, kept = time.monotonic() + 2, 0, 0
    while time.monotonic() < until:
        kept += store.put(tools.key(number), tools.value(number, 1000))
        number += 1
    assert child.result() < CAPACITY_BYTES // 2
    assert kept == number
    store.close()


def test_the_limit_holds_while_processes_put_delete_and_read_without_a_pause(
    tmp_path: Path, start_child: Callable[..., Any], watch: Callable[[Path], Any], tools: Any
) -> None:
    """Of three there is always one in a transaction, and often one that moves the log just then."""
    capacity = 8 << 20
    DiskStore(tmp_path, capacity_bytes=capacity).close()

    def never_pause(number: int) -> int:
        draw, store, longest = random.Random(number), DiskStore(tmp_path, capacity_bytes=capacity), 0
        until = time.monotonic() + 6
        while time.monotonic() < until:
            asked = draw.choices(range(20_000), k=draw.randrange(1, 500))
            writes = [Write(tools.key(each), os.urandom(draw.randrange(4, 3000)), namespace="a/b") for each in asked]
            assert store.put_many(writes) >= len(set(asked))
            longest = max(longest, log_bytes(tmp_path))
            store.delete_many([tools.key(each) for each in draw.choices(range(20_000), k=300)])
            store.get_many([tools.key(each) for each in draw.choices(range(20_000), k=50)])
            longest = max(longest, log_bytes(tmp_path))
        store.close()
        return longest

    with watch(tmp_path) as seen:
        longest = max(child.result() for child in [start_child(never_pause, number) for number in range(3)])
    assert seen.most <= capacity
    one_transaction = os.path.getsize(tmp_path / "index.db")
    assert longest < 2 * Sizes.of(capacity).log_bytes + 4 * one_transaction
    assert DiskStore(tmp_path).verify().ok
