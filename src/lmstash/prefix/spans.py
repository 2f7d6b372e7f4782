"""The payload that is kept for runs of tokens: KV rows, each token's in a slot of somebody's pool.

A run is worthless without all that comes before it, so what goes first is the end of the branch that was unused for
longest: of the nodes whose children hold no slots, the coldest, from its end backwards, as much as is needed. A node
whose last covered child went is as cold as that child was, unless it was used since. Not locked.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lmstash.prefix.node import Node, lengthened, shortened
from lmstash.prefix.recency import Recency


@dataclass(frozen=True, slots=True)
class SpanKind:
    """What the span payload is."""

    token_bytes: int
    """Bytes of one token's slot."""
    capacity_bytes: int | None = None
    """The most that all slots may take together; None for no limit."""
    on_free: Callable[[array[int]], None] | None = None
    """Called with slots that are free again: evicted or cleared. The tree's lock is not held then."""


class Spans:
    """The slots of all nodes and namespaces. A use inside an edge counts for the whole edge."""

    __slots__ = ("capacity", "freed", "held", "kind", "recency")

    def __init__(self, kind: SpanKind) -> None:
        """Start with nothing held."""
        self.kind = kind
        self.capacity = None if kind.capacity_bytes is None else kind.capacity_bytes // kind.token_bytes
        """In tokens."""
        self.held = 0
        """In tokens."""
        self.recency = Recency()
        self.freed: list[bytes | bytearray] = []
        """Slots of which `on_free` is still to be told."""

    def covered(self, node: Node, depth: int) -> tuple[Node, int]:
        """Return the last node with slots on the way to `depth`, which is in `node`, and how far they go."""
        while True:
            slots = node.slots
            if slots is not None:
                return node, min(depth, node.start + len(slots) // 4)
            if node.parent is None:
                return node, 0
            node = node.parent

    def read(self, node: Node, start: int, stop: int) -> bytes:
        """Return the slots from `start` to before `stop`, all covered; `node` has the last of them, or one below."""
        parts: list[bytes | bytearray] = []
        while stop > start:
            first = max(start, node.start)
            if first < stop and node.slots is not None:
                parts.append(node.slots[(first - node.start) * 4 : (stop - node.start) * 4])
                stop = first
            if node.parent is None:
                break
            node = node.parent
        return b"".join(reversed(parts))

    def put(self, node: Node, depth: int, start: int, slots: array[int], leaves: list[Node]) -> array[int]:
        """Keep slots for the tokens from `start` to at most `depth`, which is in `node`.

        Returns the slots not taken: there are some already, or no room, or a hole before them. Leaves that lost slots
        for it are added to `leaves`.
        """
        last, covered = self.covered(node, depth)
        skipped = covered - start
        n_tokens = min(len(slots), depth - start) - skipped
        if skipped < 0 or n_tokens <= 0:
            return slots
        if last.slots is not None:
            self.recency.touch(last)
        if self.capacity is not None and self.held + n_tokens > self.capacity:
            self.evict(max(0, self.capacity - n_tokens), leaves, spare=last)
            n_tokens = min(n_tokens, self.capacity - self.held)
            if n_tokens <= 0:
                return slots
        data, end = slots.tobytes(), covered + n_tokens
        while node.start >= end and node.parent is not None:
            node = node.parent
        self.recency.touch(node)
        while True:  # from the last node upwards
            first = max(covered, node.start)
            mine = data[(first - start) * 4 : (min(end, node.end) - start) * 4]
            if node.slots is not None:
                node.slots = lengthened(node.slots, mine)
                break
            node.slots = mine
            parent = node.parent
            assert parent is not None
            parent.covered_children += 1
            if first == covered:
                break
            node = parent
        self.held += n_tokens
        return slots[:skipped] + slots[skipped + n_tokens :]

    def evict(self, to_tokens: int, leaves: list[Node], spare: Node | None = None) -> int:
        """Free slots until at most `to_tokens` are held; returns how many, adds the leaves they were in.

        Stops early when only pinned ones and those of `spare` and before it are left.
        """
        freed, recency, excess = self.freed, self.recency, self.held - to_tokens
        before = excess
        while excess > 0:
            node: Any = recency.hotter
            if node is spare or node is recency:
                break
            slots: Any = node.slots
            if slots is None or node.covered_children or node.locks:
                recency.remove(node)  # it comes back when its last covered child goes, or its last pin
                continue
            if not node.children:
                leaves.append(node)
            n_tokens = len(slots) // 4
            if excess < n_tokens:
                left = len(slots) - excess * 4
                freed.append(slots[left:])
                node.slots = shortened(slots, left)
                excess = 0
                break
            freed.append(slots)
            excess -= n_tokens
            node.slots = None
            hotter = node.hotter
            recency.hotter, hotter.colder = hotter, recency
            node.colder = node.hotter = None
            parent = node.parent
            parent.covered_children -= 1
            if not parent.covered_children and parent.colder is None and parent.slots is not None:
                recency.add_coldest(parent)
        self.held -= before - excess
        return before - excess

    def drop(self, node: Node) -> None:
        """Free all slots of a node of which every child loses its own, too."""
        slots, parent = node.slots, node.parent
        assert slots is not None
        assert parent is not None
        self.recency.remove(node)
        self.freed.append(slots)
        self.held -= len(slots) // 4
        node.slots = None
        parent.covered_children -= 1

    def after_split(self, upper: Node, lower: Node) -> None:
        """Give the place in the order to the half that has the end of the slots."""
        if upper.slots is not None and lower.slots is None:
            self.recency.replace(lower, upper)

    def unlocked(self, node: Node) -> None:
        """Take back a node whose last pin went: it was in use until now."""
        if node.slots is not None and node.colder is None:
            self.recency.touch(node)


def as_slots(slots: Sequence[int] | array[int]) -> array[int]:
    """Return slot numbers as an array of uint32, without a copy if they are one."""
    return slots if isinstance(slots, array) and slots.typecode == "I" else array("I", slots)
