"""Functions that remember their results (`functools.lru_cache`): where they lie, and what they were handed."""

from __future__ import annotations

import functools
import gc
from collections.abc import Iterable, Iterator
from types import FunctionType, MethodType
from typing import Any

Memo = functools._lru_cache_wrapper
_WITHIN = {
    staticmethod: ("__func__",),
    classmethod: ("__func__",),
    MethodType: ("__func__",),
    property: ("fget", "fset"),
    functools.cached_property: ("func",),
    functools.partial: ("func",),
    functools.partialmethod: ("func",),
    FunctionType: ("__wrapped__",),
    Memo: ("__wrapped__",),
}
"""Where others lie in what wraps them."""
_NESTED = 8
_PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes, object})
"""A bare `object` is what stands between arguments and keywords."""
_HOLDING = frozenset({tuple, frozenset})
_TORCH_NAMES = frozenset({"dtype", "device", "layout", "memory_format", "Size"})


def memos_among(values: Iterable[Any]) -> Iterator[Memo[Any]]:
    """Yield the functions that remember among some values, and within what wraps them."""
    left = [*values]
    for _ in range(_NESTED):
        yield from (each for each in left if isinstance(each, Memo))
        left = [inner for each in left for name in _WITHIN.get(type(each), ()) if (inner := getattr(each, name, None))]


def counts_of(memo: Memo[Any]) -> tuple[int, int]:
    """Return what differs once a function remembers something else: how often it computed, how much it holds."""
    info = memo.cache_info()
    return info.misses, info.currsize


def is_handed_plain(memo: Memo[Any]) -> bool:
    """Return whether all calls that a function remembers were given plain values only; False where nobody can tell."""
    try:
        table = _table_of(memo)
        return table is not None and all(map(_is_plain, list(table)))
    except (RuntimeError, TypeError):  # another thread calls it; a type that cannot be hashed
        return False


def may_be_handed(memo: Memo[Any], objects: frozenset[int]) -> bool:
    """Return whether a call that a function remembers was given one of some objects, by `id`, or nobody can tell."""
    try:
        table = _table_of(memo)
        return table is None or any(_is_among(each, objects) for each in list(table))
    except RuntimeError:  # another thread calls it
        return True


def _is_among(value: Any, objects: frozenset[int]) -> bool:
    return id(value) in objects or (type(value) in _HOLDING and any(_is_among(each, objects) for each in value))


def _table_of(memo: Memo[Any]) -> dict[Any, Any] | None:
    """Return the results that a function remembers by its arguments; not where Python hides them."""
    tables = [each for each in gc.get_referents(memo) if type(each) is dict and each is not vars(memo)]
    if memo.cache_parameters()["maxsize"] is not None:  # the results themselves are among these, too
        tables = [each for each in tables if {type(link).__name__ for link in each.values()} == {"_lru_list_elem"}]
    return tables[0] if len(tables) == 1 else None


def _is_plain(value: Any) -> bool:
    kind = type(value)
    if isinstance(value, type):  # as `typed=True` adds it
        return value in _PLAIN or value in _HOLDING or _is_name_of_torch(value)
    if kind in _PLAIN or _is_name_of_torch(kind):
        return True
    return kind in _HOLDING and all(map(_is_plain, value))


def _is_name_of_torch(kind: type) -> bool:
    """Whether instances are words of torch's, or whole numbers: a tensor's shape."""
    return kind.__module__ == "torch" and kind.__name__ in _TORCH_NAMES
