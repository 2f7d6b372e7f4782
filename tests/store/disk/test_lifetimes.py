"""Opening, closing and what may happen between: exits, second stores, lost folders, clocks, threads, held values."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import lmstash
from lmstash.errors import StoreUnavailableError
from lmstash.store.base import Write
from lmstash.store.disk.store import DiskStore

PROGRAM = """
import sys, threading, lmstash
stash = lmstash.open(sys.argv[1], capacity_bytes=16 << 20)
key = lambda n: n.to_bytes(32, "little")
for n in range(1, 101):
    assert stash.store.put(key(n), key(n) * 40)
if sys.argv[2] == "error":
    raise SystemError("a bug of the host")
if sys.argv[2] == "os._exit":
    import os; os._exit(0)
if sys.argv[2] == "thread":
    def go_on():
        n = 101
        while True:
            stash.store.put(key(n), key(n) * 40); n += 1
    threading.Thread(target=go_on, daemon=True).start()
"""


@pytest.mark.parametrize("end", ["return", "error", "os._exit", "thread"])
def test_a_program_that_ends_without_close_loses_nothing(end: str, tmp_path: Path) -> None:
    folder = tmp_path / "stash"
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(folder), end], capture_output=True, text=True, timeout=60)
    assert done.returncode == (1 if end == "error" else 0)
    if end != "error":
        assert done.stderr == ""
    store = DiskStore(folder)
    keys = [number.to_bytes(32, "little") for number in range(1, 101)]
    assert store.get_many(keys) == [key * 40 for key in keys]
    assert store.verify().ok
    assert store.events.stats.damaged == 0
    store.close()


def test_a_store_dropped_without_close_leaves_nothing_open_for_ever(tmp_path: Path, tools: Any) -> None:
    folder = tmp_path / "stash"
    for number in range(30):
        store = DiskStore(folder, capacity_bytes=16 << 20)
        assert store.put(tools.key(number), tools.value(number, 500))
        del store
    gc.collect()
    if sys.platform == "linux":
        assert held(folder) == []
    store = DiskStore(folder)
    assert all(store.get(tools.key(number)) == tools.value(number, 500) for number in range(30))
    store.close()


def held(folder: Path) -> list[str]:
    """Files of `folder` that this process has open or mapped."""
    links = []
    for name in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            continue
    maps = Path("/proc/self/maps").read_text().splitlines()
    return [link for link in links if str(folder) in link] + [line for line in maps if str(folder) in line]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what is open on Linux only")
def test_close_lets_go_of_every_file_at_once(tmp_path: Path, tools: Any) -> None:
    store = DiskStore(tmp_path / "stash", capacity_bytes=16 << 20)
    for number in range(50):
        store.put(tools.key(number), tools.value(number, 5000), namespace=f"n/{number % 3}")
        store.get(tools.key(number))
    assert held(tmp_path / "stash")
    store.close()
    assert held(tmp_path / "stash") == []
    reader = DiskStore(tmp_path / "stash", read_only=True)
    reader.get(tools.key(1))
    reader.close()
    assert held(tmp_path / "stash") == []


def test_a_closed_store_misses_and_drops_and_may_be_closed_again(tmp_path: Path, tools: Any) -> None:
    store = DiskStore(tmp_path / "stash", capacity_bytes=16 << 20)
    assert store.put(tools.key(1), b"one")
    store.close()
    store.close()
    assert store.get(tools.key(1)) is None
    assert store.get_many([tools.key(1), tools.key(2)]) == [None, None]
    assert store.fetch_many([tools.key(1)] * 5) == [None] * 5
    assert not store.contains(tools.key(1))
    assert not store.put(tools.key(3), b"x")
    assert store.put_many([Write(tools.key(4), b"x"), Write(tools.key(5), b"y")]) == 0
    assert not store.delete(tools.key(1))
    assert store.pin_many([tools.key(1)]) == 0
    assert list(store.entries()) == []
    for remove in (store.prune, store.clear, lambda: store.prune(lambda _entry: True)):
        with pytest.raises(StoreUnavailableError, match=r"lmstash\.open"):
            remove()
    assert store.evict(0).entries == 0
    store.set_capacity(0)
    store.flush()
    assert store.info().entries == 0
    store.verify()
    store.removals()
    assert "closed" in repr(store)
    assert tools.misses(store) == {"unavailable": 8}
    assert store.events.stats.drops == {"unavailable": 3}
    assert tools.accounted(store.events, 8)
    again = DiskStore(tmp_path / "stash")
    assert again.get(tools.key(1)) == b"one"
    assert again.info().capacity_bytes == 16 << 20
    again.close()


def test_a_strict_closed_store_says_so(tmp_path: Path, tools: Any) -> None:
    store = DiskStore(tmp_path / "stash", capacity_bytes=16 << 20, strict=True)
    store.close()
    with pytest.raises(StoreUnavailableError, match="closed"):
        store.get(tools.key(1))
    with pytest.raises(StoreUnavailableError, match="closed"):
        store.put(tools.key(1), b"x")


def test_closing_while_other_threads_work_breaks_none_of_them(tmp_path: Path, tools: Any) -> None:
    for attempt in range(8):
        store = DiskStore(tmp_path / f"stash{attempt}", capacity_bytes=16 << 20)
        errors: list[BaseException] = []
        kept: list[list[int]] = [[], [], []]

        def work(lane: int, store: DiskStore = store, kept: Any = kept, errors: Any = errors) -> None:
            try:
                for number in range(400):
                    if store.put(tools.key(number, f"{lane}/"), tools.value(number, 1500)):
                        kept[lane].append(number)
                    store.get_many([tools.key(each, f"{lane}/") for each in range(number, number + 6)])
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(lane,)) for lane in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.004 * (attempt + 1))
        store.close()
        for thread in threads:
            thread.join()
        assert errors == []
        again = DiskStore(tmp_path / f"stash{attempt}")
        for lane, numbers in enumerate(kept):
            for number in numbers:
                assert again.get(tools.key(number, f"{lane}/")) == tools.value(number, 1500), "acknowledged and lost"
        assert again.verify().ok
        again.close()


def test_two_stores_on_one_folder_in_one_process_see_each_other(tmp_path: Path, tools: Any) -> None:
    first = DiskStore(tmp_path / "stash", capacity_bytes=8 << 20)
    second = DiskStore(tmp_path / "stash")
    for number in range(300):
        writer, reader = (first, second) if number % 2 else (second, first)
        assert writer.put(tools.key(number), tools.value(number, 9000))
        assert reader.get(tools.key(number)) == tools.value(number, 9000)
    assert first.delete(tools.key(299))
    assert second.get(tools.key(299)) is None
    first.close()
    assert second.put(tools.key(1000), b"after")
    assert second.get(tools.key(1000)) == b"after"
    assert second.verify().ok
    second.close()
    third = DiskStore(tmp_path / "stash")
    assert third.get(tools.key(1000)) == b"after"
    third.close()


def test_opening_and_closing_in_many_threads_at_once(tmp_path: Path, tools: Any) -> None:
    errors: list[BaseException] = []

    def work(lane: int) -> None:
        try:
            for number in range(8):
                store = DiskStore(tmp_path / "stash", capacity_bytes=16 << 20)
                key = tools.key(number, f"lane {lane} ")
                assert store.put(key, key)
                assert store.get(key) == key
                store.close()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(lane,)) for lane in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    store = DiskStore(tmp_path / "stash")
    for lane in range(4):
        for number in range(8):
            key = tools.key(number, f"lane {lane} ")
            assert store.get(key) == key
    assert store.verify().ok
    store.close()


def test_many_processes_may_open_a_new_folder_at_once(
    tmp_path: Path, start_child: Callable[..., Any], tools: Any
) -> None:
    def work(number: int) -> bool:
        store = DiskStore(tmp_path / "stash", capacity_bytes=16 << 20, strict=True)
        kept = store.put(tools.key(number), tools.value(number, 100))
        store.close()
        return kept

    children = [start_child(work, number) for number in range(8)]
    assert all(child.result() for child in children)
    store = DiskStore(tmp_path / "stash")
    assert all(store.get(tools.key(number)) == tools.value(number, 100) for number in range(8))
    store.close()


# --- the folder goes away --------------------------------------------------------------------------------------------


def test_a_folder_deleted_while_open_is_made_anew(tmp_path: Path, tools: Any) -> None:
    folder = tmp_path / "stash"
    store = DiskStore(folder, capacity_bytes=16 << 20)
    for number in range(30):
        assert store.put(tools.key(number), tools.value(number, 3000))
    shutil.rmtree(folder)
    for number in range(30):
        value = store.get(tools.key(number))
        assert value is None or value == tools.value(number, 3000)
    for number in range(30):
        store.put(tools.key(number, "new"), tools.value(number, 3000))
    for number in range(1, 30):
        assert store.get(tools.key(number, "new")) == tools.value(number, 3000)
    store.flush()
    store.close()
    again = DiskStore(folder)
    assert again.get(tools.key(7, "new")) == tools.value(7, 3000)
    assert again.info().capacity_bytes == 16 << 20
    assert again.verify().ok
    again.close()


@pytest.mark.parametrize("what", ["segments", "index.db", "recency", "stash.json"])
def test_a_part_deleted_while_open_is_made_anew(what: str, tmp_path: Path, tools: Any) -> None:
    folder = tmp_path / "stash"
    store = DiskStore(folder, capacity_bytes=16 << 20)
    for number in range(30):
        assert store.put(tools.key(number), tools.value(number, 3000))
    if (folder / what).is_dir():
        shutil.rmtree(folder / what)
    else:
        (folder / what).unlink()
    for number in range(200):
        store.put(tools.key(number, "new"), tools.value(number, 20_000))
    kept = [store.put(tools.key(number, "new"), tools.value(number, 20_000)) for number in range(200)]
    assert all(kept)
    assert all(store.get(tools.key(number, "new")) == tools.value(number, 20_000) for number in range(200))
    store.close()
    again = DiskStore(folder)
    assert all(again.get(tools.key(number, "new")) == tools.value(number, 20_000) for number in range(200))
    assert again.verify().ok
    again.close()


def test_a_folder_moved_while_open_is_left_alone_and_another_begun(
    tmp_path: Path, tools: Any, caplog: pytest.LogCaptureFixture
) -> None:
    store = DiskStore(tmp_path / "stash", capacity_bytes=16 << 20)
    assert store.put(tools.key(1), b"one")
    (tmp_path / "stash").rename(tmp_path / "moved")
    with caplog.at_level("WARNING", "lmstash"):
        store.put(tools.key(2), b"two")
        assert store.put(tools.key(2), b"two")
    assert [each.getMessage() for each in caplog.records] == [
        f"lmstash: {tmp_path / 'stash'} was moved or removed: begun anew"
    ]
    assert store.get(tools.key(2)) == b"two"
    store.close()
    moved = DiskStore(tmp_path / "moved")
    assert moved.get(tools.key(1)) == b"one"
    moved.close()


@pytest.mark.parametrize("anew", [None, "a folder", "a stash"])
def test_reading_from_and_closing_a_store_whose_folder_was_moved_loses_nothing_of_it(
    anew: str | None, tmp_path: Path, tools: Any
) -> None:
    """Its files are not lost, though none is where it was; nor is what is mostly dead rewritten into another folder."""
    keys, others = ([tools.key(number, word) for number in range(40)] for word in ("kept", "dead"))
    with closing(DiskStore(tmp_path / "stash", capacity_bytes=16 << 20)) as first:
        for key, other in zip(keys, others, strict=True):
            assert first.put(key, key * 100, namespace="kept/all")
            assert first.put(other, other * 100, namespace="dead/most")
    store = DiskStore(tmp_path / "stash")
    assert store.delete_many(others[:30]) == 30  # tidied up when it closes
    assert store.get(others[0]) is None
    (tmp_path / "stash").rename(tmp_path / "moved")
    if anew == "a folder":
        (tmp_path / "stash" / "segments").mkdir(parents=True)
    elif anew == "a stash":
        DiskStore(tmp_path / "stash").close()
    assert store.get_many(keys) == [None] * 40
    assert store.get(keys[35]) is None
    store.close()
    with closing(DiskStore(tmp_path / "moved")) as moved:
        for key in [*keys, *others[30:]]:
            assert moved.get(key) == key * 100
        assert moved.verify().ok


# --- clocks ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Shifts what `time.time` says by so many seconds from now on."""
    real = time.time

    def shift(seconds: float) -> None:
        monkeypatch.setattr(time, "time", lambda: real() + seconds)

    return shift


@pytest.mark.parametrize("back", [3600, 40 * 365 * 86400], ids=["an hour", "40 years"])
def test_a_clock_that_goes_backwards_loses_no_update(
    back: float, tmp_path: Path, tools: Any, clock: Callable[[float], None]
) -> None:
    folder = tmp_path / "stash"
    store = DiskStore(folder, capacity_bytes=8 << 20)
    for number in range(20):
        assert store.put(tools.key(number), b"before")
    assert store.pin_many([tools.key(3)]) == 1
    store.close()
    clock(-back)
    store = DiskStore(folder)
    for number in range(10):
        assert store.put(tools.key(number), b"after")
    assert store.delete(tools.key(15))
    assert store.pin_many([tools.key(3)], False) == 1
    assert store.put(tools.key(50), b"short", ttl_seconds=1000)
    assert store.get(tools.key(50)) == b"short"
    list(store.entries())
    store.info()
    store.close()
    for path in folder.glob("index.db*"):
        path.unlink()
    rebuilt = DiskStore(folder)
    assert [rebuilt.get(tools.key(number)) for number in range(10)] == [b"after"] * 10
    assert rebuilt.get(tools.key(12)) == b"before"
    assert rebuilt.get(tools.key(15)) is None
    rebuilt.evict(1 << 20)
    for number in range(300):
        assert rebuilt.put(tools.key(number, "more"), bytes(20_000))
        assert rebuilt.get(tools.key(number, "more")) == bytes(20_000)
    rebuilt.close()


def test_a_clock_that_jumps_to_and_fro_while_open_loses_no_update(
    tmp_path: Path, tools: Any, clock: Callable[[float], None]
) -> None:
    folder = tmp_path / "stash"
    store = DiskStore(folder, capacity_bytes=8 << 20)
    for step, shift in enumerate([0, -10, 86_400, -86_400, 5, -5, 10**9, 0]):
        clock(shift)
        for number in range(10):
            assert store.put(tools.key(number), f"step {step}".encode())
            assert store.get(tools.key(number)) == f"step {step}".encode()
        store.delete(tools.key(step, "doomed"))
    store.close()
    for path in folder.glob("index.db*"):
        path.unlink()
    rebuilt = DiskStore(folder)
    assert [rebuilt.get(tools.key(number)) for number in range(10)] == [b"step 7"] * 10
    rebuilt.close()


def test_a_clock_that_goes_back_only_prolongs_what_expires(
    tmp_path: Path, tools: Any, clock: Callable[[float], None]
) -> None:
    store = DiskStore(tmp_path / "stash", capacity_bytes=8 << 20)
    assert store.put(tools.key(1), b"x", ttl_seconds=100)
    clock(101)
    assert store.get(tools.key(1)) is None
    assert tools.misses(store) == {"expired": 1}
    clock(50)
    assert store.get(tools.key(1)) == b"x"
    clock(200)
    assert store.put(tools.key(1), b"y", ttl_seconds=100)
    clock(250)
    assert store.get(tools.key(1)) == b"y"
    store.close()


# --- values and their holders ----------------------------------------------------------------------------------------


def test_values_held_while_everything_is_evicted_stay_what_they_are(tmp_path: Path, tools: Any) -> None:
    store = DiskStore(tmp_path / "stash", capacity_bytes=16 << 20)
    sizes = [0, 10, 5000, 300_000, (1 << 20) + 3]
    for number, size in enumerate(sizes):
        assert store.put(tools.key(number), tools.value(number, size))
    keys = [tools.key(number) for number in range(len(sizes))]
    held_views = [store.get(key) for key in keys] + store.get_many(keys)
    held_entries = store.fetch_many(keys)
    store.clear()
    for number in range(200):
        store.put(tools.key(number, "more"), bytes(100_000))
    store.close()
    shutil.rmtree(tmp_path / "stash")
    for index, value in enumerate(held_views):
        number = index % len(sizes)
        assert value == tools.value(number, sizes[number])
    for number, entry in enumerate(held_entries):
        assert entry is not None
        assert entry.value == tools.value(number, sizes[number])


def test_what_a_caller_writes_into_values_changes_nothing_kept(tmp_path: Path, tools: Any) -> None:
    store = DiskStore(tmp_path / "stash", capacity_bytes=32 << 20)
    sizes = [1, 64, 5000, 70_000, (1 << 20) + 3, 9 << 20]
    keys = [tools.key(number) for number in range(len(sizes))]
    for number, size in enumerate(sizes):
        assert store.put(keys[number], tools.value(number, size))
    for asked in (keys, keys[:2], keys * 2):
        entries = store.fetch_many(asked)
        for entry in entries:
            assert entry is not None
            assert not entry.value.readonly
            entry.value[:] = b"\xee" * len(entry.value)
    for number, size in enumerate(sizes):
        value = store.get(keys[number])
        assert value == tools.value(number, size)
        assert value.readonly
        with pytest.raises(TypeError):
            value[0] = 1
    assert store.verify().ok
    store.close()


def test_what_a_caller_does_to_a_buffer_after_put_changes_nothing_kept(tmp_path: Path, tools: Any) -> None:
    store = DiskStore(tmp_path / "stash", capacity_bytes=32 << 20)
    for size in (10, 5000, 3 << 20):
        buffer = bytearray(tools.value(1, size))
        assert store.put(tools.key(size), buffer)
        buffer[:] = b"\xee" * size
        buffer.clear()  # no view is left on it either
        assert store.get(tools.key(size)) == tools.value(1, size)
    store.close()


# --- threads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [None, 3 << 20], ids=["unlimited", "3MiB"])
def test_eight_threads_do_everything_at_once(capacity: int | None, tmp_path: Path, tools: Any) -> None:
    import random

    folder = tmp_path / "stash"
    store = DiskStore(folder, capacity_bytes=capacity, strict=True)
    errors: list[BaseException] = []
    asked = [0] * 8

    def work(lane: int) -> None:
        draw = random.Random(lane)
        try:
            for step in range(120):
                choice = draw.random()
                number = draw.randrange(60)
                if choice < 0.3:
                    version = draw.randrange(5)
                    store.put(tools.key(number), tools.value(number, 4000, version))
                elif choice < 0.45:
                    numbers = draw.sample(range(60), 15)
                    store.put_many([Write(tools.key(each), tools.value(each, 4000, 9)) for each in numbers])
                elif choice < 0.7:
                    numbers = draw.sample(range(60), 10)
                    asked[lane] += 10
                    for each, value in zip(numbers, store.get_many([tools.key(n) for n in numbers]), strict=True):
                        assert value is None or any(value == tools.value(each, 4000, v) for v in (0, 1, 2, 3, 4, 9))
                elif choice < 0.8:
                    asked[lane] += 1
                    store.get(tools.key(number))
                elif choice < 0.9:
                    store.delete_many([tools.key(number)])
                elif choice < 0.94:
                    store.info()
                    list(store.entries())
                elif choice < 0.97:
                    store.prune(lambda entry, n=number: entry.key == tools.key(n))
                elif choice < 0.98:
                    store.evict(1 << 20)
                elif choice < 0.99:
                    assert store.verify().ok
                else:
                    store.flush()
                own = tools.key(lane, "own ")
                assert store.put(own, tools.value(lane, 100, step))
                asked[lane] += 1
                found = store.get(own)  # another thread may have evicted it
                assert found is None or found == tools.value(lane, 100, step)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(lane,)) for lane in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert tools.accounted(store.events, sum(asked))
    assert store.events.stats.damaged == 0
    assert store.verify().ok
    if capacity is not None:
        assert tools.folder_bytes(folder) <= capacity
    store.close()
    again = DiskStore(folder)
    for lane in range(8):
        assert again.get(tools.key(lane, "own ")) in (None, tools.value(lane, 100, 119))
    again.close()


def test_lmstash_open_twice_in_one_program(tmp_path: Path, tools: Any) -> None:
    with lmstash.open(tmp_path / "stash") as outer:
        outer.store.put(tools.key(1), b"outer")
        with lmstash.open(tmp_path / "stash") as inner:
            assert inner.store.get(tools.key(1)) == b"outer"
            inner.store.put(tools.key(2), b"inner")
        assert outer.store.get(tools.key(2)) == b"inner"
        assert outer.store.put(tools.key(3), b"still open")
