"""Fresh memory for large results: had from the system beside other work.

The system hands memory out when it is first touched, and zeroes it then, at 4 GB/s here: half of what it costs to copy
a result of 100 MB from the page cache. Linux can be asked to do so beforehand (`MADV_POPULATE_WRITE`, since 5.14).
"""

from __future__ import annotations

import ctypes
import functools
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

LEAST_BYTES = 16 * 2**20
"""Smaller memory is touched before a thread has begun."""
_PIECE_BYTES = 8 * 2**20
_HUGE_BYTES = 4 * 2**20
"""From here on numpy asks for huge pages."""
_ARENA_BYTES = 16 * 2**20
_LINE = 64
_PAGE = 4096
_POPULATE_WRITE = 23


class Arena:
    """Memory handed out in parts, none of them twice, from pieces so large that they come in huge pages.

    Many arrays of 1 MB that live side by side cost five times as much to fill for the first time. A piece goes when all
    its parts have gone. Used by one thread.
    """

    def __init__(self) -> None:
        """Hold no memory."""
        self._piece: np.ndarray | None = None
        self._used = 0

    def take(self, n_bytes: int, to_come: int) -> np.ndarray:
        """Return `[n_bytes]` uint8 of any content.

        Args:
            n_bytes: How many.
            to_come: About how many will be asked for altogether, these among them: no piece is larger than that.
        """
        import numpy as np

        aligned = -(-n_bytes // _LINE) * _LINE
        if self._piece is None or self._used + aligned > len(self._piece):
            if max(aligned, to_come) < _HUGE_BYTES:
                return np.empty(n_bytes, np.uint8)
            self._piece, self._used = np.empty(max(aligned, min(to_come, _ARENA_BYTES)), np.uint8), 0
            ask_for_memory(self._piece)
        start = self._used
        self._used += aligned
        return self._piece[start : start + n_bytes]


def ask_for_memory(array: np.ndarray) -> None:
    """Have the memory of a new array handed out by a thread of its own; its contents stay what they are.

    Does nothing where the array is small or the system cannot. Whoever fills the array meanwhile touches what comes
    first, and is overtaken.
    """
    advise = _madvise() if array.nbytes >= LEAST_BYTES else None
    if advise is not None:
        threading.Thread(target=_populate, args=(advise, array), name="lmstash-memory", daemon=True).start()


def _populate(advise: Callable[[int, int, int], int], array: np.ndarray) -> None:
    start = array.ctypes.data // _PAGE * _PAGE + _PAGE
    end = (array.ctypes.data + array.nbytes) // _PAGE * _PAGE
    for at in range(start, end, _PIECE_BYTES):
        if advise(at, min(_PIECE_BYTES, end - at), _POPULATE_WRITE):
            return  # an older system, or no memory: touching it tells


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        call = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    call.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return call
