"""`DynamicTokenTrie`: a `TokenTrie` that keeps KV token by token and gives up what was least recently extended."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lmstash.adapters.genlm.arrays import is_array, owned, token_slices
from lmstash.adapters.genlm.recency import Children, Recency, kept_in_books, new_mark, now
from lmstash.adapters.genlm.token_trie import TokenTrie, nodes_of


def _nobody() -> None:
    return None


class DynamicTokenTrie(TokenTrie):
    """A node of genlm-backend's tree with KV eviction (releases 0.1.7 to 0.2.2; later ones have none).

    Attributes, live and free to be written: those of `TokenTrie`, `parent`, `depth`, `last_access` (seconds, later
    for every access), `kv_size` (nodes with KV here and below, as of the last `count_kv_size` or `evict_lru_kv`).
    KV is any array with the tokens on axis 3, such as `[2, n_layers, n_heads, n_tokens, head_dim]`: torch, NumPy, MLX.

    Differs from theirs: adding a token costs the same at any depth; evicting k nodes costs O(k) (after a write to
    `children`, `last_access` or `parent`, once O(n log n)); KV is copied token by token, so that evicting it frees
    it; KV shorter than the tokens leaves the rest without KV instead of marking empty pieces as KV; the parent is
    referred to weakly, so that a dropped tree is freed at once (hold the root: a node does not keep it alive); times
    never go back. One thread at a time.
    """

    def __init__(self, parent: Any = None, logprobs: Any = None, past_key_values: Any = None) -> None:
        """Make a node.

        Args:
            parent: the node above, which does not learn of this one; an array is taken as `logprobs`.
            logprobs: for the next token, `[vocab]`.
            past_key_values: KV of this token.
        """
        if logprobs is None and parent is not None and not isinstance(parent, DynamicTokenTrie) and is_array(parent):
            parent, logprobs = None, parent
        self.logprobs = logprobs
        self._kv = past_key_values
        self._parent: Callable[[], Any] = _nobody if parent is None else weakref.ref(parent)
        self.depth: int = 0 if parent is None else parent.depth + 1
        self._last = now()
        self._mark = 0
        self._own: Recency | None = None
        self._recency: Callable[[], Recency | None] = _nobody
        self._kv_size = self._counted = 0
        if parent is None:
            self._own = Recency(self)
            self._recency = self._own.ref
        self._children = Children(self._recency)

    @property
    def children(self) -> dict[Any, Any]:
        """Token id -> node."""
        return self._children

    @children.setter
    def children(self, children: Mapping[Any, Any]) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._written()
        self._children = Children(self._recency, children)

    @property
    def past_key_values(self) -> Any:
        """KV of this token, or None."""
        return self._kv

    @past_key_values.setter
    def past_key_values(self, past_key_values: Any) -> None:
        recency = self._recency()
        if recency is None:
            self._kv = past_key_values
        else:
            recency.store_untouched(self, past_key_values)

    @property
    def parent(self) -> DynamicTokenTrie | None:
        """The node above, None for a root (and when the tree above is gone)."""
        return self._parent()

    @parent.setter
    def parent(self, parent: DynamicTokenTrie | None) -> None:
        self._written()
        self._parent = _nobody if parent is None else weakref.ref(parent)

    @property
    def last_access(self) -> float:
        """When this node or one below was last added or touched, in seconds since the epoch."""
        recency = self._recency()
        if recency is not None:
            recency.apply()
        return self._last

    @last_access.setter
    def last_access(self, last_access: float) -> None:
        self._written()
        self._last = last_access

    @property
    def kv_size(self) -> int:
        """How many nodes from here on had KV when they were last counted; 0 before that."""
        recency = self._recency()
        if recency is not None and recency.counted != self._counted:
            self._counted = recency.counted  # an eviction counts the whole tree; it is done where somebody asks
            self._kv_size = sum(node.past_key_values is not None for node in nodes_of(self))
        return self._kv_size

    @kv_size.setter
    def kv_size(self, kv_size: int) -> None:
        recency = self._recency()
        self._counted = recency.counted if recency is not None else self._counted
        self._kv_size = kv_size

    def touch(self) -> None:
        """Count as accessed now, and all ancestors with this node. O(1), amortised."""
        self._touched(now())

    def add_token(self, token_id: Any, logprobs: Any = None, past_key_values: Any = None) -> DynamicTokenTrie:
        """Return the child under `token_id`, made when there is none, and touch it.

        A child that is there keeps what it has; its logprobs and KV are filled in where it has none.
        """
        child = self._add(token_id, owned(past_key_values))
        if child.logprobs is None:
            child.logprobs = owned(logprobs)
        child._touched(now())
        return child

    def store_kv(self, past_key_values: Any) -> None:
        """Keep a copy of KV on this node, unless it has some."""
        if self._kv is None and past_key_values is not None:
            self.past_key_values = owned(past_key_values)

    def extend_cache(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, next_token_index: int, token_ids: Sequence[Any], logprobs: Any = None, kv: Any = None
    ) -> DynamicTokenTrie:
        """Add `token_ids[next_token_index:]` below this node, each with its KV.

        Args:
            next_token_index: how many of `token_ids` lie on the path to this node.
            token_ids: the whole sequence.
            logprobs: after the last token, `[vocab]`; kept on the last node if that has none.
            kv: KV of the new tokens, the first at index 0 of axis 3. May be shorter than the tokens.

        Returns:
            The last node.
        """
        tokens = token_ids[next_token_index:]
        slices = [] if kv is None else token_slices(kv, len(tokens))
        node = self
        for index, token_id in enumerate(tokens):
            node = node._add(token_id, slices[index] if index < len(slices) else None)
        if node is not self:
            node._touched(now(), len(tokens))
        if node.logprobs is None:
            node.logprobs = owned(logprobs)
        return node

    def count_kv_size(self) -> int:
        """Count the nodes with KV from here on, set their `kv_size`, and return the number. O(nodes)."""
        nodes: list[DynamicTokenTrie] = list(nodes_of(self))
        for node in reversed(nodes):
            below = sum(child.kv_size for child in list(node._children.values()))
            node.kv_size = below + (node._kv is not None)
        return self.kv_size

    def collect_nodes_with_kv(self) -> list[DynamicTokenTrie]:
        """Return the nodes with KV from here on, parents before children. O(nodes)."""
        return [node for node in nodes_of(self) if node._kv is not None]

    def evict_lru_kv(self, max_kv: int) -> None:
        """Take KV from the least recently accessed nodes until at most `max_kv` nodes from here on have some.

        Of nodes accessed together the deepest go first, so that no node has KV below one that has none. On a root
        O(nodes that lose KV); on another node O(n log n) in the nodes below it.
        """
        own = self._own
        if own is not None and own.order is None:
            own.apply()
            books = kept_in_books(nodes_of(self), self, own.counted)
            if self._own is not own:  # a signal handler has been here meanwhile: whose books the nodes are in is mixed
                books.order = None
            own = self._own = books
        kept = None if own is None else own.evict(max_kv)
        if own is not None and kept is not None:
            own.counted += 1
            self.kv_size = kept
        else:
            self._evict_by_walk(max_kv)

    def _evict_by_walk(self, max_kv: int) -> None:
        recency = self._recency()
        if recency is not None:
            recency.apply()
        holders = self.collect_nodes_with_kv()
        holders.sort(key=lambda node: (node._last, -node.depth))
        n_kv, mark = len(holders), new_mark()
        for holder in holders:
            if n_kv <= max_kv:
                break
            n_kv -= holder._clear_kv_recursive(mark)
        self.count_kv_size()

    def _clear_kv_recursive(self, mark: int | None = None) -> int:
        """Forget KV here and below; nodes that bear `mark` are known to have been cleared. Returns how many had KV."""
        mark = new_mark() if mark is None else mark
        n_cleared, pending = 0, [self]
        while pending:
            node = pending.pop()
            if node._mark != mark:
                node._mark = mark
                n_cleared += node._kv is not None
                node.past_key_values = None
                pending.extend(node._children.values())
        return n_cleared

    def _add(self, token_id: Any, past_key_values: Any) -> DynamicTokenTrie:
        """Return the child under `token_id`, made when there is none, with KV that nobody else holds. Touch it next."""
        child = self._children.get(token_id)
        if child is None:
            child = DynamicTokenTrie(self)
            recency = self._recency()
            child._recency = child._children.recency = self._recency
            child._counted = recency.counted if recency is not None else 0
            child = dict.setdefault(self._children, token_id, child)  # a signal handler may have added one meanwhile
        if past_key_values is not None and child._kv is None:
            recency = self._recency()
            if recency is None:
                child._kv = past_key_values
            else:
                recency.store(child, past_key_values)
        return child

    def _touched(self, stamp: float, n_nodes: int = 1) -> None:
        node: DynamicTokenTrie | None = self
        while node is not None:
            recency = node._recency()
            if recency is not None:
                recency.touch(node, stamp, n_nodes)
                return
            node._last = stamp
            node = node._parent()

    def _written(self) -> None:
        recency = self._recency()
        if recency is not None:
            recency.written()
