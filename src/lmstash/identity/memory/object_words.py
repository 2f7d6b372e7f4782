"""What Python objects bear in their own memory, read from many of them at once: their types, how much dicts hold.

CPython on 64 bits keeps an object's type 8 bytes from its beginning, and a dict's number of entries 16 bytes from it.
numpy reads as many such words as one likes with one call, at 1 to 4 ns each, where a step in Python takes 10 to 30. A
Python that lays its objects out otherwise (free-threaded builds, other implementations) is found out by a trial: there
nothing is read.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NoReturn

WORD_BYTES = 8
TYPE_PLACE, LENGTH_PLACE = WORD_BYTES, 2 * WORD_BYTES
"""Of an object its type, of a dict how much it holds."""


class Words:
    """Words of 8 bytes at many places of memory. Threads may share it; a look costs 2 us, and 1 to 4 ns a word.

    Keeps nothing alive: whoever looks keeps what lies there. Holds no array of that memory either: it spans all that
    lies between, mapped or not, and would end the process of whoever copies it.
    """

    def __init__(self, addresses: Sequence[int]) -> None:
        """Take the addresses of whole words: multiples of 8."""
        import numpy as np

        first = min(addresses, default=0)
        self._first, self._n_words = first, (max(addresses, default=0) - first) // WORD_BYTES + 1
        self._places = (np.array(addresses, np.uint64) - np.uint64(first)).astype(np.intp) // WORD_BYTES

    def read(self) -> bytes:
        """Return what lies there now."""
        import numpy as np

        if not self._places.size:
            return b""
        return np.asarray(_Memory(self._first, self._n_words)).take(self._places).tobytes()

    def __reduce__(self) -> NoReturn:
        raise TypeError("places of this process's memory cannot be copied: what lies there is another's")


class Kinds:
    """Tells whether objects have the types they had, and dicts are still empty. Threads may share it."""

    def __init__(self, objects: Sequence[Any], empty: Sequence[Any]) -> None:
        """Take objects, and containers that are empty."""
        read = _are_readable()
        by_hand = [] if read else objects
        self._objects, self._types = by_hand, list(map(type, by_hand))
        dicts = [each for each in empty if read and type(each) in (dict, OrderedDict)]
        self._empty = [each for each in empty if not read or type(each) not in (dict, OrderedDict)]
        self._kept_alive = (objects, dicts)
        types = [id(each) + TYPE_PLACE for each in objects] if read else []
        self._words = Words([*types, *(id(each) + LENGTH_PLACE for each in dicts)])
        self._seen = b"".join(id(type(each)).to_bytes(WORD_BYTES, sys.byteorder) for each in (objects if read else []))
        self._seen += bytes(WORD_BYTES * len(dicts))

    def hold(self) -> bool:
        """Return whether all is as it was."""
        return (
            self._words.read() == self._seen and not any(self._empty) and list(map(type, self._objects)) == self._types
        )


class _Memory:
    """Some of this process's memory, as numpy's array interface describes it; only parts of it may be there."""

    def __init__(self, address: int, n_words: int) -> None:
        self.__array_interface__ = {"data": (address, True), "shape": (n_words,), "typestr": "=i8", "version": 3}


@lru_cache(maxsize=1)
def _are_readable() -> bool:
    """Return whether this Python keeps types and lengths where they are looked for, and changes them there."""
    if sys.implementation.name != "cpython" or sys.maxsize != 2**63 - 1 or not _has_one_lock():
        return False

    class Trial:
        pass

    class Other:
        pass

    trial, held, ordered = Trial(), dict[str, int](), OrderedDict[str, int]()
    words = Words([id(trial) + TYPE_PLACE, id(held) + LENGTH_PLACE, id(ordered) + LENGTH_PLACE])

    def right() -> bool:
        said = (id(type(trial)), len(held), len(ordered))
        return words.read() == b"".join(each.to_bytes(WORD_BYTES, sys.byteorder) for each in said)

    seen = [right()]
    trial.__class__ = Other  # pyright: ignore[reportAttributeAccessIssue]
    seen.append(right())
    for number in range(20):  # grows more than once
        held[str(number)] = ordered[str(number)] = number
        seen.append(right())
    for change in (held.popitem, ordered.popitem, held.clear, ordered.clear):
        change()
        seen.append(right())
    return all(seen)


def _has_one_lock() -> bool:
    locked = getattr(sys, "_is_gil_enabled", None)
    return locked is None or bool(locked())
