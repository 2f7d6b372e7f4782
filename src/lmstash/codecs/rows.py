"""The bulk path: many small encodings of one tensor each, stacked into the rows of one result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lmstash.codecs.header import Buffer, TensorSpec, read_layout, view_of
from lmstash.codecs.tensors import numpy_dtype, torch_dtype
from lmstash.errors import CorruptEntryError, InvalidArgumentError

if TYPE_CHECKING:
    import torch

_CHUNK_BYTES = 1 << 18
"""Rows are gathered until they are this many bytes: what is gathered is still in the processor's cache when it is
converted, and the memory held beside the result stays small. Larger rows go straight to their place."""


def stack_rows(
    buffers: Sequence[Buffer], name: str, out: torch.Tensor | np.ndarray, rows: Sequence[int] | None = None
) -> list[int]:
    """Copy the tensor `name` of each encoding into one row of `out`, converting its dtype.

    Encodings may differ in dtype (float32 where a smaller one overflowed) and in what else they hold. An encoding that
    cannot be used (bytes that are no encoding, no tensor `name`, another shape) leaves its row as it is and is named in
    the result; the others are not affected. A row of a few kilobytes costs 1 to 1.5 us, a large one the copy of its
    bytes; beside `out` at most half a mebibyte (or one row) is held.

    Args:
        buffers: one encoding each, as `encode_tensors` makes them.
        name: which tensor to take.
        out: `[n, *shape]`; may be a slice, a memory map or on a device. For dtypes that numpy lacks (bfloat16, float8)
            wrap an array as `torch.from_numpy(out)`.
        rows: row of `out` for each buffer; 0, 1, 2, ... by default.

    Returns:
        Positions in `buffers` of those that could not be used.

    Raises:
        InvalidArgumentError: `rows` has another length or a row outside `out`, or numpy lacks the dtype.
    """
    n_rows = len(out)
    targets = range(len(buffers)) if rows is None else rows
    if len(targets) != len(buffers) or (len(targets) and not 0 <= min(targets) <= max(targets) < n_rows):
        raise InvalidArgumentError(f"{len(buffers)} buffers cannot go to {len(targets)} of {n_rows} rows.")
    place = _place_numpy if isinstance(out, np.ndarray) else _place_torch
    shape = tuple(out.shape[1:])
    unusable: list[int] = []
    pieces: list[memoryview] = []
    held: list[int] = []
    held_bytes = 0
    header, spec, start, end, size = b"", None, 0, 0, -1
    for position, buffer in enumerate(buffers):
        view = view_of(buffer)
        # The same first bytes and length as the encoding before: the same layout.
        if len(view) != size or view[: len(header)].tobytes() != header:
            try:
                layout = read_layout(view)
                found = layout.tensors.get(name)
                if found is None or found.shape != shape:
                    raise CorruptEntryError(f"The encoding has no tensor {name!r} of shape {shape}.")
            except CorruptEntryError:
                unusable.append(position)
                continue
            if spec is not None and found.dtype != spec.dtype:
                place(out, pieces, spec, held)
                pieces, held, held_bytes = [], [], 0
            header, spec, size = view[: layout.data_start].tobytes(), found, len(view)
            start, end = found.offset, found.offset + found.nbytes
        pieces.append(view[start:end])
        held.append(targets[position])
        held_bytes += end - start
        if held_bytes >= _CHUNK_BYTES and spec is not None:
            place(out, pieces, spec, held)
            pieces, held, held_bytes = [], [], 0
    if spec is not None:
        place(out, pieces, spec, held)
    return unusable


def _span(rows: list[int]) -> slice | list[int]:
    """Return the rows as a slice if they follow each other: plain copies are faster than indexed ones."""
    first = rows[0]
    if rows[-1] - first == len(rows) - 1 and rows == list(range(first, first + len(rows))):
        return slice(first, first + len(rows))
    return rows


def _place_numpy(out: Any, pieces: list[memoryview], spec: TensorSpec, rows: list[int]) -> None:
    if rows:
        joined = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        values = np.frombuffer(joined, numpy_dtype(spec.dtype)) if spec.count else np.empty(0)
        out[_span(rows)] = values.reshape(len(rows), *spec.shape)


def _place_torch(out: Any, pieces: list[memoryview], spec: TensorSpec, rows: list[int]) -> None:
    import torch

    if not rows or not spec.count:
        return
    # torch warns about memory that it must not write, even when it only reads it: such bytes are copied.
    joined = pieces[0] if len(pieces) == 1 and not pieces[0].readonly else bytearray().join(pieces)
    values = torch.frombuffer(joined, dtype=torch_dtype(spec.dtype)).view(len(rows), *spec.shape)
    span = _span(rows)
    if isinstance(span, slice):
        out[span].copy_(values)
    else:
        out[span] = values.to(device=out.device, dtype=out.dtype)
