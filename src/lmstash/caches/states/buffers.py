"""Memory for whole states, which goes back to the system when it is let go.

malloc keeps for itself what it is given back in sizes up to 32 MiB, and what is kept for long comes to lie between: a
process would take twice what its cache says.
"""

from __future__ import annotations

import mmap

import numpy as np

_LEAST_BYTES = 1 << 20
_GROWTH = 1.5
_HUGE_PAGE = 2 << 20


def buffer(n_bytes: int) -> np.ndarray:
    """Return `[n_bytes]` uint8 of undefined content.

    Costs a tenth of a millisecond a megabyte where the system has huge pages to give, else half of one.
    """
    if n_bytes < _LEAST_BYTES or not hasattr(mmap, "MAP_ANONYMOUS"):
        return np.empty(n_bytes, np.uint8)
    try:
        memory = mmap.mmap(-1, n_bytes + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # malloc may still find room
        return np.empty(n_bytes, np.uint8)
    return np.frombuffer(memory, np.uint8)[:n_bytes]


class Scratch:
    """Memory that is used again and again: fresh memory takes as long to get as a state to copy into it.

    What is written into it is there until the next `take`. One thread at a time.
    """

    def __init__(self) -> None:
        """Take no memory yet."""
        self._memory = np.empty(0, np.uint8)
        self.taken_bytes = 0
        """Most that was asked for: what it takes, for the rest was never touched."""

    def take(self, n_bytes: int) -> np.ndarray:
        """Return `[n_bytes]` uint8 of undefined content; what was returned before is overwritten through it."""
        if n_bytes > self._memory.nbytes:
            self._memory = buffer(int(n_bytes * _GROWTH))  # prompts grow
            self.taken_bytes = 0
        self.taken_bytes = max(self.taken_bytes, n_bytes)
        return self._memory[:n_bytes]

    def release(self) -> None:
        """Give the memory back."""
        self.__init__()
