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
    """Called with the values that were evicted or replaced, after the tree's lock is let go."""


class Points:
    """The points of one kind, over all nodes and namespaces."""

    __slots__ = ("count", "held_bytes", "index", "kind", "n_kinds", "recency")

    def __init__(self, kind: PointKind, index: int, n_kinds: int) -> None:
        """`index`: which of the tree's `n_kinds` kinds this is."""
        self.kind = kind
        self.index = index
        self.n_kinds = n_kinds
        self.held_bytes = 0
        self.count = 0
        self.recency = Recency()

    def find(self, node: Node, depth: int) -> Point | None:
        """Return the point at `depth`, which is in `node`, and count it as used."""
        if node.points is None:
            return None
        point = point_of(node, depth * self.n_kinds + self.index)
        if point is not None:
            self.recency.touch(point)
        return point

    def put(
        self, node: Node, depth: int, value: Any, n_bytes: int, replace: bool
    ) -> tuple[bool, list[Any], list[Node]]:
        """Keep a value at `depth`, which is in `node`.

        Returns:
            Whether there is one now, the values that went for it, and the nodes these were in.
        """
        capacity = self.kind.capacity_bytes
        key = depth * self.n_kinds + self.index
        point = point_of(node, key)
        if point is not None and not replace:
            self.recency.touch(point)
            return True, [], []
        if capacity is not None and n_bytes > capacity:
            return False, [], []
        gone: list[Any] = []
        if point is not None:
            gone.append(point.value)
            self.held_bytes += n_bytes - point.n_bytes
            point.value, point.n_bytes = value, n_bytes
        else:
            point = Point(node, key, value, n_bytes)
            add_point(point)
            self.held_bytes += n_bytes
            self.count += 1
        self.recency.touch(point)
        nodes: list[Node] = []
        if capacity is not None and self.held_bytes > capacity:
            values, nodes = self.evict(capacity)
            gone += values
        return True, gone, nodes

    def evict(self, to_bytes: int) -> tuple[list[Any], list[Node]]:
        """Drop the longest unused until at most `to_bytes` are held; returns their values and leaves they were in."""
        gone: list[Any] = []
        nodes: list[Node] = []
        recency, held_bytes = self.recency, self.held_bytes
        point: Any = recency.hotter
        while held_bytes > to_bytes and point is not recency:
            hotter = point.hotter
            point.colder = point.hotter = None
            node = point.node
            if node.points is point:
                node.points = None
            else:
                drop_point(point)
            held_bytes -= point.n_bytes
            gone.append(point.value)
            if not node.children:
                nodes.append(node)
            point = hotter
        recency.hotter, point.colder = point, recency
        self.held_bytes = held_bytes
        self.count -= len(gone)
        return gone, nodes
