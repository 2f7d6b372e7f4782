"""Fresh memory for large results: had from the system beside other work.

The system hands memory out when it is first touched, and zeroes it then, at 4 GB/s here: half of what it costs to copy
a result of 100 MB from the page cache. Linux can be asked to do so beforehand (`MADV_POPULATE_WRITE`, since 5.14).
"""

from __future__ import annotations

import ctypes
import functools
import sys
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

LEAST_BYTES = 16 * 2**20
"""Smaller memory is touched before a thread has begun."""
_PIECE_BYTES = 8 * 2**20
_HUGE_BYTES = 4 * 2**20
"""From here on numpy asks for huge pages."""
_ARENA_BYTES = 8 * 2**20
_LINE = 64
_PAGE = 4096
_POPULATE_WRITE = 23


class Arena:
    """Memory handed out in parts, from pieces so large that they come in huge pages.

    Many arrays of 1 MB that live side by side cost five times as much to fill for the first time. A piece is handed out
    again when all its parts have gone: then it need not be zeroed, and may be in the processor's cache still. Used by
    one thread.
    """

    def __init__(self) -> None:
        """Hold no memory."""
        self._pieces: list[tuple[np.ndarray, weakref.ref[np.ndarray]]] = []
        """Each with what its parts are views of, as long as there are any."""
        self._open: np.ndarray | None = None
        """What the next parts are taken from."""
        self._used = 0

    def take(self, n_bytes: int, to_come: int) -> np.ndarray:
        """Return `[n_bytes]` uint8 of any content.

        Args:
            n_bytes: How many.
            to_come: About how many will be asked for altogether, these among them: no new piece is larger.
        """
        import numpy as np

        aligned = -(-n_bytes // _LINE) * _LINE
        if self._open is None or self._used + aligned > len(self._open):
            self._open = None  # it may be free itself
            if max(aligned, to_come) < _HUGE_BYTES:
                return np.empty(n_bytes, np.uint8)
            self._open, self._used = self._free(max(aligned, min(to_come, _ARENA_BYTES))), 0
        start = self._used
        self._used += aligned
        return self._open[start : start + n_bytes]

    def _free(self, n_bytes: int) -> np.ndarray:
        """Return a piece of at least so much that nobody uses."""
        import numpy as np

        for number, (piece, lent) in enumerate(self._pieces):
            if lent() is None and len(piece) >= n_bytes:
                del self._pieces[number]
                break
        else:  # what is unused is too small, and would stay so: batches grow as prompts get shorter
            self._pieces = [each for each in self._pieces if each[1]() is not None]
            piece = np.empty(n_bytes, np.uint8)
        # By way of a memoryview: else numpy would have the parts keep the piece alive, and not what is watched here.
        again = np.frombuffer(piece.data, np.uint8)
        if again[:1].base is again:
            self._pieces.append((piece, weakref.ref(again)))
        return again


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
