"""A newer value may vanish, which is a miss; an older one of the same key must never come back."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmstash.store.base import Write
from lmstash.store.disk.intake import item_of
from lmstash.store.disk.store import DiskStore
from lmstash.store.disk.writing.appender import Item


def drop_index(folder: Path) -> None:
    for path in folder.glob("index.db*"):
        path.unlink()


def item(key: bytes, value: bytes) -> Item:
    return item_of(Write(key, value))


def begin_a_put(store: DiskStore, key: bytes, value: bytes, namespace: str = "kind/a") -> None:
    """Write the record, as `put` does before it tells the index."""
    opened = store._opened
    with opened.reclaimer.changes():
        writer = opened.appender.reserve(namespace, 1000, 1)
    assert writer is not None
    opened.appender.append(writer, [item(key, value)])


def die_in_a_put(folder: Path, key: bytes, value: bytes, namespace: str = "kind/a") -> None:
    begin_a_put(DiskStore(folder), key, value, namespace)
    os._exit(0)


def let_die_in_a_put(start_child: Callable[..., Any], *arguments: Any) -> None:
    child = start_child(die_in_a_put, *arguments)
    os.waitpid(child.pid, 0)


def found_after(folder: Path, key: bytes, *, lost_index: bool) -> Any:
    if lost_index:
        drop_index(folder)
    store = DiskStore(folder)
    value = store.get(key)
    store.close()
    return None if value is None else bytes(value)


LOST_INDEX = pytest.mark.parametrize("lost_index", [False, True], ids=["index", "lost-index"])


@LOST_INDEX
def test_a_put_that_is_taken_back_after_its_segment_was_sealed(lost_index: bool, tmp_path: Path, tools: Any) -> None:
    """An interrupt, or a full disk, in a transaction that had to begin another segment."""
    folder, key = tmp_path / "stash", tools.key(1)
    store = DiskStore(folder)
    store.put(tools.key(2), b"something else", namespace="kind/a")
    opened = store._opened

    def change() -> None:
        with opened.index.write_lock, opened.reclaimer.changes():
            writer = opened.appender.reserve("kind/a", 1000, 1)
            assert writer is not None
            opened.appender.append(writer, [item(key, b"old")])
            opened.appender.seal_all()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        change()
    assert store.put(key, b"new", namespace="kind/a")
    assert store.delete(key)
    assert store.get(tools.key(2)) == b"something else"
    opened.appender.abandon()
    assert found_after(folder, key, lost_index=lost_index) is None
    assert found_after(folder, tools.key(2), lost_index=False) == b"something else"


@LOST_INDEX
@pytest.mark.parametrize("remove", ["evict", "delete", "prune"])
def test_a_put_that_its_writer_did_not_live_to_finish(
    remove: str, lost_index: bool, tmp_path: Path, start_child: Callable[..., Any], tools: Any
) -> None:
    folder, key = tmp_path / "stash", tools.key(1)
    store = DiskStore(folder)
    let_die_in_a_put(start_child, folder, key, b"old")
    assert store.put(key, b"new", namespace="other/place")
    if remove == "evict":
        store.evict(0)
    elif remove == "delete":
        assert store.delete(key)
    else:
        assert store.prune(namespace="other/").entries == 1
    assert store.get(key) is None
    store._opened.appender.abandon()  # as a kill leaves it: what closing does might hide the fault
    assert found_after(folder, key, lost_index=lost_index) is None


def test_what_loses_when_the_index_is_rebuilt_has_lost_for_good(
    tmp_path: Path, start_child: Callable[..., Any], tools: Any
) -> None:
    folder, key = tmp_path / "stash", tools.key(1)
    store = DiskStore(folder)
    let_die_in_a_put(start_child, folder, key, b"old", "other/place")
    assert store.put(key, b"new", namespace="kind/a")
    store._opened.appender.abandon()
    drop_index(folder)
    store = DiskStore(folder)
    assert store.get(key) == b"new"
    store.prune(namespace="kind/a")
    store._opened.appender.abandon()
    assert found_after(folder, key, lost_index=True) is None


@pytest.mark.parametrize("remove", ["evict", "delete", "prune"])
def test_a_removal_that_was_cut_short_before_its_file_was_unlinked(remove: str, tmp_path: Path, tools: Any) -> None:
    folder, key = tmp_path / "stash", tools.key(1)
    store = DiskStore(folder)
    store.put(key, b"old", namespace="kind/a")
    store._opened.appender.seal_all()
    store.close()
    store = DiskStore(folder)
    [path] = tools.segments(folder)
    content = path.read_bytes()
    store.prune(namespace="kind/a")
    path.write_bytes(content)
    assert store.put(key, b"new", namespace="kind/b")
    if remove == "evict":
        store.evict(0)
    elif remove == "delete":
        assert store.delete(key)
    else:
        store.prune(namespace="kind/b")
    store._opened.appender.abandon()
    assert found_after(folder, key, lost_index=True) is None


def test_tombstones_in_many_namespaces_at_a_small_limit(tmp_path: Path, tools: Any) -> None:
    """Each namespace begins a segment for them, and what is reserved is little."""
    folder = tmp_path / "stash"
    store = DiskStore(folder, capacity_bytes=2 << 20)
    spaces = [f"kind/{number}" for number in range(12)]
    for number, space in enumerate(spaces):
        assert store.put(tools.key(number), tools.value(number, 30_000), namespace=space)
    filler = 0
    while store.events.stats.evicted_entries == 0:
        for number in range(12):
            store.get(tools.key(number))
        assert store.put(tools.key(filler, "filler "), bytes(30_000), namespace="filler")
        filler += 1
    store.close()
    store = DiskStore(folder)
    keys = [key for number, key in enumerate(map(tools.key, range(12))) if store.contains(key)]
    assert len(keys) > 6
    assert store.delete_many(keys) == len(keys)
    assert tools.folder_bytes(folder) <= 2 << 20
    store._opened.appender.abandon()
    drop_index(folder)
    store = DiskStore(folder)
    assert not any(store.contains_many(keys))
    store.close()


def test_a_tombstone_is_written_although_others_removed_the_segment_it_was_meant_for(
    tmp_path: Path, in_child: Callable[..., Any], tools: Any
) -> None:
    folder, key = tmp_path / "stash", tools.key(1)
    store = DiskStore(folder)
    assert store.put(tools.key(2), b"something else", namespace="kind/a")

    def clear_and_put() -> None:
        other = DiskStore(folder)
        other.clear()
        other.put(key, b"old", namespace="kind/a")
        other.close()

    in_child(clear_and_put)
    assert store.delete(key)
    store.close()
    assert found_after(folder, key, lost_index=True) is None


@pytest.mark.parametrize("change", ["put", "delete"])
def test_a_change_told_to_an_index_that_others_have_just_replaced(change: str, tmp_path: Path, tools: Any) -> None:
    """They had read the segments before it, and made their index before it was over."""
    folder, key = tmp_path / "stash", tools.key(1)
    store = DiskStore(folder)
    assert store.put(key, b"old")
    others: list[DiskStore] = []
    intake = store._opened.intake
    real = intake.keep if change == "put" else intake.delete

    def overtaken(*arguments: Any, **named: Any) -> Any:
        drop_index(folder)
        others.append(DiskStore(folder))
        return real(*arguments, **named)

    setattr(intake, "keep" if change == "put" else "delete", overtaken)
    if change == "put":
        assert store.put(key, b"new")
    else:
        assert store.delete(key)
    expected = b"new" if change == "put" else None
    assert store.get(key) == expected
    assert others[0].get(key) == expected
    for each in (store, *others):
        each.close()


def test_a_rebuild_that_is_cut_short_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from lmstash.store.disk import recovery

    folder, keys = tmp_path / "stash", [bytes([number]) * 32 for number in range(20)]
    store = DiskStore(folder)
    for key in keys:
        store.put(key, b"value of " + key)
    store.close()
    (folder / "index.db").unlink()

    def interrupted(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(recovery, "fill_from_segments", interrupted)
    with pytest.raises(KeyboardInterrupt):
        DiskStore(folder)
    monkeypatch.undo()
    with_new_index = DiskStore(folder)
    assert with_new_index.get_many(keys) == [b"value of " + key for key in keys]
    assert not list(folder.glob("index.db.new*"))
    with_new_index.close()


def test_a_process_that_only_reads_follows_an_index_that_others_made_anew(tmp_path: Path):
    folder, key = tmp_path / "stash", bytes(range(32))
    reader = DiskStore(folder)
    reader.put(key, b"old")
    reader.flush()
    assert reader.get(key) == b"old"
    for path in folder.glob("index.db*"):
        path.unlink()
    writer = DiskStore(folder)
    assert writer.put(key, b"new")
    assert reader.get(key) == b"new"
    assert reader.fetch_many([key] * 5)[4].value == b"new"
    writer.close()
    reader.close()
