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
    """Called with the slots that are free again, after the tree's lock is let go."""


class Spans:
    """The slots of all nodes and namespaces."""

    __slots__ = ("capacity", "held", "kind", "recency")

    def __init__(self, kind: SpanKind) -> None:
        """Start with nothing held."""
        self.kind = kind
        self.capacity = None if kind.capacity_bytes is None else kind.capacity_bytes // kind.token_bytes
        """In tokens."""
        self.held = 0
        """In tokens."""
        self.recency = Recency()

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

    def put(self, node: Node, depth: int, start: int, slots: array[int]) -> tuple[array[int], array[int], list[Node]]:
        """Keep slots for the tokens from `start` to at most `depth`, which is in `node`.

        Returns:
            The slots not taken (there are some already, or no room, or a hole before them), the slots freed for it,
            and the leaves these were in.
        """
        last, covered = self.covered(node, depth)
        skipped = covered - start
        n_tokens = min(len(slots), depth - start) - skipped
        freed, leaves = array("I"), []
        if skipped < 0 or n_tokens <= 0:
            return slots, freed, leaves
        if last.slots is not None:
            self.recency.touch(last)
        if self.capacity is not None and self.held + n_tokens > self.capacity:
            freed, leaves = self.evict(max(0, self.capacity - n_tokens), spare=last)
            n_tokens = min(n_tokens, self.capacity - self.held)
            if n_tokens <= 0:
                return slots, freed, leaves
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
        return slots[:skipped] + slots[skipped + n_tokens :], freed, leaves

    def evict(self, to_tokens: int, spare: Node | None = None) -> tuple[array[int], list[Node]]:
        """Free slots until at most `to_tokens` are held; returns them and the leaves they were in.

        Stops early when only pinned ones and those of `spare` and before it are left.
        """
        parts: list[bytes | bytearray] = []
        leaves: list[Node] = []
        recency, excess = self.recency, self.held - to_tokens
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
                parts.append(slots[left:])
                node.slots = shortened(slots, left)
                excess = 0
                break
            parts.append(slots)
            excess -= n_tokens
            node.slots = None
            hotter = node.hotter
            recency.hotter, hotter.colder = hotter, recency
            node.colder = node.hotter = None
            parent = node.parent
            parent.covered_children -= 1
            if not parent.covered_children and parent.colder is None and parent.slots is not None:
                recency.add_coldest(parent)
        freed: array[int] = array("I")
        freed.frombytes(b"".join(parts))
        self.held -= len(freed)
        return freed, leaves

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
