"""Forking with a live store: parent and child both go on, and neither's end harms the other."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lmstash
from lmstash.store.disk.store import DiskStore

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def values_right(store: Any, tools: Any, n: int, space: str = "", size: int = 3000) -> bool:
    found = store.get_many([tools.key(number, space) for number in range(n)])
    return found == [tools.value(number, size) for number in range(n)]


def put_some(store: Any, tools: Any, n: int, space: str = "", size: int = 3000) -> int:
    return sum(store.put(tools.key(number, space), tools.value(number, size)) for number in range(n))


def test_parent_and_child_both_go_on_with_the_same_object(
    tmp_path: Path, start_child: Callable[..., Any], tools: Any
) -> None:
    store = DiskStore(tmp_path / "stash", capacity_bytes=16 << 20)
    assert put_some(store, tools, 30) == 30

    def child() -> dict[str, Any]:
        right = values_right(store, tools, 30)
        put = put_some(store, tools, 30, "child")
        return {"right": right, "put": put, "own": values_right(store, tools, 30, "child")}

    running = start_child(child)
    assert put_some(store, tools, 30, "parent") == 30
    assert running.result() == {"right": True, "put": 30, "own": True}
    for space in ("", "child", "parent"):
        assert values_right(store, tools, 30, space)
    assert store.verify().ok
    store.close()
    again = DiskStore(tmp_path / "stash")
    assert all(values_right(again, tools, 30, space) for space in ("", "child", "parent"))
    assert again.verify().ok
    again.close()


@pytest.mark.parametrize("end", ["exit", "_exit", "close", "killed"])
def test_the_end_of_a_child_harms_nothing(end: str, tmp_path: Path, tools: Any) -> None:
    store = DiskStore(tmp_path / "stash", capacity_bytes=16 << 20)
    for number in range(20):
        store.put(tools.key(number), tools.value(number, 3000))
        pid = os.fork()
        if pid == 0:  # pytest's own exit handling is not wanted in the child
            if number % 2:
                store.put(tools.key(number, "child"), b"child")
            if end == "close":
                store.close()
            if end == "killed":
                os.kill(os.getpid(), 9)
            if end == "exit":
                import atexit

                atexit._run_exitfuncs()
            os._exit(0)
        os.waitpid(pid, 0)
    assert values_right(store, tools, 20)
    for number in range(1, 20, 2):
        assert store.get(tools.key(number, "child")) == b"child"
    assert store.put(tools.key(100), b"after")
    assert store.verify().ok
    other = DiskStore(tmp_path / "stash")
    assert values_right(other, tools, 20)
    assert other.get(tools.key(100)) == b"after"
    other.close()
    store.close()


PROGRAM = """
import os, sys
import lmstash

stash = lmstash.open(sys.argv[1])
key = lambda n: bytes([n]) * 32
for n in range(10):
    assert stash.store.put(key(n), key(n) * 50)
pid = os.fork()
if pid == 0:
    assert stash.store.get(key(3)) == key(3) * 50
    if sys.argv[2] == "used":
        assert stash.store.put(key(50), b"child")
    sys.exit(0)  # the whole of Python's end, with the parent's connections still there
assert os.waitpid(pid, 0)[1] == 0
for n in range(10, 20):
    assert stash.store.put(key(n), key(n) * 50)
assert all(stash.store.get(key(n)) == key(n) * 50 for n in range(20))
"""


@pytest.mark.parametrize("child", ["used", "unused"])
def test_a_child_that_ends_like_any_program_leaves_the_parents_index_whole(child: str, tmp_path: Path) -> None:
    import subprocess

    folder = tmp_path / "stash"
    for _round in range(3):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(folder), child], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
    store = DiskStore(folder)
    assert all(store.get(bytes([n]) * 32) == bytes([n]) * 32 * 50 for n in range(20))
    assert store.verify().ok
    assert store.events.stats.damaged == 0
    store.close()


def test_forking_while_threads_read_and_write(tmp_path: Path, start_child: Callable[..., Any], tools: Any) -> None:
    store = DiskStore(tmp_path / "stash", capacity_bytes=8 << 20)
    put_some(store, tools, 50)
    stop = threading.Event()
    errors: list[BaseException] = []
    rounds = [0, 0, 0]

    def busy(lane: int) -> None:
        try:
            while not stop.is_set():
                number = rounds[lane]
                assert store.put(tools.key(number, f"lane {lane} "), tools.value(number, 2000))
                store.get_many([tools.key(each) for each in range(20)])
                rounds[lane] += 1
        except BaseException as error:
            errors.append(error)

    def child() -> bool:
        deadline = threading.Timer(30, os._exit, [9])
        deadline.daemon = True
        deadline.start()
        mine = [store.put(tools.key(number, f"pid {os.getpid()}"), b"mine") for number in range(5)]
        found = store.get(tools.key(1, f"pid {os.getpid()}"))
        store.close()
        return all(mine) and found == b"mine"

    threads = [threading.Thread(target=busy, args=(lane,)) for lane in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _fork in range(25):
            assert start_child(child).result()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert errors == []
    assert min(rounds) > 5
    assert store.verify().ok
    store.close()


def test_a_grandchild_works_too(tmp_path: Path, start_child: Callable[..., Any], tools: Any) -> None:
    store = DiskStore(tmp_path / "stash", capacity_bytes=8 << 20)
    store.put(tools.key(1), b"one")

    def grandchild() -> bool:
        return store.get(tools.key(1)) == b"one" and store.put(tools.key(2), b"two")

    def child() -> bool:
        assert store.put(tools.key(3), b"three")
        return start_child(grandchild).result()

    assert start_child(child).result()
    assert store.get(tools.key(2)) == b"two"
    assert store.get(tools.key(3)) == b"three"
    store.close()


def test_a_child_may_outlive_its_parent(tmp_path: Path, start_child: Callable[..., Any], tools: Any) -> None:
    folder = tmp_path / "stash"
    ready, go = os.pipe(), os.pipe()

    def parent() -> int:
        store = DiskStore(folder, capacity_bytes=8 << 20)
        put_some(store, tools, 20)
        pid = os.fork()
        if pid == 0:
            signal.alarm(40)
            os.read(go[0], 1)
            worked = values_right(store, tools, 20) and put_some(store, tools, 20, "late") == 20
            store.close()
            os.write(ready[1], b"y" if worked else b"n")
            os._exit(0)
        return pid

    start_child(parent).result()
    store = DiskStore(folder)  # seals what the parent left, while its child has it inherited
    assert values_right(store, tools, 20)
    os.write(go[1], b"x")
    assert os.read(ready[0], 1) == b"y"
    assert values_right(store, tools, 20, "late")
    assert store.verify().ok
    store.close()
    for end in (*ready, *go):
        os.close(end)


def test_a_child_whose_folder_is_gone_misses_and_goes_on(
    tmp_path: Path, start_child: Callable[..., Any], tools: Any
) -> None:
    blocker = tmp_path / "place"
    blocker.mkdir()
    store = DiskStore(blocker / "stash", capacity_bytes=8 << 20)
    store.put(tools.key(1), b"one")

    def child() -> list[Any]:
        import shutil

        shutil.rmtree(blocker)
        blocker.write_text("now a file")
        got = store.get(tools.key(1))
        put = store.put(tools.key(2), b"two")
        store.close()
        return [got is None, put]

    assert start_child(child).result() == [True, False]
    store.put(tools.key(3), b"three")
    store.close()


def pool_task(numbers: list[int]) -> int:
    """Runs in a worker of a pool: uses the store that the parent had open (fork) or opens its own (spawn)."""
    folder = Path(os.environ["TEST_STASH"])
    with lmstash.open(folder, trust_env=False) as stash:
        done = 0
        for number in numbers:
            key = number.to_bytes(32, "little")
            done += stash.store.put(key, key * 10)
            done += stash.store.get(key) == key * 10
    return done


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_pools(method: str, tmp_path: Path, tools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "stash"
    monkeypatch.setenv("TEST_STASH", str(folder))
    store = DiskStore(folder, capacity_bytes=16 << 20)
    store.put(tools.key(1), b"one")
    context = multiprocessing.get_context(method)
    # A module imported by path has no name that another interpreter could import: hand it over as a file.
    module = tmp_path / "pool_worker.py"
    module.write_text(Path(__file__).read_text())
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    import importlib

    task = importlib.import_module("pool_worker").pool_task
    with context.Pool(3) as pool:
        done = pool.map(task, [list(range(start, start + 20)) for start in range(1, 181, 20)])
        pool.close()
        pool.join()
    sys.modules.pop("pool_worker", None)
    assert done == [40] * 9
    keys = [number.to_bytes(32, "little") for number in range(1, 181)]
    assert store.get_many(keys) == [key * 10 for key in keys]
    assert store.get(tools.key(1)) == b"one"
    assert store.verify().ok
    store.close()


def test_forking_costs_the_child_nothing_until_it_uses_the_store(
    tmp_path: Path, start_child: Callable[..., Any], tools: Any
) -> None:
    store = DiskStore(tmp_path / "stash", capacity_bytes=8 << 20)
    store.put(tools.key(1), b"one")
    before = sorted(path.name for path in (tmp_path / "stash").rglob("*"))

    def child() -> float:
        began = time.perf_counter()
        store.close()
        return time.perf_counter() - began

    start_child(child).result()
    assert sorted(path.name for path in (tmp_path / "stash").rglob("*")) == before
    assert store.get(tools.key(1)) == b"one"
    store.close()
