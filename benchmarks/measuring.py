"""What every benchmark here shares: clocks, page cache, medians, the machine, and how results are shown and kept."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import mmap
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results"
MIB = 2**20


def arguments(description: str | None, *, takes_model: bool = False, parts: Sequence[str] = ()) -> argparse.Namespace:
    """Read what every script takes: `--quick`, `--rounds`, `--dir`, and `--worker` (for its own child processes).

    `takes_model`: `--model`, too. `parts`: `--part NAME` chooses one of them.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the work: shows that it runs, proves little")
    parser.add_argument("--rounds", type=int, help="how often each contender runs")
    parser.add_argument("--dir", type=Path, help="where to write (default: the temporary folder)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    if takes_model:
        parser.add_argument("--model", type=Path, help="folder of a transformers model (default: one made here)")
    if parts:
        parser.add_argument("--part", choices=parts, help="measure this part only (default: all)")
    return parser.parse_args()


# --- time ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Timing:
    """What one contender took, in each round."""

    wall: list[float] = field(default_factory=list)
    """Seconds."""
    cpu: list[float] = field(default_factory=list)
    """Seconds of this process, all threads."""

    @property
    def seconds(self) -> float:
        """Median wall time."""
        return statistics.median(self.wall)

    @property
    def cpu_seconds(self) -> float:
        """Median processor time."""
        return statistics.median(self.cpu)

    @contextmanager
    def measure(self, touch_bytes: int = 0) -> Iterator[None]:
        """Add what the block takes. The garbage collector runs before it, and not within.

        `touch_bytes`: how much memory the block will ask the system for (the page cache's included). It is touched just
        before: a virtual machine's host takes back what was free for seconds, and is slow to give it again.
        """
        gc.collect()
        if touch_bytes:
            touch_memory(touch_bytes)
        gc.disable()
        try:
            cpu, wall = time.process_time(), time.perf_counter()
            yield
            self.wall.append(time.perf_counter() - wall)
            self.cpu.append(time.process_time() - cpu)
        finally:
            gc.enable()


def interleave(contenders: Mapping[str, Callable[[Timing], None]], rounds: int) -> dict[str, Timing]:
    """Run every contender once a round, in an order that turns, so that a slow spell of the machine hits all alike.

    Every other round goes backwards: else the same one would always come after the same other.

    Each is given its `Timing` and measures the part that counts: `with timing.measure(): ...`.
    """
    timings = {name: Timing() for name in contenders}
    names = list(contenders)
    for turn in range(rounds):
        order = names[turn % len(names) :] + names[: turn % len(names)]
        for name in reversed(order) if turn % 2 else order:
            contenders[name](timings[name])
    return timings


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median of the rounds' own ratios ours / theirs."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


# --- memory and disk ----------------------------------------------------------------------------------------------


def drop_pages(*folders: Path) -> str:
    """Put what these folders hold on the disk and out of the page cache; returns words on how that went.

    File by file, by advice to the kernel, which needs no root and leaves everybody else's pages alone. What the kernel
    keeps all the same goes by its switch for everything, which does need root.
    """
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    if not hasattr(os, "posix_fadvise"):
        return "pages NOT dropped: no way on this system, so cold figures are warm ones"
    left = sum([_drop(path) for path in files])
    if 10 * left * mmap.PAGESIZE <= sum(path.stat().st_size for path in files):  # an open store maps some
        return "pages of the measured files dropped"
    try:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
        return "whole page cache dropped"
    except OSError:
        return "pages NOT all dropped: run as root; some cold figures are warm ones"


def _drop(path: Path) -> int:
    """Drop the pages of one file; returns how many are there all the same."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        return cached_pages(file)
    finally:
        os.close(file)


def cached_pages(file: int) -> int:
    """Return how many pages of an open file are in the page cache (Linux; reads nothing)."""
    size = os.fstat(file).st_size
    if not size:
        return 0
    with mmap.mmap(file, size, access=mmap.ACCESS_COPY) as mapped:
        there = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        start = ctypes.c_char.from_buffer(mapped)
        failed = ctypes.CDLL(None).mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), there)
        del start
    return 0 if failed else sum(each & 1 for each in bytes(there))


def touched(n_bytes: int, seed: int = 0) -> Any:
    """Return an array of `n_bytes` random bytes (memory that is really there, and does not compress), page-aligned."""
    import numpy as np

    array = np.frombuffer(mmap.mmap(-1, -(-n_bytes // 8) * 8, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint64)
    array[:] = np.random.default_rng(seed).integers(0, 2**64, len(array), np.uint64)
    return array.view(np.uint8)[:n_bytes]


def touch_memory(n_bytes: int) -> None:
    """Fill that much memory and give it back: a virtual machine's host then has real pages for what is timed next.

    In huge pages where the system has them, since results of numpy's ask for these: small ones are cut from them.
    """
    memory = mmap.mmap(-1, n_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError, AttributeError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    for start in range(0, n_bytes, mmap.PAGESIZE):
        memory[start] = 1
    memory.close()


def touch_heap(n_bytes: int) -> None:
    """Fill so much memory of the heap and free it, in a process that `KEEPS_ITS_MEMORY`."""
    import numpy as np

    np.ones(n_bytes, np.uint8)


def sync_files(folder: Path) -> None:
    """Put every file below `folder` on the disk: what a tool without a flush of its own needs to keep its promise."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


def peak_bytes() -> int:
    """Return the most memory this process ever held at once (resident; Linux)."""
    return _status("VmHWM")


def reset_peak() -> int:
    """Let the peak start anew; returns what is resident now."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def private_bytes() -> int:
    """Return what this process holds in memory of its own; pages of mapped files come and go as the system likes."""
    gc.collect()
    return _status("RssAnon")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")


class Scratch:
    """Folders to measure in, removed at the end: `with Scratch(args.dir) as scratch: scratch.fresh("store")`."""

    def __init__(self, parent: Path | None) -> None:
        """Make the folder in `parent` (default: the temporary folder)."""
        self.path = Path(tempfile.mkdtemp(prefix="lmstash-bench-", dir=parent))

    def fresh(self, name: str) -> Path:
        """Return an empty folder of that name."""
        path = self.path / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def __enter__(self) -> Scratch:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove everything."""
        shutil.rmtree(self.path, ignore_errors=True)


KEEPS_ITS_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
"""For a process whose heap is never given back: what was touched and freed once is there for what follows."""


def in_new_process(task: Mapping[str, Any], environment: Mapping[str, str] = MappingProxyType({})) -> Any:
    """Run this very script with `--worker task` in a process of its own; returns the JSON of its last line."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, sys.argv[0], "--worker", json.dumps(task)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env={**inherited, **environment})
    if done.returncode:
        raise RuntimeError(f"the process for {dict(task)} failed:\n{done.stdout}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


# --- what is shown ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Goal:
    """One figure that was promised."""

    what: str
    measured: float
    limit: float
    at_least: bool = False
    unit: str = ""

    @property
    def met(self) -> bool:
        """Whether the figure is on the right side of its limit."""
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit

    def __str__(self) -> str:
        """One line: PASS, or over."""
        bound = "at least" if self.at_least else "at most"
        word = "PASS" if self.met else ("under" if self.at_least else "over")
        return f"{word:5} {self.what}: {self.measured:.4g}{self.unit} ({bound} {self.limit:.4g}{self.unit})"


class Report:
    """Collects tables and goals of one benchmark, prints them, and keeps them as JSON."""

    def __init__(self, name: str, *, quick: bool) -> None:
        """Print the machine."""
        self.name = name
        self._quick = quick
        self._tables: list[dict[str, Any]] = []
        self._goals: list[Goal] = []
        self._machine = machine()
        print(f"# {name}{' (quick: shows that it runs, proves little)' if quick else ''}\n")
        print(", ".join(f"{key} {value}" for key, value in self._machine.items()), flush=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Print a Markdown table."""
        self._tables.append({"title": title, "columns": list(columns), "rows": [list(row) for row in rows]})
        cells = [list(columns), *[[shown(each) for each in row] for row in rows]]
        widths = [max(len(row[place]) for row in cells) for place in range(len(columns))]
        print(f"\n## {title}\n")
        for number, row in enumerate(cells):
            print("| " + " | ".join(each.ljust(width) for each, width in zip(row, widths, strict=True)) + " |")
            if number == 0:
                print("|" + "|".join("-" * (width + 2) for width in widths) + "|")
        sys.stdout.flush()

    def note(self, words: str) -> None:
        """Print a remark that figures need to be understood."""
        self._machine["note"] = words
        print(words, flush=True)

    def goal(self, what: str, measured: float, limit: float, *, at_least: bool = False, unit: str = "") -> None:
        """Note a figure beside its limit."""
        self._goals.append(Goal(what, measured, limit, at_least, unit))

    def finish(self) -> None:
        """Print the goals, and write everything to `benchmarks/results/<name>.json`."""
        if self._goals:
            print("\n## Goals\n")
            for goal in self._goals:
                print(f"- {goal}")
        RESULTS.mkdir(parents=True, exist_ok=True)
        path = RESULTS / f"{self.name}{'-quick' if self._quick else ''}.json"
        goals = [asdict(goal) | {"met": goal.met} for goal in self._goals]
        kept = {"name": self.name, "quick": self._quick, "machine": self._machine, "time": time.time()}
        path.write_text(json.dumps(kept | {"tables": self._tables, "goals": goals}, indent=1) + "\n")
        print(f"\nkept in {path.relative_to(ROOT)}", flush=True)


def shown(value: Any) -> str:
    """Return a table's cell: numbers with four digits that matter."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def machine() -> dict[str, Any]:
    """Describe where this runs: two figures compare only if this agrees, and only if the machine was quiet."""
    model = platform.processor() or platform.machine()
    memory = 0
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
        memory = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    except OSError:
        pass
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 1),
        "root": os.geteuid() == 0,
    }
