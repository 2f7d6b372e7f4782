"""Stores that are alive in this process: what is done with them around a fork, and at the end of the program."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import weakref
from typing import Any, Protocol

_WAIT_SECONDS = 10.0


class Living(Protocol):
    """A store with connections to SQLite."""

    def locks(self) -> list[Any]:
        """Return the locks without which no thread is inside SQLite."""
        ...

    def after_fork(self) -> None:
        """In a forked child: use nothing of the parent's."""
        ...

    def close(self) -> None:
        """Let go of files."""
        ...


abandoned: list[object] = []
"""Connections that must not be finalised: those a forked child inherited, and those of a replaced index."""
opening = threading.RLock()
"""Held while connections are made, so that no fork comes in between."""
_live: weakref.WeakSet[Living] = weakref.WeakSet()
_held: list[Any] = []


def watch(store: Living) -> None:
    """Look after `store` from now on."""
    _live.add(store)


def forget(store: Living) -> None:
    """Look after `store` no longer."""
    _live.discard(store)


def _before() -> None:
    """Wait until no other thread is inside SQLite, whose own locks would stay taken in the child for ever."""
    locks: list[Any] = [opening]
    for store in list(_live):
        locks += store.locks()
    _held.extend(lock for lock in locks if lock.acquire(timeout=_WAIT_SECONDS))


def _in_parent() -> None:
    while _held:
        _held.pop().release()


def _in_child() -> None:
    _in_parent()
    for store in list(_live):
        store.after_fork()


def _at_exit() -> None:
    for store in list(_live):
        with contextlib.suppress(Exception):
            store.close()


os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
atexit.register(_at_exit)
