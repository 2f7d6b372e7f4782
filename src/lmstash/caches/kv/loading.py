"""Kept pieces as a transformers cache: layers that hold views of the pieces until the model first adds to them.

The stock way would be to join the pieces into one tensor, and to copy that again when the first new token is appended.
A restored layer appends the new tokens while it joins: one copy of every byte, as if the cache had been in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from lmstash.caches.kv.blocks import Shape
from lmstash.caches.kv.finding import Span


@dataclass(frozen=True, slots=True)
class Filling:
    """What one row of a batch is restored from."""

    pads: int
    """Slots before the first token, which the attention mask hides."""
    spans: Sequence[Span]


class RestoredLayer(DynamicLayer):
    """A layer of a restored cache. It turns into a plain `DynamicLayer` at the first touch of its tensors.

    Nothing that it holds is ever handed out: what others see are joined tensors of their own.
    """

    def __init__(self, sides: tuple[_Side, _Side], n_tokens: int) -> None:
        self._sides = sides
        self._n_tokens = n_tokens

    is_initialized = True  # pyright: ignore[reportAssignmentType]

    @property
    def keys(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The joined keys `[batch, heads, n_tokens, dim]`."""
        return self._settle().keys  # pyright: ignore[reportReturnType]

    @keys.setter
    def keys(self, value: Tensor) -> None:
        self._settle().keys = value

    @property
    def values(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The joined values."""
        return self._settle().values  # pyright: ignore[reportReturnType]

    @values.setter
    def values(self, value: Tensor) -> None:
        self._settle().values = value

    @property
    def device(self) -> torch.device:
        """Where the joined tensors would be."""
        return self._sides[0].device

    def get_seq_length(self) -> int:
        """Return the tokens restored."""
        return self._n_tokens

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Join what is restored with new keys and values, in one copy."""
        settled = self._settle(key_states, value_states)
        return settled.keys, settled.values  # pyright: ignore[reportReturnType]

    def _settle(self, key_states: Tensor | None = None, value_states: Tensor | None = None) -> DynamicLayer:
        """Become a plain layer."""
        keys, values = (side.join(new) for side, new in zip(self._sides, (key_states, value_states), strict=True))
        del self._sides, self._n_tokens
        self.__class__ = DynamicLayer  # pyright: ignore[reportAttributeAccessIssue]
        plain: DynamicLayer = self
        plain.keys, plain.values, plain.device, plain.is_initialized = keys, values, keys.device, True
        return plain


@dataclass(slots=True)
class _Side:
    """The keys, or the values, of one layer."""

    rows: list[list[Tensor]]
    """For each row of the batch, pieces `[1, heads, n, dim]` in order."""
    dtype: torch.dtype
    device: torch.device

    def join(self, new: Tensor | None) -> Tensor:
        """Return everything as one tensor `[batch, heads, n_tokens, dim]`, with new tokens at the end."""
        device = self.device if new is None else new.device
        if len(self.rows) == 1:
            pieces = [each.to(device, self.dtype) for each in self.rows[0]]
            if new is not None:
                pieces.append(new)
            return torch.cat(pieces, dim=-2)
        joined: dict[int, Tensor] = {}
        for pieces in self.rows:  # rows that share a list are copies of one row
            if id(pieces) not in joined:
                joined[id(pieces)] = torch.cat([each.to(device, self.dtype) for each in pieces], dim=-2)
        whole = torch.cat([joined[id(pieces)] for pieces in self.rows], dim=0)
        return whole if new is None else torch.cat([whole, new], dim=-2)


def restore(
    empty: Cache,
    kept: Sequence[int],
    fillings: Sequence[Filling],
    shape: Shape,
    device: torch.device,
    *,
    repeats: int = 1,
) -> Cache:
    """Return `empty`, a fresh cache of the model, with the layers numbered `kept` replaced by restored ones.

    Args:
        empty: A fresh cache of the model.
        kept: Which of its layers keep keys and values.
        fillings: One for each prompt; all restore the same number of slots.
        shape: Of what is restored.
        device: Of the model.
        repeats: How often each row is repeated (beams, returned sequences).

    Costs about 20 us a block; the bytes are copied when the model first adds to a layer.
    """
    n_tokens = fillings[0].pads + sum(span.last - span.first for span in fillings[0].spans)
    columns: dict[tuple[int, int, int], list[Tensor]] = {}
    rows: list[list[list[Tensor]]] = []
    for filling in fillings:
        pieces = [_pads(shape, filling.pads, device)] if filling.pads else []
        for span in filling.spans:
            name = (id(span.parts), span.first, span.last)
            if name not in columns:
                columns[name] = _views(span, device)
            pieces.append(columns[name])
        rows += [[list(side) for side in zip(*pieces, strict=True)]] * repeats
    n_layers = shape.n_layers
    for number, layer in enumerate(kept):
        sides = []
        for side in (number, n_layers + number):
            dtype = getattr(torch, shape.sides[side][2])
            sides.append(_Side([row[side] for row in rows], dtype, device))
        empty.layers[layer] = RestoredLayer((sides[0], sides[1]), n_tokens)
    return empty


def _views(span: Span, device: torch.device) -> list[Tensor]:
    """Return a view of each side of a span, `[1, heads, n_tokens, dim]`."""
    out: list[Tensor] = []
    for part in span.parts:
        used = part if span.last - span.first == part.shape[2] else part[:, :, span.first : span.last]
        out += used.to(device, non_blocking=True).unsqueeze(1).unbind(0)
    return out


def _pads(shape: Shape, n_tokens: int, device: torch.device) -> list[Tensor]:
    return [
        torch.zeros(1, heads, n_tokens, dim, dtype=getattr(torch, dtype), device=device)
        for heads, dim, dtype in shape.sides
    ]
