"""A disk that is full: values are dropped and counted, what is kept stays readable, and room made later is used."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lmstash
from lmstash.errors import CapacityError, StoreError, StoreUnavailableError
from lmstash.store.disk.store import DiskStore


def fill_up(disk: Path, leave: int = 0) -> Path:
    """Take all the room of a disk but `leave` bytes with somebody else's file."""
    other = disk / "other"
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    with other.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(free - leave, 1))
    return other


def put_until_dropped(store: DiskStore, tools: Any, size: int = 20_000, most: int = 2000) -> int:
    """Put values until one is dropped; returns how many were kept."""
    for number in range(most):
        if not store.put(tools.key(number), tools.value(number, size)):
            return number
    raise AssertionError("the disk never filled up")


def readable(store: DiskStore, tools: Any, n: int, size: int = 20_000) -> bool:
    values = store.get_many([tools.key(number) for number in range(n)])
    return values == [tools.value(number, size) for number in range(n)]


def test_values_over_the_disk_are_dropped_and_what_is_kept_is_served(mount: Callable[..., Path], tools: Any) -> None:
    disk = mount(size="8m")
    store = DiskStore(disk / "stash", capacity_bytes=None)
    kept = put_until_dropped(store, tools)
    assert kept > 100
    assert store.events.stats.drops.keys() == {"disk_full"}
    assert readable(store, tools, kept)
    assert store.verify().ok
    for number in range(kept, kept + 50):  # it goes on being full, and nothing breaks
        store.put(tools.key(number), tools.value(number, 20_000))
    assert readable(store, tools, kept)
    store.close()
    again = DiskStore(disk / "stash")
    assert readable(again, tools, kept)
    assert again.verify().ok
    again.close()


def test_room_made_on_the_disk_is_used_by_the_open_store(mount: Callable[..., Path], tools: Any) -> None:
    disk = mount(size="12m")
    store = DiskStore(disk / "stash", capacity_bytes=None)
    assert store.put(tools.key(0), tools.value(0, 20_000))
    other = fill_up(disk)
    dropped = [store.put(tools.key(number), tools.value(number, 200_000)) for number in range(1, 30)]
    assert not all(dropped)
    other.unlink()
    for number in range(40):
        assert store.put(tools.key(number), tools.value(number, 20_000)), "room was made"
    assert readable(store, tools, 40)
    store.flush()
    store.close()
    again = DiskStore(disk / "stash")
    assert readable(again, tools, 40)
    assert again.verify().ok
    again.close()


def test_a_full_disk_says_so_in_words(mount: Callable[..., Path], tools: Any, caplog: pytest.LogCaptureFixture) -> None:
    disk = mount(size="8m")
    store = DiskStore(disk / "stash", capacity_bytes=None)
    put_until_dropped(store, tools)
    for number in range(3000, 3010):
        store.put(tools.key(number), bytes(20_000))
    warnings = [record.getMessage() for record in caplog.records if "full" in record.getMessage()]
    assert len(warnings) == 1, "it is said once"
    assert str(disk) in warnings[0]
    assert "Free space" in warnings[0]
    store.close()


def test_strict_raises_when_the_disk_is_full(mount: Callable[..., Path], tools: Any) -> None:
    disk = mount(size="8m")
    store = DiskStore(disk / "stash", capacity_bytes=None, strict=True)
    with pytest.raises(CapacityError, match="full"):
        put_until_dropped(store, tools)
    assert store.get(tools.key(0)) == tools.value(0, 20_000)
    with contextlib.suppress(StoreError):  # there may be no room for what closing writes
        store.close()
    with pytest.raises(StoreUnavailableError, match="closed"):
        store.get(tools.key(0))


@pytest.mark.parametrize("leave", [0, 4096, 16_384, 65_536, 200_000, 600_000])
def test_a_store_opened_on_a_full_disk_does_not_break_the_program(
    leave: int, mount: Callable[..., Path], in_child: Callable[..., Any], tools: Any
) -> None:
    disk = mount(size="8m")
    fill_up(disk, leave)

    def use() -> dict[str, Any]:  # in a child: SIGBUS would end the process
        stash = lmstash.open(disk / "stash")
        kept = [stash.store.put(tools.key(number), tools.value(number, 9000)) for number in range(100)]
        values = stash.store.get_many([tools.key(number) for number in range(100)])
        right = all(
            value == tools.value(number, 9000) if kept[number] else value is None for number, value in enumerate(values)
        )
        stash.flush()
        stash.close()
        return {"right": right, "kept": sum(kept)}

    told = in_child(use)
    assert told["right"]
    assert told["kept"] < 100


@pytest.mark.parametrize("leave", [0, 4096, 16_384, 65_536])
def test_a_kept_store_is_readable_when_the_disk_is_full(
    leave: int, mount: Callable[..., Path], in_child: Callable[..., Any], tools: Any
) -> None:
    disk = mount(size="8m")

    def prepare() -> None:
        store = DiskStore(disk / "stash", capacity_bytes=None)
        for number in range(50):
            store.put(tools.key(number), tools.value(number, 9000))
        store.close()

    in_child(prepare)
    fill_up(disk, leave)

    def use() -> dict[str, Any]:
        stash = lmstash.open(disk / "stash")
        values = stash.store.get_many([tools.key(number) for number in range(50)])
        for number in range(50, 150):
            stash.store.put(tools.key(number), tools.value(number, 9000))
        stash.store.delete(tools.key(0))
        stash.store.pin_many([tools.key(1)])
        later = stash.store.get(tools.key(2))
        stash.close()
        return {
            "found": sum(value == tools.value(number, 9000) for number, value in enumerate(values)),
            "later": later == tools.value(2, 9000),
        }

    assert in_child(use) == {"found": 50, "later": True}
    (disk / "other").unlink()
    store = DiskStore(disk / "stash")
    assert store.verify().ok
    assert store.put(tools.key(500), b"room again")
    for number in range(1, 50):
        assert store.get(tools.key(number)) == tools.value(number, 9000)
    store.close()


def test_a_read_only_store_is_readable_when_the_disk_is_full(
    mount: Callable[..., Path], in_child: Callable[..., Any], tools: Any
) -> None:
    disk = mount(size="8m")
    store = DiskStore(disk / "stash", capacity_bytes=None)
    store.put(tools.key(1), b"one")
    store.close()
    fill_up(disk)

    def use() -> bool:
        reader = DiskStore(disk / "stash", read_only=True)
        value = reader.get(tools.key(1))
        reader.close()
        return value == b"one"

    assert in_child(use)


@pytest.mark.parametrize("limit", [3 << 20, 5 << 20])
def test_evicting_goes_on_while_the_disk_is_full(
    limit: int, mount: Callable[..., Path], in_child: Callable[..., Any], tools: Any
) -> None:
    """Others took the room between the folder's content and its limit: puts are dropped or evict, none breaks."""
    disk = mount(size="8m")

    def use() -> dict[str, Any]:
        store = DiskStore(disk / "stash", capacity_bytes=limit)
        for number in range(40):
            assert store.put(tools.key(number), tools.value(number, 20_000))
        other = fill_up(disk)
        kept: dict[int, bool] = {}
        for number in range(40, 400):
            kept[number] = store.put(tools.key(number), tools.value(number, 20_000))
        wrong = [
            number
            for number in range(400)
            if (value := store.get(tools.key(number))) is not None and value != tools.value(number, 20_000)
        ]
        other.unlink()
        after = [store.put(tools.key(number), tools.value(number, 20_000)) for number in range(400, 600)]
        last = store.get(tools.key(599)) == tools.value(599, 20_000)
        healthy = store.verify().ok
        store.close()
        return {"wrong": wrong, "after": sum(after), "last": last, "healthy": healthy}

    assert in_child(use) == {"wrong": [], "after": 200, "last": True, "healthy": True}
    store = DiskStore(disk / "stash")
    assert store.verify().ok
    assert tools.folder_bytes(disk / "stash") <= limit
    store.close()


def test_what_failed_on_a_full_disk_is_not_raised_by_a_rebuilt_index(mount: Callable[..., Path], tools: Any) -> None:
    disk = mount(size="8m")
    store = DiskStore(disk / "stash", capacity_bytes=None)
    for number in range(20):
        assert store.put(tools.key(number), tools.value(number, 20_000))
    other = fill_up(disk, 30_000)
    for _round in range(5):
        for number in range(20):  # replacing needs room for the new value, a tombstone and the index's log
            if store.put(tools.key(number), tools.value(number, 20_000, 1)):
                continue
            assert store.get(tools.key(number)) in (tools.value(number, 20_000), tools.value(number, 20_000, 1))
    before = [bytes(value or b"") for value in store.get_many([tools.key(number) for number in range(20)])]
    other.unlink()
    store.close()
    for path in (disk / "stash").glob("index.db*"):
        path.unlink()
    again = DiskStore(disk / "stash")
    assert [bytes(value or b"") for value in again.get_many([tools.key(number) for number in range(20)])] == before
    again.close()


def test_lmstash_open_on_a_full_disk_says_why_and_strict_raises(
    mount: Callable[..., Path], tools: Any, caplog: pytest.LogCaptureFixture
) -> None:
    disk = mount(size="1m")
    fill_up(disk)
    stash = lmstash.open(disk / "stash")
    assert not stash.store.put(tools.key(1), b"x" * 5000)
    assert stash.store.get(tools.key(1)) is None
    assert "full" in " ".join(record.getMessage() for record in caplog.records)
    stash.close()

    def put_strictly() -> None:
        lmstash.open(disk / "stash", strict=True).store.put(tools.key(1), b"x" * 5000)

    with pytest.raises(StoreError):
        put_strictly()
