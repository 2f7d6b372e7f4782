"""Many processes on one folder at its limit: no lost update, no error, never over the limit."""

from __future__ import annotations

import hashlib
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmstash.store.base import Write
from lmstash.store.disk.store import DiskStore

N_SHARED = 400
N_OWN = 4
"""Pinned keys that one worker alone writes, again and again."""


def self_describing(key: bytes, version: int, size: int) -> bytes:
    """A value that tells its key and version, and from which a reader can tell that every byte is right."""
    head = key[:16] + version.to_bytes(8, "little")
    seed = hashlib.sha256(head + size.to_bytes(8, "little")).digest()
    return (head + seed * (size // 32 + 1))[:size]


def version_of(key: bytes, value: Any) -> int:
    """Return the version a value tells, after checking all of it. Values under 24 bytes tell none."""
    value = bytes(value)
    version = int.from_bytes(value[16:24], "little") if len(value) >= 24 else 0
    if len(value) >= 24:
        assert value == self_describing(key, version, len(value)), "a value is torn or another key's"
    else:
        assert value == self_describing(key, 0, len(value)), "a value is torn or another key's"
    return version


def draw_size(draw: random.Random) -> int:
    kind = draw.random()
    if kind < 0.05:
        return 0
    if kind < 0.6:
        return draw.randrange(24, 3000)
    if kind < 0.95:
        return draw.randrange(3000, 60_000)
    return draw.randrange(60_000, 300_000)


def work(folder: Path, number: int, seconds: float, capacity: int, tools: Any) -> dict[str, Any]:
    """Do some of everything until time is up; returns what was counted."""
    signal.alarm(int(seconds) + 300)  # in place of the usual one
    draw = random.Random(number * 7919 + capacity)
    store = DiskStore(folder, capacity_bytes=capacity)
    own = {tools.key(each, f"own {number} "): 0 for each in range(N_OWN)}
    for key in own:
        assert store.put(key, self_describing(key, 0, 500), namespace="own/x")
    assert store.pin_many(list(own)) == N_OWN
    shared = [tools.key(each, "shared ") for each in range(N_SHARED)]
    operations = refused = lost = 0
    misses: Counter[str] = Counter()
    drops: Counter[str] = Counter()
    damaged = 0

    def collect() -> None:
        nonlocal damaged
        misses.update(store.events.stats.misses)
        drops.update(store.events.stats.drops)
        damaged += store.events.stats.damaged

    until = time.monotonic() + seconds
    while time.monotonic() < until:
        operations += 1
        choice = draw.random()
        if choice < 0.25:
            key = draw.choice(shared)
            size = draw_size(draw)
            value = self_describing(key, operations if size >= 24 else 0, size)
            ttl = draw.choice([None, None, None, 0.05, 3600])
            refused += not store.put(key, value, namespace=f"shared/{draw.randrange(2)}", ttl_seconds=ttl)
        elif choice < 0.4:
            writes = []
            for key in draw.sample(shared, draw.randrange(2, 30)):
                size = draw_size(draw)
                value = self_describing(key, operations if size >= 24 else 0, size)
                writes.append(Write(key, value, namespace="shared/0"))
            refused += len(writes) - store.put_many(writes, replace=draw.random() < 0.7)
        elif choice < 0.55:
            key = draw.choice(list(own))
            version = own[key] + 1
            if store.put(key, self_describing(key, version, draw.randrange(24, 2000)), namespace="own/x"):
                own[key] = version
            else:
                refused += 1
            found = store.get(key)
            lost += found is None or version_of(key, found) != own[key]
        elif choice < 0.75:
            keys = draw.sample(shared, draw.randrange(1, 30))
            for key, value in zip(keys, store.get_many(keys), strict=True):
                if value is not None:
                    version_of(key, value)
        elif choice < 0.9:
            key = draw.choice(shared)
            if (value := store.get(key)) is not None:
                version_of(key, value)
        elif choice < 0.95:
            store.delete_many(draw.sample(shared, draw.randrange(1, 10)))
        elif choice < 0.98:
            store.contains_many(shared[:50])
            store.info()
        elif choice < 0.985:
            store.flush()
        elif choice < 0.99:
            doomed = set(draw.sample(shared, 20))
            store.prune(lambda entry, doomed=doomed: entry.key in doomed, namespace="shared/")
        elif choice < 0.993:
            collect()
            store.close()
            store = DiskStore(folder, capacity_bytes=capacity)
    collect()
    evicted = store.events.stats.evicted_entries
    store.close()
    return {
        "operations": operations,
        "refused": refused,
        "lost": lost,
        "misses": dict(misses),
        "drops": dict(drops),
        "damaged": damaged,
        "evicted": evicted,
        "own": {key.hex(): version for key, version in own.items()},
    }


def run_workers(
    n: int,
    seconds: float,
    capacity: int,
    folder: Path,
    start_child: Callable[..., Any],
    watch: Callable[[Path], Any],
    tools: Any,
) -> None:
    filler = DiskStore(folder, capacity_bytes=capacity)
    for number in range(capacity // 250_000):
        assert filler.put(tools.key(number, "filler "), bytes(250_000), namespace="shared/filler")
    filler.close()
    with watch(folder) as seen:
        children = [start_child(work, folder, number, seconds, capacity, tools) for number in range(n)]
        seen.held = [child.pid for child in children]
        told = [child.result() for child in children]
    operations = sum(each["operations"] for each in told)
    drops = sum((Counter(each["drops"]) for each in told), Counter[str]())
    misses = sum((Counter(each["misses"]) for each in told), Counter[str]())
    print(
        f"{n} processes, {operations:,} operations, limit {capacity:,}, most {seen.most:,} bytes"
        f" ({seen.most / capacity:.1%}) in {seen.samples:,} samples, drops {dict(drops)}, misses {dict(misses)}"
    )
    assert sum(each["lost"] for each in told) == 0, "an update was lost"
    assert sum(each["damaged"] for each in told) == 0
    assert set(misses) <= {"absent", "expired"}
    assert set(drops) <= {"no_room"}
    assert drops["no_room"] < operations / 20
    assert seen.most <= capacity
    assert operations > 20 * n
    check_after(folder, capacity, told, tools)


def check_after(folder: Path, capacity: int, told: list[dict[str, Any]], tools: Any) -> None:
    store = DiskStore(folder)
    assert store.verify().ok
    for each in told:
        for name, version in each["own"].items():
            key = bytes.fromhex(name)
            value = store.get(key)
            assert value is not None, "a pinned entry is gone"
            assert version_of(key, value) == version
    entries = list(store.entries())
    info = store.info()
    assert info.entries == len(entries)
    assert {each.namespace: each.entries for each in info.namespaces} == Counter(each.namespace for each in entries)
    assert info.physical_bytes <= capacity
    store.close()
    assert tools.folder_bytes(folder) <= capacity


CAPACITIES = pytest.mark.parametrize("capacity", [8 << 20, 32 << 20, 200 << 20], ids=["8MiB", "32MiB", "200MiB"])


@CAPACITIES
def test_four_processes_at_a_full_limit(
    capacity: int, tmp_path: Path, start_child: Callable[..., Any], watch: Callable[[Path], Any], tools: Any
) -> None:
    run_workers(4, 4.0, capacity, tmp_path / "stash", start_child, watch, tools)


@pytest.mark.campaign
@pytest.mark.timeout(1800)
@CAPACITIES
def test_eight_processes_at_a_full_limit_for_ten_minutes(
    capacity: int, tmp_path: Path, start_child: Callable[..., Any], watch: Callable[[Path], Any], tools: Any
) -> None:
    run_workers(8, 600.0, capacity, tmp_path / "stash", start_child, watch, tools)


# --- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "capacity"),
    [(0, 2 << 20), (100, 2 << 20), (100, 8 << 20), (5000, 8 << 20), (250_000, 32 << 20)],
)
def test_one_writer_stays_within_the_limit(
    size: int, capacity: int, tmp_path: Path, watch: Callable[[Path], Any], tools: Any
) -> None:
    folder = tmp_path / "stash"
    count = min(3 * capacity // (size + 300), 15_000)
    with watch(folder) as seen:
        store = DiskStore(folder, capacity_bytes=capacity)
        for start in range(0, count, 100):
            writes = [Write(tools.key(each), bytes(size)) for each in range(start, start + 100)]
            kept = store.put_many(writes)
            assert kept == 100
            assert seen.look() <= capacity
        store.close()
    assert seen.most <= capacity
    assert store.events.stats.evicted_entries > 0
    assert tools.folder_bytes(folder) > capacity // 8, "the limit is made use of"


def test_values_that_are_large_beside_the_limit_stay_within_it(
    tmp_path: Path, watch: Callable[[Path], Any], tools: Any
) -> None:
    folder, capacity = tmp_path / "stash", 16 << 20
    draw = random.Random(9)
    kept = 0
    with watch(folder) as seen:
        store = DiskStore(folder, capacity_bytes=capacity)
        for number in range(150):
            size = draw.choice([100, 5000, 60_000, 1 << 20, 3 << 20, 6 << 20])
            value = tools.value(number, size)
            kept += store.put(tools.key(number), value)
            if number % 3 == 0:
                store.pin_many([tools.key(number - 40, "small ")])
            store.put(tools.key(number, "small "), bytes(300))
            for each in range(max(0, number - 10), number):
                store.get(tools.key(each))
            assert seen.look() <= capacity
        store.close()
    assert kept > 140
    assert seen.most <= capacity


def test_evicting_ends_however_little_it_gives(tmp_path: Path, tools: Any) -> None:
    """Segments full of tombstones and a few pins give no room when they are rewritten."""
    folder = tmp_path / "stash"
    store = DiskStore(folder, capacity_bytes=4 << 20)
    for round_number in range(30):
        for number in range(20):
            store.put(tools.key(number, "own "), bytes(700), namespace=f"own/{number % 4}")
        store.pin_many([tools.key(number, "own ") for number in range(round_number % 20)])
        store.put_many([Write(tools.key(number), bytes(9000)) for number in range(round_number, round_number + 60)])
        store.close()
        store = DiskStore(folder)
    before = store.events.stats.puts
    for to_bytes in (3 << 20, 1 << 20, 1 << 19, 0):
        store.evict(to_bytes)
        assert tools.folder_bytes(folder) <= 4 << 20
    assert store.put(tools.key(1), bytes(200_000))
    assert store.events.stats.puts == before + 1
    assert len(tools.segments(folder)) < 40
    store.close()


def test_deletes_and_replacing_stay_within_the_limit(tmp_path: Path, watch: Callable[[Path], Any], tools: Any) -> None:
    folder, capacity = tmp_path / "stash", 4 << 20
    draw = random.Random(8)
    with watch(folder) as seen:
        store = DiskStore(folder, capacity_bytes=capacity)
        for step in range(1500):
            number = draw.randrange(100)
            if draw.random() < 0.3:
                store.delete(tools.key(number))
                assert store.get(tools.key(number)) is None
            else:
                value = tools.value(number, draw.choice([10, 3000, 40_000]), step)
                assert store.put(tools.key(number), value)
                assert store.get(tools.key(number)) == value
        store.close()
    assert seen.most <= capacity


def test_nothing_but_deletes_at_a_full_limit_stays_within_it(
    tmp_path: Path, watch: Callable[[Path], Any], tools: Any
) -> None:
    folder, capacity = tmp_path / "stash", 3 << 20
    with watch(folder) as seen:
        store = DiskStore(folder, capacity_bytes=capacity)
        for start in range(0, 20_000, 500):
            store.put_many([Write(tools.key(each), b"tiny") for each in range(start, start + 500)])
        keys = [info.key for info in store.entries()]
        assert len(keys) > 2000
        for start in range(0, len(keys), 100):
            assert store.delete_many(keys[start : start + 100]) == len(keys[start : start + 100])
        assert not any(store.contains_many(keys))
        assert store.info().entries == 0
        assert store.put(tools.key(1), b"room")
        store.close()
    assert seen.most <= capacity


def test_everything_pinned_drops_what_is_new_and_does_not_hang(
    tmp_path: Path, watch: Callable[[Path], Any], tools: Any
) -> None:
    folder, capacity = tmp_path / "stash", 8 << 20
    pinned: list[int] = []
    with watch(folder) as seen:
        store = DiskStore(folder, capacity_bytes=capacity)
        for number in range(1000):
            if not store.put(tools.key(number), tools.value(number, 20_000)):
                break
            if store.pin_many([tools.key(number)]):
                pinned.append(number)
        assert len(pinned) > 100
        assert set(store.events.stats.drops) == {"no_room"}
        began = time.process_time()
        written = sum(path.stat().st_size for path in tools.segments(folder))
        for number in range(2000, 2050):
            assert not store.put(tools.key(number), tools.value(number, 20_000))
        assert time.process_time() - began < 5, "a put that finds no room is cheap"
        assert written > 0
        for number in pinned:
            assert store.get(tools.key(number)) == tools.value(number, 20_000)
        assert store.pin_many([tools.key(number) for number in pinned], False) == len(pinned)
        for number in range(3000, 3100):
            assert store.put(tools.key(number), tools.value(number, 20_000)), "room again"
        store.close()
    assert seen.most <= capacity


def test_pins_outlive_eviction_reopening_and_a_lost_index(tmp_path: Path, tools: Any) -> None:
    folder = tmp_path / "stash"
    store = DiskStore(folder, capacity_bytes=3 << 20)
    keys = [tools.key(number, "pin") for number in range(8)]
    for key in keys:
        assert store.put(key, key * 100)
    assert store.pin_many(keys) == 8
    for round_number in range(3):
        for number in range(150):
            assert store.put(tools.key(number + 1000 * round_number), bytes(30_000))
        assert store.get_many(keys) == [key * 100 for key in keys]
        store.close()
        if round_number == 1:
            for path in folder.glob("index.db*"):
                path.unlink()
        store = DiskStore(folder)
    assert all(info.pinned for info in store.entries() if info.key in keys)
    assert store.events.stats.evicted_entries == 0
    store.close()


def test_expired_entries_go_first(tmp_path: Path, tools: Any) -> None:
    store = DiskStore(tmp_path / "stash", capacity_bytes=8 << 20)
    for number in range(100):
        assert store.put(tools.key(number, "old"), bytes(20_000), ttl_seconds=0.01)
    time.sleep(0.02)
    for number in range(100):
        assert store.put(tools.key(number), bytes(20_000))
    assert all(store.contains_many([tools.key(number) for number in range(100)]))
    assert store.get(tools.key(1, "old")) is None
    store.close()


def test_a_value_over_the_whole_limit_is_dropped_and_evicts_nothing(tmp_path: Path, tools: Any) -> None:
    store = DiskStore(tmp_path / "stash", capacity_bytes=8 << 20)
    for number in range(50):
        assert store.put(tools.key(number), bytes(20_000))
    assert not store.put(tools.key(100), bytes(9 << 20))
    assert store.events.stats.drops == {"too_large": 1}
    assert all(store.contains_many([tools.key(number) for number in range(50)]))
    store.close()


def test_a_limit_changed_by_another_process_binds_this_one(
    tmp_path: Path, in_child: Callable[..., Any], tools: Any
) -> None:
    folder = tmp_path / "stash"
    store = DiskStore(folder, capacity_bytes=32 << 20)
    for space in range(6):
        for number in range(100):
            assert store.put(tools.key(number, str(space)), bytes(20_000), namespace=f"n/{space}")

    def lower() -> None:
        other = DiskStore(folder)
        other.set_capacity(4 << 20)
        other.close()

    in_child(lower)
    for number in range(20):
        store.put(tools.key(number, "after"), bytes(2000), namespace=f"n/{number % 6}")
    assert tools.folder_bytes(folder) <= 4 << 20
    assert store.info().capacity_bytes == 4 << 20
    for number in range(300):
        assert store.put(tools.key(number, "later"), bytes(20_000), namespace=f"n/{number % 6}")
        assert tools.folder_bytes(folder) <= 4 << 20
    store.close()

    def switch_off() -> None:
        other = DiskStore(folder)
        other.set_capacity(0)
        other.close()

    store = DiskStore(folder)
    assert store.put(tools.key(1), b"one")
    in_child(switch_off)
    dropped = [store.put(tools.key(number), bytes(200)) for number in range(100)]
    assert not any(dropped), "a limit of 0 keeps nothing"
    assert store.events.stats.drops == {"disabled": 100}
    store.close()


def test_a_writer_whose_segments_others_evict_goes_on(
    tmp_path: Path, start_child: Callable[..., Any], tools: Any
) -> None:
    folder = tmp_path / "stash"
    store = DiskStore(folder, capacity_bytes=8 << 20)

    def clear_again_and_again() -> int:
        other = DiskStore(folder)
        removed = 0
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            removed += other.clear().entries
        other.close()
        return removed

    child = start_child(clear_again_and_again)
    until, kept, put = time.monotonic() + 1.5, 0, 0
    while time.monotonic() < until:
        kept += store.put(tools.key(put), tools.value(put, 3000))
        put += 1
    assert child.result() > 0
    assert kept > 0.99 * put
    assert store.verify().ok
    for number in range(put):
        value = store.get(tools.key(number))
        assert value is None or value == tools.value(number, 3000)
    store.close()
    assert tools.folder_bytes(folder) <= 8 << 20


def test_readers_let_go_of_segments_that_others_evicted(
    tmp_path: Path, start_child: Callable[..., Any], tools: Any
) -> None:
    """A file that is unlinked but open still takes its room on the disk."""
    import os
    import sys

    if sys.platform != "linux":
        pytest.skip("/proc/self/fd tells what is open on Linux only")

    def unlinked() -> int:
        links = []
        for name in os.listdir("/proc/self/fd"):
            try:
                links.append(os.readlink(f"/proc/self/fd/{name}"))
            except OSError:
                continue
        return sum(str(folder) in link and link.endswith("(deleted)") for link in links)

    folder = tmp_path / "stash"
    store = DiskStore(folder, capacity_bytes=4 << 20)
    for number in range(400):
        assert store.put(tools.key(number), tools.value(number, 20_000))
        store.get(tools.key(number))
    assert unlinked() <= 2, "the evicting process lets go at once"

    def evict_all() -> None:
        other = DiskStore(folder)
        for number in range(1000, 1400):
            other.put(tools.key(number), tools.value(number, 20_000))
        other.close()

    store.get_many([tools.key(number) for number in range(400)])
    start_child(evict_all).result()
    time.sleep(1.1)  # it looks once a second
    store.get(tools.key(1399))
    store.get_many([tools.key(number) for number in range(1000, 1400)])
    assert unlinked() <= 2, "another process lets go when it reads again"
    store.close()
