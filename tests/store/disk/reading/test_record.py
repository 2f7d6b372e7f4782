"""Cold reads go around the page cache, warm ones do not: whichever it is, the bytes are those that were put."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

import lmstash
from lmstash.store.disk.files.format import Header
from lmstash.store.disk.files.rows import Row
from lmstash.store.disk.files.segment import SegmentFile
from lmstash.store.disk.reading import cold as cold_reading
from lmstash.store.disk.reading import kernel_reads
from lmstash.store.disk.reading.page_cache import cached_share

MIB = 1 << 20
KEYS = [bytes([number]) * 32 for number in range(4)]
SIZES = (3 * MIB, 9 * MIB + 5, 17 * MIB, 2 * MIB)
VALUES = [random.Random(number).randbytes(size) for number, size in enumerate(SIZES)]


def drop_pages(folder: Path) -> None:
    """Put everything out of the page cache, or skip where that cannot be done."""
    advise = getattr(os, "posix_fadvise", None)
    if advise is None or not hasattr(os, "O_DIRECT"):
        pytest.skip("no way to drop pages here")
    for path in folder.glob("**/*.seg"):
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
            advise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            if cached_share(file, 0, os.fstat(file).st_size):
                pytest.skip("this file system keeps its pages")
        finally:
            os.close(file)


@pytest.fixture
def stash(tmp_path: Path):
    with lmstash.open(tmp_path / "stash", strict=True, trust_env=False) as stash:
        for key, value in zip(KEYS, VALUES, strict=True):
            assert stash.store.put(key, value)
        stash.flush()
        yield stash


@pytest.fixture
def cold_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of what was read around the page cache."""
    seen: list[int] = []
    whole = cold_reading.read_cold

    def counted(fd: int, file: SegmentFile, row: Row) -> tuple[Header, memoryview]:
        seen.append(row.size)
        return whole(fd, file, row)

    monkeypatch.setattr(cold_reading, "read_cold", counted)
    return seen


def test_every_cold_value_is_read_around_the_page_cache(stash, tmp_path, cold_reads) -> None:
    for _round in range(2):
        drop_pages(tmp_path)
        for key, value in zip(KEYS, VALUES, strict=True):
            # The header of each is read first: what the system reads ahead with it must not make the rest look warm.
            assert stash.store.get(key) == value
    assert cold_reads == 2 * [len(value) for value in VALUES]


def test_what_the_page_cache_has_is_read_from_it(stash, tmp_path, cold_reads) -> None:
    drop_pages(tmp_path)
    for path in tmp_path.glob("**/*.seg"):
        path.read_bytes()
    for key, value in zip(KEYS, VALUES, strict=True):
        assert stash.store.get(key) == value
    assert cold_reads == []


def test_half_a_value_in_the_page_cache_is_no_harm(stash, tmp_path) -> None:
    for _round in range(5):
        drop_pages(tmp_path)
        for path in tmp_path.glob("**/*.seg"):
            with path.open("rb") as file:
                file.read(path.stat().st_size // 2)
        for key, value in zip(KEYS, VALUES, strict=True):
            assert stash.store.get(key) == value


def test_a_file_system_that_reads_nothing_so_is_read_as_usual(stash, tmp_path, monkeypatch) -> None:
    calls: list[int] = []

    def refuse(fd: int, file: SegmentFile, row: Row) -> tuple[Header, memoryview]:
        calls.append(row.size)
        raise OSError(errno.EINVAL, "no such thing here")

    monkeypatch.setattr(cold_reading, "read_cold", refuse)
    drop_pages(tmp_path)
    for key, value in zip(KEYS, VALUES, strict=True):
        assert stash.store.get(key) == value
    assert len(calls) == len(list(tmp_path.glob("**/*.seg"))), "each file is tried once"


@pytest.mark.parametrize("at", [0, 1, 4, 9])
def test_what_is_raised_while_more_is_read_comes_out_and_the_next_value_is_right(
    stash, tmp_path, monkeypatch, at: int
) -> None:
    checked = cold_reading.check_chunk

    def fail(header: Header, index: int, chunk: memoryview) -> None:
        checked(header, index, chunk)
        if index == at:
            raise KeyboardInterrupt

    drop_pages(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(cold_reading, "check_chunk", fail)
        with pytest.raises(KeyboardInterrupt):
            stash.store.get(KEYS[1])
    assert kernel_reads._held == {}
    drop_pages(tmp_path)
    assert stash.store.get(KEYS[1]) == VALUES[1]


def test_where_the_kernel_has_no_queues_values_are_read_all_the_same(stash, tmp_path, monkeypatch, cold_reads) -> None:
    monkeypatch.setattr(kernel_reads, "reads", lambda: None)
    drop_pages(tmp_path)
    for key, value in zip(KEYS, VALUES, strict=True):
        assert stash.store.get(key) == value
    assert cold_reads == [len(value) for value in VALUES]


@pytest.mark.parametrize("queues", [True, False])
def test_a_damaged_byte_anywhere_is_found(stash, tmp_path, monkeypatch, queues: bool) -> None:
    if not queues:
        monkeypatch.setattr(kernel_reads, "reads", lambda: None)
    index = stash.store._opened.index
    for key, value in zip(KEYS, VALUES, strict=True):
        for at in (0, MIB, len(value) // 2, len(value) - 1):
            assert stash.store.put(key, value)
            stash.flush()
            row = index.find(key)
            with (tmp_path / "stash" / "segments" / f"{index.segment(row.seg).name}.seg").open("r+b") as file:
                file.seek(row.off + row.head + at)
                file.write(bytes([value[at] ^ 1]))
            drop_pages(tmp_path)
            assert stash.store.get(key) is None
            assert kernel_reads._held == {}


def test_what_the_page_cache_holds_is_told_and_not_changed(stash, tmp_path) -> None:
    drop_pages(tmp_path)
    (path,) = [path for path in tmp_path.glob("**/*.seg") if path.stat().st_size > 8 * MIB]
    file = os.open(path, os.O_RDONLY)
    try:
        for _again in range(3):
            assert cached_share(file, 5000, 8 * MIB) == 0
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)  # nothing is read ahead
        os.pread(file, 4 * MIB, 0)
        assert cached_share(file, 0, 4 * MIB) == 1
        assert cached_share(file, 0, 8 * MIB) == 0.5
        assert cached_share(file, 4 * MIB, 4 * MIB) == 0
    finally:
        os.close(file)
