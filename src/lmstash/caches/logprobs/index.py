"""The prefix index of one model, asked for many contexts at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmstash.prefix.node import walk
from lmstash.prefix.tree import PrefixTree


class ContextIndex(PrefixTree):
    """A `PrefixTree` that is asked by token bytes, so that a batch is turned into these once."""

    def find_many(self, kind: str, contexts: Sequence[bytes]) -> list[Any | None]:
        """Return the point kept after exactly each context, or None. Costs 1 to 2 us each."""
        index = self._index
        points = index.kind(kind)
        find = points.find
        out: list[Any | None] = []
        with index.lock:
            root = index.root("")
            for data in contexts:
                node, at = walk(root, data, 0)
                point = find(node, at >> 2) if at == len(data) else None
                out.append(None if point is None else point.value)
        return out
