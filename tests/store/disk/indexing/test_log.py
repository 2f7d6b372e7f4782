"""The write-ahead log stays short, or becomes so again, however others read and write beside."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from lmstash.errors import StoreUnavailableError
from lmstash.store.base import Write
from lmstash.store.disk.accounting.room import Sizes
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


def make_long(store: DiskStore, folder: Path, tools: Any) -> None:
    """Fill the log while somebody reads, who has gone then; the last attempt to cut it is long ago."""
    with reading(folder):
        number = 10_000
        while log_bytes(folder) < 4 * LOG_BYTES:
            assert store.put(tools.key(number), tools.value(number, 100))
            number += 1
    store._opened.recency.pause_until(0)


def test_a_signal_handler_changes_nothing_while_a_write_begins_and_is_told_so(
    tmp_path: Path, tools: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DiskStore(tmp_path, capacity_bytes=CAPACITY_BYTES)
    for number in range(2):
        assert store.put(tools.key(number), b"old")
    make_long(store, tmp_path, tools)
    log = store._opened.index.log
    was_long, answers = log.is_long, []

    def is_long() -> bool:
        if not answers:
            answers.extend([store.delete(tools.key(0)), store.put(tools.key(1), b"new")])
            with pytest.raises(StoreUnavailableError):  # this must be done, or be known not to be
                store.prune()
        return was_long()

    monkeypatch.setattr(log, "is_long", is_long)
    assert store.put(tools.key(2), b"other")
    assert answers == [False, False]
    assert store.get_many([tools.key(number) for number in range(3)]) == [b"old", b"old", b"other"]
    assert store.delete(tools.key(0))
    assert store.put(tools.key(1), b"new")
    assert store.get_many([tools.key(number) for number in range(3)]) == [None, b"new", b"other"]
    store.close()


def test_a_signal_handler_that_writes_while_the_log_is_cut_is_refused_and_delays_nobody(
    tmp_path: Path, tools: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite says of a connection that is used while it waits: undefined."""
    store = DiskStore(tmp_path, capacity_bytes=CAPACITY_BYTES)
    make_long(store, tmp_path, tools)
    sleep, answers = time.sleep, []

    def interrupted(seconds: float) -> None:
        if not answers:
            sleep(0.1)  # it takes its time
            answers.append(store.put(tools.key(1), b"by the handler"))
        sleep(seconds)

    with reading(tmp_path):
        monkeypatch.setattr(time, "sleep", interrupted)
        started = time.monotonic()
        assert store.put(tools.key(2), b"value")
        assert time.monotonic() - started < 2
        monkeypatch.undo()
    assert answers == [False]
    assert store.get(tools.key(1)) is None
    assert store.get(tools.key(2)) == b"value"
    assert store.put(tools.key(1), b"later")
    store.close()


def test_processes_do_not_take_turns_in_waiting_for_a_reader_that_stays(
    tmp_path: Path, start_child: Callable[..., Any], tools: Any
) -> None:
    store = DiskStore(tmp_path, capacity_bytes=CAPACITY_BYTES)
    make_long(store, tmp_path, tools)

    def put_for_a_while(number: int) -> float:
        other = DiskStore(tmp_path)
        until, slowest = time.monotonic() + 3, 0.0
        while time.monotonic() < until:
            started = time.monotonic()
            other.put(tools.key(number), tools.value(number, 100))
            slowest = max(slowest, time.monotonic() - started)
            time.sleep(0.002)
        other.close()
        return slowest

    with reading(tmp_path):
        children = [start_child(put_for_a_while, number) for number in range(6)]
        assert max(child.result() for child in children) < 1.2
    store.close()


def test_an_attempt_that_was_interrupted_bounds_no_later_wait(tmp_path: Path, tools: Any) -> None:
    store = DiskStore(tmp_path, capacity_bytes=CAPACITY_BYTES, strict=True)
    assert store.put(tools.key(0), b"value")
    log = store._opened.index.log
    log._deadline = time.monotonic() - 5  # as an interrupt between two lines leaves it
    other = apsw.Connection(str(tmp_path / "index.db"))
    other.execute("BEGIN IMMEDIATE")
    threading.Timer(0.3, lambda: other.execute("COMMIT")).start()
    assert store.put(tools.key(1), b"another")
    other.close()
    store.close()


def test_who_closes_while_somebody_reads_for_long_holds_nobody_up(tmp_path: Path, tools: Any) -> None:
    store, other = (DiskStore(tmp_path, capacity_bytes=CAPACITY_BYTES) for _ in range(2))
    assert store.put(tools.key(0), b"value")
    with reading(tmp_path):
        assert store.put(tools.key(1), b"value")
        started = time.monotonic()
        store.close()
        assert other.put(tools.key(2), b"value")
        assert time.monotonic() - started < 3
    other.close()


@pytest.mark.parametrize("change", ["put", "pin"])
def test_small_changes_beside_a_reader_that_stays_do_not_fill_the_folder_beyond_its_limit(
    tmp_path: Path, tools: Any, change: str
) -> None:
    """Each is small, fits what was granted, and makes the log longer."""
    store = DiskStore(tmp_path, capacity_bytes=CAPACITY_BYTES)
    keys = [tools.key(number) for number in range(4000)]
    assert store.put_many(Write(key, b"value", namespace="a/b") for key in keys) == len(keys)
    worst, done = 0, 0
    with reading(tmp_path):
        for number in range(60_000 if change == "put" else 400):
            if change == "pin":
                done += store.pin_many(keys[:500], pinned=number % 2 == 0)
            else:
                done += store.put(keys[number % 4000], b"other")
            if number % 20 == 0:
                worst = max(worst, tools.folder_bytes(tmp_path))
            if worst > CAPACITY_BYTES or log_bytes(tmp_path) > CAPACITY_BYTES:
                break
    assert done
    assert worst <= CAPACITY_BYTES
    time.sleep(1.5)  # the pause after the last attempt
    assert store.put(keys[0], b"again")
    assert store.pin_many(keys[:3]) == 3
    store.close()
