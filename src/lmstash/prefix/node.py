"""The nodes of a radix tree over token sequences: finding, adding, splitting and trimming, without payload rules.

An edge is a run of token ids as little-endian uint32 bytes: one `startswith` compares it, which is a memcmp. Nothing
here recurses, so sequences may be of any length. Not locked.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any, Final

from lmstash.prefix.recency import Listed

TOKEN_BYTES: Final = 4
"""Written out below: a global costs a look-up."""


class Point(Listed):
    """A payload kept at one depth."""

    __slots__ = ("key", "n_bytes", "node", "value")

    def __init__(self, node: Node, key: int, value: Any, n_bytes: int) -> None:
        """Take what is kept; `key` is `depth * n_kinds + kind`."""
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
    children: dict[bytes, Node]
    """By first token; `LEAF` while there are none."""
    points: Point | dict[int, Point] | None
    """One, or several by `Point.key`, at depths from `start + 1` (a root: 0) to the edge's end. Most nodes have one at
    most, and a dict costs more than it."""
    slots: bytes | bytearray | None
    """One slot for each token from the edge's start on, as far as the span payload goes: uint32 in the machine's order,
    None for none at all."""
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
        self.children = LEAF
        self.points = None
        self.slots = None
        self.covered_children = 0
        self.refs = 0
        self.locks = 0

    @property
    def end(self) -> int:
        """Tokens up to the edge's end."""
        return self.start + (len(self.edge) // 4)


class Root(Node):
    """The empty sequence of one namespace."""

    __slots__ = ("detached", "namespace")

    def __init__(self, namespace: Hashable) -> None:
        """Make one without children."""
        super().__init__(None, 0, b"")
        self.namespace = namespace
        self.detached = False
        """Whether the namespace was cleared: only handles lead here."""


_SHORT: Final = 2048
"""Bytes of a short edge."""
LEAF: Final[dict[bytes, Node]] = {}
"""The children of every node that has none: it stays empty, and saves each leaf a dict."""


def walk(node: Node, data: bytes, at: int) -> tuple[Node, int]:
    """Follow `data[at:]` from the end of `node`; returns the node where it stops and how far in `data` that is."""
    size = len(data)
    try:
        while at < size:
            node = node.children[data[at : at + 4]]
            edge = node.edge
            end = at + len(edge)
            if end > size:  # mostly: the data ends within the edge
                return node, size if edge[: size - at] == data[at:] else at + shared_bytes(edge, data, at)
            # Of the two ways to compare, a slice is the faster one while it is short.
            if data[at:end] == edge if end - at <= _SHORT else data.startswith(edge, at):
                at = end
            else:
                return node, at + shared_bytes(edge, data, at)
    except KeyError:
        pass
    return node, at


def shared_bytes(edge: bytes | bytearray, data: bytes | bytearray, at: int) -> int:
    """Return how many bytes of whole tokens `edge` and `data[at:]` begin with in common.

    Compares windows that double, then halves the one that differs: some memcmp calls, and no loop over tokens.
    """
    size = min(len(edge), len(data) - at)
    if size <= _SHORT and edge[:size] == data[at : at + size]:  # mostly: the data ends within the edge
        return size
    low, step = 0, 256
    while low < size:
        high = min(low + step, size)
        if data.startswith(edge[low:high], at + low):
            low = high
            step *= 2
            continue
        while high - low > 4:
            middle = low + ((high - low) // 2 & -4 or 4)
            if data.startswith(edge[low:middle], at + low):
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
    cut = (depth - node.start) * 4
    parent = node.parent
    assert parent is not None
    upper, later = Node(parent, node.start, bytes(node.edge[:cut])), bytes(node.edge[cut:])
    upper.children = {later[:4]: node}
    upper.locks = node.locks
    first = bytes(upper.edge[:4])
    # Nothing is called from here to where all tokens are right again: no interrupt comes between.
    parent.children[first] = upper
    node.edge, node.start, node.parent = later, depth, upper
    if node.points is not None:
        last = depth * n_kinds + n_kinds  # keys below it are at `depth` or before
        for point in [each for each in points_of(node) if each.key < last]:
            drop_point(point)
            point.node = upper
            add_point(point)
    if node.slots is not None:
        upper.slots = bytes(node.slots[:cut])
        node.slots = bytes(node.slots[cut:]) or None
        upper.covered_children = 1 if node.slots is not None else 0
    return upper


def trim(nodes: Iterable[Node], n_kinds: int) -> tuple[list[Root], int, int]:
    """Remove from the ends of `nodes` what nobody needs: tokens after the last payload, and nodes without any.

    Only where no child and no handle is. Costs a step for each token and node that goes.

    Returns:
        The roots that were reached, and how many nodes and tokens went. A root is not removed.
    """
    roots: list[Root] = []
    n_nodes = n_bytes = 0
    for leaf in nodes:
        node = leaf
        while not (node.children or node.refs):
            parent = node.parent
            if parent is None:
                if isinstance(node, Root):
                    roots.append(node)
                break
            edge = node.edge
            if node.slots is not None or node.points is not None:
                used = (_last_used(node, n_kinds) - node.start) * 4
                if used < len(edge):
                    n_bytes += len(edge) - used
                    node.edge = shortened(edge, used)
                break
            n_nodes += 1
            n_bytes += len(edge)
            siblings = parent.children
            del siblings[edge[:4] if type(edge) is bytes else bytes(edge[:4])]
            if not siblings:
                parent.children = LEAF
            node.parent = None
            node = parent
    return roots, n_nodes, n_bytes // 4


def is_used_to_its_end(node: Node, n_kinds: int) -> bool:
    """Whether `trim` would leave the edge of a childless node as it is: the quick answer to what it mostly finds."""
    size = len(node.edge)
    slots = node.slots
    if slots is not None and len(slots) == size:
        return True
    points = node.points
    if points is None:
        return False
    last = (node.start + size // 4) * n_kinds
    if isinstance(points, dict):
        return any(key in points for key in range(last, last + n_kinds))
    return points.key >= last


def _last_used(node: Node, n_kinds: int) -> int:
    """Return the depth of the last payload in `node`, which has some."""
    covered = node.start if node.slots is None else node.start + len(node.slots) // 4
    points = node.points
    if isinstance(points, Point):
        return max(covered, points.key // n_kinds)
    if points is not None:
        for key in range((node.end + 1) * n_kinds - 1, (covered + 1) * n_kinds - 1, -1):
            if key in points:
                return key // n_kinds
    return covered


def points_of(node: Node) -> Iterable[Point]:
    """Return the points along the edge of `node`."""
    points = node.points
    return () if points is None else (points,) if isinstance(points, Point) else points.values()


def point_of(node: Node, key: int) -> Point | None:
    """Return the point of `node` with this key."""
    points = node.points
    if isinstance(points, dict):
        return points.get(key)
    return points if points is not None and points.key == key else None


def add_point(point: Point) -> None:
    """Let its node have a point whose key no other there has."""
    node, points = point.node, point.node.points
    if points is None:
        node.points = point
    elif isinstance(points, dict):
        points[point.key] = point
    else:
        node.points = {points.key: points, point.key: point}


def drop_point(point: Point) -> None:
    """Let its node have a point no more."""
    node, points = point.node, point.node.points
    if isinstance(points, dict):
        del points[point.key]
        if points:
            return
    node.points = None


def lengthened(run: bytes | bytearray, more: bytes) -> bytearray:
    """Return a run with more at its end: from the second time on the same object, so that growing costs little."""
    if isinstance(run, bytes):
        run = bytearray(run)
    run += more
    return run


def shortened(run: bytes | bytearray, n_bytes: int) -> bytes | bytearray:
    """Return the first bytes of a run: the same object if it has grown before."""
    if isinstance(run, bytes):
        return run[:n_bytes]
    del run[n_bytes:]
    return run
