"""A pin belongs to the key, wherever its value goes."""

from __future__ import annotations

from pathlib import Path

from lmstash.store.disk.store import DiskStore

KEY = bytes(range(32))


def test_a_pin_outlives_its_first_namespace_and_the_index(tmp_path: Path):
    store = DiskStore(tmp_path / "stash", strict=True)
    store.put(KEY, b"first", namespace="kind/a")
    store.pin_many([KEY])
    store.put(KEY, b"second", namespace="kind/b")
    store.prune(namespace="kind/a")
    store.close()
    (tmp_path / "stash" / "index.db").unlink()
    with_new_index = DiskStore(tmp_path / "stash", strict=True)
    assert [(entry.namespace, entry.pinned) for entry in with_new_index.entries()] == [("kind/b", True)]
    with_new_index.close()


def test_the_pin_of_an_entry_that_is_gone_is_not_the_next_ones(tmp_path: Path):
    store = DiskStore(tmp_path / "stash", strict=True)
    store.put(KEY, b"first", namespace="kind/a")
    store.pin_many([KEY])
    store.put(KEY, b"second", namespace="kind/b")
    store.pin_many([KEY], False)
    store.prune(namespace="kind/b")  # and with it the record that says that the pin has ended
    store.put(KEY, b"third", namespace="kind/a")
    store._opened.appender.abandon()
    for path in (tmp_path / "stash").glob("index.db*"):
        path.unlink()
    with_new_index = DiskStore(tmp_path / "stash", strict=True)
    assert [(entry.namespace, entry.pinned) for entry in with_new_index.entries()] == [("kind/a", False)]
    with_new_index.close()


def test_a_pin_of_an_earlier_entry_does_not_come_back_through_a_later_replacement(tmp_path: Path):
    store = DiskStore(tmp_path / "stash", strict=True)
    store.put(KEY, b"first", namespace="kind/a")
    store.pin_many([KEY])
    store.put(KEY, b"second", namespace="other/a")
    store.prune(namespace="other/a")
    store.put(KEY, b"third", namespace="kind/a")
    store.put(KEY, b"fourth", namespace="kind/a")  # replaces one that was never pinned
    store._opened.appender.abandon()
    for path in (tmp_path / "stash").glob("index.db*"):
        path.unlink()
    with_new_index = DiskStore(tmp_path / "stash", strict=True)
    assert [(entry.nbytes, entry.pinned) for entry in with_new_index.entries()] == [(6, False)]
    with_new_index.close()
