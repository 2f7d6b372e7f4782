"""The KV of the contexts that were computed last, side by side as the next forward pass needs it.

A particle program asks for the children of what it asked before. transformers' own cache then copies everything twice a
step: `reorder_cache` selects rows, `update` concatenates a column. Here a batch lies in memory with room to spare:
a new column is written beside the others, a context with several children is copied for the second one on, and
all others stay where they are.

Contexts end at one column and begin where their length says (padded on the left), so that every row goes on at the
same column.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from lmstash.caches.logprobs.kv_form import KVForm
from lmstash.prefix.node import shared_bytes

_SPARE_COLUMNS = 64
_ROWS_AT_ONCE = 8


class KVRows:
    """Memory for a batch. For one thread at a time.

    Attributes:
        end: Columns in use.
        starts: For each row the first column that is its own.
    """

    def __init__(self, form: KVForm, capacity_bytes: int) -> None:
        """Hold nothing; memory beyond `capacity_bytes` is only taken where a batch needs it."""
        self.form = form
        self._capacity_bytes = capacity_bytes
        self.end = 0
        self.starts: list[int] = []
        self._row_of: dict[bytes, int] = {}
        """Contexts whose KV goes up to `end` in some row."""
        self._lies: list[tuple[int, bytes]] = []
        """For each row there is memory for, the context whose KV lies in it and its first column, used again or not."""
        self._planes: list[Tensor] = []
        self._columns = 0

    @property
    def held_bytes(self) -> int:
        """Memory taken."""
        return sum(plane.nbytes for plane in self._planes)

    def __contains__(self, name: bytes) -> bool:
        """Whether the KV of the context with these token bytes lies in a row."""
        return name in self._row_of

    def reaches(self, names: Sequence[bytes]) -> bool:
        """Whether `seat` would go on from what lies here: some of it is asked for, and nothing longer."""
        return any(name in self._row_of for name in names) and max(map(len, names)) <= 4 * self.end

    def forget(self) -> None:
        """Let nobody go on from what lies here; keeps the memory."""
        self._row_of.clear()

    def seat(self, names: Sequence[bytes], new_columns: int) -> tuple[list[int], list[int]]:
        """Give each context a row, the first `len(names)` ones; those that lie here are moved or copied there.

        Args:
            names: Token bytes of each context to go on from, not longer than `end` columns unless nothing is kept.
            new_columns: How many columns the pass will add.

        Returns:
            For each context its row, and which contexts do not lie in their rows yet (`fill` them).
        """
        n_rows = len(names)
        lengths = [len(name) >> 2 for name in names]
        keep = self.reaches(names)
        if not keep:
            self.forget()
            self.end = max(lengths)
        self._reserve(n_rows, self.end + new_columns, keep=keep)
        row_of, absent, copies = self._assign(names)
        for target, source, name in copies:  # a row that is read is never written: see `_assign`
            first = self._first_unlike(target, name)
            for plane in self._planes:
                plane[:, target, :, first : self.end] = plane[:, source, :, first : self.end]
        starts = [self.end] * n_rows
        for name, length, row in zip(names, lengths, row_of, strict=True):
            starts[row] = self.end - length
            self._lies[row] = starts[row], name
        self.starts = starts
        self._row_of.clear()
        return row_of, absent

    def fill(self, row: int) -> list[Tensor]:
        """Return the memory of one context's KV, for each plane `[members, heads, n_tokens, width]`."""
        return [plane[:, row, :, self.starts[row] : self.end] for plane in self._planes]

    def repeat(self, source: int, target: int) -> None:
        """Copy one row's KV to another row of equal length."""
        for plane in self._planes:
            start = self.starts[source]
            plane[:, target, :, start : self.end] = plane[:, source, :, start : self.end]

    def name(self, row: int, name: bytes) -> None:
        """Say which context the KV in a row is of; if it goes up to `end`, the next pass may go on from it."""
        start = self.starts[row]
        self._lies[row] = start, name
        if start + (len(name) >> 2) == self.end:
            self._row_of[name] = row

    def added(self, row: int, first: int, n_tokens: int) -> list[Tensor]:
        """Return the KV of columns of one row, for each plane `[members, heads, n_tokens, width]`."""
        return [plane[:, row, :, first : first + n_tokens] for plane in self._planes]

    def cache(self) -> DynamicCache:
        """Return a transformers cache over the rows: a pass writes its K and V into the columns after `end`."""
        out = DynamicCache()
        out.layers.extend(_Layer(self, *places) for places in self.form.places)
        return out

    def write(self, place: tuple[int, int], first: int, values: Tensor) -> Tensor:
        """Write one layer's new K or V `[rows, heads, n, width]` after `first` columns; returns all columns."""
        rows, stop = len(self.starts), first + values.shape[2]
        plane = self._planes[place[0]][place[1], :rows]
        plane[:, :, first:stop] = values
        return plane[:, :, :stop]

    def _assign(self, names: Sequence[bytes]) -> tuple[list[int], list[int], list[tuple[int, int, bytes]]]:
        """Return the row of each context, which are absent, and what must be copied: (target, source, context).

        What is read either stays, with its first child, or is beyond the rows in use; only free rows are written.
        """
        n_rows = len(names)
        row_of = [-1] * n_rows
        taken: set[int] = set()
        waiting: list[int] = []
        for index, name in enumerate(names):  # the first child of a row below n_rows stays where it is
            row = self._row_of.get(name)
            if row is not None and row < n_rows and row not in taken:
                row_of[index] = row
                taken.add(row)
            else:
                waiting.append(index)
        free = iter([row for row in range(n_rows) if row not in taken])
        absent: list[int] = []
        copies: list[tuple[int, int, bytes]] = []
        for index in waiting:
            row_of[index] = target = next(free)
            source = self._row_of.get(names[index])
            if source is None:
                absent.append(index)
            else:
                copies.append((target, source, names[index]))
        return row_of, absent, copies

    def _first_unlike(self, row: int, name: bytes) -> int:
        """Return the first column of a context, ending at `end`, that is not in a row already.

        What particles have in common lies in each of their rows: of one that takes another's place, the end is copied.
        """
        start = self.end - (len(name) >> 2)
        begins, lying = self._lies[row]
        return start + (shared_bytes(lying, name, 0) >> 2) if begins == start else start

    def _reserve(self, rows: int, columns: int, *, keep: bool) -> None:
        """Make room; `keep` copies what is there."""
        have_rows = self._planes[0].shape[1] if self._planes else 0
        if rows <= have_rows and columns <= self._columns:
            return
        old, n_old = self._planes, len(self.starts)
        rows = -(-max(rows, n_old if keep else 0) // _ROWS_AT_ONCE) * _ROWS_AT_ONCE if rows > 1 else max(rows, n_old)
        columns = columns if columns <= self._columns else columns + max(_SPARE_COLUMNS, columns // 8)
        most = 2 * rows if keep and rows > have_rows else max(rows, have_rows)  # what grows once grows again
        for wider in (most, max(columns, self._columns)), (rows, max(columns, self._columns)):
            if wider[0] * wider[1] * self.form.token_bytes <= self._capacity_bytes:
                rows, columns = wider
                break
        self._columns = columns
        device = self.form.device
        if not keep:
            self._planes = []  # freed first: there need not be room for both
        kept = [(begins, name[: 4 * max(0, self.end - begins)]) for begins, name in self._lies[: n_old if keep else 0]]
        self._lies = kept + [(0, b"")] * (rows - len(kept))
        planes = [plane.zeros(rows, columns, device) for plane in self.form.planes]
        if keep:
            for mine, theirs in zip(planes, old, strict=True):
                mine[:, :n_old, :, : self.end] = theirs[:, :n_old, :, : self.end]
        self._planes = planes


class _Layer(DynamicLayer):
    """One layer's K and V in the memory of a `KVRows`."""

    def __init__(self, rows: KVRows, key_place: tuple[int, int], value_place: tuple[int, int]) -> None:
        super().__init__()
        self._rows = rows
        self._places = key_place, value_place
        self._length = rows.end
        self.is_initialized = True
        self.device = rows.form.device

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write new columns; returns all K and V."""
        keys = self._rows.write(self._places[0], self._length, key_states)
        values = self._rows.write(self._places[1], self._length, value_states)
        self._length += key_states.shape[-2]
        return keys, values

    def get_seq_length(self) -> int:
        """Return the columns in use."""
        return self._length


def mask_of(starts: Sequence[int], end: int, counts: Sequence[int], device: torch.device) -> Tensor | None:
    """Return which columns belong to each row, `[rows, columns]`; None when all do.

    Args:
        starts: First column of each row.
        end: Columns before the new ones.
        counts: New tokens of each row; shorter ones are padded on the right.
        device: Where it goes.
    """
    longest = max(counts)
    if not any(starts) and min(counts) == longest:
        return None
    columns = torch.arange(end + longest, device="cpu")
    first = torch.tensor(starts, device="cpu")[:, None]
    stop = end + torch.tensor(counts, device="cpu")[:, None]
    return ((columns >= first) & (columns < stop)).to(torch.int64).to(device)
