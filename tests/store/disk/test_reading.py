"""Cold reads go around the page cache, warm ones do not: whichever it is, the bytes are those that were put."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

import lmstash
from lmstash.store.disk import reading

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
            if reading.is_cached(file, 0, os.fstat(file).st_size):
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
    whole = reading._read_cold

    def counted(fd: int, start: int, memory: memoryview, header: reading.Header) -> None:
        seen.append(header.payload_bytes)
        whole(fd, start, memory, header)

    monkeypatch.setattr(reading, "_read_cold", counted)
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


def test_the_host_s_random_numbers_stay_as_they_are(stash, tmp_path) -> None:
    random.seed(1)
    expected = random.random()
    random.seed(1)
    drop_pages(tmp_path)
    stash.store.get(KEYS[0])
    assert random.random() == expected
