"""Waiting for another one's computation: in a thread or in a task, and when not to.

Who waits goes on waiting for an honest slow computation, and says so in the log. It does not wait for a computation
that waits for it (`blocking`); and where somebody has waited in vain for what one call computes, nobody waits as long
for the rest of that call: something that cannot be seen may be stuck there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TYPE_CHECKING, Any

from lmstash.caches.responses.single_flight.blocking import leads_back, pool_of_this_thread, waits_for

if TYPE_CHECKING:
    from lmstash.caches.responses.single_flight.flights import Flight

logger = logging.getLogger("lmstash")

_FIRST_LOOK, _BETWEEN_LOOKS = 0.01, 1.0
"""Seconds until whether it is in vain is looked at again; twice as long each time."""
_TELL_AFTER = 5.0
_ABOUT_AS_LONG = 0.1


def wait_here(flight: Flight, seconds: float) -> bytes | None:
    """Wait in this thread, for at most so long; not for a task of its own event loop, which could not go on."""
    landed = flight.landed
    if landed is None or flight.thread == threading.get_ident():
        return None
    with waits_for(flight):
        for span in _spans(flight, seconds, wholly=True):
            try:
                return landed.result(span)
            except FutureTimeoutError:
                continue
    return landed.result() if landed.done() else None


async def wait_there(flight: Flight, seconds: float) -> bytes | None:
    """Wait in this task, for at most so long; not for what else its thread has begun, which could not go on."""
    landed = flight.landed
    loop = asyncio.get_running_loop()
    if landed is None or (flight.thread == threading.get_ident() and not flight.is_of(loop)):
        return None
    woken = loop.create_future()

    def wake(_landed: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(lambda: woken.done() or woken.set_result(None))

    landed.add_done_callback(wake)
    for span in _spans(flight, seconds, wholly=False):
        await asyncio.wait((woken,), timeout=span)
        if landed.done():
            break
    return landed.result() if landed.done() else None


class Slow:
    """Says, once, that another process is waited for."""

    def __init__(self, key: bytes) -> None:
        """Begins now."""
        self._key = key
        self._since = time.monotonic()
        self._told = False

    def tell(self) -> None:
        """Say it if it has taken long, and was not said."""
        if not self._told and time.monotonic() - self._since >= _TELL_AFTER:
            self._told = True
            logger.info("lmstash: waiting for an answer that another process computes (key %s)", self._key.hex()[:16])


def _spans(flight: Flight, seconds: float, *, wholly: bool) -> Iterator[float]:
    """Yield how long to wait next, for as long as it makes sense."""
    work = flight.work
    if work is not None and work.waited_in_vain and seconds <= work.waited_in_vain + _ABOUT_AS_LONG:
        return
    started, look_after = time.monotonic(), _FIRST_LOOK
    looks = flight.thread != threading.get_ident()
    while (left := seconds - (time.monotonic() - started)) > 0:
        if looks and _is_in_vain(flight, wholly, started):
            return
        untold = _TELL_AFTER - (seconds - left)
        if untold <= 0:
            _tell(flight, left)
        span = min(look_after, left) if looks else left
        yield min(span, untold) if untold > 0 else span
        look_after = min(2 * look_after, _BETWEEN_LOOKS)
    if flight.work is not None:
        flight.work.waited_in_vain = max(flight.work.waited_in_vain, seconds)


def _is_in_vain(flight: Flight, wholly: bool, since: float) -> bool:
    if flight.is_halted():
        return True
    work = flight.work
    pool = pool_of_this_thread() if work is not None and work.size > 1 else None
    # Others of this pool wait for other answers of the same batch; the computation will wait for them in turn.
    if work is not None and pool is not None and id(pool) in work.pools:
        return True
    if not leads_back(flight.thread, wholly, since):
        return False
    if work is not None and pool is not None:
        work.pools.add(id(pool))
    return True


def _tell(flight: Flight, left: float) -> None:
    work = flight.work
    if work is None or work.told:
        return
    work.told = True
    names = [each.name for each in threading.enumerate() if each.ident == flight.thread]
    logger.info(
        "lmstash: waiting for an answer that thread %r computes (key %s); in %.0f s more it is computed here, too",
        names[0] if names else flight.thread,
        flight.key.hex()[:16],
        left,
    )
