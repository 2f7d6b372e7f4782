"""What an entry of activations holds: checked against what was asked for, and read without a torch tensor in between.

Headers repeat, so where everything lies is worked out once for each header and remembered.
"""

from __future__ import annotations

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
from lmstash.store.base import KEY_BYTES, Entry

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

    def bits(self, entry: Entry) -> np.ndarray:
        """Return the value in the dtype it was computed in, as integers of its bits; a view if it was kept in that."""
        array = np.ndarray(self.shape, self.words, entry.value, self.offset)
        if self.stored is self.computed:
            return array
        return bits_of(torch.from_numpy(array).view(self.stored).to(self.computed))

    def stored_values(self, entry: Entry) -> Tensor:
        """Return the value as it is kept, in memory of its own."""
        array = np.ndarray(self.shape, self.words, entry.value, self.offset)
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

    def read(self, entry: Entry, key: bytes, parent: bytes, tokens: bytes) -> Contents | None:
        """Return where things lie in an entry; None when it is not what was asked for.

        Args:
            entry: As fetched.
            key: It was asked for by this key, and must itself say so.
            parent: Key of the entry it extends.
            tokens: The token ids it must be over, as bytes; nothing to compare when empty.
        """
        value = entry.value
        last = self._last.get(len(value))
        if last is not None and bytes(value[: last[1]]) == last[0]:
            contents = last[2]
        else:
            contents = self._find(value)
            if contents is None:
                return None
        if entry.parent != parent or value[contents.key] != key or contents.shape[-1] != self.width:
            return None
        if tokens:
            if contents.tokens is not None:
                return contents if bytes(value[contents.tokens]) == tokens else None
            if contents.digest is None or bytes(value[contents.digest]) != digest_token_bytes(tokens):
                return None
            if 4 * contents.shape[1] != len(tokens):
                return None
        return contents

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
        if named.nbytes != KEY_BYTES or layers.dtype != "U32" or len(shape) != self._dimensions:
            return None
        if layers.shape != shape[:1]:
            return None
        tokens, digest = tensors.get(TOKENS), tensors.get(DIGEST)
        if tokens is not None and (tokens.dtype != "U32" or tokens.shape != shape[1:2]):
            return None
        stored = torch_dtype(value.dtype)
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


def _span(spec: TensorSpec) -> slice:
    return slice(spec.offset, spec.offset + spec.nbytes)
