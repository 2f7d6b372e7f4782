"""How many requests a model gets at once: few enough that a crash loses seconds, enough that batches stay full."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

_FIRST_BATCHES = 4
_GOAL_SECONDS = 10.0
_MOST = 4096


class Chunks:
    """Begins with a few of the model's batches and doubles until a chunk takes about ten seconds.

    Args:
        batch_size: What the model computes at once; chunks are multiples of it.
        fixed: Requests in every chunk, instead.
    """

    def __init__(self, batch_size: int, fixed: int | None = None) -> None:
        self._batch_size = max(1, batch_size)
        self._fixed = fixed
        self._size = fixed or self._batch_size * _FIRST_BATCHES

    def size(self) -> int:
        """Return how many requests the next chunk has."""
        return self._size

    def timed(self, call: Callable[[list[Any]], list[Any]], chunk: list[Any]) -> list[Any]:
        """Call the model with a chunk, and learn from how long it took."""
        started = time.monotonic()
        answers = call(chunk)
        if self._fixed is None and len(chunk) >= self._size:
            seconds = time.monotonic() - started
            if seconds < _GOAL_SECONDS / 2:
                self._size = min(2 * self._size, max(_MOST, self._batch_size))
            elif seconds > 2 * _GOAL_SECONDS:
                batches = self._size // self._batch_size // 2
                self._size = max(1, batches) * self._batch_size
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
