"""How many requests a model gets at once: one of its batches, or more where batches are quick.

What a crash loses is the chunk in flight. To keep a chunk takes about 1 ms, and what a model does for each call: too
much for each batch of 10 ms, and nothing beside one of a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

_GOAL_SECONDS = 2.0
_MOST = 4096


class Chunks:
    """Begins with one of the model's batches, and at most doubles, as far as a chunk should be done within two seconds.

    That is told by what the last one took; one that took longer is followed by a smaller one, down to one batch.

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

    def size(self) -> int:
        """Return how many requests the next chunk has."""
        return self._size

    def timed(self, call: Callable[[list[Any]], list[Any]], chunk: list[Any]) -> list[Any]:
        """Call the model with a chunk, and learn from how long it took."""
        started = self._clock()
        answers = call(chunk)
        if self._fixed is None and len(chunk) >= self._size:
            n_batches = self._size // self._batch_size
            seconds = (self._clock() - started) / n_batches
            most = max(1, _MOST // self._batch_size)
            in_time = int(min(_GOAL_SECONDS / max(seconds, 1e-9), most))
            self._size = max(1, min(2 * n_batches, in_time)) * self._batch_size
        return answers


def batch_size_of(lm: Any) -> int:
    """Return what a harness's model computes at once; 1 where it does not say."""
    for name in ("batch_size_per_gpu", "batch_size", "_batch_size"):
        try:
            size = int(getattr(lm, name, None))  # type: ignore[arg-type]
        except (TypeError, ValueError, NotImplementedError):
            continue
        if size > 0:
            return size
    return 1
