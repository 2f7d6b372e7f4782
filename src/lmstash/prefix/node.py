"""The nodes of a radix tree over token sequences: finding, adding, splitting and trimming, without payload rules.

An edge is a run of token ids as little-endian uint32 bytes: one `startswith` compares it, which is a memcmp. Nothing
here recurses, so sequences may be of any length. Not locked.
"""

from __future__ import annotations

from array import array
from typing import Any

from lmstash.prefix.recency import Listed

TOKEN_BYTES = 4


class Point(Listed):
    """A payload kept at one depth."""

    __slots__ = ("key", "n_bytes", "node", "value")

    def __init__(self, node: Node, key: int, value: Any, n_bytes: int) -> None:
        """Take what is kept; `key` as in `Node.points`."""
        self.colder = self.hotter = None
        self.node = node
        self.key = key
        self.value = value
        self.n_bytes = n_bytes


class Node(Listed):
    """A run of tokens after its parent's, with the payloads along it.

    When a node is split, the half with the later tokens stays this object: a position is a node and a depth, and one in
    the earlier half is found by going up.
    """

    __slots__ = ("children", "covered_children", "edge", "locks", "parent", "points", "refs", "slots", "start")

    edge: bytes | bytearray
    """Its tokens. A bytearray once it has grown or shrunk at its end."""
    start: int
    """Tokens before the edge."""
    parent: Node | None
    """None for a root, and for a node that was removed."""
    children: dict[bytes, Node] | None
    """By first token."""
    points: dict[int, Point] | None
    """By `depth * n_kinds + kind`, for depths from `start + 1` (a root: 0) to the edge's end."""
    slots: array[int] | None
    """One slot for each token from the edge's start on, as far as the span payload goes; None for none at all."""
    covered_children: int
    """Children whose `slots` is not None."""
    refs: int
    """Handles here: while there are any, the edge is not cut."""
    locks: int
    """Pins here and below: while there are any, no slot is freed."""

    def __init__(self, parent: Node | None, start: int, edge: bytes) -> None:
        """Make a leaf that its parent does not know of yet."""
        self.colder = self.hotter = None
        self.parent = parent
        self.start = start
        self.edge = edge
        self.children = None
        self.points = None
        self.slots = None
        self.covered_children = 0
        self.refs = 0
        self.locks = 0

    @property
    def end(self) -> int:
        """Tokens up to the edge's end."""
        return self.start + (len(self.edge) >> 2)


def walk(node: Node, data: bytes | bytearray, at: int) -> tuple[Node, int]:
    """Follow `data[at:]` from the end of `node`; returns the node where it stops and how far in `data` that is."""
    size = len(data)
    while at < size:
        children = node.children
        if children is None:
            break
        child = children.get(data[at : at + TOKEN_BYTES])  # type: ignore[arg-type]
        if child is None:
            break
        node = child
        edge = node.edge
        if data.startswith(edge, at):
            at += len(edge)
        else:
            return node, at + shared_bytes(edge, data, at)
    return node, at


def shared_bytes(edge: bytes | bytearray, data: bytes | bytearray, at: int) -> int:
    """Return how many bytes of whole tokens `edge` and `data[at:]` begin with in common.

    Compares windows that double, then halves the one that differs: some memcmp calls, and no loop over tokens.
    """
    size = min(len(edge), len(data) - at)
    low, step = 0, 256
    while low < size:
        high = min(low + step, size)
        if edge[low:high] == data[at + low : at + high]:
            low = high
            step *= 2
            continue
        while high - low > TOKEN_BYTES:
            middle = low + ((high - low) // 2 & -TOKEN_BYTES or TOKEN_BYTES)
            if edge[low:middle] == data[at + low : at + middle]:
                low = middle
            else:
                high = middle
        break
    return low


def split(node: Node, depth: int, n_kinds: int) -> Node:
    """Cut the edge of `node` at `depth`, inside it; returns the new node with the earlier half.

    Costs a copy of the half's tokens and a step for each point of the node. Who keeps recency of slots must call this
    with care: the new node is in no list (see `spans.Spans.split`).
    """
    cut = (depth - node.start) * TOKEN_BYTES
    parent = node.parent
    assert parent is not None
    assert parent.children is not None
    upper = Node(parent, node.start, bytes(node.edge[:cut]))
    parent.children[bytes(node.edge[:TOKEN_BYTES])] = upper
    node.edge = bytes(node.edge[cut:])
    upper.children = {bytes(node.edge[:TOKEN_BYTES]): node}
    upper.locks = node.locks
    node.parent = upper
    node.start = depth
    if node.points is not None:
        last = depth * n_kinds + n_kinds  # keys below it are at `depth` or before
        moved = [point for key, point in node.points.items() if key < last]
        for point in moved:
            del node.points[point.key]
            point.node = upper
        upper.points = {point.key: point for point in moved} or None
        node.points = node.points or None
    if node.slots is not None:
        upper.slots = node.slots[: cut // TOKEN_BYTES]
        node.slots = node.slots[cut // TOKEN_BYTES :] or None
        upper.covered_children = 1 if node.slots is not None else 0
    return upper


def trim(node: Node, n_kinds: int) -> tuple[int, int]:
    """Remove from the end what nobody needs: tokens after the last payload, and nodes without any.

    Only where no child, handle or pin is. A root stays. Returns how many nodes and tokens went. Costs a step for each
    token and node that goes.
    """
    n_nodes = n_tokens = 0
    while not node.children and not node.refs and not node.locks:
        parent = node.parent
        if parent is None:
            break
        end = node.start + (len(node.edge) >> 2)
        used = node.start if node.slots is None else node.start + len(node.slots)
        points = node.points
        if points is not None:
            for depth in range(end, used, -1):
                key = depth * n_kinds
                if any(key + kind in points for kind in range(n_kinds)):
                    used = depth
                    break
        n_tokens += end - used
        if used > node.start:
            if used < end:
                if isinstance(node.edge, bytes):
                    node.edge = bytearray(node.edge)
                del node.edge[(used - node.start) * TOKEN_BYTES :]
            break
        n_nodes += 1
        assert parent.children is not None
        del parent.children[bytes(node.edge[:TOKEN_BYTES])]
        if not parent.children:
            parent.children = None
        node.parent = None
        node = parent
    return n_nodes, n_tokens
