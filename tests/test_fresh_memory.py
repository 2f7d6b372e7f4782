import threading
import time
import weakref

import numpy as np
import pytest

from lmstash import fresh_memory


def wait_for_threads():
    deadline = time.monotonic() + 30
    while any(each.name == "lmstash-memory" for each in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_memory_asked_for_is_there_and_keeps_what_was_written_meanwhile():
    array = np.zeros(fresh_memory.LEAST_BYTES // 8 + 7, np.int64)
    fresh_memory.ask_for_memory(array)
    array[::1000] = 5
    wait_for_threads()
    assert (array[::1000] == 5).all()
    assert not array[1::1000].any()


def test_memory_of_an_array_that_is_let_go_at_once_harms_nobody():
    for _ in range(20):
        fresh_memory.ask_for_memory(np.empty(fresh_memory.LEAST_BYTES, np.uint8))
    wait_for_threads()


@pytest.mark.parametrize("answer", [-1, None])
def test_a_system_that_cannot_is_left_alone(monkeypatch, answer):
    asked = []

    def refuse(*arguments):
        asked.append(arguments)
        return answer

    monkeypatch.setattr(fresh_memory, "_madvise", lambda: None if answer is None else refuse)
    array = np.zeros(fresh_memory.LEAST_BYTES, np.uint8)
    fresh_memory.ask_for_memory(array)
    wait_for_threads()
    assert len(asked) == (0 if answer is None else 1)
    assert not array.any()


def test_small_memory_starts_no_thread(monkeypatch):
    monkeypatch.setattr(threading, "Thread", None)
    fresh_memory.ask_for_memory(np.zeros(1000, np.uint8))


def test_an_arena_hands_out_nothing_twice():
    arena, held = fresh_memory.Arena(), []
    for number, n_bytes in enumerate([1 << 20, 7, 64, 0, 5 << 20, 3 << 20, 20 << 20, 1 << 20, 9 << 20]):
        part = arena.take(n_bytes, 64 << 20)
        assert part.dtype == np.uint8
        assert part.shape == (n_bytes,)
        part[:] = number + 1
        held.append(part)
    assert all((part == number + 1).all() for number, part in enumerate(held))
    assert not any(np.shares_memory(a, b) for at, a in enumerate(held) for b in held[:at])


def test_an_arena_hands_out_memory_again_once_nobody_has_any_part_of_it():
    arena = fresh_memory.Arena()
    first = [arena.take(2 << 20, 100 << 20) for _ in range(4)]
    address = first[0].ctypes.data
    held = first[1].reshape(2, -1)[1:, 5:].data  # a view of a view of a part keeps the whole piece
    del first
    held[0, 0] = 7
    others = [arena.take(2 << 20, 100 << 20) for _ in range(4)]
    for part in others:
        part[:] = 9
    assert held[0, 0] == 7
    assert address not in {part.ctypes.data for part in others}
    del held
    assert arena.take(2 << 20, 100 << 20).ctypes.data == address
    assert arena.take(8 << 20, 100 << 20).ctypes.data == address  # what was taken last is gone, too


def test_an_arena_holds_no_piece_that_is_too_small_by_now():
    arena, pieces = fresh_memory.Arena(), []
    for megabytes in range(9, 19):
        pieces.append(weakref.ref(arena.take(megabytes << 20, 500 << 20).base))
        in_use = [arena.take(number << 20, 500 << 20) for number in (megabytes, megabytes + 1)]
        assert sum(piece.nbytes for piece, _ in arena._pieces) <= 4 * (megabytes + 1) << 20
        del in_use
    assert [each() for each in pieces[:-1]] == [None] * 9


def test_an_arena_takes_no_more_than_is_to_come():
    arena = fresh_memory.Arena()
    assert arena.take(1000, 100_000).base is None
    part = arena.take(1 << 20, 6 << 20)
    assert part.base.nbytes == 6 << 20
    assert arena.take(1 << 20, 5 << 20).base is part.base
    assert arena.take(7 << 20, 7 << 20).base.nbytes == 7 << 20
