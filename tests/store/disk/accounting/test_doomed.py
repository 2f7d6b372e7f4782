"""Files that are to go take their room until they are gone, whoever was about to unlink them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lmstash.store.disk.accounting.doomed import doomed_bytes
from lmstash.store.disk.reclaiming import reclaim
from lmstash.store.disk.store import DiskStore

MB = 1 << 20
CAPACITY_BYTES = 32 * MB
LARGE, FIRST, THEIRS, OURS = 0, 10, 20, 40


def put(store: DiskStore, tools: Any, number: int) -> bool:
    return store.put(tools.key(number), tools.value(number, MB - 9000))


def facts_of(store: DiskStore) -> list[str]:
    opened = store._opened
    with opened.index.transaction() as connection:
        return [name for (name,) in connection.execute("SELECT name FROM facts") if name.startswith("doomed ")]


@pytest.fixture
def folder(tmp_path: Path, tools: Any) -> Path:
    """A full one, in which a value of 20 MiB is the least recently used."""
    with closing(DiskStore(tmp_path / "stash", capacity_bytes=CAPACITY_BYTES)) as store:
        assert store.put(tools.key(LARGE), bytes(20 * MB))
        for number in range(FIRST, FIRST + 8):
            assert put(store, tools, number)
            assert store.get(tools.key(number)) is not None
    return tmp_path / "stash"


def evict_until(signal_number: int) -> Callable[[Path, Any], None]:
    """Return what makes room in a folder and, just before it would unlink a file, sends itself a signal."""

    def work(folder: Path, tools: Any) -> None:
        unlink = os.unlink

        def stop(path: Path) -> None:
            if os.stat(path).st_size >= 20 * MB:
                os.kill(os.getpid(), signal_number)
            unlink(path)

        reclaim.os.unlink = stop
        store = DiskStore(folder)
        for number in range(THEIRS, THEIRS + 8):
            assert put(store, tools, number)
        store.close()

    return work


def held_or_gone(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    return state in (b"T", b"Z")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux")
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_room_of_a_file_that_is_to_go_is_granted_to_nobody(
    signal_number: int, folder: Path, start_child: Callable[..., Any], tools: Any
) -> None:
    store = DiskStore(folder)
    child = start_child(evict_until(signal_number), folder, tools)
    until = time.monotonic() + 60
    while not held_or_gone(child.pid):
        assert time.monotonic() < until
        time.sleep(0.01)
    assert store.get(tools.key(LARGE)) is None
    assert len(facts_of(store)) == 1
    assert tools.folder_bytes(folder) > 28 * MB
    for number in range(OURS, OURS + 26):
        assert put(store, tools, number)
        assert tools.folder_bytes(folder) <= CAPACITY_BYTES
    assert tools.folder_bytes(folder) > 24 * MB, "its room was given back"
    assert not any(path.stat().st_size >= 20 * MB for path in tools.segments(folder))
    if signal_number == signal.SIGSTOP:  # it goes on, finds the file gone, and nothing else missing
        os.kill(child.pid, signal.SIGCONT)
        child.result()
        assert tools.folder_bytes(folder) <= CAPACITY_BYTES
    for number in range(OURS + 20, OURS + 26):
        assert store.get(tools.key(number)) == tools.value(number, MB - 9000)
    assert store.verify().ok
    store.close()


def test_what_is_gone_is_forgotten_before_more_is_evicted(folder: Path, tools: Any) -> None:
    with closing(DiskStore(folder)) as store:
        for number in range(THEIRS, THEIRS + 40):
            assert put(store, tools, number)
            assert len(facts_of(store)) < 3
        evicted = store.events.stats.evicted_entries
        store.clear()
        assert facts_of(store) == []
        for number in range(THEIRS, THEIRS + 25):
            assert put(store, tools, number)
        assert store.events.stats.evicted_entries == evicted


@pytest.mark.parametrize("name", ["doomed ", "doomed x/../../..", "doomed a\0b", "doomed " + "0" * 5000])
def test_facts_that_name_no_file_are_forgotten(name: str, folder: Path, tools: Any) -> None:
    with closing(DiskStore(folder)) as store:
        with store._opened.index.transaction() as connection:
            connection.execute("INSERT INTO facts VALUES(?, 0)", (name,))
        assert put(store, tools, THEIRS)
    with closing(DiskStore(folder)) as store:
        assert facts_of(store) == []


def test_a_segment_that_is_known_is_not_counted_for_ever(folder: Path, tools: Any) -> None:
    """The index is damaged, say: it names a file twice."""
    with closing(DiskStore(folder)) as store:
        index = store._opened.index
        (name,) = [path.stem for path in tools.segments(folder) if path.stat().st_size >= 20 * MB]
        with index.transaction() as connection:
            connection.execute("INSERT INTO facts VALUES(?, 0)", (f"doomed {name}",))
            assert doomed_bytes(index, store._folder) >= 20 * MB
        store.set_capacity(2 * CAPACITY_BYTES)
        for number in range(THEIRS, THEIRS + 20):
            assert put(store, tools, number)
        assert store.get(tools.key(LARGE)) == bytes(20 * MB), "nothing was evicted for it"
        assert facts_of(store) == []
