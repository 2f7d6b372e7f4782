"""How many requests a model gets at once: one of its batches, or more where batches are quick or more at once help.

What a crash loses is the chunk in flight. To keep a chunk takes about 1 ms, and what a model does for each call: too
much for each batch of 10 ms, and nothing beside one of a second. But a model may ask a server for many requests at the
same time, and nothing may say so.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

_GOAL_SECONDS = 2.0
_MOST = 4096
_CLEARLY = 0.7
"""To at most so much of what it took before falls the time of a request, where twice as many at once help."""
_PAUSE = 16
"""So many chunks after it was no help more are tried again, and after twice as many each time."""


class Chunks:
    """Begins with one of the model's batches, and at most doubles, as far as a chunk should be done within two seconds.

    That is told by what the last one took; one that took longer is followed by a smaller one, down to one batch. Beyond
    that, twice as many are tried once in a while, and stay as long as each request takes clearly less time by it.

    Args:
        batch_size: What the model computes at once; chunks are multiples of it.
        fixed: Requests in every chunk, instead.
        clock: Says the time, in seconds.
    """

    def __init__(
        self, batch_size: int, fixed: int | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._batch_size = max(1, batch_size)
        self._fixed = fixed
        self._size = fixed or self._batch_size
        self._before: tuple[int, float] | None = None
        """How many batches the last chunk had, and the seconds that each took."""
        self._helpful = 1
        """So many batches at once were quicker than half as many."""
        self._wait = 0
        self._pause = _PAUSE

    def size(self) -> int:
        """Return how many requests the next chunk has."""
        return self._size

    def timed(self, call: Callable[[list[Any]], list[Any]], chunk: list[Any]) -> list[Any]:
        """Call the model with a chunk, and learn from how long it took."""
        started = self._clock()
        answers = call(chunk)
        self.learn(len(chunk), self._clock() - started)
        return answers

    def learn(self, n_requests: int, seconds: float) -> None:
        """Learn from how long a chunk took; from one that was cut short nothing."""
        if self._fixed is None and n_requests >= self._size:
            n_batches = self._size // self._batch_size
            self._size = self._next(n_batches, seconds / n_batches) * self._batch_size

    def _next(self, n_batches: int, seconds: float) -> int:
        """Return how many batches come next, after so many that took so long each."""
        before, self._before = self._before, (n_batches, seconds)
        self._wait = max(0, self._wait - 1)
        if before is not None and before[0] < n_batches:
            if seconds <= _CLEARLY * before[1]:
                self._helpful = n_batches
            elif not self._wait:
                self._wait, self._pause = self._pause, 2 * self._pause
        most = max(1, _MOST // self._batch_size)
        in_time = int(min(_GOAL_SECONDS / max(seconds, 1e-9), most))
        if not self._wait and n_batches <= max(self._helpful, in_time):
            return min(2 * n_batches, most)
        return max(self._helpful, min(2 * n_batches, in_time))
