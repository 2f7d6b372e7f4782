"""How often each sampled request was asked, so that each of its answers is another entry.

All who use one stash object count together: a client for each task draws as many different samples as one client for
all. Processes count for themselves.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

from lmstash.forks import renew_after_fork

_MOST_COUNTED = 1_000_000


class Counts:
    """Hands out numbers under names, from 0. Threads may share it; a forked child goes on from its parent's."""

    def __init__(self) -> None:
        """Begin."""
        self._next: dict[bytes, int] = {}
        self._free: dict[bytes, set[int]] = {}
        self._lock = threading.RLock()
        renew_after_fork(self, _lock=threading.RLock)

    def take(self, name: bytes) -> int:
        """Return the smallest number that nobody has."""
        with self._lock:
            while free := self._free.get(name):
                number = min(free)
                try:
                    free.remove(number)
                except KeyError:  # a signal handler was faster
                    continue
                if not free:
                    self._free.pop(name, None)
                return number
            if len(self._next) > _MOST_COUNTED:
                self._next.clear()
                self._free.clear()
            self._next.setdefault(name, 0)
            number = self._next[name]  # without a call: a signal handler would take the same one
            self._next[name] = number + 1
            return number

    def give_back(self, name: bytes, number: int) -> None:
        """Let another one have a number; one that was not taken here is left alone."""
        with self._lock:
            if 0 <= number < self._next.get(name, 0):
                self._free.setdefault(name, set()).add(number)


def counts_of(store: Any) -> Counts:
    """Return the counts over a store: all who use this object share them."""
    found = _by_store.get(store)
    return _by_store.setdefault(store, Counts()) if found is None else found


_by_store: weakref.WeakKeyDictionary[Any, Counts] = weakref.WeakKeyDictionary()
