"""Which node of a `DynamicTokenTrie` gives up its KV next.

genlm-backend's order: by last access, and of nodes accessed together the deepest first; an access of a node is one of
all its ancestors. Walking to the root at each access costs O(length^2) a sequence, and counting the tree anew for each
victim O(nodes) a victim. Here an access is noted and carried upwards later, once for many, stopping where a later
access has been; nodes with KV stand in a list, coldest first, from which victims are taken in O(1).
"""

from __future__ import annotations

import itertools
import math
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmstash.adapters.genlm.dynamic_trie import DynamicTokenTrie

_LEAST_BATCH = 256
_marks = itertools.count(1)
_latest = 0.0


def now() -> float:
    """Return the time in seconds, later than any returned before (a wall clock may stand still or go back)."""
    global _latest
    _latest = max(time.time(), math.nextafter(_latest, math.inf))
    return _latest


def new_mark() -> int:
    """Return a number that no node bears yet."""
    return next(_marks)


class Recency:
    """The books of one tree. Owned by its root; nodes refer to it weakly, and it never refers to the root.

    `order` holds the nodes with KV but the root, coldest first, or is None after somebody wrote to `children`,
    `last_access`, `parent` or (out of turn) `past_key_values`: the next eviction then walks the tree and starts anew.

    A signal handler may use the tree between any two calls, or end what it has interrupted by raising. So a node's KV
    and its place in `order` change with no call between them (docs/decisions/0017).
    """

    def __init__(self, root: DynamicTokenTrie, counted: int = 0) -> None:
        """Begin the books of a tree that has only its root."""
        self.ref: weakref.ref[Recency] = weakref.ref(self)
        self.root: weakref.ref[DynamicTokenTrie] = weakref.ref(root)
        self.order: OrderedDict[DynamicTokenTrie, None] | None = OrderedDict()
        self.counted = counted
        self._pending: list[tuple[DynamicTokenTrie, float]] = []
        self._taken: list[tuple[DynamicTokenTrie, float]] = []
        self._n_touched = 0
        self._batch = _LEAST_BATCH

    def touch(self, node: DynamicTokenTrie, stamp: float, n_nodes: int = 1) -> None:
        """Note an access of `node`, the last of `n_nodes` on its path, and of all its ancestors. O(1), amortised."""
        if node is self.root():
            node._last = stamp
            return
        parent = node._parent()
        pending = self._pending
        if pending and (pending[-1][0] is node or pending[-1][0] is parent):
            pending[-1] = (node, stamp)  # whatever the earlier access reached, this one does
        else:
            pending.append((node, stamp))
        self._n_touched += n_nodes
        if self._n_touched >= self._batch:
            self.apply()

    def store(self, node: DynamicTokenTrie, kv: Any) -> None:
        """Set the KV of a node. One that had none is the coldest until it is touched, which is expected next."""
        root = self.root()
        order, old = self.order, node._kv  # the old one is freed when the books are right: that may run code, too
        node._kv = kv
        if order is not None and node is not root:
            if kv is None and node in order:
                del order[node]
            elif kv is not None and node not in order:
                order[node] = None
                order.move_to_end(node, last=False)  # in front of its parent, as all nodes are
        del old

    def store_untouched(self, node: DynamicTokenTrie, kv: Any) -> None:
        """Set the KV of a node to which somebody wrote; it is accessed neither now nor next."""
        gets_some = kv is not None and node._kv is None and node is not self.root()
        self.store(node, kv)
        if gets_some and not (self._pending and self._pending[-1][0] is node):
            self.written()

    def written(self) -> None:
        """Note that somebody wrote to the tree without its methods: the books no longer say everything."""
        self.apply()
        self.order = None

    def apply(self) -> None:
        """Carry the noted accesses upwards, the latest first; each node is visited once.

        What an interrupt keeps it from carrying, the next one carries.
        """
        pending = self._taken + self._pending
        self._taken, self._pending, self._n_touched = pending, [], 0
        mark, root = new_mark(), self.root()
        paths: list[list[DynamicTokenTrie]] = []
        n_visited = 0
        for start, stamp in reversed(pending):
            path: list[DynamicTokenTrie] = []
            node: DynamicTokenTrie | None = start
            while node is not None and node._mark != mark:
                node._mark = mark
                if node is root:
                    node._last = max(node._last, stamp)
                    break
                node._last = stamp
                path.append(node)
                node = node._parent()
            paths.append(path)
            n_visited += len(path)
        self._batch = max(_LEAST_BATCH, n_visited // 4)
        order = self.order
        if order is not None:
            for path in reversed(paths):
                for each in path:
                    if each._kv is not None:
                        order[each] = None
                        order.move_to_end(each)
        if self._taken is pending:
            self._taken = []

    def evict(self, max_kv: int) -> int | None:
        """Take KV from the coldest nodes until at most `max_kv` nodes have some.

        Returns:
            How many have; None where there is no `order`.
        """
        self.apply()
        root, order = self.root(), self.order
        if order is None:
            return None
        n_above = int(root is not None and root._kv is not None)
        while order and len(order) + n_above > max_kv:
            for node in order:  # the first; from here on there is no call
                gone = node._kv
                node._kv = None
                del order[node]
                del gone  # freed when the books are right: that may run code, too
                break
        if n_above and root is not None and len(order) + n_above > max_kv:
            root._kv = None
            n_above = 0
        return len(order) + n_above


class Children(dict[Any, Any]):
    """The `children` of a node: a dict that tells the books when somebody writes to it."""

    __slots__ = ("recency",)

    def __init__(self, recency: Any, items: Mapping[Any, Any] | Iterable[tuple[Any, Any]] = ()) -> None:
        """Hold `items`; `recency()` are the tree's books, or None."""
        super().__init__(items)
        self.recency = recency

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)

    def _written(self) -> None:
        recency = self.recency()
        if recency is not None:
            recency.written()

    def __setitem__(self, key: Any, value: Any) -> None:
        self._written()
        super().__setitem__(key, value)

    def __delitem__(self, key: Any) -> None:
        self._written()
        super().__delitem__(key)

    def __ior__(self, other: Any) -> Children:
        self.update(other)
        return self

    def clear(self) -> None:
        """As `dict.clear`."""
        self._written()
        super().clear()

    def pop(self, *arguments: Any) -> Any:
        """As `dict.pop`."""
        self._written()
        return super().pop(*arguments)

    def popitem(self) -> tuple[Any, Any]:
        """As `dict.popitem`."""
        self._written()
        return super().popitem()

    def setdefault(self, *arguments: Any) -> Any:
        """As `dict.setdefault`."""
        self._written()
        return super().setdefault(*arguments)

    def update(self, *arguments: Any, **more: Any) -> None:
        """As `dict.update`."""
        self._written()
        super().update(*arguments, **more)


def kept_in_books(nodes: Iterator[DynamicTokenTrie], root: DynamicTokenTrie, counted: int) -> Recency:
    """Begin the books of a tree that is there already, from one walk and one sort.

    `order` is None when somebody has written times or parents that the order cannot follow (a child later than its
    parent, a parent that is not the one above): such a tree is evicted from by walking.
    """
    books = Recency(root, counted)
    books.order = None
    holders: list[DynamicTokenTrie] = []
    regular = True
    for node in nodes:
        if node is not root:
            node._own = None
            if node._kv is not None:
                holders.append(node)
        node._recency = books.ref
        node._children.recency = books.ref
        for child in list(node._children.values()):
            regular = regular and child._parent() is node and child._last <= node._last
    holders.sort(key=lambda node: (node._last, -node.depth))
    books.order = OrderedDict.fromkeys(holders) if regular else None
    return books
