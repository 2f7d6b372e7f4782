"""What a prefix tree and its handles work on: roots, nodes and payloads together, and the lock over them.

All methods but `kind`, `span` and `tell` are called with the lock held. What must be told to the owners of payloads is
taken there by `news`, and told by `tell` without the lock.
"""

from __future__ import annotations

import os
import threading
import weakref
from array import array
from collections import deque
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, TypeAlias

from lmstash.errors import InterruptedChangeError, InvalidArgumentError
from lmstash.interrupts import held_here
from lmstash.prefix.node import Node, Root, is_used_to_its_end, lengthened, points_of, shared_bytes, split, trim, walk
from lmstash.prefix.points import PointKind, Points
from lmstash.prefix.spans import SpanKind, Spans

News: TypeAlias = "tuple[list[tuple[Points, list[Any]]], array[int]]"
"""Values that went, by kind, and slots that are free again."""


class Index:
    """The inside of a `PrefixTree`."""

    def __init__(self, points: Mapping[str, PointKind], span: SpanKind | None) -> None:
        """Start empty."""
        self.n_kinds = max(1, len(points))
        self.points = {name: Points(kind, place, self.n_kinds) for place, (name, kind) in enumerate(points.items())}
        self.spans = None if span is None else Spans(span)
        self.roots: dict[Hashable, Root] = {}
        self.lock = threading.RLock()  # which says who has it
        # Handles that were let go of, with their pins. A finalizer may run in the middle of anything, so it only notes.
        self.dropped: deque[tuple[Node, int]] = deque()
        self.n_nodes = 0
        self.n_tokens = 0
        _live.add(self)

    def kind(self, name: str) -> Points:
        """Return the points of a kind."""
        points = self.points.get(name)
        if points is None:
            raise InvalidArgumentError(f"this tree keeps no {name!r}; it keeps {sorted(self.points)}")
        return points

    def span(self) -> Spans:
        """Return the span payload."""
        if self.spans is None:
            raise InvalidArgumentError("this tree keeps no span payload: give PrefixTree(span=)")
        return self.spans

    def refuse_within(self) -> None:
        """Raise where a signal handler comes to the tree in the midst of a change by its own thread.

        Raises:
            InterruptedChangeError: That is so.
        """
        if held_here(self.lock):
            raise InterruptedChangeError(
                "what has interrupted a change of the tree cannot use it. Let it return first."
            )

    # --- structure -------------------------------------------------------------------------------------------------

    def root(self, namespace: Hashable) -> Root:
        """Return the root of a namespace, making it if it is missing."""
        root = self.roots.get(namespace)
        if root is None:
            root = self.roots[namespace] = Root(namespace)
        return root

    def insert(self, node: Node, depth: int, data: bytes) -> Node:
        """Make `data` known after `depth` in `node`; returns the node that has its last token."""
        edge, at = node.edge, 0
        place = (depth - node.start) * 4
        if place < len(edge):
            if edge[place : place + len(data)] == data:
                return node
            rest = bytes(edge[place:])
            at = shared_bytes(rest, data, 0)
            if at < len(rest):
                return self._grow(node, depth + at // 4, data[at:])
        node, at = walk(node, data, at)
        return node if at == len(data) else self._grow(node, depth + at // 4, data[at:])

    def _grow(self, node: Node, depth: int, data: bytes) -> Node:
        """Make `data`, of which the first token is not known, known after `depth` in `node`."""
        self.n_tokens += len(data) // 4
        if depth < node.end:
            lower, node = node, split(node, depth, self.n_kinds)
            self.n_nodes += 1
            if self.spans is not None:
                self.spans.after_split(node, lower)
        elif not node.children and node.parent is not None:
            node.edge = lengthened(node.edge, data)
            return node
        child = Node(node, depth, data)
        if not node.children:
            node.children = {}
        node.children[data[:4]] = child
        self.n_nodes += 1
        return child

    def trim(self, leaves: Iterable[Node]) -> None:
        """Forget what `leaves` have at their ends that nobody needs."""
        roots, n_nodes, n_tokens = trim(leaves, self.n_kinds)
        self.n_nodes -= n_nodes
        self.n_tokens -= n_tokens
        for root in roots:
            if not (root.children or root.refs or root.points or root.detached):
                self.roots.pop(root.namespace, None)

    def clear(self, root: Root) -> None:
        """Let nobody find `root` again, and drop all payloads below it but pinned slots: those go with their last pin.

        Costs a step for each node.
        """
        if not root.detached:
            root.detached = True
            self.roots.pop(root.namespace, None)
        leaves: list[Node] = []
        kinds = list(self.points.values())
        left: list[Node] = [root]
        while left:
            node = left.pop()
            for point in list(points_of(node)):
                kinds[point.key % self.n_kinds].drop(point)
            if self.spans is not None and node.slots is not None and not node.locks:
                self.spans.drop(node)
            if node.children:
                left.extend(node.children.values())
            else:
                leaves.append(node)
        self.trim(leaves)

    # --- references and pins ---------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Take back the references and pins of handles that were let go of."""
        dropped = self.dropped
        while dropped:
            node, pins = dropped.popleft()
            if pins:
                self.unpin(node, pins)
            node.refs -= 1
            if not (node.refs or node.children or is_used_to_its_end(node, self.n_kinds)):
                self.trim((node,))

    def leave(self, node: Node, pins: int) -> None:
        """Take back one reference from `node`, and pins that go on above it."""
        node.refs -= 1
        if pins:
            self._unlock(node, pins)
        if not (node.refs or node.children):
            self.trim((node,))

    def pin(self, node: Node) -> None:
        """Protect the slots of `node` and before it. Costs a step for each node on the way."""
        above: Node | None = node
        while above is not None:
            above.locks += 1
            above = above.parent

    def unpin(self, node: Node, pins: int) -> None:
        """Undo `pin`, `pins` times."""
        above: Node | None = node
        while above is not None:
            self._unlock(above, pins)
            above = above.parent

    def _unlock(self, node: Node, pins: int) -> None:
        node.locks -= pins
        if not node.locks:
            if self.spans is not None:
                self.spans.unlocked(node)
            if isinstance(node, Root) and node.detached:
                self.clear(node)

    # --- telling ---------------------------------------------------------------------------------------------------

    def news(self) -> News | None:
        """Take what the owners of payloads must be told since the last time; None for nothing."""
        gone: list[tuple[Points, list[Any]]] = []
        for points in self.points.values():
            if points.gone:
                gone.append((points, points.gone))
                points.gone = []
        spans = self.spans
        freed: array[int] = array("I")
        if spans is not None and spans.freed:
            freed.frombytes(b"".join(spans.freed))
            spans.freed = []
        return (gone, freed) if gone or freed else None

    def tell(self, news: News | None) -> None:
        """Tell them."""
        if news is None:
            return
        gone, freed = news
        if freed and self.spans is not None and self.spans.kind.on_free is not None:
            self.spans.kind.on_free(freed)
        for points, values in gone:
            if points.kind.on_evict is not None:
                points.kind.on_evict(values)


# A fork while another thread is inside a tree would leave the child a tree half changed and locked for ever.
_live: weakref.WeakSet[Index] = weakref.WeakSet()
_held: list[Index] = []


def _before_fork() -> None:
    for index in list(_live):
        index.lock.acquire()
        _held.append(index)


def _after_fork() -> None:
    while _held:
        _held.pop().lock.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
