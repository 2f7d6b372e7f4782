"""The prefix index: which tokens are known, what is kept along them, and handles to places in it.

A radix tree over token ids, one root for each namespace. Two sorts of payload hang on it: *points*, kept at one depth
(`points`), and one *span* payload, a pool slot for each token (`spans`), each within its own byte budget. What has no
payload, no handle and no child is forgotten.

Any number of threads may share a tree: every call holds one lock for a few microseconds. A `Handle` is for one thread
at a time. Callbacks run without the lock, on the thread whose call evicted. The tree is for one process.
"""

from __future__ import annotations

import threading
from array import array
from collections import deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmstash.errors import InvalidArgumentError
from lmstash.identity.tokens import TokenIds, token_bytes
from lmstash.prefix.node import TOKEN_BYTES, Node, Root, lengthened, points_of, shared_bytes, split, trim, walk
from lmstash.prefix.points import PointKind, Points
from lmstash.prefix.spans import SpanKind, Spans, as_slots


@dataclass(frozen=True, slots=True)
class TreeInfo:
    """What a tree holds."""

    n_nodes: int
    n_tokens: int
    """Tokens on edges: what is shared counts once."""
    points: dict[str, tuple[int, int]]
    """For each kind how many there are and their bytes."""
    span_tokens: int
    span_bytes: int


class PrefixTree:
    """A radix index over token sequences. See the module."""

    def __init__(self, points: Mapping[str, PointKind] | None = None, span: SpanKind | None = None) -> None:
        """Make an empty one.

        Args:
            points: The kinds of point payload, by name.
            span: The span payload, if there is one.
        """
        points = points or {}
        self._n_kinds = max(1, len(points))
        self._points = {name: Points(kind, place, self._n_kinds) for place, (name, kind) in enumerate(points.items())}
        self._spans = None if span is None else Spans(span)
        self._roots: dict[Hashable, Node] = {}
        self._lock = threading.Lock()
        # Handles that were let go of, with their pins. A finalizer may run in the middle of anything, so it only notes.
        self._dropped: deque[tuple[Node, int]] = deque()
        self._n_nodes = 0
        self._n_tokens = 0

    # --- finding ---------------------------------------------------------------------------------------------------

    def match(self, ids: TokenIds, namespace: Hashable = "") -> Handle:
        """Return a handle to the deepest place on the way of `ids` that is known; its `depth` says how far that is.

        Adds nothing. Costs a memory comparison of the tokens and about 0.3 us for each node on the way.

        Raises:
            InvalidArgumentError: As `tokens.token_bytes`.
        """
        data = token_bytes(ids)
        with self._lock:
            if self._dropped:
                self._settle()
            node, at = walk(self._root(namespace), data, 0)
            node.refs += 1
        return Handle(self, node, at // TOKEN_BYTES)

    def match_many(self, rows: Iterable[TokenIds], namespace: Hashable = "") -> list[Handle]:
        """Return `match` of each row, under one lock."""
        datas = [token_bytes(ids) for ids in rows]
        out: list[Handle] = []
        with self._lock:
            if self._dropped:
                self._settle()
            root = self._root(namespace)
            for data in datas:
                node, at = walk(root, data, 0)
                node.refs += 1
                out.append(Handle(self, node, at // TOKEN_BYTES))
        return out

    def start(self, ids: TokenIds, namespace: Hashable = "") -> Handle:
        """Return a handle to the place after all of `ids`, which is known from now on (while a handle or payload is).

        Raises:
            InvalidArgumentError: As `tokens.token_bytes`.
        """
        data = token_bytes(ids)
        with self._lock:
            if self._dropped:
                self._settle()
            node = self._insert(self._root(namespace), data, 0)
            node.refs += 1
        return Handle(self, node, len(data) // TOKEN_BYTES)

    def get(self, kind: str, ids: TokenIds, namespace: Hashable = "") -> Any | None:
        """Return the point kept after exactly `ids`, or None. The cheapest way to ask for one thing once."""
        data = token_bytes(ids)
        points = self._kind(kind)
        with self._lock:
            root = self._roots.get(namespace)
            if root is None:
                return None
            node, at = walk(root, data, 0)
            if at < len(data):
                return None
            point = points.find(node, at // TOKEN_BYTES)
            return None if point is None else point.value

    # --- room ------------------------------------------------------------------------------------------------------

    def evict_points(self, kind: str, to_bytes: int) -> int:
        """Drop the longest unused points of a kind until at most `to_bytes` are held; returns how many went."""
        points = self._kind(kind)
        with self._lock:
            self._settle()
            gone, nodes = points.evict(to_bytes)
            self._trim(nodes)
        self._tell(points, gone)
        return len(gone)

    def evict_span(self, to_tokens: int) -> int:
        """Free slots, ends of the longest unused branches first, until at most `to_tokens` are held.

        Returns how many went; pinned ones stay.
        """
        spans = self._span()
        with self._lock:
            self._settle()
            freed, nodes = spans.evict(to_tokens)
            self._trim(nodes)
        self._free(freed)
        return len(freed)

    def info(self) -> TreeInfo:
        """Say what is held. Costs nothing: all of it is counted as it changes."""
        with self._lock:
            self._settle()
            spans = self._spans
            return TreeInfo(
                self._n_nodes,
                self._n_tokens,
                {name: (points.count, points.held_bytes) for name, points in self._points.items()},
                0 if spans is None else spans.held,
                0 if spans is None else spans.held * spans.kind.token_bytes,
            )

    # --- inside, with the lock held --------------------------------------------------------------------------------

    def _kind(self, name: str) -> Points:
        points = self._points.get(name)
        if points is None:
            raise InvalidArgumentError(f"this tree keeps no {name!r}; it keeps {sorted(self._points)}")
        return points

    def _span(self) -> Spans:
        if self._spans is None:
            raise InvalidArgumentError("this tree keeps no span payload: give PrefixTree(span=)")
        return self._spans

    def _root(self, namespace: Hashable) -> Node:
        root = self._roots.get(namespace)
        if root is None:
            root = self._roots[namespace] = Root(namespace)
        return root

    def _insert(self, node: Node, data: bytes, at: int, depth: int = 0) -> Node:
        """Make `data[at:]` known after the end of `node`; returns the node that has its last token.

        `depth`: of the start of `data`.
        """
        node, at = walk(node, data, at)
        return node if at == len(data) else self._grow(node, depth + at // TOKEN_BYTES, data[at:])

    def _grow(self, node: Node, depth: int, data: bytes) -> Node:
        """Make `data`, of which the first token is not known, known after `depth` in `node`."""
        self._n_tokens += len(data) // TOKEN_BYTES
        if depth < node.end:
            node = self._split(node, depth)
        elif not node.children and node.parent is not None:
            node.edge = lengthened(node.edge, data)
            return node
        child = Node(node, depth, data)
        if not node.children:
            node.children = {}
        node.children[data[:TOKEN_BYTES]] = child
        self._n_nodes += 1
        return child

    def _split(self, node: Node, depth: int) -> Node:
        upper = split(node, depth, self._n_kinds)
        self._n_nodes += 1
        if self._spans is not None:
            self._spans.after_split(upper, node)
        return upper

    def _trim(self, nodes: Iterable[Node]) -> None:
        roots, n_nodes, n_tokens = trim(nodes, self._n_kinds)
        self._n_nodes -= n_nodes
        self._n_tokens -= n_tokens
        for root in roots:
            if not (root.children or root.refs or root.points):
                self._roots.pop(root.namespace, None)

    def _settle(self) -> None:
        """Take back the references of handles that were let go of."""
        dropped = self._dropped
        while dropped:
            node, pins = dropped.popleft()
            node.refs -= 1
            if pins:
                self._unlock(node, pins)
            if not node.refs and not node.children:
                self._trim((node,))

    def _lock_path(self, node: Node, pins: int) -> None:
        above: Node | None = node
        while above is not None:
            above.locks += pins
            above = above.parent

    def _unlock(self, node: Node, pins: int) -> None:
        above: Node | None = node
        while above is not None:
            above.locks -= pins
            if not above.locks and self._spans is not None:
                self._spans.unlocked(above)
            above = above.parent

    # --- without the lock ------------------------------------------------------------------------------------------

    def _tell(self, points: Points, gone: list[Any]) -> None:
        if gone and points.kind.on_evict is not None:
            points.kind.on_evict(gone)

    def _free(self, freed: array[int]) -> None:
        if freed and self._spans is not None and self._spans.kind.on_free is not None:
            self._spans.kind.on_free(freed)


class Handle:
    """A place in a tree: after `depth` tokens of one sequence. What is kept there is read and written through it.

    While it lives, its tokens stay known; payloads may be evicted all the same, unless pinned. Going on from it costs
    by the new tokens only. Let go of it by dropping the last reference or by `release`.
    """

    __slots__ = ("_node", "_pins", "_tree", "depth")

    def __init__(self, tree: PrefixTree, node: Node, depth: int) -> None:
        """Made by `PrefixTree.match`, `start`, `extend` and `fork`, which count the reference."""
        self._tree = tree
        self._node: Node | None = node
        self._pins = 0
        self.depth = depth

    def __del__(self) -> None:
        node = self._node
        if node is not None:
            self._tree._dropped.append((node, self._pins))

    def release(self) -> None:
        """Let go of the place and of its pins, at once. The handle is of no use afterwards."""
        tree = self._tree
        with tree._lock:
            node, self._node = self._node, None
            if node is not None:
                tree._dropped.append((node, self._pins))
            tree._settle()

    def fork(self) -> Handle:
        """Return another handle to the same place."""
        tree = self._tree
        with tree._lock:
            node = self._here()
            node.refs += 1
        return Handle(tree, node, self.depth)

    def extend(self, more: int | TokenIds) -> Handle:
        """Return a handle to the place `more` (a token, or several) after this one, known from now on."""
        tree = self._tree
        data = _one(more) if isinstance(more, int) else token_bytes(more)
        depth = self.depth
        with tree._lock:
            if tree._dropped:
                tree._settle()
            node = self._here()
            end, at = node.end, 0
            if depth < end:
                rest = bytes(node.edge[(depth - node.start) * TOKEN_BYTES :])
                at = shared_bytes(rest, data, 0)
                if at < min(len(rest), len(data)):
                    node = tree._grow(node, depth + at // TOKEN_BYTES, data[at:])
                elif at < len(data):
                    node = tree._insert(node, data, at, depth)
            else:
                node = tree._insert(node, data, 0, depth)
            node.refs += 1
        return Handle(tree, node, depth + len(data) // TOKEN_BYTES)

    def tokens(self) -> array[int]:
        """Return all tokens up to here."""
        with self._tree._lock:
            node: Node | None = self._here()
            parts: list[bytes | bytearray] = []
            while node is not None:
                parts.append(node.edge)
                node = node.parent
        out: array[int] = array("I")
        out.frombytes(b"".join(reversed(parts))[: self.depth * TOKEN_BYTES])
        return out

    # --- points ----------------------------------------------------------------------------------------------------

    def point(self, kind: str, depth: int | None = None) -> Any | None:
        """Return the value of a kind kept here, or at an earlier `depth`; None if there is none. Counts as a use."""
        tree = self._tree
        points = tree._kind(kind)
        with tree._lock:
            depth, node = self._at(depth)
            point = points.find(node, depth)
            return None if point is None else point.value

    def put_point(self, kind: str, value: Any, n_bytes: int, *, depth: int | None = None, replace: bool = True) -> bool:
        """Keep a value of a kind here, or at an earlier `depth`; with `replace=False` what is there already stays.

        Returns:
            Whether there is one now. A value above the kind's whole budget is not kept.
        """
        tree = self._tree
        points = tree._kind(kind)
        with tree._lock:
            if tree._dropped:
                tree._settle()
            depth, node = self._at(depth)
            kept, gone, nodes = points.put(node, depth, value, n_bytes, replace)
            if nodes:
                tree._trim(nodes)
        tree._tell(points, gone)
        return kept

    def deepest(self, kind: str) -> tuple[int, Any] | None:
        """Return the depth and value of the last point of a kind on the way here, or None. Counts as a use of it.

        Costs a step for each node and point between.
        """
        tree = self._tree
        points = tree._kind(kind)
        with tree._lock:
            node: Node | None = self._here()
            n_kinds, last = points.n_kinds, self.depth * points.n_kinds + points.index
            while node is not None:
                keys = [each.key for each in points_of(node) if each.key <= last and each.key % n_kinds == points.index]
                if keys:
                    depth = max(keys) // n_kinds
                    point = points.find(node, depth)
                    assert point is not None
                    return depth, point.value
                node = node.parent
        return None

    # --- the span payload ------------------------------------------------------------------------------------------

    @property
    def covered(self) -> int:
        """How many of the tokens up to here have slots, from the first one on."""
        spans = self._tree._span()
        with self._tree._lock:
            return spans.covered(self._here(), self.depth)[1]

    def slots(self, start: int = 0, stop: int | None = None) -> array[int]:
        """Return the slots of the tokens from `start` to before `stop`, as far as there are any. Counts as a use."""
        spans = self._tree._span()
        with self._tree._lock:
            node, covered = spans.covered(self._here(), self.depth)
            stop = covered if stop is None else min(stop, covered)
            if node.slots is not None:
                spans.recency.touch(node)
            data = spans.read(node, start, stop)
        out: array[int] = array("I")
        out.frombytes(data)
        return out

    def put_slots(self, start: int, slots: Sequence[int] | array[int]) -> array[int]:
        """Keep slots for the tokens from `start` on, at most up to here.

        Returns:
            Those that were not taken and still belong to the caller: there are some for these tokens already, there is
            a hole before them, they go beyond this place, or there is no room even after evicting what is not pinned.
        """
        tree, spans, own = self._tree, self._tree._span(), as_slots(slots)
        if start < 0:
            raise InvalidArgumentError(f"start= is a number of tokens, not {start}")
        with tree._lock:
            if tree._dropped:
                tree._settle()
            rest, freed, nodes = spans.put(self._here(), self.depth, start, own)
            if nodes:
                tree._trim(nodes)
        tree._free(freed)
        return rest

    def pin(self) -> None:
        """Let no slot before this place be freed until `unpin` (as often), or until the handle is let go of."""
        tree = self._tree
        with tree._lock:
            tree._lock_path(self._here(), 1)
            self._pins += 1

    def unpin(self) -> None:
        """Undo one `pin`. Counts as a use."""
        tree = self._tree
        with tree._lock:
            if not self._pins:
                raise InvalidArgumentError("this handle has no pin to undo")
            self._pins -= 1
            tree._unlock(self._here(), 1)

    # --- inside, with the lock held --------------------------------------------------------------------------------

    def _here(self) -> Node:
        """Return the node that this place is in: a split may have put it above the one it was in."""
        node = self._node
        if node is None:
            raise InvalidArgumentError("this handle was released")
        depth = self.depth
        while depth <= node.start:
            above = node.parent
            if above is None:
                break
            node.refs -= 1
            node.locks -= self._pins
            above.refs += 1
            self._node = above
            if not node.refs and not node.children:
                self._tree._trim((node,))
            node = above
        return node

    def _at(self, depth: int | None) -> tuple[int, Node]:
        node = self._here()
        if depth is None:
            return self.depth, node
        if not 0 <= depth <= self.depth:
            raise InvalidArgumentError(f"depth= is from 0 to {self.depth} here, not {depth}")
        while depth <= node.start and node.parent is not None:
            node = node.parent
        return depth, node


def _one(token: int) -> bytes:
    try:
        return token.to_bytes(TOKEN_BYTES, "little")
    except OverflowError:
        raise InvalidArgumentError(f"a token id is an integer from 0 to 2**32 - 1, not {token}") from None
