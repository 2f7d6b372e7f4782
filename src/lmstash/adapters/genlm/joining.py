"""Questions of many tasks of one event loop, answered together.

A question asks the loop to come back in its next pass; while passes bring more, it waits for another one. So what
tasks ask that are ready at once is computed in one batch, without a timer that a steady trickle keeps putting off.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

_PASSES = 16
"""After so many an answer is computed, whether or not more questions arrive."""

Answer = Callable[[str | None, Sequence[Sequence[int]]], Any]
"""Takes the name of an adapter and contexts; returns their rows, `[n, vocab]`, which belong to the caller."""


Question = tuple[str | None, Sequence[Sequence[int]], asyncio.Future[Any]]


class Abandoned(RuntimeError):
    """The question was dropped before it was answered (`reset_async_queries`, an interrupt)."""


class Joiner:
    """The questions of one event loop; to be used on its thread only."""

    def __init__(self, answer: Answer) -> None:
        """Have questions answered by `answer`. Holds no reference to the loop, which may be over before this is."""
        self._answer = answer
        self._waiting: list[Question] = []

    async def ask(self, name: str | None, contexts: Sequence[Sequence[int]]) -> Any:
        """Return rows `[n, vocab]`, the caller's own. A caller that is cancelled meanwhile disturbs no other."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        loop.call_soon(self._look, future, 0, 1)
        self._waiting.append((name, contexts, future))
        return await future

    def abandon(self) -> None:
        """Drop what waits; those who asked get `Abandoned`."""
        _drop(self._waiting, "the question was dropped by reset_async_queries()")
        self._waiting = []

    def _look(self, future: asyncio.Future[Any], n_seen: int, passes: int) -> None:
        """Answer all, unless there are more than in the last pass.

        Each question has looks of its own until it is answered: where an interrupt keeps the loop from one of them, the
        looks of the next question answer both.
        """
        waiting = self._waiting
        try:
            if future.done():
                return
            if len(waiting) != n_seen and passes < _PASSES:
                asyncio.get_running_loop().call_soon(self._look, future, len(waiting), passes + 1)
                return
            self._waiting = []
            for name in dict.fromkeys(name for name, _, _ in waiting):
                self._settle(name, [(asked, each) for of, asked, each in waiting if of == name])
        except BaseException as error:
            _drop(waiting, f"the batch was interrupted: {error!r}")
            raise

    def _settle(self, name: str | None, group: list[tuple[Sequence[Sequence[int]], asyncio.Future[Any]]]) -> None:
        """Answer what is asked of one adapter; when that fails, one by one, so that one fault fails nobody else."""
        group = [(asked, future) for asked, future in group if not future.done()]
        if not group:
            return
        try:
            rows = self._answer(name, [context for asked, _ in group for context in asked])
        except Exception as error:
            if len(group) == 1:
                group[0][1].set_exception(error)
            else:
                for each in group:
                    self._settle(name, [each])
            return
        start = 0
        for asked, future in group:
            stop = start + len(asked)
            future.set_result(rows if len(group) == 1 else rows[start:stop].clone())
            start = stop


def _drop(waiting: Sequence[Question], why: str) -> None:
    for _, _, future in waiting:
        if not future.done():
            future.set_exception(Abandoned(why))
