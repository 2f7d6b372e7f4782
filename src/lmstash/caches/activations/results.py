"""Where results are put together: allocated once, when their width and dtype are first known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmstash.errors import InvalidArgumentError, MismatchError
from lmstash.fresh_memory import ask_for_memory

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers as wide as an element: numpy copies small pieces in a third of torch's time, but lacks some dtypes."""

_NAMED = {torch.float16: np.dtype(np.float16), torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}
"""What numpy has a name for, which it sees in a fifth of the time that torch takes."""

_HUGE_BYTES = 4 * 2**20
"""From here on numpy asks for huge pages."""


def bits_of(tensor: Tensor) -> np.ndarray:
    """Return the memory of a tensor on the CPU as an array of integers."""
    return (tensor.detach() if tensor.requires_grad else tensor).view(BITS[tensor.dtype.itemsize]).numpy()


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return a tensor of any content, in huge pages where the system has them: numpy asks for these, torch does not."""
    if math.prod(shape) * dtype.itemsize < _HUGE_BYTES:
        return torch.empty(shape, dtype=dtype, device="cpu")
    words = BITS.get(dtype.itemsize)
    if words is None:
        return torch.empty(shape, dtype=dtype, device="cpu")
    array = np.empty(shape, f"i{dtype.itemsize}")
    ask_for_memory(array)
    return torch.from_numpy(array).view(dtype)


def recast(bits: np.ndarray, dtype: torch.dtype, target: torch.dtype) -> np.ndarray:
    """Return values of one dtype, given and returned as bits, in another."""
    return bits_of(torch.from_numpy(bits).view(dtype).to(target))


class PooledResult:
    """`[n_prompts, n_layers, width]`, contiguous; in the caller's `out` where that is contiguous too.

    Without a dtype asked for, it has the one in which values were computed (the wider one where layers differ).
    """

    def __init__(self, n_prompts: int, n_layers: int, dtype: torch.dtype | None, out: Any = None) -> None:
        """Plan a result; `out` (array, memory map or tensor) is filled in place.

        Raises:
            InvalidArgumentError: `out` has another shape, is read-only, or holds no floating-point numbers.
        """
        self.n_prompts = n_prompts
        self.n_layers = n_layers
        self._dtype = dtype
        self._out = out
        self._target = None if out is None else _as_target(out, n_prompts, n_layers)
        if self._target is not None and dtype is not None and dtype != self._target.dtype:
            raise InvalidArgumentError(f"dtype={dtype} but out= holds {self._target.dtype}: leave one of them out.")
        self._buffer = self._target if self._target is not None and self._target.is_contiguous() else None
        self._ready: torch.dtype | None = None
        """Of the values for which the buffer was last made ready."""
        self._bits: np.ndarray | None = None
        """The buffer, where such values can be copied as they are."""

    @property
    def is_given(self) -> bool:
        """Whether the caller's own memory is filled."""
        return self._target is not None

    def place(self, rows: np.ndarray, positions: slice | list[int], bits: np.ndarray, dtype: torch.dtype) -> None:
        """Copy values of some layers of some prompts.

        Args:
            rows: Of the prompts.
            positions: Of the layers.
            bits: `[n_prompts, n_layers, width]`, the bits of values of `dtype`.
            dtype: In which the values were computed.

        Raises:
            MismatchError, InvalidArgumentError: As `rows`.
        """
        if dtype is not self._ready or self._buffer is None or self._buffer.shape[2] != bits.shape[2]:
            self.rows(bits.shape[2], dtype)
            self._ready, self._bits = dtype, None
            assert self._buffer is not None
            if self._buffer.dtype == dtype and self._buffer.device.type == "cpu":
                self._bits = bits_of(self._buffer)
        if self._bits is not None:
            if isinstance(positions, slice):
                self._bits[rows, positions] = bits
            else:
                self._bits[rows[:, None], positions] = bits
            return
        buffer = self._buffer
        values = torch.from_numpy(np.ascontiguousarray(bits)).view(dtype).to(buffer.device, buffer.dtype)
        chosen = list(range(buffer.shape[1]))[positions] if isinstance(positions, slice) else positions
        buffer[torch.from_numpy(rows)[:, None], torch.tensor(chosen, device="cpu")] = values

    def rows(self, width: int, dtype: torch.dtype) -> Tensor:
        """Return the result as `[n_prompts * n_layers, width]`, able to hold values of `dtype`.

        Raises:
            MismatchError: Values of another width came before.
            InvalidArgumentError: `out` has another width.
        """
        wanted = self._target.dtype if self._target is not None else self._dtype or dtype
        buffer = self._buffer
        if self._target is not None and self._target.shape[2] != width:
            raise InvalidArgumentError(f"out= holds {self._target.shape[2]} numbers per row; the values have {width}.")
        if buffer is None:
            buffer = empty((self.n_prompts, self.n_layers, width), wanted)
        elif buffer.shape[2] != width:
            raise MismatchError(f"values of {width} numbers do not go with others of {buffer.shape[2]}.")
        elif self._target is None and self._dtype is None:
            buffer = buffer.to(torch.promote_types(buffer.dtype, dtype))
        self._buffer = buffer
        return buffer.view(-1, width)

    def finish(self, width: int, dtype: torch.dtype, owners: Sequence[int]) -> Any:
        """Copy the rows of equal prompts from their first one, and return the result (or `out`).

        Args:
            width: For a result in which no value was seen.
            dtype: The same.
            owners: For each prompt, the first prompt equal to it; empty where no two are equal.
        """
        if self._buffer is None:
            self.rows(width, dtype)
        buffer = self._buffer
        assert buffer is not None
        for row, owner in enumerate(owners):
            if owner != row:
                buffer[row] = buffer[owner]
        if self._target is None:
            return buffer
        if self._target is not buffer:
            self._target.copy_(buffer)
        return self._out


class RawResult:
    """One `[n_layers, n_tokens, width]` per prompt, each in memory of its own."""

    adopts = True
    """Whether memory that values were read into can be handed out."""

    def __init__(self, lengths: Sequence[int], n_layers: int, dtype: torch.dtype | None) -> None:
        """Plan results for prompts of `lengths` tokens."""
        self._lengths = lengths
        self._n_layers = n_layers
        self._all = slice(0, n_layers)
        self._dtype = dtype
        self._bits: list[np.ndarray | None] = [None] * len(lengths)
        """Each prompt's values, as bits."""
        self._dtypes: list[torch.dtype | None] = [None] * len(lengths)
        self._tensors: list[Tensor | None] = [None] * len(lengths)
        """The same values as tensors, where they were needed as such."""

    def place(self, prompt: int, position: int, start: int, value: Tensor) -> None:
        """Copy `value` `[n, width]` to tokens `start` and on of one prompt and layer position."""
        self.fill(prompt, slice(position, position + 1), start, bits_of(value)[None], value.dtype)

    def fill(self, prompt: int, positions: slice | list[int], start: int, bits: np.ndarray, dtype: torch.dtype) -> None:
        """Copy values of some layers to tokens `start` and on of one prompt.

        Args:
            prompt: Which prompt.
            positions: Of the layers.
            start: The first token.
            bits: `[n_layers, n_tokens, width]`, the bits of values of `dtype`.
            dtype: In which the values were computed.

        Raises:
            MismatchError: Values of another width came before.
        """
        _, n_tokens, width = bits.shape
        target = self._bits[prompt]
        if target is None:
            shape = (self._n_layers, self._lengths[prompt], width)
            target = self._hold(prompt, empty(shape, self._dtype or dtype))
        if target.shape[2] != width:
            raise MismatchError(f"values of {width} numbers do not go with others of {target.shape[2]}.")
        held = self._dtypes[prompt]
        assert held is not None
        if held != dtype:
            wider = torch.promote_types(held, dtype)
            if self._dtype is None and wider != held:
                target = self._hold(prompt, torch.from_numpy(target).view(held).to(wider))
                held = wider
            if held != dtype:
                bits = recast(bits, dtype, held)
        target[positions, start : start + n_tokens] = bits

    def adopt(self, prompt: int, positions: slice | list[int], bits: np.ndarray, dtype: torch.dtype) -> bool:
        """Hand out memory that nobody else holds as all that is asked of one prompt, if it is just that.

        Args:
            prompt: Which prompt.
            positions: Of the layers.
            bits: As in `fill`.
            dtype: In which the values were computed.

        Returns:
            Whether it was taken; if not, it is to be copied.
        """
        whole = positions == self._all and bits.shape[1] == self._lengths[prompt]
        if not (whole and bits.flags.carray) or self._bits[prompt] is not None or self._dtype not in (None, dtype):
            return False
        self._bits[prompt] = bits
        self._dtypes[prompt] = dtype
        return True

    def _hold(self, prompt: int, tensor: Tensor) -> np.ndarray:
        self._tensors[prompt], self._dtypes[prompt] = tensor, tensor.dtype
        bits = self._bits[prompt] = bits_of(tensor)
        return bits

    def finish(self, owners: Sequence[int]) -> list[Tensor]:
        """Return one tensor per prompt; equal prompts get copies.

        Args:
            owners: For each prompt asked for, which of the planned ones it is.
        """
        self._adopted_as_tensors()
        out: list[Tensor] = []
        handed: set[int] = set()
        for owner in owners:
            value = self._tensors[owner]
            assert value is not None
            out.append(value.clone() if owner in handed else value)
            handed.add(owner)
        return out

    def _adopted_as_tensors(self) -> None:
        """Make tensors of memory that was adopted: all at once, which takes a third of the time."""
        places = [prompt for prompt, tensor in enumerate(self._tensors) if tensor is None]
        for dtype in {dtype for dtype in map(self._dtypes.__getitem__, places) if dtype is not None}:
            alike = [prompt for prompt in places if self._dtypes[prompt] is dtype]
            arrays = [bits for bits in map(self._bits.__getitem__, alike) if bits is not None]
            if dtype in _NAMED:
                made = map(torch.from_numpy, [bits.view(_NAMED[dtype]) for bits in arrays])
            else:
                made = [torch.from_numpy(bits).view(dtype) for bits in arrays]
            for prompt, tensor in zip(alike, made, strict=True):
                self._tensors[prompt] = tensor


def as_dtype(dtype: object) -> torch.dtype | None:
    """Return the floating-point dtype named by a user: "float32", torch.float32, numpy's; None stays None."""
    if dtype is None:
        return None
    found: object = dtype
    if isinstance(dtype, str):
        found = getattr(torch, dtype.removeprefix("torch."), None)
    elif isinstance(dtype, np.dtype | type):
        found = getattr(torch, getattr(dtype, "name", getattr(dtype, "__name__", "")), None)
    if isinstance(found, torch.dtype) and found.is_floating_point:
        return found
    raise InvalidArgumentError(f"dtype={dtype!r}: name a floating-point dtype such as 'float32' or torch.bfloat16.")


def _as_target(out: Any, n_prompts: int, n_layers: int) -> Tensor:
    if isinstance(out, np.ndarray):
        if not out.flags.writeable:
            raise InvalidArgumentError("out= is read-only: open the memory map with mode 'r+' or 'w+'.")
        try:
            target = torch.from_numpy(out)
        except (TypeError, ValueError) as error:
            raise InvalidArgumentError(f"out= cannot be filled: {error}. Pass an array of float16, 32 or 64.") from None
    elif isinstance(out, Tensor):
        target = out.detach()
    else:
        raise InvalidArgumentError(f"out= must be an array or a tensor; got {type(out).__name__}.")
    if target.ndim != 3 or target.shape[:2] != (n_prompts, n_layers) or not target.is_floating_point():
        raise InvalidArgumentError(
            f"out= has shape {tuple(target.shape)} of {target.dtype}; it must be [{n_prompts}, {n_layers}, hidden] of "
            "floating-point numbers."
        )
    steps = zip(target.stride(), target.shape, strict=True)
    if target.device.type == "meta" or any(step == 0 and size > 1 for step, size in steps):
        raise InvalidArgumentError("out= has no memory of its own for every number: pass one that was not expanded.")
    return target
