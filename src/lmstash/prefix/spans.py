"""The payload that is kept for runs of tokens: KV rows, each token's in a slot of somebody's pool.

A run is worthless without all that comes before it, so what goes first is the end of the branch that was unused for
longest: of the nodes whose children hold no slots, the coldest, from its end backwards, as much as is needed. A node
whose last covered child went is as cold as that child was, unless it was used since. Not locked.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lmstash.prefix.node import Node
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
                return node, min(depth, node.start + len(slots))
            if node.parent is None:
                return node, 0
            node = node.parent

    def put(self, node: Node, depth: int, start: int, slots: array[int]) -> tuple[array[int], array[int], list[Node]]:
        """Keep slots for the tokens from `start` to at most `depth`, which is in `node`.

        Returns:
            The slots not taken (there are some already, or no room, or a hole before them), the slots freed for it,
            and the nodes these were in.
        """
        last, covered = self.covered(node, depth)
        skipped = covered - start
        n_tokens = min(len(slots), depth - start) - skipped
        if skipped < 0 or n_tokens <= 0:
            return slots, array("I"), []
        freed, nodes = array("I"), []
        if last.slots is not None:
            self.recency.touch(last)
        if self.capacity is not None and self.held + n_tokens > self.capacity:
            freed, nodes = self.evict(max(0, self.capacity - n_tokens), spare=last)
            n_tokens = min(n_tokens, self.capacity - self.held)
            if n_tokens <= 0:
                return slots, freed, nodes
        end = covered + n_tokens
        while node.start >= end and node.parent is not None:
            node = node.parent
        self.recency.touch(node)
        while True:  # from the last node upwards
            first = max(covered, node.start)
            mine = slots[first - start : min(end, node.end) - start]
            if node.slots is not None:
                node.slots.extend(mine)
                break
            node.slots = mine
            parent = node.parent
            assert parent is not None
            parent.covered_children += 1
            if first == covered:
                break
            node = parent
        self.held += n_tokens
        return slots[:skipped] + slots[skipped + n_tokens :], freed, nodes

    def evict(self, to_tokens: int, spare: Node | None = None) -> tuple[array[int], list[Node]]:
        """Free slots until at most `to_tokens` are held; returns them and the nodes that lost all.

        Stops early when only pinned ones and those of `spare` and before it are left.
        """
        freed: array[int] = array("I")
        nodes: list[Node] = []
        recency, held = self.recency, self.held
        while held > to_tokens:
            node = recency.hotter
            if node is spare or not isinstance(node, Node):
                break
            slots = node.slots
            if slots is None or node.covered_children or node.locks:
                recency.remove(node)  # it comes back when its last covered child goes, or its last pin
                continue
            excess = held - to_tokens
            if excess < len(slots):
                freed.extend(slots[-excess:])
                del slots[-excess:]
                held = to_tokens
                if not node.children:
                    nodes.append(node)
                break
            freed.extend(slots)
            held -= len(slots)
            node.slots = None
            recency.remove(node)
            parent = node.parent
            assert parent is not None
            parent.covered_children -= 1
            if parent.slots is not None and not parent.covered_children and parent.colder is None:
                recency.add_coldest(parent)
            if not node.children:
                nodes.append(node)
        self.held = held
        return freed, nodes

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
