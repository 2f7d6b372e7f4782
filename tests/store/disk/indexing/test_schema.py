"""Indexes of an earlier schema: what they know is known on, uses and pins included."""

from __future__ import annotations

import multiprocessing
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest

from lmstash.store.base import EntryInfo, Write
from lmstash.store.disk.files.rows import PLACE
from lmstash.store.disk.indexing import schema
from lmstash.store.disk.store import DiskStore
from lmstash.testing import sample_bytes, sample_key

N = 700
KEYS = [sample_key(number) for number in range(N)]
_NUMBERS = ("seg", "off", "head", "size", "slot")


def fill(folder: Path, *, read_only: bool = False) -> dict[bytes, EntryInfo]:
    """Put entries, use and pin some, and give the folder an index of schema 1; returns what was known of each.

    Who only reads knows nothing of uses.
    """
    with closing(DiskStore(folder)) as store:
        store.put_many([Write(key, sample_bytes(50, n), f"kind/{n % 3}") for n, key in enumerate(KEYS)])
        store.get_many(KEYS[::7])
        store.pin_many(KEYS[:3])
        store.delete_many(KEYS[-5:])
    with closing(DiskStore(folder, read_only=read_only)) as store:
        known = {info.key: info for info in store.entries()}
    older(folder)
    return known


def older(folder: Path) -> None:
    """Give a folder an index of schema 1 that knows what its own does."""
    connection = apsw.Connection(str(folder / "index.db"))
    for at, name in enumerate(_NUMBERS):
        connection.create_scalar_function(f"{name}_of", lambda place, at=at: PLACE.unpack(place)[at], 1)
    columns = ", ".join(f"{name}_of(place)" for name in _NUMBERS)
    connection.execute(
        "BEGIN; ALTER TABLE entries RENAME TO later;"
        "CREATE TABLE entries(k INTEGER PRIMARY KEY, key BLOB NOT NULL, seg INTEGER NOT NULL, off INTEGER NOT NULL,"
        " head INTEGER NOT NULL, size INTEGER NOT NULL, slot INTEGER NOT NULL, gen INTEGER NOT NULL,"
        " exp INTEGER NOT NULL, pinned INTEGER NOT NULL);"
        f"INSERT INTO entries SELECT k, key, {columns}, gen, exp, pinned FROM later;"
        "DROP TABLE later; PRAGMA user_version = 1; COMMIT"
    )
    connection.close()


def version(folder: Path) -> int:
    with closing(apsw.Connection(str(folder / "index.db"))) as connection:
        return connection.execute("PRAGMA user_version").get


@pytest.mark.parametrize("read_only", [False, True])
def test_all_that_was_known_is_known(tmp_path: Path, read_only: bool):
    known = fill(tmp_path, read_only=read_only)
    assert len(known) == N - 5
    assert any(info.hits for info in known.values()) != read_only
    with closing(DiskStore(tmp_path, read_only=read_only, strict=True)) as store:
        assert {info.key: info for info in store.entries()} == known
        expected = [sample_bytes(50, n) if n < N - 5 else None for n in range(N)]
        assert store.get_many(KEYS) == expected
        assert [store.get(key) for key in KEYS] == expected
        assert store.contains_many(KEYS) == [each is not None for each in expected]
        assert store.verify().ok
        assert store.events.stats.damaged == 0
    assert version(tmp_path) == (1 if read_only else 2)


def test_what_is_written_on_is_kept_beside(tmp_path: Path):
    known = fill(tmp_path)
    with closing(DiskStore(tmp_path, strict=True)) as store:
        assert store.put_many([Write(KEYS[-1], b"new", "kind/0"), Write(KEYS[5], b"not kept: it is there", "kind/0")])
        assert store.delete_many(KEYS[:2]) == 2
    with closing(DiskStore(tmp_path, strict=True)) as store:
        assert store.get(KEYS[-1]) == b"new"
        assert store.info().entries == len(known) - 1
        assert store.verify().ok


@pytest.mark.parametrize("value", [-1, 2**40, "text", None])
def test_rows_that_make_no_sense_have_the_index_made_anew(tmp_path: Path, value: Any):
    known = fill(tmp_path)
    connection = apsw.Connection(str(tmp_path / "index.db"))
    connection.execute("PRAGMA writable_schema = ON")
    if value is None:
        connection.execute("UPDATE sqlite_schema SET sql = replace(sql, 'slot INTEGER', 'sl0t INTEGER')")
    else:
        connection.execute("UPDATE entries SET seg = ? WHERE key = ?", (value, KEYS[9]))
    connection.close()
    with closing(DiskStore(tmp_path)) as store:
        assert [info.key for info in store.entries() if info.pinned] == [
            info.key for info in known.values() if info.pinned
        ]
        assert store.get_many(KEYS[:-5]) == [sample_bytes(50, number) for number in range(N - 5)]
        assert store.events.stats.damaged == 1
    assert version(tmp_path) == 2


def _read(folder: Path) -> int:
    with closing(DiskStore(folder, strict=True)) as store:
        return sum(each is not None for each in store.get_many(KEYS)) + store.events.stats.damaged * 10_000


def test_several_processes_may_open_it_at_once(tmp_path: Path):
    fill(tmp_path)
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        assert pool.map(_read, [tmp_path] * 8, chunksize=1) == [N - 5] * 8
    assert version(tmp_path) == 2


def test_what_was_begun_is_read_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(schema, "_ROWS", 100)
    known = fill(tmp_path)
    with closing(apsw.Connection(str(tmp_path / "index.db"))) as connection:
        for _ in range(3):
            schema.make_some(connection)
        assert connection.execute("SELECT count(*) FROM entries").get == 300
    expected = [sample_bytes(50, n) if n < N - 5 else None for n in range(N)]
    with closing(DiskStore(tmp_path, read_only=True, strict=True)) as store:
        assert store.get_many(KEYS) == expected
        assert [store.get(key) for key in KEYS] == expected
        assert {info.key for info in store.entries()} == known.keys()
    assert version(tmp_path) == 1
    with closing(DiskStore(tmp_path, strict=True)) as store:
        assert {info.key: info for info in store.entries()} == known
        assert store.get_many(KEYS) == expected
        assert store.verify().ok
    assert version(tmp_path) == 2


def test_who_reads_while_another_takes_it_over_goes_on(tmp_path: Path):
    fill(tmp_path)
    expected = [sample_bytes(50, n) if n < N - 5 else None for n in range(N)]
    with closing(DiskStore(tmp_path, read_only=True)) as reader:
        assert reader.get_many(KEYS) == expected
        with closing(DiskStore(tmp_path, strict=True)) as writer:
            assert writer.get_many(KEYS) == expected
            reader.get(KEYS[0])  # finds another schema: a miss
            assert reader.get_many(KEYS) == expected
            assert [reader.get(key) for key in KEYS] == expected


@pytest.mark.parametrize("of_schema", [1, 2])
def test_who_only_reads_a_damaged_index_opens_it_once(tmp_path: Path, of_schema: int):
    fill(tmp_path)
    if of_schema == 2:
        DiskStore(tmp_path).close()
    with closing(apsw.Connection(str(tmp_path / "index.db"))) as connection:
        connection.execute(
            f"UPDATE entries SET {'seg' if of_schema == 1 else 'place'} = 'text' WHERE key = ?", (KEYS[9],)
        )
    with closing(DiskStore(tmp_path, read_only=True)) as store:
        opened = store._opened
        for _ in range(5):
            store.get_many(KEYS)
            store.get(KEYS[9])
        assert store._opened is opened


def test_the_limit_holds_while_it_is_taken_over(tmp_path: Path, tools: Any, monkeypatch: pytest.MonkeyPatch):
    with closing(DiskStore(tmp_path, capacity_bytes=8 << 20)) as store:
        for start in range(0, 30_000, 500):
            numbers = range(start, start + 500)
            store.put_many([Write(sample_key(n), sample_bytes(50, n), "kind/0") for n in numbers])
        n_before = store.info().entries
    older(tmp_path)
    with closing(apsw.Connection(str(tmp_path / "index.db"))) as connection:
        connection.execute("VACUUM")
    monkeypatch.setattr(schema, "_ROWS", 500)
    taken: list[int] = []
    whole = schema.make_some

    def watched(connection: apsw.Connection) -> bool:
        taken.append(tools.folder_bytes(tmp_path))
        return whole(connection)

    monkeypatch.setattr(schema, "make_some", watched)
    with closing(DiskStore(tmp_path, strict=True)) as store:
        taken.append(tools.folder_bytes(tmp_path))
        assert len(taken) > 10
        assert max(taken) <= 8 << 20
        assert store.info().entries > 0.8 * n_before
        assert store.verify().ok


@pytest.mark.parametrize("schema_version", [3, 2**31 - 1, -1, -(2**31)])
def test_a_later_schema_or_none_that_can_be_is_made_anew(tmp_path: Path, schema_version: int):
    fill(tmp_path)
    with closing(apsw.Connection(str(tmp_path / "index.db"))) as connection:
        connection.execute(f"PRAGMA user_version = {schema_version}")
    with closing(DiskStore(tmp_path)) as store:
        assert store.get_many(KEYS[:-5]) == [sample_bytes(50, number) for number in range(N - 5)]
