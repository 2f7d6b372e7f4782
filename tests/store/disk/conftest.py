"""What the fault tests share: child processes by fork, small and read-only disks, and what a folder really takes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lmstash.events import EventLog
from lmstash.store.disk.files.rows import PLACE
from lmstash.store.disk.store import DiskStore

MOST_SECONDS = 400
"""No child lives longer, whatever it waits for, unless it asks for that."""


class Child:
    """A forked child that runs one function and reports its JSON-able result."""

    def __init__(self, work: Callable[..., Any], *arguments: Any) -> None:
        reading, writing = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(MOST_SECONDS)
            try:
                os.close(reading)
                report = {"value": work(*arguments)}
                status = 0
            except BaseException:
                report = {"error": traceback.format_exc()}
            with contextlib.suppress(BaseException), os.fdopen(writing, "w") as pipe:
                pipe.write(json.dumps(report) + "\n")
            os._exit(status)
        os.close(writing)
        self._pipe = os.fdopen(reading)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        self._pipe.close()

    def result(self) -> Any:
        """Wait for the end; raise what the child raised, and name the signal that it died of."""
        text = self._pipe.readline()  # not to the end: a grandchild may have the pipe open too
        self._pipe.close()
        _pid, status = os.waitpid(self.pid, 0)
        assert not os.WIFSIGNALED(status), f"the child died of {signal.Signals(os.WTERMSIG(status)).name}"
        report = json.loads(text)
        assert "error" not in report, f"the child failed:\n{report['error']}"
        return report["value"]


@pytest.fixture
def start_child() -> Iterator[Callable[..., Child]]:
    """Starts `work(*arguments)` in a forked child; children that a test leaves behind are killed."""
    children: list[Child] = []

    def start(work: Callable[..., Any], *arguments: Any) -> Child:
        children.append(Child(work, *arguments))
        return children[-1]

    yield start
    for child in children:
        if not child._pipe.closed:
            child.kill()


@pytest.fixture
def in_child(start_child: Callable[..., Child]) -> Callable[..., Any]:
    """Runs `work(*arguments)` in a forked child and returns its result."""
    return lambda work, *arguments: start_child(work, *arguments).result()


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts a file system on a folder of this test: `mount("tmpfs", size="8m")`; skips where that is forbidden."""
    points: list[Path] = []

    def attempt(*command: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"this user may not mount file systems: {done.stderr.strip()}")

    def make(name: str = "disk", *, size: str = "8m") -> Path:
        if sys.platform != "linux":
            pytest.skip("mounting a tmpfs needs Linux")
        point = tmp_path / name
        point.mkdir()
        attempt("mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "tmpfs", str(point))
        points.append(point)
        return point

    yield make
    for point in reversed(points):
        subprocess.run(["umount", "-l", str(point)], check=True)


@pytest.fixture
def remount() -> Callable[..., None]:
    """Changes the options of a mounted file system, for instance to `ro`."""

    def change(point: Path, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(point)], check=True, capture_output=True)

    return change


class Tools:
    """Small functions that several test files call."""

    @staticmethod
    def key(number: int, space: str = "") -> bytes:
        return hashlib.sha256(f"{space}{number}".encode()).digest()

    @staticmethod
    def value(number: int, size: int, version: int = 0) -> bytes:
        """Bytes that tell number, version and size, and differ all along."""
        seed = hashlib.sha256(f"{number}/{version}/{size}".encode()).digest()
        return (seed * (size // 32 + 1))[:size]

    @staticmethod
    def spoil_rows(connection: Any, name: str, value: Any, k: int | None = None) -> int:
        """Set a column of the index, or one of the numbers in `place`, in all rows or one; returns in how many."""
        numbers = ("seg", "off", "head", "size", "slot")
        rows = connection.execute("SELECT k, place FROM entries WHERE ?1 IS NULL OR k = ?1", (k,)).fetchall()
        for each, place in rows:
            new, column = value, name
            if name in numbers:
                said = dict(zip(numbers, PLACE.unpack(place), strict=True)) | {name: value}
                new, column = PLACE.pack(*said.values()), "place"
            connection.execute(f"UPDATE entries SET {column} = ? WHERE k = ?", (new, each))
        return len(rows)

    @staticmethod
    def folder_bytes(folder: Path) -> int:
        """What `du` would say: the blocks of every file and folder, whoever made them."""
        total, todo = 0, [str(folder)]
        while todo:
            path = todo.pop()
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                total += os.lstat(path).st_blocks * 512
                with os.scandir(path) as found:
                    for each in found:
                        if each.is_dir(follow_symlinks=False):
                            todo.append(each.path)
                        else:
                            with contextlib.suppress(FileNotFoundError):
                                total += each.stat(follow_symlinks=False).st_blocks * 512
        return total

    @staticmethod
    def segments(folder: Path) -> list[Path]:
        return sorted((folder / "segments").glob("*.seg"))

    @staticmethod
    def misses(store: DiskStore) -> dict[str, int]:
        return dict(store.events.stats.misses)

    @staticmethod
    def accounted(events: EventLog, asked: int) -> bool:
        """Whether every key asked for was counted once."""
        stats = events.stats
        return stats.hits + stats.partial_hits + sum(stats.misses.values()) == asked


@pytest.fixture(scope="session")
def tools() -> type[Tools]:
    return Tools


class Watcher:
    """Samples what a folder takes, from another thread, as fast as it can.

    A look takes a while, in which one file may go and another grow in its place: both are counted. So the processes
    that write, if they are given as `held`, stand still meanwhile: then a look says what was there at one moment.
    """

    def __init__(self, folder: Path) -> None:
        self.most = 0
        self.samples = 0
        self.held: list[int] = []
        self._folder = folder
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def _work(self) -> None:
        while not self._stop.is_set():
            self.look()
            time.sleep(0.002 if self.held else 0.0005)

    def look(self) -> int:
        try:
            for pid in self.held:
                hold(pid)
            now = Tools.folder_bytes(self._folder)
        finally:
            for pid in self.held:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
        self.most = max(self.most, now)
        self.samples += 1
        return now

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._thread.join()
        self.look()


def hold(pid: int) -> None:
    """Stop a process and wait until it stands still, or is gone."""
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        os.kill(pid, signal.SIGSTOP)
        while Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2][1:2] not in b"TZX":
            time.sleep(0)


@pytest.fixture
def watch() -> Callable[[Path], Watcher]:
    """`with watch(folder) as seen: ...` then `seen.most` is the most that the folder took."""
    return Watcher
