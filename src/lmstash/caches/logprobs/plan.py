"""Which tokens to feed, after what, in which order, so that nothing is computed twice. Pure: no torch here.

The contexts asked for form a tree. What several of them share and nobody has computed yet is fed once, in a pass of its
own before theirs, if that saves enough; a context that is the beginning of another is read off the other's pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lmstash.prefix.node import shared_bytes

SHARED_TOKENS = 16
"""A pass of its own for a shared beginning pays from so many saved tokens on."""


@dataclass(slots=True)
class Feed:
    """Some tokens of one context to feed in one pass."""

    context: bytes
    """Tokens up to the last one fed, as little-endian uint32."""
    n_past: int
    """Tokens before those fed."""
    reads: list[int]
    """Lengths of the contexts whose final state is wanted, rising; all beyond `n_past`."""

    @property
    def n_tokens(self) -> int:
        """Tokens to feed."""
        return (len(self.context) >> 2) - self.n_past


@dataclass(slots=True)
class _Range:
    low: int
    high: int
    past: int
    """Tokens that an earlier pass of this plan feeds."""
    level: int
    reads: list[int] = field(default_factory=list)
    """Beginnings of all these contexts whose final state is wanted and that nobody reads yet."""


def plan(
    contexts: Sequence[bytes], covered: Sequence[int], *, inside: bool = True, shares: bool = True
) -> list[list[Feed]]:
    """Return what to feed, level by level: what a level needs as its past is at hand or was fed by an earlier one.

    Args:
        contexts: Distinct and not empty, in any order.
        covered: For each, how many tokens have KV at hand; contexts with a common beginning agree in it as far as they
            go together.
        inside: Whether a pass may be read before its end.
        shares: Whether a pass may go on from another's KV.

    Returns:
        Every context is read exactly once.
    """
    levels: list[list[Feed]] = []

    def feed(level: int, context: bytes, n_past: int, reads: list[int]) -> None:
        while len(levels) <= level:
            levels.append([])
        levels[level].append(Feed(context, n_past, reads))

    order = sorted(range(len(contexts)), key=contexts.__getitem__)
    if not inside:
        for index in order:
            size = len(contexts[index]) >> 2
            feed(0, contexts[index], min(covered[index], size - 1), [size])
        return levels
    todo: list[int] = []
    for index in order:
        size = len(contexts[index]) >> 2
        if covered[index] >= size:  # its KV is there, its final state is not: its last token again
            feed(0, contexts[index], size - 1, [size])
        else:
            todo.append(index)
    names = [contexts[index] for index in todo]
    known = [covered[index] for index in todo]
    stack = [_Range(0, len(names), 0, 0)] if names else []
    while stack:
        each = stack.pop()
        first, last = names[each.low], names[each.high - 1]
        past = max(each.past, min(known[each.low : each.high]))
        if each.high - each.low == 1:
            feed(each.level, first, past, [*each.reads, len(first) >> 2])
            continue
        shared = shared_bytes(first, last, 0) >> 2  # sorted, so all between begin with it too
        low, reads = each.low, each.reads
        if len(first) >> 2 == shared:  # the first one is the beginning of all others
            low, reads = low + 1, [*reads, shared]
        branches = _branches(names, low, each.high, shared)
        level, start = each.level, each.past
        saved = (shared - past) * (len(branches) - 1)
        if shares and saved >= SHARED_TOKENS:
            feed(level, first[: 4 * shared], past, reads)
            level, start, reads = level + 1, shared, []
        for number, (begin, end) in enumerate(branches):
            stack.append(_Range(begin, end, start, level, reads if number == 0 else []))
    return levels


def _branches(names: list[bytes], low: int, high: int, shared: int) -> list[tuple[int, int]]:
    """Divide sorted contexts by the token after the first `shared` ones."""
    out: list[tuple[int, int]] = []
    at = slice(4 * shared, 4 * shared + 4)
    start = low
    for index in range(low + 1, high):
        if names[index][at] != names[start][at]:
            out.append((start, index))
            start = index
    out.append((start, high))
    return out
