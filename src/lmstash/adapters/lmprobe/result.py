"""The result lmprobe hands out: every prompt's layers side by side, padded on the right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lmstash.caches.activations.results import RawResult
from lmstash.errors import MismatchError

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class PaddedResult(RawResult):
    """`[n_prompts, n_tokens, n_layers * hidden]`, zeros after each prompt's tokens, and the mask that says where.

    Allocated once when the longest prompt is known beforehand. Otherwise values are held until `padded` is called, and
    let go of one by one while they are copied.
    """

    def __init__(self, owners: Sequence[int], n_layers: int, longest: int | None) -> None:
        """Plan a result.

        Args:
            owners: For each prompt asked for, which of the distinct ones it is.
            n_layers: Layers side by side.
            longest: Tokens of the longest prompt, or None when not known yet.
        """
        super().__init__([], n_layers, None)
        self._owners = owners
        self._n_layers = n_layers
        self._longest = longest
        self._first = first_places(owners)
        self._tokens = [0] * len(self._first)
        self.width: int | None = None
        """Numbers per token and layer, once a value was seen."""
        self._padded: Tensor | None = None
        self._rows = np.empty(0)
        self._held: list[tuple[int, int, int, Tensor]] = []

    def place(self, prompt: int, position: int, start: int, value: Tensor) -> None:
        """Take `value` `[n, hidden]` for tokens `start` and on of one distinct prompt and layer position.

        Raises:
            MismatchError: Values of another width came before.
        """
        if self.width is None:
            self.width = value.shape[1]
        elif value.shape[1] != self.width:
            raise MismatchError(f"values of {value.shape[1]} numbers do not go with others of {self.width}.")
        end = start + len(value)
        self._tokens[prompt] = max(self._tokens[prompt], end)
        if self._longest is None or end > self._longest:
            self._held.append((prompt, position, start, value.clone()))
        else:
            self._copy(prompt, position, start, value)

    def forget(self, prompt: int) -> None:
        """Take back everything placed for one distinct prompt."""
        self._tokens[prompt] = 0
        self._held = [each for each in self._held if each[0] != prompt]
        if self._padded is not None:
            self._padded[self._first[prompt]] = 0

    def padded(self, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the activations and the mask (int64, `[n_prompts, n_tokens]`).

        Args:
            width: Hidden size for a result without any value.
            dtype: The same.
        """
        longest = max(self._tokens, default=0)
        if self._padded is None or longest > self._padded.shape[1]:
            self._widen(longest, dtype, self.width or width)
        self._longest = longest
        self._held.reverse()
        while self._held:
            self._copy(*self._held.pop())
        out = self._padded
        assert out is not None
        mask = torch.zeros(out.shape[:2], dtype=torch.int64)
        for row, owner in enumerate(self._owners):
            mask[row, : self._tokens[owner]] = 1
            if row != self._first[owner]:
                out[row] = out[self._first[owner]]
        return out, mask

    def _widen(self, longest: int, dtype: torch.dtype, width: int) -> None:
        old = self._padded
        if old is None and self._held:
            dtype = self._held[0][3].dtype
        new = torch.zeros(
            (len(self._owners), longest, self._n_layers * width), dtype=old.dtype if old is not None else dtype
        )
        if old is not None:
            new[:, : old.shape[1]] = old
        self._padded = new
        self._rows = self._as_array(new)

    def _copy(self, prompt: int, position: int, start: int, value: Tensor) -> None:
        if self._padded is None:
            assert self._longest is not None
            self._widen(self._longest, value.dtype, value.shape[1])
        out = self._padded
        assert out is not None
        if out.dtype != value.dtype:
            out = self._padded = out.to(torch.promote_types(out.dtype, value.dtype))
            self._rows = self._as_array(out)
            value = value.to(out.dtype)
        n_tokens, width = value.shape
        row = self._rows[self._first[prompt]]
        row[start : start + n_tokens, position * width : (position + 1) * width] = self._as_array(value)

    @staticmethod
    def _as_array(tensor: Tensor) -> np.ndarray:
        """Return the tensor's memory as an array of bits: numpy copies small pieces in a third of torch's time."""
        return tensor.view(_BITS[tensor.dtype.itemsize]).numpy()


def first_places(owners: Sequence[int]) -> list[int]:
    """Return where each distinct prompt is first asked for; `owners` numbers them in that order."""
    firsts: list[int] = []
    for place, owner in enumerate(owners):
        if owner == len(firsts):
            firsts.append(place)
    return firsts
