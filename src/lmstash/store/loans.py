"""Loans: values to copy from at once, which need not be read into memory of their own first.

A store may have `borrow_many` of its own (disk and memory stores do); for any other, `borrow_many` here fetches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lmstash.store.base import Entry, Store


@dataclass(frozen=True, slots=True)
class Loan:
    """One value lent. Its memory is the store's: read it, soon, and never write to it."""

    entry: Entry
    check: Callable[[], bool] | None = None
    """Tells, once and from any thread, whether the value's bytes are those that were kept; until then they may be
    damaged. A damaged value is counted, and not served again. None when they were checked before."""


def borrow_many(store: Store, keys: Sequence[bytes]) -> list[Loan | None]:
    """Return what is kept under distinct `keys`, None where nothing is; counted as `fetch_many` counts.

    From the disk store, large values that the page cache has cost about 10 us each.
    """
    own = getattr(store, "borrow_many", None)
    if own is not None:
        return own(keys)
    return [None if entry is None else Loan(entry) for entry in store.fetch_many(keys)]
