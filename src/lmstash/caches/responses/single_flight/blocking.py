"""Which thread waits for which: whether to wait for a computation is to wait for oneself, by way of other threads.

A function that is to answer may hand its work to a pool, whose thread then asks the cache for the same thing: that one
waits for the computation, and the computation for that one. Who waits here for whose computation is noted. That a
thread waits in the standard library (futures, pools, threads) is read off its stack, as `faulthandler` writes it; for
which of them it waits is not told, so that any thread of a pool of that kind may be meant, but for those of its own.
Nothing is found of a thread that waits in another way, as an event loop does.

Frames of other threads are not looked at: to follow them while those threads run crashes Python 3.11.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmstash.caches.responses.single_flight.flights import Flight

_MOST_THREADS = 64
"""So many are followed at most, from one that waits to the one that it waits for."""
_EXECUTOR, _POOL, _THREAD = "executor", "pool", "thread"
"""Kinds of threads: those of `concurrent.futures`, of `multiprocessing.pool`, and others."""
_WAITS = {
    ("futures/_base.py", "result"): _EXECUTOR,
    ("futures/_base.py", "exception"): _EXECUTOR,
    ("futures/_base.py", "wait"): _EXECUTOR,
    ("futures/_base.py", "as_completed"): _EXECUTOR,
    ("futures/thread.py", "shutdown"): _EXECUTOR,
    ("multiprocessing/pool.py", "wait"): _POOL,
    ("multiprocessing/pool.py", "next"): _POOL,
    ("multiprocessing/pool.py", "join"): _POOL,
    ("lib/threading.py", "join"): _THREAD,
}
"""The functions in which a thread waits, and for threads of which kind."""
_ALL_OF_THEM = frozenset({("futures/_base.py", "result_iterator"), ("futures/thread.py", "shutdown")})
"""Wait for all that was handed to a pool, in turn."""
_MODULES = frozenset({"lib/threading.py", "futures/_base.py", "futures/thread.py", "multiprocessing/pool.py"})
_HEADLINE = re.compile(r"^(?:Current thread|Thread) 0x([0-9a-f]+)")
_LINE = re.compile(r'^  File "([^"]*)", line \S+ in (\S+)')

_REST, _AT_MOST = 20, 0.25
"""So many times as long as it took to compute, how the stacks were is good enough for others who look; seconds."""

Stacks = dict[int, list[tuple[str, str]]]

_looking = threading.RLock()  # a finalizer that runs meanwhile may look, too
_last: tuple[float, float, Stacks] = (-1.0, -1.0, {})
"""When the stacks were looked at, until when that is good enough, and how they were."""
_waiting: dict[int, Flight] = {}
"""For whose computation each thread waits."""


@contextlib.contextmanager
def waits_for(flight: Flight) -> Iterator[None]:
    """Note that the calling thread as a whole waits for a computation, for as long as the context lasts."""
    me = threading.get_ident()
    before = _waiting.get(me)
    _waiting[me] = flight
    try:
        yield
    finally:
        if before is None:
            del _waiting[me]
        else:
            _waiting[me] = before


def leads_back(leader: int, waiting: bool, since: float = 0.0) -> bool:
    """Whether a thread seems blocked until the calling one goes on, directly or by way of others. Never raises.

    Costs about 0.2 ms for each thread of the process, once for all who ask at about the same time.

    Args:
        leader: The thread's identity.
        waiting: Whether the calling thread as a whole is about to wait, and not just a task of it.
        since: A time, of `time.monotonic`: how the stacks were before it does not count.
    """
    try:
        return _leads_back(leader, threading.get_ident(), waiting, since)
    except Exception:  # no file to be had, a version of Python that keeps other things: who waits long enough goes on
        return False


def pool_of_this_thread() -> Any:
    """Return what stands for the pool that the calling thread works for, which is its queue; None. Never raises."""
    try:
        return _kind_of(threading.current_thread())[1]
    except Exception:  # another version of Python may keep it elsewhere
        return None


def _leads_back(leader: int, me: int, waiting: bool, since: float) -> bool:
    ahead, seen = [leader], {leader}
    stacks: Stacks | None = None
    kinds: dict[int, tuple[str, Any]] = {}
    while ahead and len(seen) <= _MOST_THREADS:
        thread = ahead.pop()
        if (flight := _waiting.get(thread)) is not None:
            following = {flight.thread}
            leads = waiting
        else:
            if stacks is None:
                stacks = _stacks(since)
                kinds = {each.ident: _kind_of(each) for each in threading.enumerate() if each.ident is not None}
            waits = _waits_of(stacks.get(thread, []))
            awaited, pool = {_WAITS[each] for each in waits if each in _WAITS}, kinds.get(thread, ("", None))[1]
            following = {
                each for each, (kind, of) in kinds.items() if kind in awaited and (of is None or of is not pool)
            }
            leads = bool(waits & _ALL_OF_THEM) or _is_awaited()
        if me in following and leads:
            return True
        ahead += following - seen - {me}
        seen |= following
    return False


def _stacks(since: float) -> Stacks:
    """Return the modules and functions that each thread is in, the innermost first, at one moment after a time."""
    global _last
    with _looking:
        at, until, found = _last
        started, computed = time.monotonic(), time.thread_time()
        if at < since or started > until:
            found = _read(_written())
            rest = min(_REST * (time.thread_time() - computed), _AT_MOST)  # on a busy machine it takes longer than that
            _last = started, time.monotonic() + rest, found
    return found


def _written() -> str:
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read().decode("utf-8", "replace")


def _read(text: str) -> Stacks:
    found: Stacks = {}
    stack: list[tuple[str, str]] = []
    for line in text.splitlines():
        if (headline := _HEADLINE.match(line)) is not None:
            stack = found[int(headline[1], 16)] = []
        elif (one := _LINE.match(line)) is not None:
            stack.append((_module(one[1]), one[2]))
    return found


def _module(path: str) -> str:
    """Return what tells a module of the standard library: its folder and file."""
    folder, _, name = path.replace("\\", "/").rpartition("/")
    folder = folder.rpartition("/")[2]
    return f"lib/{name}" if folder.startswith("python") or folder.lower() == "lib" else f"{folder}/{name}"


def _waits_of(stack: list[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return the functions of the standard library by way of which a thread waits at this moment."""
    found: set[tuple[str, str]] = set()
    for module, function in stack:
        if module not in _MODULES:  # what called these does not wait itself
            break
        found.add((module, function))
    return found


def _kind_of(thread: threading.Thread) -> tuple[str, Any]:
    """Return of which kind a thread is, and the queue of its pool."""
    if type(thread).__module__ == "multiprocessing.dummy":
        return _POOL, vars(thread)["_args"][0]
    queues = vars(sys.modules["concurrent.futures.thread"])["_threads_queues"]
    return (_EXECUTOR, queues[thread]) if thread in queues else (_THREAD, None)


def _is_awaited() -> bool:
    """Whether somebody waits for what this thread does, if it works for an executor; others are taken to be."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "run" and frame.f_globals.get("__name__") == "concurrent.futures.thread":
            future = frame.f_locals["self"].future
            return bool(future._waiters or future._condition._waiters)
        frame = frame.f_back
    return True


def _after_fork() -> None:
    """Only the thread that forked goes on in the child."""
    global _looking
    _looking = threading.RLock()
    _waiting.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
