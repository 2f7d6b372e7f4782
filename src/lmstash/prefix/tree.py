"""The prefix index: which tokens are known, what is kept along them, and handles to places in it.

A radix tree over token ids, one root for each namespace. Two sorts of payload hang on it: *points*, kept at one depth
(`points`), and one *span* payload, a pool slot for each token (`spans`), each within its own byte budget. What has no
payload, no handle and no child is forgotten.

Any number of threads may share a tree: every call holds one lock for some microseconds. Callbacks run without the
lock, on the thread whose call evicted. A forked child has its own copy; processes do not share a tree.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lmstash.identity.tokens import TokenIds, token_bytes
from lmstash.prefix.handle import Handle
from lmstash.prefix.index import Index
from lmstash.prefix.node import Node, walk
from lmstash.prefix.points import PointKind
from lmstash.prefix.spans import SpanKind

__all__ = ["Handle", "PointKind", "PrefixTree", "SpanKind", "TreeInfo"]


@dataclass(frozen=True, slots=True)
class TreeInfo:
    """What a tree holds."""

    n_nodes: int
    """Nodes, roots not counted."""
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
        self._index = Index(points or {}, span)

    # --- finding ---------------------------------------------------------------------------------------------------

    def match(self, ids: TokenIds, namespace: Hashable = "") -> Handle:
        """Return a handle to the deepest place on the way of `ids` that is known; its `depth` says how far that is.

        Adds nothing. Costs a memory comparison of the tokens and about 0.3 us for each node on the way.

        Raises:
            InvalidArgumentError: As `tokens.token_bytes`.
            InterruptedChangeError: A signal handler asks in the midst of a change of the tree by its own thread.
        """
        data = token_bytes(ids)
        index = self._index
        index.refuse_within()
        with index.lock:
            if index.dropped:
                index.settle()
            root = index.root(namespace)
            node, at = walk(root, data, 0)
            node.refs += 1
        return Handle(index, root, node, at // 4)

    def match_many(self, rows: Iterable[TokenIds], namespace: Hashable = "") -> list[Handle]:
        """Return `match` of each row, under one lock; raises as it does."""
        datas = [token_bytes(ids) for ids in rows]
        index = self._index
        out: list[Handle] = []
        index.refuse_within()
        with index.lock:
            if index.dropped:
                index.settle()
            root = index.root(namespace)
            for data in datas:
                node, at = walk(root, data, 0)
                node.refs += 1
                out.append(Handle(index, root, node, at // 4))
        return out

    def start(self, ids: TokenIds, namespace: Hashable = "") -> Handle:
        """Return a handle to the place after all of `ids`, which is known from now on (while a handle or payload is).

        Raises:
            InvalidArgumentError: As `tokens.token_bytes`.
            InterruptedChangeError: A signal handler asks in the midst of a change of the tree by its own thread.
        """
        data = token_bytes(ids)
        index = self._index
        index.refuse_within()
        with index.lock:
            if index.dropped:
                index.settle()
            root = index.root(namespace)
            node = index.insert(root, 0, data)
            node.refs += 1
        return Handle(index, root, node, len(data) // 4)

    def get(self, kind: str, ids: TokenIds, namespace: Hashable = "") -> Any | None:
        """Return the point kept after exactly `ids`, or None: the cheapest way to ask for one thing once.

        Raises:
            InvalidArgumentError: As `tokens.token_bytes`, or the tree keeps no such kind.
        """
        data = token_bytes(ids)
        index = self._index
        points = index.points.get(kind) or index.kind(kind)
        with index.lock:
            root = index.roots.get(namespace)
            if root is None:
                return None
            node, at = walk(root, data, 0)
            point = points.find(node, at // 4) if at == len(data) else None
            return None if point is None else point.value

    # --- room ------------------------------------------------------------------------------------------------------

    def evict_points(self, kind: str, to_bytes: int) -> int:
        """Drop the longest unused points of a kind until at most `to_bytes` are held; returns how many went."""
        index = self._index
        points = index.kind(kind)
        leaves: list[Node] = []
        with index.lock:
            index.settle()
            n_gone = points.evict(to_bytes, leaves)
            index.trim(leaves)
            news = index.news()
        index.tell(news)
        return n_gone

    def evict_span(self, to_tokens: int) -> int:
        """Free slots until at most `to_tokens` are held: ends of the longest unused branches first.

        Returns how many went; pinned ones stay.
        """
        index = self._index
        spans = index.span()
        leaves: list[Node] = []
        with index.lock:
            index.settle()
            n_gone = spans.evict(to_tokens, leaves)
            index.trim(leaves)
            news = index.news()
        index.tell(news)
        return n_gone

    def clear(self, namespace: Hashable | None = None) -> None:
        """Drop all that is kept in one namespace, or in all.

        Nobody finds it again. Handles into it stay of use, but what is put through them is not kept; slots that are
        pinned are freed with their last pin. Costs about a microsecond for each node and payload.
        """
        index = self._index
        with index.lock:
            index.settle()
            roots = list(index.roots.values()) if namespace is None else [index.roots.get(namespace)]
            for root in roots:
                if root is not None:
                    index.clear(root)
            news = index.news()
        index.tell(news)

    def info(self) -> TreeInfo:
        """Say what is held. Costs nothing: all of it is counted as it changes."""
        index = self._index
        with index.lock:
            index.settle()
            spans = index.spans
            return TreeInfo(
                index.n_nodes,
                index.n_tokens,
                {name: (points.count, points.held_bytes) for name, points in index.points.items()},
                0 if spans is None else spans.held,
                0 if spans is None else spans.held * spans.kind.token_bytes,
            )
