"""Which rows of `Llama.scores` are as llama.cpp gave them.

The array is the program's: samplers and stopping criteria are handed its rows, and may write into them. So a sum of
each row is taken when it is written, and a row is kept only while it still has that sum.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xxhash

from lmstash.caches.states.scores import Take


class Rows:
    """Sums of the rows of one array. Used by the thread that uses the model."""

    def __init__(self, sums: Sequence[int | None] = ()) -> None:
        """Take sums that are known: one of each row from the first on, None of those that are not known."""
        self.sums: list[int | None] = list(sums)

    def note(self, scores: np.ndarray, first: int, last: int) -> None:
        """Note that rows from `first` to before `last` were written just now, and none after them is of use.

        Args:
            scores: `[n, n_vocab]` float32. Costs about 20 us a row of 200 KB.
            first: From 0 on.
            last: Exclusive.
        """
        del self.sums[first:]
        self.sums += [None] * (first - len(self.sums))
        self.sums += [_sum(row) for row in scores[first:last]]


def taking(scores: np.ndarray, sums: Sequence[int | None]) -> Take:
    """Return what gives those rows of `scores` that have their sums: see `lmstash.caches.states.scores`."""

    def take(first: int, last: int) -> np.ndarray | None:
        rows = scores[first:last]
        known = sums[first:last]
        if len(rows) < last - first or len(known) < last - first:
            return None
        sound = all(wanted is not None and _sum(row) == wanted for row, wanted in zip(rows, known, strict=True))
        return rows if sound else None

    return take


def _sum(row: np.ndarray) -> int:
    return xxhash.xxh3_64_intdigest(np.ascontiguousarray(row).data)
