"""Sheets: many small values of one length, side by side, so that a thousand cost a few array operations.

Activations, hidden states and KV blocks come by the thousand and are of one size; an object for each would cost more
than its bytes. A store may have `fetch_sheets` and `put_sheets` of its own (the disk store does); for any other the two
functions here do the same through `fetch_many` and `put_many`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, overload

import numpy as np

from lmstash.errors import InvalidArgumentError
from lmstash.store.base import KEY_BYTES, MAX_META_BYTES, Entry, Store, Write, check_write, encode_meta

APART_BYTES = 64 << 10
"""Values of this size or more may come apart."""
HEAD_BYTES = 152
"""Most that a store writes before a value, beside its facts."""
_ALIGN = 64
"""Values lie at multiples of it, or of less, in a file."""
_OPEN, _CLOSE = b"{}"
_first, _last = itemgetter(0), itemgetter(-1)
_HELD_BYTES = 8 << 20
_HELD_ENTRIES = 2048
"""A store without sheets of its own is asked for about so much at a time."""


@dataclass(slots=True)
class Sheet:
    """Entries of one namespace whose values have one length, to be put.

    What is optional is empty when no entry has it; else there is one of it for each entry.
    """

    keys: Sequence[bytes]
    """Distinct, 32 bytes each."""
    values: np.ndarray
    """`[n_entries, n_bytes]` uint8, C-contiguous, or what `blank_values` returned."""
    namespace: str
    metas: Sequence[bytes] = ()
    """JSON, encoded."""
    parents: Sequence[bytes] = ()
    compute_seconds: Sequence[float] = ()
    n_tokens: Sequence[int] = ()
    ttl_seconds: float | None = None
    block: np.ndarray | None = None
    """What `blank_values` returned beside `values`: a store may write there."""

    def __len__(self) -> int:
        """Entries."""
        return len(self.keys)

    def part(self, first: int, last: int) -> Sheet:
        """Return the entries from `first` to before `last`; shares memory."""
        return Sheet(
            self.keys[first:last],
            self.values[first:last],
            self.namespace,
            self.metas[first:last],
            self.parents[first:last],
            self.compute_seconds[first:last],
            self.n_tokens[first:last],
            self.ttl_seconds,
            None if self.block is None else self.block[first:last],
        )

    def writes(self) -> Iterator[Write]:
        """Yield each entry as a write of its own; the values are views."""
        for number, key in enumerate(self.keys):
            yield Write(
                key,
                self.values[number].data,
                self.namespace,
                self.metas[number] if self.metas else None,
                self.parents[number] if self.parents else b"",
                self.compute_seconds[number] if self.compute_seconds else 0.0,
                self.n_tokens[number] if self.n_tokens else 0,
                self.ttl_seconds,
            )


def blank_values(
    n_entries: int, n_bytes: int, meta_bytes: int, take: Callable[[int], np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return memory for the values of a sheet that may be kept without a copy: headers are written between them.

    Args:
        n_entries: How many.
        n_bytes: Of each value.
        meta_bytes: Of the longest of their facts.
        take: Gives so many bytes of memory; None allocates them.

    Returns:
        Values `[n_entries, n_bytes]` and the block that they are columns of, C-contiguous.
    """
    behind = -n_bytes % 16
    width = -(-(HEAD_BYTES + meta_bytes + n_bytes + behind) // _ALIGN) * _ALIGN
    memory = np.empty(n_entries * width, np.uint8) if take is None else take(n_entries * width)
    block = memory.reshape(n_entries, width)
    end = width - behind
    return block[:, end - n_bytes : end], block


@dataclass(slots=True)
class Found:
    """Entries of one namespace whose values have one length, as fetched."""

    places: np.ndarray
    """`[n_entries]` int64: which of the keys asked for each one is."""
    values: np.ndarray
    """`[n_entries, n_bytes]` uint8, each row contiguous; memory that the receiver owns."""
    namespace: str
    parents: np.ndarray | None = None
    """`[n_entries, 32]` uint8, zeros where an entry extends none; None when none extends another."""

    def parent(self, row: int) -> bytes:
        """Return the key that the entry in `row` extends, or nothing."""
        return _parent(self.parents, row)


@dataclass(slots=True)
class Apart:
    """As `Found`, with each value in memory of its own: whoever hands one on holds no other."""

    places: np.ndarray
    values: list[np.ndarray]
    """For each entry `[n_bytes]` uint8, contiguous; memory that the receiver owns."""
    namespace: str
    parents: np.ndarray | None = None

    def parent(self, row: int) -> bytes:
        """Return the key that the entry in `row` extends, or nothing."""
        return _parent(self.parents, row)


@overload
def fetch_sheets(store: Store, keys: Sequence[bytes]) -> Iterator[Found]: ...
@overload
def fetch_sheets(store: Store, keys: Sequence[bytes], *, apart: bool) -> Iterator[Found | Apart]: ...
def fetch_sheets(store: Store, keys: Sequence[bytes], *, apart: bool = False) -> Iterator[Found | Apart]:
    """Yield what is kept of distinct `keys`, in sheets and in no particular order.

    Keys that are in no sheet are misses, counted by the store with their reasons. Costs about 4 microseconds an entry
    of 4 KiB where the store has sheets of its own. Use one before you ask for the next: it is in the processor's cache
    then.

    Args:
        store: Any.
        keys: Distinct.
        apart: Yield values that cost more to copy than to look at (64 KiB or more) as `Apart`.
    """
    own = getattr(store, "fetch_sheets", None)
    if own is not None:
        yield from own(keys, apart=apart)
        return
    start, step = 0, 64
    while start < len(keys):
        stop = min(start + step, len(keys))
        entries = store.fetch_many(keys[start:stop])
        n_bytes = sum(len(entry.value) for entry in entries if entry is not None)
        yield from found_of(entries, range(start, stop), apart=apart)
        start, step = stop, max(1, min(_HELD_ENTRIES, _HELD_BYTES * step // max(1, n_bytes)))


def put_sheets(store: Store, sheets: Sequence[Sheet], *, replace: bool = True) -> int:
    """Keep every entry of `sheets`; with `replace=False` what is kept already stays. Returns how many are kept now."""
    for sheet in sheets:
        check_sheet(sheet)
    own = getattr(store, "put_sheets", None)
    if own is not None:
        return own(sheets, replace=replace)
    return store.put_many((write for sheet in sheets for write in sheet.writes()), replace=replace)


def found_of(entries: Sequence[Entry | None], places: Sequence[int], *, apart: bool = False) -> Iterator[Found | Apart]:
    """Yield entries, as `fetch_many` returns them, in sheets. Copies values, but for those apart or alone."""
    alike: dict[tuple[str, int], list[int]] = {}
    for number, entry in enumerate(entries):
        if entry is not None:
            alike.setdefault((entry.namespace, len(entry.value)), []).append(number)
    for (namespace, n_bytes), members in alike.items():
        group = [entry for number in members if (entry := entries[number]) is not None]
        parents = None
        if any(entry.parent for entry in group):
            joined = b"".join([entry.parent.ljust(KEY_BYTES, b"\0") for entry in group])
            parents = np.frombuffer(joined, np.uint8).reshape(-1, KEY_BYTES)
        here = np.array([places[number] for number in members], np.int64)
        own = [np.frombuffer(entry.value, np.uint8) for entry in group]
        if apart and n_bytes >= APART_BYTES:
            yield Apart(here, list(map(_unshared, own)), namespace, parents)
        else:
            yield Found(here, own[0][None] if len(own) == 1 else np.stack(own), namespace, parents)


def _unshared(value: np.ndarray) -> np.ndarray:
    """Return a value that lies in larger memory, with others maybe, in memory of its own."""
    owner: Any = value.base.obj if isinstance(value.base, memoryview) else value.base
    return value if owner is None or memoryview(owner).nbytes < 2 * len(value) else value.copy()


def _parent(parents: np.ndarray | None, row: int) -> bytes:
    return b"" if parents is None or not parents[row].any() else parents[row].tobytes()


def check_sheet(sheet: Sheet) -> None:
    """Raise `InvalidArgumentError` unless a sheet is what a store takes."""
    n, values = len(sheet.keys), sheet.values
    fits = values.dtype == np.uint8 and values.ndim == 2 and len(values) == n
    if not fits or not (values.flags.c_contiguous if sheet.block is None else _within(values, sheet.block)):
        raise InvalidArgumentError(f"the values of a sheet are [{n}, n_bytes] uint8; got {values.dtype} {values.shape}")
    for each in (sheet.parents, sheet.metas, sheet.compute_seconds, sheet.n_tokens):
        if len(each) not in (0, n):
            raise InvalidArgumentError(f"a sheet of {n} entries says something of {len(each)}: say it of all or none")
    if n == 0:
        return
    check_write(next(sheet.part(0, 1).writes()))  # what is the same for all
    if set(map(len, sheet.keys)) != {KEY_BYTES} or len(set(sheet.keys)) != n:
        raise InvalidArgumentError(f"the keys of a sheet are distinct and have {KEY_BYTES} bytes each")
    if any(len(parent) not in (0, KEY_BYTES) for parent in sheet.parents):
        raise InvalidArgumentError(f"each of parents= is a key of {KEY_BYTES} bytes, or nothing")
    if sheet.n_tokens and not (min(sheet.n_tokens) >= 0 and max(sheet.n_tokens) < 2**32):
        raise InvalidArgumentError("n_tokens= takes 0 to 2**32 - 1")
    lengths = set(map(len, sheet.metas))
    objects = 0 not in lengths and {*map(_first, sheet.metas)} <= {_OPEN} and {*map(_last, sheet.metas)} <= {_CLOSE}
    if not objects or max(lengths, default=0) > MAX_META_BYTES:
        for meta in sheet.metas:
            encode_meta(meta)  # says which


def _within(values: np.ndarray, block: np.ndarray) -> bool:
    """Whether values lie in a block where `blank_values` puts them."""
    n, n_bytes = values.shape
    if block.dtype != np.uint8 or block.ndim != 2 or len(block) != n or not block.flags.carray:
        return False
    end = block.shape[1] - (-n_bytes % 16)
    own = block[:, max(0, end - n_bytes) : end]
    return own.shape == values.shape and own.__array_interface__ == values.__array_interface__


def groups_of(sheets: Sequence[Sheet], most_rows: int, most_bytes: int) -> Iterator[list[Sheet]]:
    """Yield sheets in groups of one namespace and lifetime that are put together, cut where they are too long."""
    group: list[Sheet] = []
    rows = n_bytes = 0
    for sheet in sheets:
        each = sheet.values.shape[1] + max(map(len, sheet.metas), default=0) + 512
        fitting = max(1, min(most_rows, most_bytes // each))
        for first in range(0, len(sheet), fitting):
            part = sheet.part(first, first + fitting)
            alike = bool(group) and (group[0].namespace, group[0].ttl_seconds) == (part.namespace, part.ttl_seconds)
            if group and (not alike or rows + len(part) > most_rows or n_bytes + len(part) * each > most_bytes):
                yield group
                group, rows, n_bytes = [], 0, 0
            group.append(part)
            rows += len(part)
            n_bytes += len(part) * each
    if group:
        yield group
