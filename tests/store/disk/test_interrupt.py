"""Ctrl-C, or a signal handler, at any moment: the store goes on, nothing acknowledged is lost, no lock stays taken."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from tests.at_lines import at_line

from lmstash.errors import StoreUnavailableError
from lmstash.store.base import Write
from lmstash.store.disk.guarded import Guarded
from lmstash.store.disk.store import DiskStore


class Journal:
    """What was acknowledged: for each key number the versions that are right."""

    def __init__(self, tools: Any) -> None:
        self.tools = tools
        self.allowed: dict[int, set[int]] = {}

    def put(self, store: DiskStore, numbers: list[int], version: int) -> None:
        for number in numbers:
            self.allowed.setdefault(number, {-1}).add(version)
        writes = [
            Write(self.tools.key(number), self.tools.value(number, 50 + 400 * (number % 5), version))
            for number in numbers
        ]
        kept = store.put_many(writes)
        if kept == len(numbers):
            for number in numbers:
                self.allowed[number] = {version}

    def delete(self, store: DiskStore, numbers: list[int]) -> None:
        for number in numbers:
            self.allowed.setdefault(number, {-1}).add(-1)
        store.delete_many([self.tools.key(number) for number in numbers])
        if not store._closed:
            self.allowed |= {number: {-1} for number in numbers}

    def check(self, store: DiskStore, *, evicting: bool) -> None:
        for number, versions in self.allowed.items():
            value = store.get(self.tools.key(number))
            if value is None:
                assert evicting or -1 in versions, f"key {number} of versions {versions} is lost"
            else:
                right = [v for v in versions if value == self.tools.value(number, 50 + 400 * (number % 5), v)]
                assert right, f"key {number} has a value that none of {versions} has"


def some_work(store: DiskStore, journal: Journal, draw: random.Random, version: int) -> None:
    choice = draw.random()
    if choice < 0.5:
        journal.put(store, [draw.randrange(60)], version)
    elif choice < 0.7:
        journal.put(store, draw.sample(range(60), 12), version)
    elif choice < 0.8:
        journal.delete(store, draw.sample(range(60), 4))
    elif choice < 0.9:
        store.get_many([journal.tools.key(number) for number in range(20)])
    elif choice < 0.95:
        doomed = {journal.tools.key(number) for number in draw.sample(range(60), 5)}
        for number in range(60):
            if journal.tools.key(number) in doomed:
                journal.allowed.setdefault(number, {-1}).add(-1)
        store.prune(lambda entry: entry.key in doomed)
    else:
        store.flush()


def check_healthy(folder: Path, store: DiskStore, journal: Journal, capacity: int | None, tools: Any) -> None:
    """The interrupted store works, so does a second one at once, and nothing is left over."""
    gc.collect()
    evicting = capacity is not None
    journal.check(store, evicting=evicting)
    began = time.monotonic()
    other = DiskStore(folder)
    assert other.put(tools.key(1, "other"), b"other")
    assert time.monotonic() - began < 5, "a lock stayed taken"
    journal.check(other, evicting=evicting)
    assert store.put(tools.key(2, "same"), b"same")
    assert other.get(tools.key(2, "same")) == b"same", "what is put is committed"
    assert other.verify().ok
    if capacity is not None:
        assert tools.folder_bytes(folder) <= capacity
    other.close()


def finish(folder: Path, store: DiskStore, journal: Journal, capacity: int | None, tools: Any) -> None:
    store.close()
    again = DiskStore(folder)
    journal.check(again, evicting=capacity is not None)
    known = {segment.name for segment in again._opened.index.segments()}
    assert {path.stem for path in tools.segments(folder)} <= known, "segments are left over"
    again.close()
    if capacity is None:
        for path in folder.glob("index.db*"):
            path.unlink()
        rebuilt = DiskStore(folder)
        journal.check(rebuilt, evicting=False)
        rebuilt.close()


CAPACITIES = pytest.mark.parametrize("capacity", [None, 2 << 20], ids=["unlimited", "2MiB"])


def interrupt_again_and_again(folder: Path, capacity: int | None, tools: Any, seed: int) -> int:
    """Work, with SIGINT at 60 random times; check what is left; return how many of them arrived."""
    import numpy  # noqa: F401 - cut short, it could never be imported again

    armed = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        if armed:  # one that comes late must not end what checks
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    store = DiskStore(folder, capacity_bytes=capacity)
    journal, draw = Journal(tools), random.Random(seed)
    interrupts = version = 0
    for _round in range(60):
        timer = threading.Timer(draw.uniform(0.0005, 0.02), os.kill, [os.getpid(), signal.SIGINT])
        try:
            armed = True
            timer.start()
            while timer.is_alive():
                version += 1
                some_work(store, journal, draw, version)
                if version % 3 == 0:
                    journal.put(store, list(range(60, 90)), version)
            time.sleep(0.05)
        except KeyboardInterrupt:
            interrupts += 1
        armed = False
        timer.join()
    check_healthy(folder, store, journal, capacity, tools)
    finish(folder, store, journal, capacity, tools)
    return interrupts


@CAPACITIES
def test_sigint_at_random_times_in_a_loop(
    capacity: int | None, tmp_path: Path, tools: Any, in_child: Callable[..., Any]
) -> None:
    # A few are raised inside a `__del__`, where Python drops them.
    assert in_child(interrupt_again_and_again, tmp_path / "stash", capacity, tools, 11) >= 55


@pytest.mark.campaign
@pytest.mark.timeout(1800)
@CAPACITIES
def test_sigint_at_random_times_in_a_hundred_loops(
    capacity: int | None, tmp_path: Path, tools: Any, in_child: Callable[..., Any]
) -> None:
    seed = int.from_bytes(os.urandom(2), "little")
    print(f"seed {seed}")
    for number in range(100):
        folder = tmp_path / f"stash-{number}"
        assert in_child(interrupt_again_and_again, folder, capacity, tools, seed + number) >= 50


def raise_it(_store: DiskStore, _journal: Journal) -> None:
    raise KeyboardInterrupt


def write_and_return(store: DiskStore, journal: Journal) -> None:
    """What a handler may do that returns: change keys that the program leaves alone just now."""
    tools, kept = journal.tools, list(range(200, 210))
    if store.delete_many([tools.key(number) for number in kept[:5]]):
        journal.allowed |= {number: {-1} for number in kept[:5]}
    journal.put(store, [*kept[5:], 210], 2)
    store.pin_many([tools.key(number) for number in kept])
    store.get_many([tools.key(number) for number in range(60)])
    store.flush()


def close_and_return(store: DiskStore, _journal: Journal) -> None:
    store.close()


def interrupted_at(
    line: int,
    folder: Path,
    capacity: int | None,
    tools: Any,
    seed: int,
    act: Callable[[DiskStore, Journal], None] = raise_it,
) -> tuple[DiskStore, Journal, int]:
    """Work, with something done at the `line`-th line of the store's code where it may be; returns the lines run."""
    store = DiskStore(folder, capacity_bytes=capacity)
    journal, draw = Journal(tools), random.Random(seed)
    # Enough kept beforehand that room must be made.
    for version in range(1, 3 if capacity is None else 9):
        journal.put(store, list(range(60)), version)
    journal.put(store, list(range(200, 210)), 1)

    def work() -> None:
        for version in range(100, 112):
            some_work(store, journal, draw, version)
            journal.put(store, list(range(60, 120)), version)

    count = 0
    try:
        count = at_line(line, work, lambda: act(store, journal), "/lmstash/store/disk/", "contextlib")
    except KeyboardInterrupt:
        pass
    except StoreUnavailableError:  # of what must be done
        if not store._closed:
            raise
    return store, journal, count


def interrupt_at_lines(
    n: int,
    tmp_path: Path,
    capacity: int | None,
    tools: Any,
    seed: int,
    act: Callable[[DiskStore, Journal], None] = raise_it,
) -> None:
    store, _journal, total = interrupted_at(0, tmp_path / "whole", capacity, tools, seed)
    store.close()
    assert total > 2000, "the lines of the store are counted"
    draw = random.Random(seed)
    for line in sorted(draw.sample(range(1, total), min(n, total - 1))):
        folder = tmp_path / f"at-{line}"
        store, journal, _lines = interrupted_at(line, folder, capacity, tools, seed, act)
        if store._closed:
            store = DiskStore(folder)
        try:
            check_healthy(folder, store, journal, capacity, tools)
            finish(folder, store, journal, capacity, tools)
        except AssertionError as error:
            raise AssertionError(f"after an interrupt at line {line} of {total} (seed {seed}): {error}") from error


@CAPACITIES
def test_an_interrupt_at_any_line_leaves_the_store_working(capacity: int | None, tmp_path: Path, tools: Any) -> None:
    interrupt_at_lines(25, tmp_path, capacity, tools, seed=3)


HANDLERS = pytest.mark.parametrize("act", [write_and_return, close_and_return])


@CAPACITIES
@HANDLERS
def test_a_handler_that_writes_or_closes_at_any_line_costs_nothing_that_was_acknowledged(
    capacity: int | None, act: Callable[[DiskStore, Journal], None], tmp_path: Path, tools: Any
) -> None:
    interrupt_at_lines(8, tmp_path, capacity, tools, 4, act)


@pytest.mark.campaign
@pytest.mark.timeout(1800)
@CAPACITIES
@HANDLERS
def test_a_handler_that_writes_or_closes_at_a_thousand_lines_costs_nothing_that_was_acknowledged(
    capacity: int | None, act: Callable[[DiskStore, Journal], None], tmp_path: Path, tools: Any
) -> None:
    seed = int.from_bytes(os.urandom(2), "little")
    print(f"seed {seed}")
    interrupt_at_lines(1000, tmp_path, capacity, tools, seed, act)


@pytest.mark.campaign
@pytest.mark.timeout(1800)
@CAPACITIES
def test_an_interrupt_at_a_thousand_lines_leaves_the_store_working(
    capacity: int | None, tmp_path: Path, tools: Any
) -> None:
    seed = int.from_bytes(os.urandom(2), "little")
    print(f"seed {seed}")
    interrupt_at_lines(1000, tmp_path, capacity, tools, seed)


PROGRAM = """
import sys, lmstash
stash = lmstash.open(sys.argv[1])
print("ready", flush=True)
n = 0
while True:
    n += 1
    stash.store.put(n.to_bytes(32, "little"), n.to_bytes(32, "little") * 30)
    print(n, flush=True)
"""


def test_a_program_ended_by_ctrl_c_loses_nothing(tmp_path: Path, start_child: Callable[..., Any]) -> None:
    import subprocess

    folder = tmp_path / "stash"
    for delay in (0.05, 0.2):
        with subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as program:
            assert program.stdout is not None
            assert program.stdout.readline() == "ready\n"
            reader: list[str] = []
            thread = threading.Thread(target=lambda pipe=program.stdout, out=reader: out.extend(pipe))
            thread.start()
            time.sleep(delay)
            program.send_signal(signal.SIGINT)
            assert program.wait(timeout=30) in (1, 130, -signal.SIGINT)
            thread.join()
            assert program.stderr is not None
            told = program.stderr.read()
            assert told.rstrip().endswith("KeyboardInterrupt"), told
        whole = [line for line in reader if line.endswith("\n")]
        last = int(whole[-1])
        store = DiskStore(folder)
        keys = [number.to_bytes(32, "little") for number in range(1, last + 1)]
        assert store.get_many(keys) == [key * 30 for key in keys]
        assert store.verify().ok
        store.close()


class InterruptedOnceEntered:
    """A generator, and a signal that Python notices when it has just yielded."""

    def __init__(self, generator: Any) -> None:
        self._generator = generator

    def __next__(self) -> Any:
        next(self._generator)
        raise KeyboardInterrupt

    def close(self) -> None:
        self._generator.close()


def test_an_interrupt_as_a_transaction_is_entered_ends_it_although_the_traceback_is_kept(
    tmp_path: Path, tools: Any
) -> None:
    """As a notebook keeps it: nothing may wait for it to be let go."""
    index = DiskStore(tmp_path / "stash")._opened.index
    generator: Any = InterruptedOnceEntered(index._transaction())
    with pytest.raises(KeyboardInterrupt), Guarded(generator):
        pass
    assert not index.writer.in_transaction
    thread = threading.Thread(target=lambda: index.write_lock.acquire(timeout=5) and index.write_lock.release())
    began = time.monotonic()
    thread.start()
    thread.join()
    assert time.monotonic() - began < 4, "a lock stayed taken"


def interrupted_at_exit(number: int, work: Callable[[], object]) -> int:
    """Interrupt `work` on the first line of its `number`-th end of a guarded block, 0 for none; returns the blocks."""
    n_left = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal n_left
        if event == "call" and frame.f_code is Guarded.__exit__.__code__:
            n_left += 1
            if n_left == number:
                raise KeyboardInterrupt

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return n_left


def test_an_interrupt_as_a_block_is_left_leaves_nothing_open_although_the_traceback_is_kept(
    tmp_path: Path, tools: Any
) -> None:
    """Of all blocks but the last to be left, around which there is none."""
    with contextlib.closing(DiskStore(tmp_path / "counted", strict=True)) as store:
        n_blocks = interrupted_at_exit(0, lambda: store.put(tools.key(1), b"first"))
    assert n_blocks > 2
    for number in range(1, n_blocks):
        with contextlib.closing(DiskStore(tmp_path / f"{number}", strict=True)) as store:
            with pytest.raises(KeyboardInterrupt) as kept:
                interrupted_at_exit(number, lambda store=store: store.put(tools.key(1), b"first"))
            assert not store._opened.index.writer.in_transaction
            assert not store._opened.index.is_interrupted()
            assert store.put(tools.key(2), b"second")
            assert store.get(tools.key(2)) == b"second"
            assert store.get(tools.key(1)) in (None, b"first")
            assert kept.traceback  # until here
            assert store.verify().ok


def test_an_interrupted_look_up_leaves_no_old_view_behind(tmp_path: Path, tools: Any) -> None:
    class StopError(Exception):
        pass

    def stop(_number: int, _frame: FrameType | None) -> None:
        if armed:
            raise StopError

    keys = [tools.key(n) for n in range(50)]
    armed = False
    before = signal.signal(signal.SIGALRM, stop)
    try:
        with contextlib.closing(DiskStore(tmp_path)) as store, contextlib.closing(DiskStore(tmp_path)) as other:
            store.put_many([Write(key, b"old") for key in keys])
            for round_ in range(60):
                armed = True
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0.0003)
                    while True:
                        for key in keys:
                            store.get(key)
                except StopError:
                    armed = False
                now = b"%d" % round_
                assert other.put_many([Write(key, now) for key in keys]) == len(keys)
                assert set(map(bytes, filter(None, store.get_many(keys)))) == {now}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_look_up_within_a_look_up_is_none_of_its_business(tmp_path: Path, tools: Any) -> None:
    keys = [tools.key(n) for n in range(50)]
    within: list[bool] = []
    store = DiskStore(tmp_path)
    store.put_many([Write(key, b"value") for key in keys])
    before = signal.signal(signal.SIGALRM, lambda *_: within.append(store.get(keys[7]) is not None))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0005)
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            assert all(store.get(key) is not None for key in keys)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        store.close()
    assert within
    assert all(within)


def closed_at(line: int, folder: Path, look_up: Callable[[DiskStore], Any]) -> tuple[Any, int]:
    """Look up in a store that is closed at the `line`-th line of its own code; returns what is found and the lines."""
    lines = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal lines
        if "/lmstash/store/disk/" not in frame.f_code.co_filename:
            return None
        if event == "line":
            lines += 1
            if lines == line:
                store.close()
        return trace

    with contextlib.closing(DiskStore(folder)) as store:
        look_up(store)  # the segment is open
        old = sys.gettrace()
        sys.settrace(trace)
        try:
            return look_up(store), lines
        finally:
            sys.settrace(old)


@pytest.mark.parametrize("way", ["get", "get_many", "fetch_many", "entries"])
def test_a_look_up_within_which_a_handler_closes_the_store_is_a_miss_at_worst(
    way: str, tmp_path: Path, tools: Any
) -> None:
    keys = [tools.key(number) for number in range(20)]
    ways: dict[str, Callable[[DiskStore], list[Any]]] = {
        "get": lambda store: [store.get(keys[0])],
        "get_many": lambda store: store.get_many(keys),
        "fetch_many": lambda store: [found and found.value for found in store.fetch_many(keys)],
        "entries": lambda store: [None for _entry in store.entries()],
    }
    with contextlib.closing(DiskStore(tmp_path)) as store:
        assert store.put_many([Write(key, b"value") for key in keys]) == len(keys)
    _found, total = closed_at(0, tmp_path, ways[way])
    assert total > 20, "the lines of the store are counted"
    for line in range(1, total, 1 + total // 150):
        found, _lines = closed_at(line, tmp_path, ways[way])
        assert set(map(bytes, filter(None, found))) <= {b"value"}
