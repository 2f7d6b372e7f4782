"""What runs or waits and changes no answer: pools of threads, threads, event loops, semaphores, queues without content.

It stands by its class; a pool also by what it begins each of its threads with. A class of somebody's own is none.
"""

from __future__ import annotations

from typing import Any

_POOLS = frozenset(
    {
        *("concurrent.futures.thread.ThreadPoolExecutor", "concurrent.futures.process.ProcessPoolExecutor"),
        *("multiprocessing.pool.Pool", "multiprocessing.pool.ThreadPool"),
    }
)
_RUNNING = frozenset(
    {
        *("threading.Thread", "threading.Timer", "threading.Semaphore", "threading.BoundedSemaphore"),
        *("threading.Condition", "threading.Barrier", "asyncio.locks.Lock", "asyncio.locks.Semaphore"),
        *("asyncio.locks.BoundedSemaphore", "asyncio.locks.Condition", "asyncio.runners.Runner", "uvloop.Loop"),
        *("asyncio.unix_events._UnixSelectorEventLoop", "asyncio.windows_events.ProactorEventLoop"),
        *("asyncio.windows_events._WindowsSelectorEventLoop", "concurrent.futures._base.Future", "_asyncio.Future"),
        *("asyncio.locks.Event", "_asyncio.Task"),
    }
)
_QUEUES = frozenset(
    {
        *("queue.Queue", "queue.LifoQueue", "queue.PriorityQueue", "_queue.SimpleQueue"),
        *("asyncio.queues.Queue", "asyncio.queues.LifoQueue", "asyncio.queues.PriorityQueue"),
    }
)


def machinery_told(value: Any) -> list[Any] | None:
    """Return what stands for such an object, still to be described; None for anything else."""
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if kind in _POOLS:
        begins = [getattr(value, "_initializer", None), list(getattr(value, "_initargs", ()))]
        return [kind, *(begins if begins[0] is not None else [])]
    return [kind] if kind in _RUNNING or (kind in _QUEUES and value.empty()) else None
