"""Kept pieces as a transformers cache: layers that hold views of the pieces until the model first adds to them.

The stock way would be to join the pieces into one tensor, and to copy that again when the first new token is appended.
A restored layer appends the new tokens while it joins: one copy of every byte, as if the cache had been in memory.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmstash.caches.kv.blocks import Shape
from lmstash.caches.kv.finding import Span
from lmstash.caches.kv.guard import Guard
from lmstash.caches.kv.layers import (
    Cache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
)


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

    is_initialized = True

    def __init__(self, sides: tuple[_Side, _Side], n_tokens: int, guard: Guard | None) -> None:
        self._sides = sides
        self._n_tokens = n_tokens
        self._guard = guard

    @property
    def keys(self) -> Tensor:
        """The joined keys `[batch, heads, n_tokens, dim]`."""
        return self._settle().keys  # pyright: ignore[reportReturnType]

    @keys.setter
    def keys(self, value: Tensor) -> None:
        self._settle().keys = value

    @property
    def values(self) -> Tensor:
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

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Join what is restored with new keys and values, in one copy."""
        settled = self._settle(key_states, value_states)
        return settled.keys, settled.values  # pyright: ignore[reportReturnType]

    def _settle(self, key_states: Tensor | None = None, value_states: Tensor | None = None) -> DynamicLayer:
        """Become a plain layer."""
        started = time.perf_counter()
        keys, values = (side.join(new) for side, new in zip(self._sides, (key_states, value_states), strict=True))
        if self._guard is not None:
            self._guard.filled(time.perf_counter() - started)
        vars(self).clear()
        self._become_plain()
        plain: Any = self
        plain.keys, plain.values, plain.device, plain.is_initialized = keys, values, keys.device, True
        return plain

    def _become_plain(self) -> None:
        self.__class__ = DynamicLayer  # pyright: ignore[reportAttributeAccessIssue]


class RestoredSlidingLayer(RestoredLayer):
    """Likewise for a layer with a window; it turns into a `DynamicSlidingWindowLayer` that remembers everything."""

    is_sliding = True

    def __init__(self, sides: tuple[_Side, _Side], n_tokens: int, guard: Guard | None, window: int) -> None:
        super().__init__(sides, n_tokens, guard)
        self.sliding_window = window

    @property
    def cumulative_length(self) -> int:
        """Tokens seen so far."""
        return self._n_tokens

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return length and offset of what the model is shown."""
        return DynamicSlidingWindowLayer.get_mask_sizes(self, query_length)  # pyright: ignore[reportArgumentType]

    def get_max_length(self) -> int:
        """Return the window."""
        return self.sliding_window

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """As `RestoredLayer.update`; returns what lies in the window of the new tokens."""
        window, length = self.sliding_window, self._n_tokens + key_states.shape[-2]
        settled: Any = self._settle(key_states, value_states)
        settled.cumulative_length = length
        visible = window - 1 + key_states.shape[-2]
        return settled.keys[:, :, -visible:], settled.values[:, :, -visible:]

    def _settle(self, key_states: Tensor | None = None, value_states: Tensor | None = None) -> DynamicLayer:
        window, n_tokens = self.sliding_window, self._n_tokens
        plain: Any = super()._settle(key_states, value_states)
        plain.sliding_window, plain.cumulative_length, plain.record_past = window, n_tokens, True
        plain._sliding_window_tensor = torch.tensor(window, dtype=torch.long, device=plain.device)
        return plain

    def _become_plain(self) -> None:
        self.__class__ = DynamicSlidingWindowLayer  # pyright: ignore[reportAttributeAccessIssue]


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
            pieces = self._ready(self.rows[0], device)
            return torch.cat(pieces if new is None else [*pieces, new], dim=-2)
        joined: dict[int, Tensor] = {}
        for pieces in self.rows:  # rows that share a list are copies of one row
            if id(pieces) not in joined:
                joined[id(pieces)] = torch.cat(self._ready(pieces, device), dim=-2)
        whole = torch.cat([joined[id(pieces)] for pieces in self.rows], dim=0)
        return whole if new is None else torch.cat([whole, new], dim=-2)

    def fill(self, layer: Any, values: _Side) -> None:
        """Give a layer that has a recurrent state, too, these keys and `values`."""
        layer.keys, layer.values = self.join(None), values.join(None)
        layer.device, layer.dtype, layer.is_initialized = self.device, self.dtype, True

    def _ready(self, pieces: list[Tensor], device: torch.device) -> list[Tensor]:
        """Return pieces on `device` and in the dtype they were computed in."""
        here, dtype = self.device, self.dtype
        if here == device and all(each.dtype is dtype for each in pieces):
            return pieces
        return [each.to(device, dtype) for each in pieces]


def restore(
    empty: Cache,
    kept: Sequence[int],
    fillings: Sequence[Filling],
    shape: Shape,
    device: torch.device,
    *,
    repeats: int = 1,
    guard: Guard | None = None,
) -> Cache:
    """Return `empty`, a fresh cache of the model, with the layers numbered `kept` replaced by restored ones.

    Args:
        empty: A fresh cache of the model.
        kept: Which of its layers keep keys and values.
        fillings: One for each prompt; all restore the same number of slots.
        shape: Of what is restored.
        device: Of the model.
        repeats: How often each row is repeated (beams, returned sequences).
        guard: Told when a layer was filled.

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
        window = getattr(empty.layers[layer], "sliding_window", None)
        both = sides[0], sides[1]
        if type(empty.layers[layer]) is LinearAttentionAndFullAttentionLayer:
            both[0].fill(empty.layers[layer], both[1])
            continue
        empty.layers[layer] = (
            RestoredLayer(both, n_tokens, guard)
            if window is None
            else RestoredSlidingLayer(both, n_tokens, guard, window)
        )
    return empty


def _views(span: Span, device: torch.device) -> list[Tensor]:
    """Return a view of each side of a span, `[1, heads, n_tokens, dim]`."""
    out: list[Tensor] = []
    for part in span.parts:
        used = part if span.last - span.first == part.shape[2] else part[:, :, span.first : span.last]
        if used.device != device:
            used = used.to(device, non_blocking=True)
        out += used.unsqueeze(1).unbind(0)
    return out


def _pads(shape: Shape, n_tokens: int, device: torch.device) -> list[Tensor]:
    return [
        torch.zeros(1, heads, n_tokens, dim, dtype=getattr(torch, dtype), device=device)
        for heads, dim, dtype in shape.sides
    ]
