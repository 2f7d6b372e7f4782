"""`TokenTrie`: genlm-backend's tree of token sequences with what the model said after each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from lmstash.adapters.genlm.arrays import is_array, owned

Node = TypeVar("Node", bound="TokenTrie")


def nodes_of(root: Node) -> Iterator[Node]:
    """Yield `root` and everything below it, parents first and children in the order they were added; no recursion."""
    stack = [root]
    while stack:
        node = stack.pop()
        yield node
        if node.children:
            stack.extend(list(node.children.values())[::-1])  # pyright: ignore[reportArgumentType]


class TokenTrie:
    """A node of a tree of token sequences; the root is one too.

    Both released constructors are understood: `TokenTrie(parent, logprobs)` of genlm-backend 0.1.7 to 0.2.2 and
    `TokenTrie(logprobs)` of 0.3.1: an array as first argument is logprobs, anything else is the parent, which a
    `TokenTrie` does not keep. Attributes, live and free to be written: `children` (token id -> node), `logprobs`,
    `past_key_values`.

    Differs from theirs: adding a token that is there keeps what lies below it; arrays that are added are copied, so
    that neither the batch they were cut from stays alive nor a caller's later writes reach the tree; nothing recurses,
    so any depth works, also for `repr`, `copy.deepcopy` and `pickle` (which keep the attributes named here and no
    others). Log-probabilities are computed in float32, as in 0.3.1 (0.2.2: in the model's dtype).

    One thread at a time.
    """

    def __init__(self, parent: Any = None, logprobs: Any = None) -> None:
        """Make a node.

        Args:
            parent: ignored, unless it is an array: then it is the logprobs.
            logprobs: for the next token, `[vocab]`.
        """
        self.children: dict[Any, TokenTrie] = {}
        self.logprobs = parent if logprobs is None and is_array(parent) else logprobs
        self.past_key_values: Any = None

    def __repr__(self) -> str:
        """Nested brackets with the token ids; a star marks nodes with KV."""
        pieces: list[str] = []
        pending: list[TokenTrie | str] = [self]
        while pending:
            item = pending.pop()
            if isinstance(item, str):
                pieces.append(item)
                continue
            pieces.append("*[" if item.past_key_values is not None else "[")
            pending.append("]")
            for index, (token_id, child) in reversed(list(enumerate(list(item.children.items())))):
                pending += [child, f"{', ' if index else ''}{token_id}: "]
        return "".join(pieces)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle as a flat list of nodes."""
        return _from_rows, (_as_rows(self),)

    def clear_kv_cache(self) -> None:
        """Forget the KV of this node and of everything below."""
        for node in nodes_of(self):
            node.past_key_values = None

    def has_token(self, token_id: Any) -> bool:
        """Whether there is a child under `token_id`."""
        return token_id in self.children

    def get_token(self, token_id: Any) -> TokenTrie:
        """Return the child under `token_id`; KeyError when there is none."""
        return self.children[token_id]

    def add_token(self, token_id: Any, logprobs: Any = None) -> TokenTrie:
        """Return the child under `token_id`, made when there is none, with `logprobs` where they are given.

        A child that is there keeps its children and its KV.
        """
        return self._add_own(token_id, owned(logprobs))

    def extend_cache(self, next_token_index: int, token_ids: Sequence[Any], logits: Any, base: int) -> TokenTrie:
        """Add `token_ids[next_token_index:]` below this node, with the log-probabilities after each of them.

        Args:
            next_token_index: how many of `token_ids` lie on the path to this node.
            token_ids: the whole sequence.
            logits: `[n, vocab]`; row `i` belongs to `token_ids[base + i]`.
            base: where in `token_ids` the logits begin; at most `next_token_index`.

        Returns:
            The last node.

        Raises:
            ValueError: The logits do not begin at or before the first new token.
            IndexError: There are fewer logits than tokens. In both cases nothing is added.
        """
        import torch

        if len(token_ids) > next_token_index:
            if base > next_token_index:
                raise ValueError(f"logits begin at token {base}, the first new token is {next_token_index}")
            if len(logits) < len(token_ids) - base:
                raise IndexError(f"{len(token_ids) - base} tokens from {base} on, only {len(logits)} rows of logits")
        node: TokenTrie = self
        for index in range(next_token_index, len(token_ids)):
            row = torch.log_softmax(logits[index - base], 0, dtype=torch.float32)
            node = node._add_own(token_ids[index], row.cpu())
        return node

    def _add_own(self, token_id: Any, logprobs: Any) -> TokenTrie:
        """As `add_token`, with an array that nobody else holds."""
        child = self.children.get(token_id)
        if child is None:
            child = self.children[token_id] = TokenTrie(self, logprobs)
        elif logprobs is not None:
            child.logprobs = logprobs
        return child


Row = tuple[int, Any, type[TokenTrie], Any, Any, float]
"""Index of the parent's row, token id under which it lies there, kind, logprobs, KV, last access (0: has none)."""


def _as_rows(root: TokenTrie) -> list[Row]:
    rows: list[Row] = []
    pending: list[tuple[int, Any, TokenTrie]] = [(-1, None, root)]
    while pending:
        parent, token_id, node = pending.pop()
        index = len(rows)
        seen = getattr(node, "last_access", 0.0)
        rows.append((parent, token_id, type(node), node.logprobs, node.past_key_values, seen))
        pending.extend((index, each, child) for each, child in list(node.children.items())[::-1])
    return rows


def _from_rows(rows: Iterable[Row]) -> TokenTrie:
    made: list[TokenTrie] = []
    for parent, token_id, kind, logprobs, past_key_values, last_access in rows:
        if parent < 0:
            node = kind(None, logprobs)
        else:
            node = kind(made[parent], logprobs)
            made[parent].children[token_id] = node
        if past_key_values is not None:
            node.past_key_values = past_key_values
        if last_access:
            node.last_access = last_access  # pyright: ignore[reportAttributeAccessIssue]
        made.append(node)
    return made[0]
