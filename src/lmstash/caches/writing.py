"""Write-behind: values on their way to a store, written by a thread of their own, within a byte limit."""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lmstash.events import DropReason, logger
from lmstash.store.base import Entry, Store, Write, byte_views, encode_meta, join

QUEUE_BYTES = 256 * 2**20
"""Most bytes that wait."""
_GROUP_BYTES = 32 * 2**20
"""About so much is put at a time."""


@dataclass(slots=True, eq=False)
class _Group:
    """Values that stand or fall together."""

    writes: list[Write]
    replace: bool
    confirm: Callable[[], bool] | None
    n_bytes: int
    published: Callable[[Sequence[Write]], None] | None = None


class WriteBehind:
    """Puts values into `store` from a thread of its own, which lives only while there is something to put.

    The values' buffers must not change after they are offered. What waits is found by `waiting`. Threads may share it;
    a forked child starts with an empty queue (its parent writes what waited). When the program ends, what waits is
    written first.
    """

    def __init__(self, store: Store, capacity_bytes: int = QUEUE_BYTES) -> None:
        """Make an empty queue in front of `store`."""
        self.store = store
        self.capacity_bytes = capacity_bytes
        self._reset()
        _alive.add(self)
        # What is registered last runs first: before the store closes, which was opened before this.
        atexit.unregister(_at_exit)
        atexit.register(_at_exit)

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._groups: deque[_Group] = deque()
        self._waiting: dict[bytes, Write] = {}
        self._bytes = 0
        self._thread: threading.Thread | None = None

    @property
    def waiting_bytes(self) -> int:
        """Bytes that are offered and not yet put."""
        return self._bytes

    def offer(
        self,
        writes: Sequence[Write],
        *,
        replace: bool = False,
        confirm: Callable[[], bool] | None = None,
        published: Callable[[Sequence[Write]], None] | None = None,
        patience_seconds: float | None = None,
    ) -> int:
        """Take values; returns how many were taken.

        Args:
            writes: In the order of their worth: the last ones are dropped, and counted, when there is no room in time.
            replace: Overwrite what is kept already.
            confirm: Called in the writing thread, once, before any of them is put: False drops all.
            published: Called in the writing thread with those that were put, once they were.
            patience_seconds: How long to wait for room altogether; None for as long as it takes.
        """
        deadline = None if patience_seconds is None else time.monotonic() + patience_seconds
        taken = 0
        checked = None if confirm is None else _Once(confirm)
        group: list[Write] = []
        size = 0
        for write in writes:
            n_bytes = _size(write)
            if size and size + n_bytes > _GROUP_BYTES:
                if not self._add(_Group(group, replace, checked, size, published), deadline):
                    break
                taken += len(group)
                group, size = [], 0
            group.append(write)
            size += n_bytes
        else:
            if not group or self._add(_Group(group, replace, checked, size, published), deadline):
                return taken + len(group)
        for write in writes[taken:]:
            self.store.events.drop(write.namespace, write.key, DropReason.BUSY)
        return taken

    def waiting(self, keys: Sequence[bytes]) -> list[Entry | None]:
        """Return what waits under `keys`, as a store would hand it out (values are copies)."""
        with self._changed:
            if not self._waiting:
                return [None] * len(keys)
            found = [self._waiting.get(key) for key in keys]
        return [None if each is None else _entry(each) for each in found]

    def waits(self, keys: Sequence[bytes]) -> list[bool]:
        """Return which of `keys` wait."""
        with self._changed:
            return [key in self._waiting for key in keys]

    def flush(self, patience_seconds: float | None = None) -> bool:
        """Return once everything offered so far was put (or dropped), or patience ends; returns whether it was.

        Args:
            patience_seconds: How long to wait; None for as long as it takes.
        """
        deadline = None if patience_seconds is None else time.monotonic() + patience_seconds
        with self._changed:
            while self._groups or self._bytes:
                self._start()
                left = 1.0 if deadline is None else deadline - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(min(left, 1.0))
        return True

    def _add(self, group: _Group, deadline: float | None) -> bool:
        with self._changed:
            while self._bytes and self._bytes + group.n_bytes > self.capacity_bytes:
                self._start()
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return False
                self._changed.wait(1.0 if left is None else min(left, 1.0))
            self._groups.append(group)
            self._bytes += group.n_bytes
            for write in group.writes:
                self._waiting[write.key] = write
            self._start()
            return True

    def _start(self) -> None:
        """Have a thread at work; the lock is held."""
        if self._thread is None and self._groups:
            self._thread = threading.Thread(target=self._work, name="lmstash-write", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # the interpreter ends, or no more threads: the caller does the work
                self._thread = None
                self._drain()

    def _work(self) -> None:
        with self._changed:
            self._drain()
            self._thread = None
            self._changed.notify_all()

    def _drain(self) -> None:
        """Put every group; the lock is held, but not while one is put."""
        while self._groups:
            group = self._groups.popleft()
            self._changed.release()
            try:
                self._put(group)
            except BaseException as error:  # strict stores raise; nobody is here to catch it
                logger.warning("lmstash: values could not be kept: %s", error)
            finally:
                self._changed.acquire()
                self._bytes -= group.n_bytes
                for write in group.writes:
                    if self._waiting.get(write.key) is write:
                        del self._waiting[write.key]
                self._changed.notify_all()

    def _put(self, group: _Group) -> None:
        if group.confirm is not None and not group.confirm():
            for write in group.writes:
                self.store.events.drop(write.namespace, write.key, DropReason.MODEL_CHANGED)
            self.store.events.warn_once(
                "model changed", "lmstash: the model changed while values were computed; they are not kept"
            )
            return
        self.store.put_many(group.writes, replace=group.replace)
        if group.published is not None:
            group.published(group.writes)


class _Once:
    """A question that is asked once."""

    def __init__(self, ask: Callable[[], bool]) -> None:
        self._ask: Callable[[], bool] | None = ask
        self._answer = False

    def __call__(self) -> bool:
        if self._ask is not None:
            self._answer, self._ask = self._ask(), None
        return self._answer


def _size(write: Write) -> int:
    return sum(memoryview(each).nbytes for each in byte_views(write.value)) + 1024


def _entry(write: Write) -> Entry:
    return Entry(
        write.key,
        memoryview(bytearray(join(write.value))),
        write.namespace,
        write.parent,
        write.compute_seconds,
        write.n_tokens,
        time.time(),
        None,
        encode_meta(write.meta),
    )


_alive: weakref.WeakSet[WriteBehind] = weakref.WeakSet()


def _at_exit() -> None:
    for queue in list(_alive):
        queue.flush()


def _after_fork() -> None:
    for queue in list(_alive):
        queue._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
