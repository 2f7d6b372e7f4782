"""Values of 4, 16 and 64 MiB: put + flush, cold get and warm get, against bare system calls and other stores.

Put: of `total` bytes into an empty folder, until they would survive a power loss (lmstash by its `flush()`, the others
by fsync of their files). Cold get: in a new process, pages dropped, the store opened before the clock starts. Warm get:
the same again with every page in the page cache. Cold get in turn: the raw reads around the page cache and lmstash in
one process, value by value, so that all meet the disk in the same phase. lmstash checks its checksums; the others have
none. All read into memory that was touched before (the processes keep their heap): a virtual machine that has to be
given its memory first takes longer for that than for reading, and how long is chance.
"""

from __future__ import annotations

import gc
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import peers

if __name__ == "__main__":
    peers.run_inside("lmcache")

from measuring import (
    KEEPS_ITS_MEMORY,
    MIB,
    Report,
    Scratch,
    Timing,
    arguments,
    drop_pages,
    in_new_process,
    interleave,
    ratio,
    sync_files,
    touch_heap,
    touched,
)

SIZES_MIB = (4, 16, 64)
GOAL_PUT, GOAL_COLD = 0.85, 0.95
PUT_BASE = "bare pwrite + fdatasync"
RAW = ("raw buffered", "raw O_DIRECT", "raw O_DIRECT, 2 threads")
CHECKED = "raw O_DIRECT, then xxh3"
"""What the best raw read costs with the checksum that lmstash computes: no goal, the limit."""
BESIDE = "raw O_DIRECT, a core hashing"
"""The raw read while another process hashes memory of its own. Where that slows it, as in a virtual machine whose disk
is the host's page cache, disk and checksum share the memory's bandwidth: hashing beside the read gains little there."""
LMCACHE = ("LMCache buffered", "LMCache O_DIRECT")
IN_TURN = (*RAW[1:], CHECKED, "lmstash")
"""Not the buffered read: what the kernel reads ahead for it would keep the disk from the one after."""
STORES = ("lmstash", "safetensors files", "diskcache", *LMCACHE)
POOL_BYTES = 256 * MIB


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


# --- put ----------------------------------------------------------------------------------------------------------


def put_bare(folder: Path, values: list[Any], timing: Timing, *, direct: bool) -> None:
    with timing.measure(2 * sum(map(len, values))):
        flags = os.O_CREAT | os.O_WRONLY | (os.O_DIRECT if direct else 0)
        file = os.open(folder / "values", flags, 0o600)
        at = 0
        for value in values:
            at += os.pwrite(file, value, at)
        os.fdatasync(file)
        os.close(file)
    assert at == sum(len(value) for value in values)


def put_lmstash(folder: Path, values: list[Any], timing: Timing) -> None:
    import lmstash

    with lmstash.open(folder, strict=True, trust_env=False) as stash, timing.measure(2 * sum(map(len, values))):
        for number, value in enumerate(values):
            stash.store.put(key(number), value.data)
        stash.flush()


def put_safetensors(folder: Path, values: list[Any], timing: Timing) -> None:
    from safetensors.numpy import save_file

    with timing.measure(2 * sum(map(len, values))):
        for number, value in enumerate(values):
            save_file({"value": value}, folder / f"{number}.safetensors")
        sync_files(folder)


def put_diskcache(folder: Path, values: list[Any], timing: Timing) -> None:
    from diskcache import Cache

    plain = [value.tobytes() for value in values]
    with (
        Cache(str(folder), size_limit=2**40, eviction_policy="none") as cache,
        timing.measure(2 * sum(map(len, values))),
    ):
        for number, value in enumerate(plain):
            cache.set(number, value)
        sync_files(folder)


def put_lmcache(folder: Path, values: list[Any], timing: Timing, *, direct: bool) -> None:
    from lmcache_tier import LMCacheTier

    tier = LMCacheTier(folder, len(values[0]), direct=direct, pool_bytes=POOL_BYTES)
    with timing.measure(2 * sum(map(len, values))):
        for number, value in enumerate(values):
            tier.put(number, value)
        tier.wait()
        sync_files(folder)
    tier.close()


def puts(scratch: Scratch, values: list[Any], rounds: int) -> dict[str, Timing]:
    """Put the values by every contender; what the last round wrote stays in folders of their names."""

    def contender(name: str, run: Callable[..., None], **options: Any) -> Callable[[Timing], None]:
        def once(timing: Timing) -> None:
            folder = scratch.fresh(name)
            os.sync()
            run(folder, values, timing, **options)

        return once

    runs: dict[str, tuple[Callable[..., None], dict[str, Any]]] = {
        PUT_BASE: (put_bare, {"direct": False}),
        "lmstash": (put_lmstash, {}),
        "bare, O_DIRECT": (put_bare, {"direct": True}),
        "safetensors files": (put_safetensors, {}),
        "diskcache": (put_diskcache, {}),
        LMCACHE[0]: (put_lmcache, {"direct": False}),
        LMCACHE[1]: (put_lmcache, {"direct": True}),
    }
    return interleave({name: contender(name, run, **options) for name, (run, options) in runs.items()}, rounds)


# --- get, each in a process of its own ----------------------------------------------------------------------------

Get = Callable[[int], Any]


@contextmanager
def raw_reader(path: Path, n_bytes: int, name: str) -> Iterator[Get]:
    """Read from one file into fresh memory: aligned and around the page cache, or not."""
    import threading

    import numpy as np
    from xxhash import xxh3_64_intdigest

    direct = "O_DIRECT" in name
    file = os.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0))

    def fresh() -> memoryview:
        array = np.empty(n_bytes + 4095, np.uint8)
        start = -array.ctypes.data % 4096
        return array.data[start : start + n_bytes]

    def one(number: int) -> Any:
        memory = fresh()
        assert os.preadv(file, [memory], number * n_bytes) == n_bytes
        return memory

    def two(number: int) -> Any:
        memory, half = fresh(), n_bytes // 2
        other = threading.Thread(target=lambda: os.preadv(file, [memory[half:]], number * n_bytes + half))
        other.start()
        assert os.preadv(file, [memory[:half]], number * n_bytes) == half
        other.join()
        return memory

    def checked(number: int) -> Any:
        memory = one(number)
        for start in range(0, n_bytes, MIB):
            xxh3_64_intdigest(memory[start : start + MIB])
        return memory

    yield two if "2 threads" in name else checked if name == CHECKED else one
    os.close(file)


@contextmanager
def hashing_core() -> Iterator[None]:
    """Keep another core busy with what a checksum is."""
    code = (
        "import numpy, xxhash\nmemory = numpy.ones(64 << 20, 'u1').data\nprint(flush=True)\n"
        "while True: xxhash.xxh3_64_intdigest(memory)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        try:
            yield
        finally:
            other.kill()


@contextmanager
def reader(name: str, folder: Path, n_bytes: int, count: int) -> Iterator[Get]:
    """Open what `puts` wrote; gives the function that returns one value."""
    if name in (*RAW, CHECKED, BESIDE):
        busy = hashing_core() if name == BESIDE else nullcontext()
        with busy, raw_reader(folder / PUT_BASE / "values", n_bytes, name) as get:
            yield get
    elif name == "lmstash":
        import lmstash

        with lmstash.open(folder / name, strict=True, trust_env=False) as stash:
            yield lambda number: stash.store.get(key(number))
    elif name == "safetensors files":
        from safetensors.numpy import load_file

        def load(number: int) -> Any:
            value = load_file(folder / name / f"{number}.safetensors")["value"]
            value[::4096].sum()  # whatever is still mapped is read now
            return value

        yield load
    elif name == "diskcache":
        from diskcache import Cache

        with Cache(str(folder / name), eviction_policy="none") as cache:
            yield lambda number: cache[number]
    else:
        from lmcache_tier import LMCacheTier

        tier = LMCacheTier(folder / name, n_bytes, direct="O_DIRECT" in name, pool_bytes=POOL_BYTES)
        tier.adopt(range(count))

        def fetch(number: int) -> int:
            piece = tier.get(number)
            got = len(piece.byte_array)
            tier.release(piece)
            return got

        yield fetch
        tier.close()


def warm_up(folder: Path) -> None:
    """Import what a store imports when it is first used, by another store."""
    import tempfile

    import lmstash

    with tempfile.TemporaryDirectory(dir=folder) as other, lmstash.open(other, trust_env=False) as stash:
        stash.store.put(key(0), bytes(2 * MIB))
        stash.store.get(key(0))


def work_in_turn(task: dict[str, Any]) -> dict[str, list[float]]:
    """Read cold by every reader of the task in turn, in an order that is drawn; returns each one's seconds a value."""
    folder, n_bytes, count, names = Path(task["folder"]), task["n_bytes"], task["count"], task["names"]
    out: dict[str, list[float]] = {name: [] for name in names}
    warm_up(folder)
    draw = random.Random(0)
    for _turn in names:
        with ExitStack() as opened:
            gets = {name: opened.enter_context(reader(name, folder, n_bytes, count)) for name in names}
            drop_pages(folder)
            touch_heap(2 * count * n_bytes + 64 * MIB)
            held, order = [], names
            gc.collect()
            gc.disable()
            for number in range(count):
                if number % len(names) == 0:
                    order = draw.sample(names, len(names))
                name = order[number % len(names)]
                start = time.perf_counter()
                held.append(gets[name](number))
                out[name].append(time.perf_counter() - start)
            gc.enable()
            assert {len(memoryview(each).cast("B")) for each in held} == {n_bytes}
            del held
    return out


def read_through(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.read(4 * MIB):
                    pass


def work(task: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Read every value cold, then warm, for each name of the task; returns seconds."""
    folder, n_bytes, count = Path(task["folder"]), task["n_bytes"], task["count"]
    out: dict[str, dict[str, float]] = {}
    for name in task["names"]:
        if name == "lmstash":
            warm_up(folder)
        with reader(name, folder, n_bytes, 1) as get:  # imports, and whatever else happens once
            get(0)
        where = folder / (PUT_BASE if name in (*RAW, CHECKED, BESIDE) else name)
        total = count * n_bytes
        drop_pages(where)
        touch_heap(2 * total + 64 * MIB)
        cold, warm = Timing(), Timing()
        with reader(name, folder, n_bytes, count) as get, cold.measure(total):
            held = [get(number) for number in range(count)]
        read_through(where)
        with reader(name, folder, n_bytes, count) as get, warm.measure(total):
            again = [get(number) for number in range(count)]
        sizes = [each if isinstance(each, int) else len(memoryview(each).cast("B")) for each in held + again]
        assert set(sizes) == {n_bytes}, name
        out[name] = {"cold": cold.seconds, "warm": warm.seconds, "cold_cpu": cold.cpu_seconds}
        del held, again
    return out


def gets(scratch: Scratch, n_bytes: int, count: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Read by every contender; returns for each its seconds, cold and warm, in each round."""
    groups = [[name] for name in (*RAW, CHECKED, BESIDE, "lmstash", "safetensors files", "diskcache")] + [list(LMCACHE)]
    out: dict[str, dict[str, list[float]]] = {}
    for turn in range(rounds):
        for names in groups[turn % len(groups) :] + groups[: turn % len(groups)]:
            task = {"folder": str(scratch.path), "n_bytes": n_bytes, "count": count, "names": names}
            for name, taken in in_new_process(task, KEEPS_ITS_MEMORY).items():
                for what, seconds in taken.items():
                    out.setdefault(name, {}).setdefault(what, []).append(seconds)
    return out


def gets_in_turn(scratch: Scratch, n_bytes: int, count: int, rounds: int) -> dict[str, list[float]]:
    """Return for each reader the median of its seconds a value, in each round."""
    task = {"folder": str(scratch.path), "n_bytes": n_bytes, "count": count, "names": IN_TURN, "in_turn": True}
    taken = [in_new_process(task, KEEPS_ITS_MEMORY) for _ in range(rounds)]
    return {name: [median(each[name]) for each in taken] for name in IN_TURN}


def main() -> None:
    args = arguments(__doc__)
    if args.worker:
        task = json.loads(args.worker)
        print(json.dumps(work_in_turn(task) if "in_turn" in task else work(task)))
        return
    report = Report("large_values", quick=args.quick)
    rounds = args.rounds or (1 if args.quick else 5)
    with Scratch(args.dir) as scratch:
        report.note(drop_pages(scratch.path))
        for size in (16,) if args.quick else SIZES_MIB:
            n_bytes = size * MIB
            count = (128 if args.quick else 512) // size
            total = count * n_bytes
            whole = touched(total, seed=size)
            values = [whole[start : start + n_bytes] for start in range(0, total, n_bytes)]
            written = puts(scratch, values, 2 * rounds - 1)
            del values, whole
            read = gets(scratch, n_bytes, count, rounds)
            turns = gets_in_turn(scratch, n_bytes, count, rounds)
            rows = []
            for name in dict.fromkeys([*written, *read]):
                put = written.get(name)
                got = read.get(name)
                gigabytes = [total / 1e9 / put.seconds, total / 1e9 / min(put.wall)] if put else ["", ""]
                gigabytes += [total / 1e9 / median(got[what]) if got else "" for what in ("cold", "warm")]
                in_turn = n_bytes / 1e9 / median(turns[name]) if name in turns else ""
                rows.append([name, *gigabytes, got["cold"] and median(got["cold_cpu"]) if got else "", in_turn])
            columns = ["GB/s", "put + flush", "its best round", "cold get", "warm get", "CPU s of cold get", "in turn"]
            report.table(f"{count} values of {size} MiB", columns, rows)
            put_ratio = ratio(written[PUT_BASE].wall, written["lmstash"].wall)
            report.goal(f"{size} MiB: put + flush against {PUT_BASE}", put_ratio, GOAL_PUT, at_least=True, unit="x")
            least = min(written[PUT_BASE].wall) / min(written["lmstash"].wall)
            report.goal("the same, best round against best round", least, GOAL_PUT, at_least=True, unit="x")
            best = min(RAW, key=lambda name: median(read[name]["cold"]))
            cold_ratio = ratio(read[best]["cold"], read["lmstash"]["cold"])
            report.goal(f"{size} MiB: cold get against {best}", cold_ratio, GOAL_COLD, at_least=True, unit="x")
            best = min(RAW[1:], key=lambda name: median(turns[name]))
            cold_ratio = ratio(turns[best], turns["lmstash"])
            report.goal(f"the same in turn, against {best}", cold_ratio, GOAL_COLD, at_least=True, unit="x")
    report.finish()


if __name__ == "__main__":
    main()
