"""Handles: places in a prefix tree, through which payloads are read and written without walking there again."""

from __future__ import annotations

import operator
from array import array
from collections.abc import Sequence
from typing import Any

from lmstash.errors import InvalidArgumentError
from lmstash.identity.tokens import TokenIds, token_bytes
from lmstash.interrupts import held_here
from lmstash.prefix.index import Index
from lmstash.prefix.node import Node, Root, points_of
from lmstash.prefix.spans import as_slots


class Handle:
    """A place in a tree: after `depth` tokens of one sequence. What is kept there is read and written through it.

    While it lives, its tokens stay known; payloads may be evicted all the same, unless pinned. Going on from it costs
    by the new tokens only. Let go of it by dropping the last reference, or at once by `release`. For one thread at a
    time; the tree may be shared.
    """

    __slots__ = ("_index", "_node", "_pins", "_root", "depth")

    def __init__(self, index: Index, root: Root, node: Node, depth: int) -> None:
        """Made by `PrefixTree.match` and `start`, `extend` and `fork`, which have counted the reference."""
        self._index = index
        self._root = root
        self._pins = 0
        self.depth = depth
        self._node: Node | None = node

    def __del__(self) -> None:
        try:
            node = self._node
        except AttributeError:  # an interrupt came before it was made
            return
        if node is not None:
            self._index.dropped.append((node, self._pins))

    def release(self) -> None:
        """Let go of the place and of its pins. The handle is of no use afterwards."""
        index = self._index
        node, self._node = self._node, None
        if node is None:
            return
        index.dropped.append((node, self._pins))
        if not held_here(index.lock):  # else what has it settles
            with index.lock:
                index.settle()
                news = index.news()
            index.tell(news)

    def fork(self) -> Handle:
        """Return another handle to the same place, without pins.

        Raises:
            InterruptedChangeError: A signal handler asks in the midst of a change of the tree by its own thread.
        """
        self._index.refuse_within()
        with self._index.lock:
            node = self._here()
            node.refs += 1
        return Handle(self._index, self._root, node, self.depth)

    def extend(self, more: int | TokenIds) -> Handle:
        """Return a handle to the place `more` (a token, or several) after this one, known from now on.

        Raises:
            InvalidArgumentError: As `tokens.token_bytes`.
            InterruptedChangeError: A signal handler asks in the midst of a change of the tree by its own thread.
        """
        index, depth = self._index, self.depth
        try:
            data = _one(operator.index(more))  # pyright: ignore[reportArgumentType] - numpy's and torch's integers too
        except TypeError:
            data = token_bytes(more)  # pyright: ignore[reportArgumentType]
        index.refuse_within()
        with index.lock:
            if index.dropped:
                index.settle()
            node = index.insert(self._here(), depth, data)
            node.refs += 1
        return Handle(index, self._root, node, depth + len(data) // 4)

    def tokens(self) -> array[int]:
        """Return all tokens up to here.

        Raises:
            InterruptedChangeError: A signal handler asks in the midst of a change of the tree by its own thread.
        """
        self._index.refuse_within()
        with self._index.lock:
            node: Node | None = self._here()
            parts: list[bytes | bytearray] = []
            while node is not None:
                parts.append(bytes(node.edge))
                node = node.parent
        return _numbers(b"".join(reversed(parts))[: self.depth * 4])

    # --- points ----------------------------------------------------------------------------------------------------

    def point(self, kind: str, depth: int | None = None) -> Any | None:
        """Return the value of a kind kept here, or at an earlier `depth`; None if there is none. Counts as a use."""
        points = self._index.kind(kind)
        with self._index.lock:
            depth, node = self._at(depth)
            point = points.find(node, depth)
            return None if point is None else point.value

    def points(self, kind: str, start: int = 1, stop: int | None = None) -> list[Any | None]:
        """Return the values of a kind at the depths from `start` to before `stop` (by default to here, included).

        Counts as a use of each that is there. Costs a step for each depth and each node.
        """
        points = self._index.kind(kind)
        stop = self.depth + 1 if stop is None else stop
        if not 0 <= start <= stop <= self.depth + 1:
            raise InvalidArgumentError(f"depths here go from 0 to {self.depth}, not {start} to {stop}")
        out: list[Any | None] = [None] * (stop - start)
        with self._index.lock:
            node: Node | None = self._here()
            last = stop - 1
            while node is not None and last >= start:
                first = max(start, node.start + 1 if node.parent is not None else 0)
                if node.points is not None:
                    for depth in range(last, first - 1, -1):
                        point = points.find(node, depth)
                        if point is not None:
                            out[depth - start] = point.value
                last = min(last, first - 1)
                node = node.parent
        return out

    def put_point(self, kind: str, value: Any, n_bytes: int, *, depth: int | None = None, replace: bool = True) -> bool:
        """Keep a value of a kind here, or at an earlier `depth`; with `replace=False` what is there already stays.

        The value itself is kept, not a copy: it must not change afterwards.

        Returns:
            Whether there is one now. A value above the kind's whole budget is not kept, nor any once the namespace was
            cleared.
        """
        index, points = self._index, self._index.kind(kind)
        with index.lock:
            if index.dropped:
                index.settle()
            depth, node = self._at(depth)
            leaves: list[Node] = []
            kept = not self._root.detached and points.put(node, depth, value, n_bytes, replace, leaves)
            if leaves:
                index.trim(leaves)
            news = index.news()
        index.tell(news)
        return kept

    def deepest(self, kind: str) -> tuple[int, Any] | None:
        """Return depth and value of the last point of a kind on the way here, or None. Counts as a use of it.

        Costs a step for each node and point between.
        """
        points = self._index.kind(kind)
        with self._index.lock:
            node: Node | None = self._here()
            n_kinds, last = points.n_kinds, self.depth * points.n_kinds + points.index
            while node is not None:
                keys = [each.key for each in points_of(node) if each.key <= last and each.key % n_kinds == points.index]
                if keys:
                    point = points.find(node, max(keys) // n_kinds)
                    assert point is not None
                    return point.key // n_kinds, point.value
                node = node.parent
        return None

    # --- the span payload ------------------------------------------------------------------------------------------

    @property
    def covered(self) -> int:
        """How many of the tokens up to here have slots, from the first one on."""
        spans = self._index.span()
        with self._index.lock:
            return spans.covered(self._here(), self.depth)[1]

    def slots(self, start: int = 0, stop: int | None = None) -> array[int]:
        """Return the slots of the tokens from `start` to before `stop`, as far as there are any. Counts as a use.

        Pin first what must not be evicted while it is read.
        """
        spans = self._index.span()
        with self._index.lock:
            node, covered = spans.covered(self._here(), self.depth)
            if node.slots is not None:
                spans.recency.touch(node)
            data = spans.read(node, start, covered if stop is None else min(stop, covered))
        return _numbers(data)

    def put_slots(self, start: int, slots: Sequence[int] | array[int]) -> array[int]:
        """Keep slots for the tokens from `start` on, at most up to here.

        Returns:
            Those that were not taken and still belong to the caller: there are some for these tokens already, there is
            a hole before them, they go beyond this place, there is no room even after evicting what is not pinned, or
            the namespace was cleared.
        """
        index, spans, own = self._index, self._index.span(), as_slots(slots)
        if start < 0:
            raise InvalidArgumentError(f"start= is a number of tokens, not {start}")
        with index.lock:
            if index.dropped:
                index.settle()
            leaves: list[Node] = []
            node = self._here()
            rest = own if self._root.detached else spans.put(node, self.depth, start, own, leaves)
            if leaves:
                index.trim(leaves)
            news = index.news()
        index.tell(news)
        return rest

    def pin(self) -> None:
        """Let no slot up to here be freed until `unpin` (as often), or until the handle is let go of."""
        with self._index.lock:
            self._index.pin(self._here())
            self._pins += 1

    def unpin(self) -> None:
        """Undo one `pin`. Counts as a use."""
        index = self._index
        with index.lock:
            if not self._pins:
                raise InvalidArgumentError("this handle has no pin to undo")
            node = self._here()  # which takes all pins along, if a split has moved this place up
            self._pins -= 1
            index.unpin(node, 1)
            news = index.news()
        index.tell(news)

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
            above.refs += 1
            self._node = above
            self._index.leave(node, self._pins)
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


def _numbers(data: bytes) -> array[int]:
    out: array[int] = array("I")
    out.frombytes(data)
    return out


def _one(token: int) -> bytes:
    try:
        return token.to_bytes(4, "little")
    except OverflowError:
        raise InvalidArgumentError(f"a token id is an integer from 0 to 2**32 - 1, not {token}") from None
