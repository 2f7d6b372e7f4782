"""Memory for whole states."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import numpy as np
import pytest

from lmstash.caches.states.buffers import Scratch, buffer


def test_a_buffer_is_as_long_as_asked_and_can_be_written():
    for n_bytes in (0, 1, 1 << 10, (1 << 20) - 1, 1 << 20, (3 << 20) + 7):
        memory = buffer(n_bytes)
        memory[:] = 7
        assert memory.shape == (n_bytes,)
        assert memory.dtype == np.uint8
        assert memory.flags.writeable
        assert (memory == 7).all()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_is_let_go_goes_back_to_the_system_though_other_memory_was_taken_since():
    def taken() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    gc.collect()
    before, held = taken(), []
    for _ in range(8):
        memory = buffer(24 << 20)
        memory[:] = 1
        held.append(np.ones(1 << 20, np.uint8))  # as a block that is kept
        del memory
    assert taken() - before < sum(each.nbytes for each in held) + (4 << 20)


def test_scratch_memory_is_used_again_until_it_is_released():
    scratch = Scratch()
    first = scratch.take(2 << 20)
    first[:] = 1
    second = scratch.take(1 << 20)
    assert np.shares_memory(first, second)
    assert second.shape == (1 << 20,)
    assert scratch.taken_bytes == 2 << 20
    grown = scratch.take(4 << 20)
    assert grown.nbytes == scratch.taken_bytes == 4 << 20
    assert np.shares_memory(grown, scratch.take(5 << 20))  # there is room for prompts that grow
    scratch.release()
    assert scratch.taken_bytes == 0
