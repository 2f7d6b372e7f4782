"""The result lmprobe hands out: every prompt's layers side by side, padded on the right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lmstash.caches.activations.results import RawResult, bits_of, recast
from lmstash.errors import MismatchError
from lmstash.fresh_memory import ask_for_memory


class PaddedResult(RawResult):
    """`[n_prompts, n_tokens, n_layers * hidden]`, zeros after each prompt's tokens, and the mask that says where.

    Allocated once when the longest prompt is known beforehand. Otherwise values are held until `padded` is called, and
    let go of one by one while they are copied.
    """

    adopts = False  # all prompts share one memory: values are copied into it

    def __init__(
        self, owners: Sequence[int], n_layers: int, longest: int | None, dtype: torch.dtype | None = None
    ) -> None:
        """Plan a result.

        Args:
            owners: For each prompt asked for, which of the distinct ones it is.
            n_layers: Layers side by side.
            longest: Tokens of the longest prompt, or None when not known yet.
            dtype: Of the result, unless a value cannot be said in it exactly; None is that of the values.
        """
        super().__init__([], n_layers, None)
        self._wanted = dtype
        self._owners = owners
        self._n_layers = n_layers
        self._longest = longest
        self._first = first_places(owners)
        self._tokens = [0] * len(self._first)
        self.width: int | None = None
        """Numbers per token and layer, once a value was seen."""
        self._padded: Tensor | None = None
        self._rows = np.empty(0)
        self._waiting: list[tuple[int, slice | list[int], int, np.ndarray, torch.dtype]] = []

    def fill(self, prompt: int, positions: slice | list[int], start: int, bits: np.ndarray, dtype: torch.dtype) -> None:
        """Take values of some layers for tokens `start` and on of one distinct prompt (see `RawResult.fill`).

        Raises:
            MismatchError: Values of another width came before.
        """
        _, n_tokens, width = bits.shape
        if self.width is None:
            self.width = width
        elif width != self.width:
            raise MismatchError(f"values of {width} numbers do not go with others of {self.width}.")
        bits, dtype = self._as_wanted(bits, dtype)
        end = start + n_tokens
        if end > self._tokens[prompt]:
            self._tokens[prompt] = end
        if self._longest is None or end > self._longest:
            self._waiting.append((prompt, positions, start, bits.copy(), dtype))
        else:
            self._copy(prompt, positions, start, bits, dtype)

    def forget(self, prompt: int) -> None:
        """Take back everything placed for one distinct prompt."""
        self._tokens[prompt] = 0
        self._waiting = [each for each in self._waiting if each[0] != prompt]
        if self._padded is not None:
            self._padded[self._first[prompt]] = 0

    def padded(self, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the activations and the mask (int64, `[n_prompts, n_tokens]`).

        Args:
            width: Hidden size for a result without any value.
            dtype: The same, unless one was asked for.
        """
        dtype = self._wanted or dtype
        longest = max(self._tokens, default=0)
        if self._padded is None or longest > self._padded.shape[1]:
            self._widen(longest, dtype, self.width or width)
        self._longest = longest
        self._waiting.reverse()
        while self._waiting:
            self._copy(*self._waiting.pop())
        out = self._padded
        assert out is not None
        owners = np.array(self._owners, dtype=np.intp)
        lengths = np.array(self._tokens, dtype=np.int64)[owners]
        mask = (np.arange(out.shape[1]) < lengths[:, None]).astype(np.int64)
        if len(self._first) < len(owners):
            firsts = np.array(self._first, dtype=np.intp)[owners].tolist()
            for row, first in enumerate(firsts):
                if row != first:
                    self._rows[row] = self._rows[first]
        return out, torch.from_numpy(mask)

    def _as_wanted(self, bits: np.ndarray, dtype: torch.dtype) -> tuple[np.ndarray, torch.dtype]:
        """Return values, given and returned as bits, in the dtype asked for, if that loses nothing."""
        if self._wanted in (None, dtype):
            return bits, dtype
        values = torch.from_numpy(bits).view(dtype)
        cast = values.to(self._wanted)
        same = (cast.to(dtype) == values) | values.isnan()
        return (bits_of(cast), self._wanted) if bool(same.all()) else (bits, dtype)

    def _widen(self, longest: int, dtype: torch.dtype, width: int) -> None:
        old = self._padded
        if old is None and self._waiting:
            dtype = self._waiting[0][4]
        new = _zeros((len(self._owners), longest, self._n_layers * width), old.dtype if old is not None else dtype)
        if old is not None:
            new[:, : old.shape[1]] = old
        self._set(new)

    def _copy(
        self, prompt: int, positions: slice | list[int], start: int, bits: np.ndarray, dtype: torch.dtype
    ) -> None:
        if self._padded is None:
            assert self._longest is not None
            self._widen(self._longest, dtype, bits.shape[2])
        out = self._padded
        assert out is not None
        if out.dtype != dtype:
            wider = torch.promote_types(out.dtype, dtype)
            if wider != out.dtype:
                self._set(out.to(wider))
            if wider != dtype:
                bits = recast(bits, dtype, wider)
        self._rows[self._first[prompt], positions, start : start + bits.shape[1]] = bits

    def _set(self, padded: Tensor) -> None:
        """Go on with another tensor; its bits are seen as `[n_prompts, n_layers, n_tokens, hidden]`."""
        self._padded = padded
        split = bits_of(padded).reshape(*padded.shape[:2], self._n_layers, padded.shape[2] // self._n_layers)
        self._rows = split.transpose(0, 2, 1, 3)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return zeros in memory of numpy's, which asks the system for huge pages: a third of the time of torch's."""
    array = np.zeros(shape, dtype=f"i{dtype.itemsize}")
    ask_for_memory(array)
    return torch.from_numpy(array).view(dtype)


def first_places(owners: Sequence[int]) -> list[int]:
    """Return where each distinct prompt is first asked for; `owners` numbers them in that order."""
    firsts: list[int] = []
    for place, owner in enumerate(owners):
        if owner == len(firsts):
            firsts.append(place)
    return firsts
