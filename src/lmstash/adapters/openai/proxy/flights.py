"""Answers under way: of all who ask the same, one flight asks the server, and everybody hears it from its first byte.

A flight is a task of its own. A client that goes away takes nothing with it: the answer is paid for, so it is kept.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from lmstash.adapters.openai.library import Case
from lmstash.adapters.openai.proxy.metrics import Metrics
from lmstash.adapters.openai.proxy.upstream import Sent
from lmstash.adapters.openai.recorded import Recorded, record
from lmstash.caches.responses.single_flight.steps import drive_async

_MOST_BYTES = 2**30


class Flight:
    """One answer under way, and all of it that has come.

    Attributes:
        status: Of the answer.
        headers: Of the answer, names in lower case.
        kept: Whether it was kept before (by another process, meanwhile).
        ended: Whether nothing more comes.
    """

    def __init__(self) -> None:
        """Nothing has come."""
        self.status = 0
        self.headers: list[tuple[str, str]] = []
        self.kept = False
        self.ended = False
        self._pieces: list[bytes] = []
        self._begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._news = asyncio.Event()
        self._error: BaseException | None = None

    async def begun(self) -> None:
        """Wait for the head of the answer. Raises what kept it from coming."""
        await asyncio.shield(self._begun)

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the whole body, what has come and then what comes. Raises what ended it early."""
        n_seen = 0
        while True:
            news = self._news
            if n_seen < len(self._pieces):
                fresh = self._pieces[n_seen:]
                n_seen += len(fresh)
                for piece in fresh:
                    yield piece
            elif self.ended:
                if self._error is not None:
                    raise self._error
                return
            else:
                await news.wait()

    def begin(self, status: int, headers: list[tuple[str, str]], kept: bool) -> None:
        """The head has come."""
        self.status, self.headers, self.kept = status, headers, kept
        self._begun.set_result(None)

    def add(self, piece: bytes) -> None:
        """A piece of the body has come."""
        self._pieces.append(piece)
        self._tell()

    def end(self, error: BaseException | None = None) -> None:
        """Nothing more comes."""
        self.ended, self._error = True, error
        if error is not None and not self._begun.done():
            self._begun.set_exception(error)
            self._begun.exception()  # nobody may be listening any more
        self._tell()

    def body(self) -> bytes:
        """Return what has come of it."""
        return b"".join(self._pieces)

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


class Board:
    """All flights of a proxy. Belongs to one event loop."""

    def __init__(self, metrics: Metrics) -> None:
        """Nothing is aloft."""
        self._metrics = metrics
        self._flights: dict[tuple[bytes, str, bool], Flight] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def join(self, case: Case, caller: str, ask: Callable[[], Awaitable[Sent]]) -> tuple[Flight, bool]:
        """Return the flight that answers a case, and whether it was under way already.

        Args:
            case: What is asked.
            caller: Digest of the caller's credentials: nobody hears a refusal that was meant for another one. (Between
                callers, good answers are shared by `Case.steps`.)
            ask: Asks the server.
        """
        name = (case.key, caller, case.control.max_age_seconds == 0)
        flight = self._flights.get(name)
        if flight is not None and not flight.ended:  # one that has is kept, or was not good
            return flight, True
        flight = self._flights[name] = Flight()
        task = asyncio.create_task(self._fly(flight, case, ask))
        self._tasks.add(task)
        self._metrics.aloft += 1

        def landed(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._metrics.aloft -= 1
            if self._flights.get(name) is flight:
                del self._flights[name]

        task.add_done_callback(landed)
        return flight, False

    async def land(self, seconds: float) -> None:
        """Wait until every flight has landed; end what takes longer than that."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _fly(self, flight: Flight, case: Case, ask: Callable[[], Awaitable[Sent]]) -> None:
        async def call() -> Recorded:
            started = time.perf_counter()
            sent = await ask()
            self._metrics.upstream[sent.status] += 1
            flight.begin(sent.status, sent.headers, kept=False)
            n_bytes = 0
            async for piece in sent.pieces:
                flight.add(piece)
                n_bytes += len(piece)
                if n_bytes > _MOST_BYTES:
                    raise OverflowError(f"an answer is longer than {_MOST_BYTES:,} bytes")
            self._metrics.upstream_seconds += time.perf_counter() - started
            await asyncio.sleep(0)  # the last piece leaves before the answer is kept
            return record(sent.status, sent.headers, flight.body())

        try:
            recorded, here = await drive_async(case.steps(), call)
            if not here:
                flight.begin(recorded.status, list(recorded.headers.items()), kept=True)
                for piece in recorded.pieces():
                    flight.add(piece)
            flight.end()
        except BaseException as error:
            flight.end(error)
            if not isinstance(error, Exception):
                raise
