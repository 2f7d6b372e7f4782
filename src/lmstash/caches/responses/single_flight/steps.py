"""What a call does, as a generator of what it waits for, so that plain and async programs run the same steps."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmstash.caches.responses.single_flight.waiting import Slow, wait_here, wait_there

if TYPE_CHECKING:
    from lmstash.caches.responses.answers.shelf import Shelf
    from lmstash.caches.responses.requests.asking import Asked
    from lmstash.caches.responses.single_flight.flights import Flight, Flights

Steps = Generator[Any, Any, Any]
"""Yields `CALL`, a `Wait`, a `Pause` or an `Aside`; is sent what that gave; returns the answer."""

CALL = object()
"""Call the host's function; it gives what that returned."""
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.001, 0.05


@dataclass(frozen=True, slots=True)
class Wait:
    """For another one's computation; gives its answer, encoded; None; or `ABANDONED`."""

    flight: Flight
    seconds: float


@dataclass(frozen=True, slots=True)
class Pause:
    """For some time; gives nothing."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Aside:
    """Do what may take long and is not the host's; gives what it returns. Tasks leave it to a thread."""

    call: Callable[[], Any]


def drive(steps: Steps, call: Callable[[], Any]) -> Any:
    """Run steps in this thread."""
    try:
        wish = next(steps)
        while True:
            try:
                if wish is CALL:
                    given = call()
                else:
                    given = await_here(wish)
            except BaseException as error:
                wish = steps.throw(error)
            else:
                wish = steps.send(given)
    except StopIteration as stop:
        return stop.value


async def drive_async(steps: Steps, call: Callable[[], Awaitable[Any]]) -> Any:
    """Run steps in this task."""
    try:
        wish = next(steps)
        while True:
            try:
                if wish is CALL:
                    given = await call()
                else:
                    given = await await_there(wish)
            except BaseException as error:
                wish = steps.throw(error)
            else:
                wish = steps.send(given)
    except StopIteration as stop:
        return stop.value


def await_here(wish: Wait | Pause | Aside) -> Any:
    """Wait in this thread."""
    if isinstance(wish, Pause):
        time.sleep(wish.seconds)
        return None
    if isinstance(wish, Aside):
        return wish.call()
    return wait_here(wish.flight, wish.seconds)


async def await_there(wish: Wait | Pause | Aside) -> Any:
    """Wait in this task."""
    if isinstance(wish, Pause):
        await asyncio.sleep(wish.seconds)
        return None
    if isinstance(wish, Aside):
        return await asyncio.to_thread(wish.call)
    return await wait_there(wish.flight, wish.seconds)


def fly(
    shelf: Shelf,
    flights: Flights,
    asked: Asked,
    compute: Callable[[], Steps],
    refresh: bool,
    wait_seconds: float,
) -> Steps:
    """Compute what is not kept, or wait for whoever computes it now.

    Args:
        shelf: Reads what is kept.
        flights: Who computes what.
        asked: What.
        compute: Steps that return the answer, and it encoded if it is kept.
        refresh: Whether what is kept does not count.
        wait_seconds: How long to wait for another one.
    """
    from lmstash.caches.responses.answers.records import copy_of, decode_answer
    from lmstash.caches.responses.answers.shelf import MISSING
    from lmstash.caches.responses.single_flight.flights import ABANDONED, computing

    deadline = time.monotonic() + wait_seconds
    flight, leads = flights.join(asked.key)
    while not leads:
        left = max(deadline - time.monotonic(), 0.0)
        encoded = None if flight.own() else (yield Wait(flight, left))
        if encoded is not ABANDONED:
            theirs = MISSING if encoded is None else copy_of(encoded, MISSING)
            if theirs is not MISSING:
                return theirs
            answer, _encoded = yield from compute()  # it failed, or takes too long: as if there were no cache
            return answer
        flight, leads = flights.join(asked.key)
    encoded = ABANDONED
    try:
        yield from locked(flights, flight, shelf, wait_seconds)
        if not refresh and shelf.store.contains(asked.key):  # another process was faster
            value = shelf.read_encoded([asked])[0]
            if value is not None:
                encoded = value
                return decode_answer(value)
        with computing((flight,)):
            answer, encoded = yield from compute()
        return answer
    except Exception:
        encoded = None
        raise
    finally:
        flights.end(flight, encoded)


def locked(flights: Flights, flight: Flight, shelf: Shelf, wait_seconds: float) -> Steps:
    """Wait until no other process computes the same, or it is kept, or it took too long."""
    pause, deadline, slow = _SHORTEST_PAUSE, time.monotonic() + wait_seconds, Slow(flight.key)
    while not flights.lock(flight) and time.monotonic() < deadline:
        yield Pause(pause)
        slow.tell()
        pause = min(2 * pause, _LONGEST_PAUSE)
        if shelf.store.contains(flight.key):
            return
