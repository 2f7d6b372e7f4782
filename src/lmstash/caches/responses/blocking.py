"""Which thread waits for which: whether to wait for a computation is to wait for oneself, by way of other threads.

A function that is to answer may hand its work to a pool, whose thread then asks the cache for the same thing: that one
waits for the computation, and the computation for that one. What a thread waits for is read off its stack. Only what
the standard library waits in is known here (futures, pools, threads); nothing is found of a thread that waits in
another way, as an event loop does.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

_MOST_THREADS = 64
"""So many are followed at most, from one that waits to the one that it waits for."""


def leads_back(leader: int, waiting: bool) -> bool:
    """Whether a thread is blocked until the calling one goes on, directly or by way of others. Never raises.

    Costs about 10 us where the thread is not blocked, and looks at all threads' stacks where it is.

    Args:
        leader: The thread's identity.
        waiting: Whether the calling thread as a whole is about to wait, and not just a task of it.
    """
    frames: dict[int, Any] = {}
    try:
        frames = _stacks()
        return _leads_back(frames, leader, threading.get_ident(), waiting)
    except Exception:  # the stacks are those of running threads, and other versions of Python may keep other things
        return False
    finally:
        frames.clear()  # this function's own frame is among them


def _stacks() -> dict[int, Any]:
    """Return the innermost frame of each thread; none while another thread asks for them."""
    if sys.version_info >= (3, 12):
        return sys._current_frames()
    # It holds a lock of the interpreter, and makes objects: garbage that is collected then, and whose finalizers let
    # another thread go on that wants the lock, would halt everything.
    looking = _looking
    if not looking.acquire(blocking=False):
        return {}
    try:
        if not gc.isenabled():
            return sys._current_frames()
        gc.disable()
        try:
            return sys._current_frames()
        finally:
            gc.enable()
    finally:
        looking.release()


def pool_of_this_thread() -> Any:
    """Return what stands for the pool that the calling thread works for, which is its queue; None. Never raises."""
    try:
        thread = threading.current_thread()
        if type(thread).__module__ == "multiprocessing.dummy":
            return vars(thread)["_args"][0]
        queues = sys.modules["concurrent.futures.thread"]
        return vars(queues)["_threads_queues"].get(thread)
    except Exception:  # another version of Python may keep it elsewhere
        return None


def _leads_back(frames: dict[int, Any], leader: int, me: int, waiting: bool) -> bool:
    ahead, seen = [leader], {leader}
    works: dict[int, list[Any]] | None = None
    while ahead and len(seen) <= _MOST_THREADS:
        awaited = list(_awaited(frames.get(ahead.pop())))
        if not awaited:
            continue
        if works is None:
            works = {thread: list(_frames(frame, _WORKERS)) for thread, frame in frames.items()}
        for thread in frames:
            if thread in seen:
                continue
            if any(_waits_for(each, thread, works[thread], thread != me or waiting) for each in awaited):
                if thread == me:
                    return True
                seen.add(thread)
                ahead.append(thread)
    return False


def _frames(frame: Any, names: Any) -> Iterator[tuple[str, Any]]:
    """Yield the frames of a stack that are of these functions, the innermost first."""
    while frame is not None:
        name = f"{frame.f_globals.get('__name__')}:{frame.f_code.co_qualname}"
        if name in names:
            yield name, frame
        frame = frame.f_back


def _awaited(frame: Any) -> Iterator[Any]:
    """Yield what a thread waits for at this moment: futures, results of pools, threads, computations."""
    while frame is not None:
        module = frame.f_globals.get("__name__")
        known = _WAITS.get(f"{module}:{frame.f_code.co_qualname}")
        if known is not None:
            name, content = known
            found = frame.f_locals.get(name)
            yield from () if found is None else (found,) if content is None else list(content(found))
        elif module not in _MODULES:  # what called these does not wait itself
            return
        frame = frame.f_back


def _waits_for(awaited: Any, thread: int, works: list[tuple[str, Any]], wholly: bool) -> bool:
    """Whether what is awaited is over only once a thread goes on."""
    if isinstance(awaited, threading.Thread):
        return awaited.ident == thread
    if hasattr(awaited, "landed"):
        return wholly and awaited.thread == thread
    job, pool = getattr(awaited, "_job", None), getattr(awaited, "_pool", None)
    for name, frame in works:
        if name == _POOL_WORKER:
            # In a frame that is read, its variables are kept until it ends: so only where it may be this one.
            workers = getattr(pool, "_pool", ())
            if job is not None and any(getattr(each, "ident", None) == thread for each in workers):
                return frame.f_locals.get("job") == job
        elif getattr(frame.f_locals.get("self"), "future", None) is awaited:
            return True
    return False


_POOL_WORKER = "multiprocessing.pool:worker"
_WORKERS = frozenset({"concurrent.futures.thread:_WorkItem.run", _POOL_WORKER})
_WAITS: dict[str, tuple[str, Callable[[Any], Any] | None]] = {
    "concurrent.futures._base:Future.result": ("self", None),
    "concurrent.futures._base:Future.exception": ("self", None),
    "concurrent.futures._base:wait": ("fs", list),
    "concurrent.futures._base:as_completed": ("fs", list),
    "concurrent.futures._base:Executor.map.<locals>.result_iterator": ("fs", list),
    "concurrent.futures.thread:ThreadPoolExecutor.shutdown": ("self", lambda pool: pool._threads),
    "multiprocessing.pool:ApplyResult.wait": ("self", None),
    "multiprocessing.pool:IMapIterator.next": ("self", None),
    "multiprocessing.pool:Pool.join": ("self", lambda pool: pool._pool),
    "threading:Thread.join": ("self", None),
    "lmstash.caches.responses.waiting:wait_here": ("flight", None),
}
"""The functions in which a thread waits, the variable that says for what, and what of that if not all."""
_MODULES = frozenset(each.partition(":")[0] for each in _WAITS)


_looking = threading.Lock()


def _after_fork() -> None:
    global _looking
    if _looking.locked():  # by a thread that is not here, which has switched it off
        gc.enable()
    _looking = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
