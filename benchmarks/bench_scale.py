"""What a get and a put cost in a store of 1,000 and of 1,000,000 small entries, and what opening and clearing up cost.

Values of 1 KiB under random keys, through the public `stash.store`. Gets are in random order, one call each. Puts are
1,000 new keys, one call each, the `flush()` after them included; the small store is made anew for each round.
diskcache does the same beside (its files are synced by this script), at 100,000: a million would take it minutes.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from measuring import Report, Scratch, Timing, arguments, drop_pages, in_new_process, ratio, sync_files

VALUE_BYTES = 1024
SMALL = 1_000
CALLS = 20_000
NEW = 1_000
GOAL_GET, GOAL_PUT = 1.6, 3.0
GOAL_OPEN_SECONDS, GOAL_INFO_MS, GOAL_EVICT_SECONDS = 0.1, 10.0, 0.2


class Lmstash:
    name = "lmstash"

    def __init__(self, folder: Path) -> None:
        import lmstash

        self.stash = lmstash.open(folder, strict=True, trust_env=False)
        self.get = self.stash.store.get

    def put(self, key: bytes, value: bytes) -> None:
        self.stash.store.put(key, value)

    def fill(self, keys: list[bytes], value: Callable[[], bytes]) -> None:
        from lmstash.store.base import Write

        for start in range(0, len(keys), 1000):
            self.stash.store.put_many([Write(key, value()) for key in keys[start : start + 1000]])
        self.flush()

    def flush(self) -> None:
        self.stash.flush()

    def close(self) -> None:
        self.stash.close()


class DiskCache:
    name = "diskcache"

    def __init__(self, folder: Path) -> None:
        from diskcache import Cache

        self.folder = folder
        self.cache: Any = Cache(str(folder), size_limit=2**40, eviction_policy="none")
        self.get = self.cache.get

    def put(self, key: bytes, value: bytes) -> None:
        self.cache.set(key, value)

    def fill(self, keys: list[bytes], value: Callable[[], bytes]) -> None:
        with self.cache.transact():
            for key in keys:
                self.cache.set(key, value())
        self.flush()

    def flush(self) -> None:
        sync_files(self.folder)

    def close(self) -> None:
        self.cache.close()


def get_all(store: Any, keys: list[bytes], timing: Timing) -> None:
    get = store.get
    with timing.measure():
        for key in keys:
            if get(key) is None:
                raise AssertionError("an entry is gone")


def put_all(store: Any, keys: list[bytes], value: bytes, timing: Timing) -> None:
    put = store.put
    with timing.measure():
        for key in keys:
            put(key, value)
        store.flush()


def scale(kind: type[Any], scratch: Scratch, sizes: tuple[int, int], rounds: int) -> dict[int, dict[str, Timing]]:
    """Fill two stores and use them in turns; returns the timings of gets and puts in each."""
    stores: dict[int, tuple[Any, list[bytes]]] = {}
    out = {size: {"get": Timing(), "put": Timing(), "cold get": Timing()} for size in sizes}

    def make(size: int) -> None:
        if size in stores:
            stores[size][0].close()
        store = kind(scratch.fresh(f"{kind.name}-{size}"))
        keys = [os.urandom(32) for _ in range(size)]
        store.fill(keys, lambda: random.randbytes(VALUE_BYTES))
        stores[size] = store, keys

    for size in sizes:
        make(size)
        store, keys = stores[size]
        drop_pages(scratch.path / f"{kind.name}-{size}")
        get_all(store, random.sample(keys, SMALL), out[size]["cold get"])
        get_all(store, keys, Timing())  # every page is there from now on
    for turn in range(rounds):
        make(sizes[0])
        for size in sizes if turn % 2 else sizes[::-1]:
            store, keys = stores[size]
            get_all(store, random.choices(keys, k=CALLS), out[size]["get"])
            put_all(store, [os.urandom(32) for _ in range(NEW)], random.randbytes(VALUE_BYTES), out[size]["put"])
    for store, _ in stores.values():
        store.close()
    return out


def work(task: dict[str, Any]) -> dict[str, float]:
    """In a new process: open, say what is held, get one entry."""
    import lmstash

    if task["imported"]:
        import tempfile

        with tempfile.TemporaryDirectory() as other, lmstash.open(other, trust_env=False) as stash:
            stash.info()
    if task["cold"]:
        drop_pages(Path(task["folder"]))
    started = time.perf_counter()
    stash = lmstash.open(task["folder"], strict=True, trust_env=False)
    opened = time.perf_counter() - started
    started = time.perf_counter()
    n_entries = stash.info().entries
    info = time.perf_counter() - started
    stash.close()
    return {"open": opened, "info": info, "entries": n_entries}


def openings(report: Report, folder: Path, rounds: int) -> None:
    """Open a kept store in new processes."""
    rows = []
    n_entries = 0
    for imported, cold in ((True, False), (False, False), (True, True)):
        task = {"folder": str(folder), "imported": imported, "cold": cold}
        taken = [in_new_process(task) for _ in range(rounds)]
        opened = median(each["open"] for each in taken)
        modules = "modules loaded before" if imported else "loading modules counted"
        pages = "pages dropped" if cold else "pages there"
        rows.append([f"{modules}, {pages}", 1000 * opened, 1000 * median(each["info"] for each in taken)])
        n_entries = int(taken[0]["entries"])
        what = f"opening {n_entries:,} entries ({modules}, {pages})"
        report.goal(what, opened, GOAL_OPEN_SECONDS, unit=" s")
    report.table(f"A new process opens {n_entries:,} entries", ["how", "open, ms", "first info, ms"], rows)


def clearing_up(report: Report, scratch: Scratch, rounds: int) -> None:
    """`info` over 10,000 entries, evicting half of them, clearing the rest."""
    info, evict, clear = Timing(), Timing(), Timing()
    left: list[int] = []
    for _ in range(rounds):
        store = Lmstash(scratch.fresh("evict"))
        store.fill([os.urandom(32) for _ in range(10_000)], lambda: random.randbytes(4 * VALUE_BYTES))
        for _ in range(5):
            with info.measure():
                before = store.stash.info()
        store.stash.store.evict(before.physical_bytes)  # gives back what was granted ahead, and evicts nothing yet
        before = store.stash.info()
        half = before.physical_bytes - sum(each.nbytes for each in before.namespaces) // 2
        with evict.measure():
            store.stash.store.evict(half)
        left.append(store.stash.info().entries)
        assert before.entries == 10_000
        assert 4_000 < left[-1] < 5_500, left
        with clear.measure():
            store.stash.clear()
        assert store.stash.info().entries == 0
        store.close()
    rows = [
        ["info", 1000 * info.seconds, 1000 * info.cpu_seconds],
        [f"evict half ({median(left):,.0f} entries left)", 1000 * evict.seconds, 1000 * evict.cpu_seconds],
        ["clear the rest", 1000 * clear.seconds, 1000 * clear.cpu_seconds],
    ]
    report.table("10,000 entries of 4 KiB", ["what", "wall, ms", "CPU, ms"], rows)
    report.goal("info over 10,000 entries", 1000 * info.seconds, GOAL_INFO_MS, unit=" ms")
    report.goal("evicting half of 10,000 entries", evict.seconds, GOAL_EVICT_SECONDS, unit=" s")


def main() -> None:
    args = arguments(__doc__)
    if args.worker:
        print(json.dumps(work(json.loads(args.worker))))
        return
    random.seed(0)
    report = Report("scale", quick=args.quick)
    rounds = args.rounds or (2 if args.quick else 7)
    many = 50_000 if args.quick else 1_000_000
    beside = 10_000 if args.quick else 100_000
    with Scratch(args.dir) as scratch:
        plans: tuple[tuple[type[Any], tuple[int, int]], ...] = (
            (Lmstash, (SMALL, many)),
            (DiskCache, (SMALL, beside)),
        )
        rows = []
        for kind, sizes in plans:
            timings = scale(kind, scratch, sizes, rounds)
            for size, each in timings.items():
                get, put, cold = each["get"], each["put"], each["cold get"]
                cells = [1e6 * get.seconds / CALLS, 1e6 * get.cpu_seconds / CALLS]
                cells += [1e6 * put.seconds / NEW, 1e6 * put.cpu_seconds / NEW, 1e6 * cold.seconds / SMALL]
                rows.append([f"{kind.name}, {size:,}", *cells])
            if kind is Lmstash:
                small, large = (timings[size] for size in sizes)
                by_get = ratio(large["get"].wall, small["get"].wall)
                by_put = ratio(large["put"].wall, small["put"].wall)
                report.goal(f"cost of a get at {many:,} against {SMALL:,} entries", by_get, GOAL_GET, unit="x")
                report.goal(f"cost of a put at {many:,} against {SMALL:,} entries", by_put, GOAL_PUT, unit="x")
        columns = ["store, entries", "get, us", "CPU", "put + flush, us", "CPU", "cold get, us"]
        report.table("Microseconds for each of many calls", columns, rows)
        folder = scratch.fresh("open")
        store = Lmstash(folder)
        store.fill([os.urandom(32) for _ in range(beside)], lambda: random.randbytes(VALUE_BYTES))
        store.close()
        openings(report, folder, rounds)
        clearing_up(report, scratch, min(rounds, 3))
    report.finish()


if __name__ == "__main__":
    main()
