"""Payloads that are kept at one depth: a next-token row, a hidden state, a snapshot.

Each kind has its own byte budget. A point stands alone (it answers for exactly its prefix), so the one that was unused
for longest goes first, wherever it is. Not locked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lmstash.prefix.node import Node, Point, add_point, drop_point, point_of
from lmstash.prefix.recency import Recency


@dataclass(frozen=True, slots=True)
class PointKind:
    """A kind of point payload."""

    capacity_bytes: int | None = None
    """The most that its values may take together; None for no limit."""
    on_evict: Callable[[list[Any]], None] | None = None
    """Called with values that are kept no more: evicted, replaced or cleared. The tree's lock is not held then."""


class Points:
    """The points of one kind, over all nodes and namespaces."""

    __slots__ = ("count", "gone", "held_bytes", "index", "kind", "n_kinds", "recency")

    def __init__(self, kind: PointKind, index: int, n_kinds: int) -> None:
        """`index`: which of the tree's `n_kinds` kinds this is."""
        self.kind = kind
        self.index = index
        self.n_kinds = n_kinds
        self.held_bytes = 0
        self.count = 0
        self.recency = Recency()
        self.gone: list[Any] = []
        """Values of which `on_evict` is still to be told."""

    def find(self, node: Node, depth: int) -> Point | None:
        """Return the point at `depth`, which is in `node`, and count it as used."""
        point = point_of(node, depth * self.n_kinds + self.index)
        if point is not None:
            self.recency.touch(point)
        return point

    def put(self, node: Node, depth: int, value: Any, n_bytes: int, replace: bool, leaves: list[Node]) -> bool:
        """Keep a value at `depth`, which is in `node`; says whether there is one now.

        Leaves that lost a point for it are added to `leaves`.
        """
        capacity = self.kind.capacity_bytes
        key = depth * self.n_kinds + self.index
        point = point_of(node, key)
        if point is not None and not replace:
            self.recency.touch(point)
            return True
        if capacity is not None and n_bytes > capacity:
            return False
        if point is not None:
            self.gone.append(point.value)
            self.held_bytes += n_bytes - point.n_bytes
            point.value, point.n_bytes = value, n_bytes
        else:
            point = Point(node, key, value, n_bytes)
            add_point(point)
            self.held_bytes += n_bytes
            self.count += 1
        self.recency.touch(point)
        if capacity is not None and self.held_bytes > capacity:
            self.evict(capacity, leaves)
        return True

    def evict(self, to_bytes: int, leaves: list[Node]) -> int:
        """Drop the longest unused until at most `to_bytes` are held; returns how many went, adds their leaves."""
        recency, gone, excess = self.recency, self.gone, self.held_bytes - to_bytes
        before = len(gone)
        self.held_bytes = to_bytes
        point: Any = recency.hotter
        while excess > 0 and point is not recency:
            hotter = point.hotter
            point.colder = point.hotter = None
            node = point.node
            if node.points is point:
                node.points = None
            else:
                drop_point(point)
            excess -= point.n_bytes
            gone.append(point.value)
            if not node.children:
                leaves.append(node)
            point = hotter
        recency.hotter, point.colder = point, recency
        self.held_bytes += excess
        self.count -= len(gone) - before
        return len(gone) - before

    def drop(self, point: Point) -> None:
        """Drop one."""
        self.recency.remove(point)
        drop_point(point)
        self.held_bytes -= point.n_bytes
        self.count -= 1
        self.gone.append(point.value)
