"""Many reads under way at once: in order, whole, and never into memory that somebody else has by then."""

from __future__ import annotations

import errno
import gc
import mmap
import os
import random
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmstash.errors import CorruptEntryError
from lmstash.store.disk.reading import kernel_reads
from lmstash.store.disk.reading.checked import PAGE_BYTES
from lmstash.store.disk.reading.kernel_reads import Reads, reads

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's own reads are Linux's")

N_PAGES = 300


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    data = random.Random(5).randbytes(N_PAGES * PAGE_BYTES)
    (tmp_path / "file").write_bytes(data)
    return data


@pytest.fixture
def fd(content: bytes, tmp_path: Path) -> Iterator[int]:
    try:
        file = os.open(tmp_path / "file", os.O_RDONLY | os.O_DIRECT)
    except OSError:
        pytest.skip("this file system reads nothing around the page cache")
    yield file
    os.close(file)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_reads, "_idle", [])
    monkeypatch.setattr(kernel_reads, "_refused", [])


def queue() -> Reads:
    found = reads()
    if found is None:
        pytest.skip("this kernel has no queues of reads")
    return found


def memory(n_bytes: int) -> memoryview:
    return memoryview(mmap.mmap(-1, n_bytes))


def pages(*numbers: int) -> list[int]:
    return [number * PAGE_BYTES for number in numbers]


def read(fd: int, first: int, bounds: list[int], least_bytes: int | None = None) -> bytes:
    """Read by a queue, and look at each piece when it is said to be there."""
    whole = memory(bounds[-1])
    out: list[bytes] = []
    for number in queue().in_order(fd, first, whole, bounds, least_bytes or bounds[-1]):
        assert number == len(out)
        out.append(bytes(whole[bounds[number] : bounds[number + 1]]))
    assert kernel_reads._held == {}
    return b"".join(out)


@pytest.mark.parametrize(
    ("first", "bounds"),
    [(0, [0, 1]), (7, [0, 1]), (0, [0, 300]), (3, [0, 1, 2, 50]), (5, [0, *range(2, 290, 3)]), (0, list(range(301)))],
)
def test_pieces_come_whole_and_in_their_order(content: bytes, fd: int, first: int, bounds: list[int]) -> None:
    start = first * PAGE_BYTES
    for _again in range(3):
        assert read(fd, start, pages(*bounds)) == content[start : start + bounds[-1] * PAGE_BYTES]


def test_a_queue_is_used_again(content: bytes, fd: int) -> None:
    used = queue()
    whole = memory(PAGE_BYTES)
    assert list(used.in_order(fd, 0, whole, pages(0, 1), PAGE_BYTES)) == [0]
    assert reads() is used
    assert reads() is not used


def test_the_file_may_end_in_the_last_page(tmp_path: Path, content: bytes, fd: int) -> None:
    end = 20 * PAGE_BYTES - 100
    os.truncate(tmp_path / "file", end)
    assert read(fd, 0, pages(0, 8, 16, 20), end)[:end] == content[:end]


@pytest.mark.parametrize("missing", [1, 100, 5 * PAGE_BYTES])
def test_a_file_that_ends_too_early_is_cut_short(tmp_path: Path, content: bytes, fd: int, missing: int) -> None:
    os.truncate(tmp_path / "file", 20 * PAGE_BYTES - missing)
    with pytest.raises(CorruptEntryError):
        read(fd, 0, pages(0, 8, 16, 20))
    assert kernel_reads._held == {}
    assert read(fd, 0, pages(0, 8)) == content[: 8 * PAGE_BYTES]


def test_a_descriptor_that_is_none_is_an_error_of_the_disk(content: bytes) -> None:
    with pytest.raises(OSError) as caught:
        read(987_654, 0, pages(0, 8))
    assert caught.value.errno == errno.EBADF
    assert kernel_reads._held == {}


@pytest.mark.parametrize("taken", [0, 1])
def test_what_the_kernel_does_not_take_is_read_all_the_same(
    content: bytes, fd: int, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Reads._start

    def start(self: Reads, fd: int, offset: int, address: int, bounds: list[int], first: int, last: int) -> int:
        return whole(self, fd, offset, address, bounds, first, min(last, first + taken)) if taken else 0

    monkeypatch.setattr(Reads, "_start", start)
    assert read(fd, 0, pages(*range(0, 300, 7))) == content[: 294 * PAGE_BYTES]


def test_the_next_are_begun_once_all_are_there_and_before_those_are_looked_at(
    content: bytes, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, asked = Reads._start, list[tuple[int, int]]()
    started: list[tuple[int, int]] = []

    def start(self: Reads, fd: int, offset: int, address: int, bounds: list[int], first: int, last: int) -> int:
        started.append((len(asked), last - first))
        return begin(self, fd, offset, address, bounds, first, last)

    def arrived(self: Reads, *, wait: bool) -> list[tuple[int, int]]:
        found = whole(self, wait=True)  # as a disk that is fast
        asked.extend(found)
        return found

    whole = Reads._arrived
    monkeypatch.setattr(Reads, "_start", start)
    monkeypatch.setattr(Reads, "_arrived", arrived)
    target = memory(64 * PAGE_BYTES)
    for number in queue().in_order(fd, 0, target, pages(*range(65)), len(target)):
        assert len(asked) > number
    assert started == [(0, 32), (32, 24), (56, 6), (62, 1), (63, 1)]
    assert bytes(target) == content[: 64 * PAGE_BYTES]


@pytest.mark.parametrize("after", [0, 1, 40, 99])
@pytest.mark.parametrize("how", ["raised", "dropped"])
def test_who_stops_early_waits_for_what_is_under_way(content: bytes, fd: int, after: int, how: str) -> None:
    whole = memory(100 * PAGE_BYTES)
    pieces = queue().in_order(fd, 0, whole, pages(*range(101)), len(whole))
    for _ in range(after + 1):
        next(pieces)
    if how == "raised":
        with pytest.raises(KeyboardInterrupt):
            pieces.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
    del pieces
    gc.collect()
    assert kernel_reads._held == {}
    whole[:] = bytes(len(whole))
    assert read(fd, 0, pages(*range(101))) == content[: 100 * PAGE_BYTES]
    assert not any(whole), "a read came after its end"


@pytest.mark.parametrize("place", ["_start", "_arrived"])
def test_an_interrupt_between_call_and_count_leaves_nothing_under_way(
    content: bytes, fd: int, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = getattr(Reads, place)

    def interrupted(self: Reads, *arguments: object, **options: object) -> None:
        whole(self, *arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Reads, place, interrupted)
        target = memory(100 * PAGE_BYTES)
        with pytest.raises(KeyboardInterrupt):
            list(queue().in_order(fd, 0, target, pages(*range(101)), len(target)))
    assert kernel_reads._held == {}
    assert kernel_reads._idle == []
    target[:] = bytes(len(target))
    assert read(fd, 0, pages(*range(101))) == content[: 100 * PAGE_BYTES]
    assert not any(target)


def test_what_stops_at_the_last_piece_leaves_the_queue_to_its_next_user(content: bytes, fd: int) -> None:
    whole = memory(PAGE_BYTES)
    first = queue().in_order(fd, 0, whole, pages(0, 1), PAGE_BYTES)
    assert next(first) == 0  # the queue is free from here on
    other = memory(100 * PAGE_BYTES)
    second = queue().in_order(fd, 0, other, pages(*range(101)), len(other))
    assert next(second) == 0
    first.close()  # type: ignore[attr-defined]
    assert list(second) == list(range(1, 100))
    assert bytes(other) == content[: 100 * PAGE_BYTES]


def test_threads_read_side_by_side(content: bytes, fd: int) -> None:
    wrong: list[int] = []

    def work(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(30):
            first, n = draw.randrange(200), draw.randrange(1, 100)
            bounds = sorted({0, n, *(draw.randrange(n + 1) for _ in range(draw.randrange(60)))})
            whole = memory(n * PAGE_BYTES)
            found = reads()
            assert found is not None
            list(found.in_order(fd, first * PAGE_BYTES, whole, pages(*bounds), len(whole)))
            if bytes(whole) != content[first * PAGE_BYTES : (first + n) * PAGE_BYTES]:
                wrong.append(seed)

    queue()
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(12)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert wrong == []
    assert len(kernel_reads._idle) <= 8


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_queues_of_its_own(content: bytes, fd: int) -> None:
    assert read(fd, 0, pages(0, 5)) == content[: 5 * PAGE_BYTES]
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = int(kernel_reads._idle != [] or read(fd, 0, pages(0, 5, 9)) != content[: 9 * PAGE_BYTES])
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert read(fd, 0, pages(0, 5)) == content[: 5 * PAGE_BYTES]


@pytest.mark.parametrize(("number", "again"), [(errno.ENOSYS, False), (errno.EPERM, False), (errno.EAGAIN, True)])
def test_a_kernel_that_refuses_is_asked_again_only_where_that_may_help(
    number: int, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def refuse(self: Reads, which: int, *_: object) -> int:
        asked.append(which)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Reads, "_call", refuse)
    assert [reads(), reads()] == [None, None]
    assert len(asked) == (2 if again else 1)


def test_an_interrupt_while_a_queue_is_given_back_leaves_no_memory_held(
    content: bytes, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Reads) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Reads, "_give_back", interrupted)
    with pytest.raises(KeyboardInterrupt):
        read(fd, 0, pages(0, 8))
    assert kernel_reads._held == {}


def test_a_fork_holds_no_memory_that_the_parent_reads_into(content: bytes, fd: int) -> None:
    whole = memory(100 * PAGE_BYTES)
    pieces = queue().in_order(fd, 0, whole, pages(*range(101)), len(whole))
    next(pieces)
    child = os.fork()
    if not child:
        os._exit(len(kernel_reads._held) + len(kernel_reads._idle))
    assert os.waitpid(child, 0)[1] == 0
    assert list(pieces) == list(range(1, 100))
    assert bytes(whole) == content[: 100 * PAGE_BYTES]
