"""What an entry of activations holds: checked against what was asked for, and read without a torch tensor in between.

Headers repeat, so where everything lies is worked out once for each header and remembered.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lmstash.caches.activations.context import KEY, VALUE, value_dtype
from lmstash.caches.activations.results import BITS, bits_of
from lmstash.codecs.header import Layout, TensorSpec
from lmstash.codecs.tensors import decode_header, torch_dtype
from lmstash.errors import FormatError
from lmstash.identity.tokens import digest_token_bytes
from lmstash.store.base import KEY_BYTES
from lmstash.store.sheets import Apart, Found

LAYERS = "layers"
"""Name of the tensor that says which layers the rows of the value are, `[n_layers]` uint32."""
TOKENS = "tokens"
"""Name of the tensor of the token ids covered, `[n_tokens]` uint32."""
DIGEST = "tokens_digest"
"""Name of what stands for them in private mode, 32 bytes."""
_KNOWN_HEADERS = 4096


@dataclass(frozen=True, slots=True)
class Contents:
    """Where everything lies in entries with one header."""

    layout: Layout
    key: slice
    layers: slice
    tokens: slice | None
    digest: slice | None
    offset: int
    """Of the value, in bytes."""
    shape: tuple[int, ...]
    """`[n_layers, width]` or `[n_layers, n_tokens, width]`."""
    words: np.dtype
    """Integers as wide as the value's elements."""
    stored: torch.dtype
    computed: torch.dtype

    def each_bits(self, values: np.ndarray | list[np.ndarray], rows: np.ndarray) -> Iterable[np.ndarray]:
        """As `bits`, one by one; of values apart each is a view of its own memory, if it was kept in that dtype."""
        if not isinstance(values, list):
            return self.bits(values, rows)
        arrays = [np.ndarray(self.shape, self.words, values[row], self.offset) for row in rows.tolist()]
        if self.stored is self.computed:
            return arrays
        return (bits_of(torch.from_numpy(each).view(self.stored).to(self.computed)) for each in arrays)

    def bits(self, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return some entries of a sheet in the dtype they were computed in, as integers of their bits.

        Args:
            values: `[n_entries, n_bytes]`.
            rows: Which.

        Returns:
            `[n_rows, n_layers, ...]`; a view if all rows are asked for and values were kept in that dtype.
        """
        end = self.offset + math.prod(self.shape) * self.words.itemsize
        chosen = _columns(values, slice(self.offset, end), rows)
        array = chosen.view(self.words).reshape(len(rows), *self.shape)
        if self.stored is self.computed:
            return array
        return bits_of(torch.from_numpy(np.ascontiguousarray(array)).view(self.stored).to(self.computed))

    def held(self, row: np.ndarray) -> bytes:
        """Return the layers that one entry of a sheet holds, as bytes."""
        return row[self.layers].tobytes()

    def stored_values(self, value: memoryview) -> Tensor:
        """Return the value of one entry as it is kept, in memory of its own."""
        array = np.ndarray(self.shape, self.words, value, self.offset)
        return torch.from_numpy(array.copy()).view(self.stored)


class Reader:
    """Checks entries for one call. Costs about 2 us per entry with a header seen before; used by one thread."""

    def __init__(self, dimensions: int, width: int | None) -> None:
        """Take what values look like: `dimensions` of the tensor and numbers per row (None: as the first one has)."""
        self._dimensions = dimensions
        self.width = width
        self._known: dict[int, Contents] = {}
        self._last: dict[int, tuple[bytes, int, Contents]] = {}
        """By length: header of the last such entry, the header's length, and what lies where."""

    def read(self, value: memoryview, extends: bytes, *, key: bytes, parent: bytes, tokens: bytes) -> Contents | None:
        """Return where things lie in an entry; None when it is not what was asked for.

        Args:
            value: As fetched.
            extends: The key that the entry extends, as fetched.
            key: It was asked for by this key, and must itself say so.
            parent: The key that it must extend.
            tokens: The token ids it must be over, as bytes; nothing to compare when empty.
        """
        last = self._last.get(len(value))
        if last is not None and bytes(value[: last[1]]) == last[0]:
            contents = last[2]
        else:
            contents = self._find(value)
            if contents is None:
                return None
        if extends != parent or value[contents.key] != key or contents.shape[-1] != self.width:
            return None
        if tokens:
            if contents.tokens is not None:
                return contents if bytes(value[contents.tokens]) == tokens else None
            if contents.digest is None or bytes(value[contents.digest]) != digest_token_bytes(tokens):
                return None
            if 4 * contents.shape[1] != len(tokens):
                return None
        return contents

    def partitions(
        self,
        found: Found | Apart,
        keys: np.ndarray,
        parents: Sequence[bytes] = (),
        tokens: Sequence[bytes] = (),
    ) -> Iterator[tuple[np.ndarray, Contents | None]]:
        """Yield the rows of a sheet in groups that have one header and the same layers; checks each as `read` does.

        Args:
            found: The sheet.
            keys: By which each row was asked for, `[n_rows, 32]`.
            parents: Key of the entry that each extends; empty when none shall extend another.
            tokens: The token ids that each must be over, as bytes; empty when there is nothing to compare.

        Yields:
            Rows, and where things lie in them; None for rows that are not what was asked for.
        """
        values = found.values
        left = np.arange(len(values))
        while len(left):
            contents = self._find(values[left[0]].data)
            if contents is None:
                yield left[:1], None
                left = left[1:]
                continue
            heads = _columns(values, slice(0, contents.offset), left)
            alike = np.ones(len(left), np.bool_)
            for span in (slice(0, contents.layout.data_start), contents.layers):
                column = _column(values, heads, span, left)
                alike &= _same(column, column[0:1])
            rows, left = left[alike], left[~alike]
            heads = heads[alike] if len(left) else heads
            if contents.shape[-1] != self.width:
                yield rows, None
                continue
            good = _same(_column(values, heads, contents.key, rows), keys[rows])
            if found.parents is not None or any(parents):
                good &= [found.parent(each) == (parents[each] if parents else b"") for each in rows.tolist()]
            if any(tokens):
                named = contents.tokens or contents.digest
                column = None if named is None else _column(values, heads, named, rows)
                good &= _are_over(contents, column, [tokens[each] for each in rows.tolist()])
            if good.all():
                yield rows, contents
                continue
            yield rows[~good], None
            if good.any():
                yield rows[good], contents

    def _find(self, value: memoryview) -> Contents | None:
        try:
            layout = decode_header(value)
        except FormatError:
            return None
        contents = self._known.get(id(layout))
        if contents is None or contents.layout is not layout:
            contents = self._plan(layout)
            if contents is None:
                return None
            if len(self._known) >= _KNOWN_HEADERS:
                self._known.clear()
                self._last.clear()
            self._known[id(layout)] = contents
        self._last[layout.nbytes] = bytes(value[: layout.data_start]), layout.data_start, contents
        return contents

    def _plan(self, layout: Layout) -> Contents | None:
        tensors = layout.tensors
        named, layers, value = tensors.get(KEY), tensors.get(LAYERS), tensors.get(VALUE)
        computed = value_dtype(layout)
        if named is None or layers is None or value is None or computed is None:
            return None
        shape = value.shape
        digest = tensors.get(DIGEST)
        if digest is not None and digest.nbytes != KEY_BYTES:
            return None
        if named.nbytes != KEY_BYTES or layers.dtype != "U32" or len(shape) != self._dimensions:
            return None
        if layers.shape != shape[:1]:
            return None
        tokens = tensors.get(TOKENS)
        if tokens is not None and (tokens.dtype != "U32" or tokens.shape != shape[1:2]):
            return None
        try:
            stored = torch_dtype(value.dtype)
        except FormatError:  # a dtype that this torch lacks
            return None
        if stored.itemsize not in BITS:
            return None
        if self.width is None:
            self.width = shape[-1]
        return Contents(
            layout,
            _span(named),
            _span(layers),
            None if tokens is None else _span(tokens),
            None if digest is None else _span(digest),
            value.offset,
            shape,
            np.dtype(f"i{stored.itemsize}"),
            stored,
            computed,
        )


def _columns(values: np.ndarray | list[np.ndarray], span: slice, rows: np.ndarray) -> np.ndarray:
    """Return some bytes of some rows; whole rows may be long, so these bytes alone are copied."""
    if isinstance(values, list):
        joined = b"".join([values[row].data[span] for row in rows.tolist()])
        return np.frombuffer(joined, np.uint8).reshape(len(rows), -1)
    return values[:, span] if len(rows) == len(values) else values[:, span][rows]


def _column(values: np.ndarray | list[np.ndarray], heads: np.ndarray, span: slice, rows: np.ndarray) -> np.ndarray:
    """Return some bytes of some rows, of which `heads` are the first ones: values apart are slow to go through."""
    return heads[:, span] if span.stop <= heads.shape[1] else _columns(values, span, rows)


def _same(column: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return which rows of bytes are those of another array, or of its only row."""
    if column.shape[1] % 8 == 0:  # words are compared in less time
        column, other = column.view("<u8"), other.view("<u8")
    return (column == other).all(axis=1)


def _are_over(contents: Contents, column: np.ndarray | None, tokens: list[bytes]) -> np.ndarray:
    """Return which rows are over the token ids they must be over, by what is kept of these (ids or their digest)."""
    if contents.tokens is None:
        fitting = column is not None
        names = b"" if column is None else column.tobytes()
        return np.array(
            [
                fitting
                and (not each or (names[32 * at : 32 * at + 32] == digest_token_bytes(each)))
                and (not each or 4 * contents.shape[1] == len(each))
                for at, each in enumerate(tokens)
            ],
            np.bool_,
        )
    assert column is not None
    if all(len(each) == column.shape[1] for each in tokens):
        wanted = np.frombuffer(b"".join(tokens), np.uint8).reshape(-1, column.shape[1])
        return (column == wanted).all(axis=1)
    return np.array([not each or row.tobytes() == each for each, row in zip(tokens, column, strict=True)])


def _span(spec: TensorSpec) -> slice:
    return slice(spec.offset, spec.offset + spec.nbytes)
