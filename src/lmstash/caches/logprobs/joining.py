"""Queries of many tasks of one event loop, computed together.

A query asks the loop to come back in its next pass; while passes bring more queries, it waits for another. So tasks
that are ready at once share a batch, without a timer: no query waits for time to go by, and a steady trickle of others
cannot hold it up for long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from torch import Tensor

_PASSES = 16
"""After so many a batch is computed, whether or not more arrive."""


class Joiner:
    """The queries of one event loop; to be used on its thread only."""

    def __init__(self, compute: Callable[[Sequence[bytes]], Tensor]) -> None:
        """Compute with `compute`, which takes distinct contexts and returns their rows."""
        self._compute = compute
        self._waiting: dict[bytes, list[asyncio.Future[Tensor]]] = {}
        self._arrived = 0

    async def ask(self, context: bytes) -> Tensor:
        """Return the row after a context, `[vocabulary]`. A task that is cancelled meanwhile disturbs no other."""
        loop = asyncio.get_running_loop()  # not held: a loop that is over must be free to go
        future: asyncio.Future[Tensor] = loop.create_future()
        loop.call_soon(self._look, future, -1, 1)
        self._waiting.setdefault(context, []).append(future)
        self._arrived += 1
        return await future

    def _look(self, future: asyncio.Future[Tensor], seen: int, passes: int) -> None:
        """Wait for another pass if the last one brought queries, else compute.

        Each query has looks of its own until it is answered: where an interrupt keeps the loop from one of them, those
        of the next query answer both.
        """
        waiting = self._waiting
        try:
            if future.done():
                return
            if self._arrived != seen and passes < _PASSES:
                asyncio.get_running_loop().call_soon(self._look, future, self._arrived, passes + 1)
                return
            self._waiting = {}
            self._answer(waiting)
        except BaseException as error:  # an interrupt
            _fail(waiting, error)
            raise

    def _answer(self, waiting: dict[bytes, list[asyncio.Future[Tensor]]]) -> None:
        asked = {
            context: alive
            for context, futures in waiting.items()
            if (alive := [future for future in futures if not future.done()])
        }
        if not asked:
            return
        try:
            rows = self._compute(list(asked))
        except Exception as error:
            _fail(asked, error)
            return
        for row, futures in zip(rows, asked.values(), strict=True):
            for future in futures:
                if not future.done():
                    future.set_result(row.clone())  # its own: a view would hold on to the whole batch


def _fail(waiting: dict[bytes, list[asyncio.Future[Tensor]]], error: BaseException) -> None:
    for futures in waiting.values():
        for future in futures:
            if not future.done():
                future.set_exception(error if isinstance(error, Exception) else asyncio.CancelledError())
