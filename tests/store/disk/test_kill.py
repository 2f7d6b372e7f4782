"""kill -9 at random times and at chosen calls: what was acknowledged is there, what was deleted is not."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from lmstash.store.base import Write
from lmstash.store.disk.store import DiskStore

N_KEYS = 120
ABSENT = -1
RECENT_BYTES = 256 << 10
"""Puts this recent have not been evicted yet from a store of a few MiB."""


class Diary:
    """What a writer was about to do and what it has done, in a file that outlives it."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, *words: Any) -> None:
        os.write(self._fd, json.dumps(words).encode() + b"\n")


class Model:
    """What a store may hold: for each key the versions that are right now (ABSENT: no value)."""

    def __init__(self) -> None:
        self.versions: dict[int, set[int]] = {}
        self.pinned: set[int] = set()
        self.recent: list[tuple[int, int]] = []
        """(key number, size) of acknowledged puts, oldest first."""
        self.acknowledged = 0

    def read(self, diary: Path) -> None:
        """Take in what a writer did before it died."""
        begun: list[Any] | None = None
        for line in diary.read_text().splitlines():
            words = json.loads(line)
            if words[0] == "done":
                assert begun is not None
                self._apply(begun, words[1])
                begun = None
            else:
                begun = words
        if begun is not None:  # cut short: either state is right, key by key
            operation, *details = begun
            for number, *version in details[0]:
                self.versions.setdefault(number, {ABSENT}).update(version if operation == "put" else [ABSENT])
                if operation != "put":
                    self.pinned.discard(number)

    def _apply(self, begun: list[Any], result: int) -> None:
        operation, *details = begun
        self.acknowledged += 1
        if operation == "put":
            assert result == len(details[0]), "a put was dropped"
            for number, version in details[0]:
                self.versions[number] = {version}
                self.recent.append((number, size_of(number, version)))
        elif operation == "delete":
            for (number,) in details[0]:
                self.versions[number] = {ABSENT}
                self.pinned.discard(number)
        elif operation == "pin":
            self.pinned.update(number for (number,) in details[0])

    def must_be_there(self) -> set[int]:
        """The keys that eviction cannot explain the absence of."""
        there, n_bytes = set(self.pinned), 0
        for number, size in reversed(self.recent):
            n_bytes += size
            if n_bytes > RECENT_BYTES:
                break
            there.add(number)
        return there


def size_of(number: int, version: int) -> int:
    """Sizes are drawn from (number, version), so that a reader knows them."""
    draw = random.Random(number * 1_000_003 + version)
    kind = draw.random()
    if kind < 0.05:
        return 0
    if kind < 0.75:
        return draw.randrange(1, 6000)
    return draw.randrange(6000, 60_000)


def write_steadily(folder: Path, diary: Path, seed: int, capacity: int | None, tools: Any) -> None:
    """Put, overwrite, delete, pin, prune and reopen, for ever."""
    draw, notes = random.Random(seed), Diary(diary)
    store = DiskStore(folder, capacity_bytes=capacity)
    version = seed * 100_000
    pinned = 0
    for _round in range(1_000_000):
        choice = draw.random()
        if choice < 0.6:
            count = 1 if choice < 0.4 else draw.randrange(2, 40)
            numbers = draw.sample(range(N_KEYS), count)
            version += 1
            notes.write("put", [(number, version) for number in numbers])
            writes = [
                Write(tools.key(number), tools.value(number, size_of(number, version), version), namespace="kill/a")
                for number in numbers
            ]
            notes.write("done", store.put_many(writes))
        elif choice < 0.75:
            numbers = draw.sample(range(N_KEYS), draw.randrange(1, 12))
            notes.write("delete", [(number,) for number in numbers])
            if choice < 0.7:
                done = store.delete_many([tools.key(number) for number in numbers])
            else:
                doomed = {tools.key(number) for number in numbers}
                done = store.prune(lambda entry, doomed=doomed: entry.key in doomed).entries
            notes.write("done", done)
        elif choice < 0.8 and pinned < 10:
            pinned += 1
            number = draw.randrange(N_KEYS)
            if store.contains(tools.key(number)):
                notes.write("pin", [(number,)])
                notes.write("done", store.pin_many([tools.key(number)]))
        elif choice < 0.82:
            notes.write("flush", [])
            store.flush()
            notes.write("done", 0)
        elif choice < 0.84:
            notes.write("close", [])
            store.close()
            notes.write("done", 0)
            store = DiskStore(folder, capacity_bytes=capacity)
        else:
            store.get_many([tools.key(number) for number in draw.sample(range(N_KEYS), 8)])


def check(folder: Path, model: Model, capacity: int | None, tools: Any) -> None:
    """The store opens and holds what the model allows; what is gone is explained by eviction."""
    store = DiskStore(folder, capacity_bytes=capacity)
    keys = [tools.key(number) for number in range(N_KEYS)]
    required = model.must_be_there()
    for number, value in enumerate(store.get_many(keys)):
        allowed = model.versions.get(number, {ABSENT})
        if value is None:
            excused = ABSENT in allowed or (capacity is not None and number not in required)
            assert excused, f"key {number} of versions {allowed} is lost"
        else:
            right = [version for version in allowed if value == tools.value(number, size_of(number, version), version)]
            assert right, f"key {number} has a value that none of {allowed} has"
    assert set(tools.misses(store)) <= {"absent"}, "something damaged was found"
    report = store.verify()
    assert report.ok, report.damaged
    if capacity is not None:
        assert tools.folder_bytes(folder) <= capacity
    store.close()
    assert leftovers(folder) == []


def leftovers(folder: Path) -> list[str]:
    """Files that nobody will ever read or remove."""
    expected = {"CACHEDIR.TAG", "index.db", "recency", "repair.lock", "segments", "stash.json"}
    found = [path.name for path in folder.iterdir() if path.name not in expected]
    reader = DiskStore(folder, read_only=True)
    known = {each.name for each in reader._opened.index.segments()}
    reader.close()
    orphans = [path for path in (folder / "segments").iterdir() if path.stem not in known]
    return found + [f"{path.name}: {path.stat().st_size} bytes" for path in orphans]


def drop_index(folder: Path) -> None:
    for path in folder.glob("index.db*"):
        path.unlink()


def kill_at_random_times(
    rounds: int, folder: Path, capacity: int | None, start_child: Callable[..., Any], tools: Any, seed: int
) -> Model:
    draw = random.Random(seed)
    model = Model()
    for number in range(rounds):
        diary = folder.with_name(f"{folder.name}-{number}.diary")
        child = start_child(write_steadily, folder, diary, seed * 1000 + number, capacity, tools)
        time.sleep(draw.uniform(0.01, 0.12))
        child.kill()
        if diary.exists():
            model.read(diary)
        check(folder, model, capacity, tools)
        if capacity is None and number % 4 == 3:
            drop_index(folder)
            check(folder, model, capacity, tools)
    return model


CAPACITIES = pytest.mark.parametrize("capacity", [None, 3 << 20], ids=["unlimited", "3MiB"])


@CAPACITIES
def test_what_was_acknowledged_survives_a_kill_at_any_time(
    capacity: int | None, tmp_path: Path, start_child: Callable[..., Any], tools: Any
) -> None:
    model = kill_at_random_times(20, tmp_path / "stash", capacity, start_child, tools, seed=1)
    assert model.acknowledged > 50


@pytest.mark.campaign
@CAPACITIES
@pytest.mark.timeout(900)
def test_what_was_acknowledged_survives_hundreds_of_kills(
    capacity: int | None, tmp_path: Path, start_child: Callable[..., Any], tools: Any
) -> None:
    seed = int.from_bytes(os.urandom(2), "little")
    print(f"seed {seed}")
    model = kill_at_random_times(200, tmp_path / "stash", capacity, start_child, tools, seed)
    assert model.acknowledged > 500


# --- kill at a chosen call -----------------------------------------------------------------------------------------


def short_life(folder: Path, diary: Path, capacity: int | None, tools: Any) -> None:
    """One of everything that writes: keeping, replacing, deleting, pinning, evicting, merging, flushing, closing."""
    notes = Diary(diary)

    def put(numbers: list[int], version: int) -> None:
        notes.write("put", [(number, version) for number in numbers])
        writes = [
            Write(tools.key(number), tools.value(number, size_of(number, version), version), namespace="kill/a")
            for number in numbers
        ]
        notes.write("done", store.put_many(writes))

    store = DiskStore(folder, capacity_bytes=capacity)
    put([0], 1)
    put(list(range(1, 30)), 1)
    notes.write("pin", [(3,), (4,)])
    notes.write("done", store.pin_many([tools.key(3), tools.key(4)]))
    put(list(range(5, 12)), 2)
    notes.write("delete", [(5,), (6,)])
    notes.write("done", store.delete_many([tools.key(5), tools.key(6)]))
    notes.write("close", [])
    store.close()
    notes.write("done", 0)
    store = DiskStore(folder, capacity_bytes=capacity)
    put(list(range(20, 28)), 3)
    notes.write("delete", [(number,) for number in range(10, 20)])
    doomed = {tools.key(number) for number in range(10, 20)}
    notes.write("done", store.prune(lambda entry: entry.key in doomed).entries)
    for version in range(4, 9 if capacity is None else 16):
        put(list(range(40, 70)), version)
    notes.write("flush", [])
    store.flush()
    notes.write("done", 0)
    put([0, 1, 2], 20)
    notes.write("close", [])
    store.close()
    notes.write("done", 0)


_OUTSIDE = ("posix", "apsw", "fcntl", "mmap")


def dying_life(folder: Path, diary: Path, capacity: int | None, tools: Any, at: int) -> int:
    """Live `short_life` until call number `at` into the system or SQLite; returns the number of calls survived."""
    calls = 0

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal calls
        if event in ("c_call", "c_return") and frame.f_code.co_filename.find("lmstash") >= 0:
            owner = getattr(argument, "__self__", None)
            module = getattr(argument, "__module__", None) or type(owner).__module__
            if module in _OUTSIDE:
                calls += 1
                if calls == at:
                    os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)
    with contextlib.suppress(SystemExit):
        short_life(folder, diary, capacity, tools)
    sys.setprofile(None)
    return calls


def kill_at_calls(
    n: int | None, tmp_path: Path, capacity: int | None, start_child: Callable[..., Any], tools: Any
) -> int:
    total = start_child(dying_life, tmp_path / "whole", tmp_path / "whole.diary", capacity, tools, -1).result()
    assert total > 200, "the calls of a whole life are counted"
    draw = random.Random(total)
    places = sorted(draw.sample(range(1, total + 1), total if n is None else n))
    killed = 0
    for at in places:
        folder, diary = tmp_path / f"at-{at}", tmp_path / f"at-{at}.diary"
        child = start_child(dying_life, folder, diary, capacity, tools, at)
        _pid, status = os.waitpid(child.pid, 0)
        child.kill()
        killed += os.WIFSIGNALED(status)  # the number of calls differs a little from life to life
        model = Model()
        if diary.exists():
            model.read(diary)
        try:
            check(folder, model, capacity, tools)
            if capacity is None:
                drop_index(folder)
                check(folder, model, capacity, tools)
        except AssertionError as error:
            raise AssertionError(f"after a kill at call {at} of {total}: {error}") from error
    assert killed > 0.9 * len(places)
    return killed


@CAPACITIES
def test_a_kill_at_any_call_into_the_system_is_survived(
    capacity: int | None, tmp_path: Path, start_child: Callable[..., Any], tools: Any
) -> None:
    assert kill_at_calls(25, tmp_path, capacity, start_child, tools) >= 20


@pytest.mark.campaign
@pytest.mark.timeout(7200)
@CAPACITIES
def test_a_kill_at_every_call_into_the_system_is_survived(
    capacity: int | None, tmp_path: Path, start_child: Callable[..., Any], tools: Any
) -> None:
    assert kill_at_calls(None, tmp_path, capacity, start_child, tools) > 200
