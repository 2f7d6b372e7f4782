"""Folders of diskcache are read as they are, in use or not, sound or hostile, and never changed."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("llama_cpp")

import diskcache

from lmstash.adapters.llama_cpp import sqlite_aside
from lmstash.adapters.llama_cpp.importing import OldEntry, Refused, read_folder
from lmstash.errors import CorruptEntryError, LmstashError, NotFoundError, StoreUnavailableError

from .old_caches import maker, small_state, store

Make = Callable[..., tuple[Path, Any]]
SHORT, LONG = [1, 2, 3], list(range(1, 201))


@pytest.fixture
def disk_cache(tmp_path: Path) -> Make:
    return maker(tmp_path)


def found(folder: Path) -> list[OldEntry | Refused]:
    return list(read_folder(folder))


def only(folder: Path) -> OldEntry | Refused:
    [entry] = found(folder)
    return entry


def everything(folder: Path) -> dict[str, tuple[bytes, int]]:
    """What lies in a folder: contents and times of change."""
    return {
        str(path.relative_to(folder)): (path.read_bytes() if path.is_file() else b"", path.stat().st_mtime_ns)
        for path in [folder, *sorted(folder.rglob("*"))]
    }


def change(folder: Path, sql: str, *values: Any) -> None:
    """Change the database behind diskcache's back."""
    with contextlib.closing(sqlite3.connect(folder / "cache.db")) as connection:
        connection.executescript(sql) if ";" in sql else connection.execute(sql, values)
        connection.commit()


def closed(made: tuple[Path, Any]) -> Path:
    folder, cache = made
    cache.cache.close()
    return folder


def check(entry: OldEntry | Refused, tokens: list[int]) -> None:
    expected = small_state(tokens)
    assert isinstance(entry, OldEntry), entry
    assert entry.key_tokens == (*tokens, 9)
    assert entry.state.input_ids.tolist() == tokens
    assert (entry.state.n_tokens, entry.state.llama_state) == (len(tokens), expected.llama_state)


@pytest.mark.parametrize("closed_before", [True, False])
def test_entries_come_out_oldest_first_and_the_folder_stays_as_it_was(disk_cache: Make, closed_before: bool):
    """Small values lie in the row, large ones in files; what is still in the write-ahead log counts."""
    folder, cache = disk_cache(SHORT, LONG, [5])
    assert len(list(folder.rglob("*.val"))) == 1
    if closed_before:
        cache.cache.close()
    assert (folder / "cache.db-wal").exists() != closed_before
    before = everything(folder)
    for entry, tokens in zip(found(folder), (SHORT, LONG, [5]), strict=True):
        check(entry, tokens)
    assert everything(folder) == before


def test_a_folder_that_may_not_be_written_is_read(disk_cache: Make):
    folder = closed(disk_cache(SHORT))
    for path in (folder / "cache.db", folder):
        path.chmod(path.stat().st_mode & ~0o222)
    check(only(folder), SHORT)
    folder.chmod(0o755)


def test_an_abandoned_reading_leaves_nothing(disk_cache: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = closed(disk_cache(SHORT, LONG))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    reading = read_folder(folder)
    check(next(reading), SHORT)  # pyright: ignore[reportArgumentType]
    assert list((tmp_path / "temporary").iterdir()) != []
    reading.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert list((tmp_path / "temporary").iterdir()) == []


# --- in use -----------------------------------------------------------------------------------------------------------


def test_locks_of_a_cache_in_the_same_process_stay(disk_cache: Make):
    """Closing any descriptor of a file drops the process's locks on it, which another SQLite here relies on."""
    folder, _ = disk_cache(SHORT)
    inode = f":{(folder / 'cache.db').stat().st_ino} "

    def locks() -> list[str]:
        lines = Path("/proc/locks").read_text().splitlines()
        return [line.split(": ", 1)[1] for line in lines if inode in line and f" {os.getpid()} " in line]

    held = locks()
    assert held
    n_open = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        check(only(folder), SHORT)
    assert locks() == held
    assert len(os.listdir("/proc/self/fd")) <= n_open + 1


def test_a_folder_in_use_by_a_writer_is_read_at_some_moment(disk_cache: Make):
    """Each reading finds whole entries of one moment: those written so far, in order."""
    folder, cache = disk_cache([1])
    stop = threading.Event()

    def write() -> None:
        with contextlib.closing(diskcache.Cache(str(folder))) as other:
            for n in range(2, 400):
                other[(n, 9)] = small_state([n])
                if stop.wait(0.005):
                    return

    writer = threading.Thread(target=write)
    writer.start()
    counts = []
    try:
        for _ in range(5):
            try:
                entries = found(folder)
            except StoreUnavailableError:
                continue  # it was written to all the time, which is said
            for n, entry in enumerate(entries, 1):
                check(entry, [n])
            counts.append(len(entries))
    finally:
        stop.set()
        writer.join()
    assert counts == sorted(counts)
    assert [len(key) for key in cache.cache] == [2] * len(cache.cache)
    assert cache.cache.check() == []
    assert len(found(folder)) == len(cache.cache)


def test_a_folder_that_never_stays_the_same_is_given_up(disk_cache: Make, monkeypatch: pytest.MonkeyPatch):
    folder, cache = disk_cache(SHORT)
    whole, n = sqlite_aside._read, iter(range(1000))

    def write_in_between(path: Path, target: Path | None, *, held: bool) -> bytes:
        if target is None and held:
            store(cache, [next(n)])
        return whole(path, target, held=held)

    monkeypatch.setattr(sqlite_aside, "_read", write_in_between)
    monkeypatch.setattr(sqlite_aside, "_FIRST_PAUSE_SECONDS", 0.0)
    with pytest.raises(StoreUnavailableError, match="all the time"):
        found(folder)


def test_a_folder_that_another_process_was_killed_in_is_read(tmp_path: Path):
    code = (
        "import sys, os, contextlib, io; sys.path.insert(0, sys.argv[2])\n"
        "from llama_cpp import LlamaDiskCache\n"
        "from old_caches import store\n"
        "cache = LlamaDiskCache(sys.argv[1])\n"
        "store(cache, [1, 2, 3]); store(cache, list(range(1, 201)))\n"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "old"), str(Path(__file__).parent)], check=False)
    before = everything(tmp_path / "old")
    for entry, tokens in zip(found(tmp_path / "old"), (SHORT, LONG), strict=True):
        check(entry, tokens)
    assert everything(tmp_path / "old") == before


def test_a_rollback_journal_is_not_followed(disk_cache: Make, tmp_path: Path):
    """A hot journal may name a file that rolling back would delete."""
    folder = closed(disk_cache(SHORT))
    change(folder, "PRAGMA journal_mode = delete;")
    check(only(folder), SHORT)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    name = str(victim).encode()
    magic = bytes.fromhex("d9d505f920a163d7")
    journal = magic + bytes(504) + name + len(name).to_bytes(4, "big") + sum(name).to_bytes(4, "big") + magic
    (folder / "cache.db-journal").write_bytes(journal)
    with pytest.raises(StoreUnavailableError, match="in the midst of a transaction"):
        found(folder)
    assert victim.read_text() == "precious"
    (folder / "cache.db-journal").write_bytes(bytes(512))  # as journal_mode = persist leaves it
    check(only(folder), SHORT)


# --- damaged and hostile ----------------------------------------------------------------------------------------------


def test_folders_that_are_none_are_named(tmp_path: Path):
    with pytest.raises(NotFoundError, match=r"no cache\.db"):
        found(tmp_path)
    with pytest.raises(NotFoundError):
        found(tmp_path / "nothing")
    (tmp_path / "cache.db").write_bytes(b"SQLite format 3\0" + bytes(5000))
    with pytest.raises(CorruptEntryError):
        found(tmp_path)
    (tmp_path / "cache.db").write_bytes(b"")
    with pytest.raises(CorruptEntryError, match="no table Cache"):
        found(tmp_path)
    (tmp_path / "cache.db").unlink()
    os.mkfifo(tmp_path / "cache.db")
    with pytest.raises(CorruptEntryError, match="not a regular file"):
        found(tmp_path)


def test_a_value_file_that_is_gone_cut_or_no_file_refuses_its_entry_only(disk_cache: Make):
    folder = closed(disk_cache(SHORT, LONG, [5]))
    [value] = folder.rglob("*.val")
    data = value.read_bytes()
    for harm, reason in (
        (lambda: value.unlink(), "No such file"),
        (lambda: value.write_bytes(data[:-1]), "ends early"),
        (lambda: value.write_bytes(b""), "ends early"),
        (lambda: (value.unlink(), value.mkdir()), "regular file|directory"),
        (lambda: (value.rmdir(), os.mkfifo(value)), "regular file"),
    ):
        harm()
        first, refused, last = found(folder)
        check(first, SHORT)
        check(last, [5])
        assert isinstance(refused, Refused)
        assert value.name in refused.where
        assert any(word in refused.reason for word in reason.split("|")), refused


def test_value_files_outside_of_the_folder_are_not_opened(disk_cache: Make, tmp_path: Path):
    folder = closed(disk_cache(LONG))
    [value] = folder.rglob("*.val")
    outside = tmp_path / "outside"
    outside.mkdir()
    shutil.copy(value, outside / value.name)
    inside = str(value.relative_to(folder))
    for name in (
        str(value),
        f"../outside/{value.name}",
        f"{inside[:6]}../../../outside/{value.name}",
        "",
        "cache.db",
        "aa/bb/\x00.val",
        inside.upper(),
        inside + "\n",
        inside * 1000,
        b"\xff\xfe",
        7,
    ):
        change(folder, "UPDATE Cache SET filename = ?", name)
        refused = only(folder)
        assert isinstance(refused, Refused), name
        assert "a name that diskcache does not give" in refused.reason
        assert len(refused.where) < 200
    change(folder, "UPDATE Cache SET filename = ?", inside)
    check(only(folder), LONG)
    value.unlink()
    value.symlink_to(outside / value.name)
    assert "cannot be opened" in str(only(folder))
    value.unlink()
    value.parent.rmdir()
    value.parent.symlink_to(outside)
    assert "cannot be opened" in str(only(folder))


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("UPDATE Cache SET raw = 1", "key is not pickled"),
        ("UPDATE Cache SET key = 5", "key is not pickled"),
        ("UPDATE Cache SET key = x'80052e'", "key is not a pickled tuple"),
        ("UPDATE Cache SET key = zeroblob(70000000)", "key has 70,000,000 bytes"),
        ("UPDATE Cache SET mode = 2", "value is not pickled"),
        ("UPDATE Cache SET mode = 'x'", "value is not pickled"),
        ("UPDATE Cache SET value = NULL", "no value"),
        ("UPDATE Cache SET value = 'text'", "no value"),
        ("UPDATE Cache SET value = x''", "ends early"),
        ("UPDATE Cache SET expire_time = 5.0", "expired"),
    ],
)
def test_rows_that_are_no_entries_are_refused_alone(disk_cache: Make, sql: str, reason: str):
    folder = closed(disk_cache([5], SHORT))
    change(folder, f"{sql} WHERE rowid = 2")
    first, refused = found(folder)
    check(first, [5])
    assert isinstance(refused, Refused)
    assert reason in refused.reason


def test_a_key_of_other_tokens_than_the_state_is_refused(disk_cache: Make):
    folder, cache = disk_cache()
    store(cache, SHORT, small_state([1, 2, 4]))
    assert "of different tokens" in str(only(folder))
    change(folder, "UPDATE Cache SET key = ?", pickle.dumps(()))
    assert "of different tokens" in str(only(folder))


@pytest.mark.parametrize(
    "sql",
    [
        "DROP TABLE Cache;",
        "DROP TABLE Cache; CREATE VIEW Cache AS SELECT 1 AS rowid, 2 AS key, 0 AS raw, 0 AS expire_time, 4 AS mode, "
        "'' AS filename, x'' AS value;",
        "DROP TABLE Cache; CREATE TABLE Cache (key, raw, expire_time, mode, filename, value);",
        "ALTER TABLE Cache ADD COLUMN more GENERATED ALWAYS AS (hex(zeroblob(key))) VIRTUAL;",
        "DROP TABLE Cache; CREATE VIRTUAL TABLE Cache USING fts5(key, raw, expire_time, mode, filename, value);",
    ],
)
def test_databases_that_are_not_of_diskcache_are_refused(disk_cache: Make, sql: str):
    folder = closed(disk_cache(SHORT))
    with contextlib.suppress(sqlite3.OperationalError):  # an SQLite without fts5; then the table is gone
        change(folder, sql)
    with pytest.raises(CorruptEntryError):
        found(folder)


def test_text_that_is_no_unicode_is_refused(disk_cache: Make):
    folder = closed(disk_cache(SHORT))
    change(folder, "UPDATE Cache SET filename = CAST(x'fffe' AS TEXT)")
    assert "a name that diskcache does not give" in str(only(folder))


def test_pages_that_are_used_twice_are_found(disk_cache: Make):
    """Interior pages all of whose children are one page would make a small file hold rows without end."""
    folder, cache = disk_cache()
    for n in range(300):
        store(cache, [n + 1])
    cache.cache.close()
    with contextlib.closing(sqlite3.connect(folder / "cache.db")) as connection:
        (root,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'Cache'").fetchone()
        (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
    data = bytearray((folder / "cache.db").read_bytes())
    page = memoryview(data)[(root - 1) * page_bytes : root * page_bytes]
    assert page[0] == 5  # an interior page of a table
    n_cells = int.from_bytes(page[3:5], "big")
    cells = [int.from_bytes(page[12 + 2 * i : 14 + 2 * i], "big") for i in range(n_cells)]
    for cell in cells[1:]:
        page[cell : cell + 4] = page[cells[0] : cells[0] + 4]
    page.release()
    (folder / "cache.db").write_bytes(data)
    with pytest.raises(CorruptEntryError, match="damaged"):
        found(folder)


@pytest.fixture
def sound(disk_cache: Make, tmp_path: Path) -> Path:
    """A folder as a killed process leaves it, with a log to replay."""
    folder, _ = disk_cache(SHORT, LONG)
    return Path(shutil.copytree(folder, tmp_path / "sound"))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_flipped_bytes_raise_only_what_the_reader_says(sound: Path, data: st.DataObject):
    names = ["cache.db", "cache.db-wal", next(sound.rglob("*.val")).relative_to(sound)]
    harmed = sound.parent / "harmed"
    shutil.rmtree(harmed, ignore_errors=True)
    shutil.copytree(sound, harmed)
    path = harmed / names[data.draw(st.integers(0, 2))]
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=20)):
        content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        entries = found(harmed)
    except LmstashError:
        return
    assert all(isinstance(entry, (OldEntry, Refused)) for entry in entries)
