"""Padding: how prompts of different lengths lie in one batch, and whether a model's values depend on what lies beside.

A model that mixes tokens without regard to its attention mask (Fourier transforms, convolutions) computes other values
for a prompt beside a longer one than alone. One that shares something out among the tokens of a batch computes others
beside any prompt. No configuration says so: it is tried, but for experts with room for so many tokens, which a trial
would have to fill.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from lmstash.caches.torch_model import TRIED_TOKENS

_LENGTHS = 1, 2, 5, 11
"""Tokens of the prompts that are tried; odd ones, too, for models that work on chunks, and a single one, of which code
may think that a prompt went before it. More would cost more."""
_WIDTH = TRIED_TOKENS
"""Tokens they are padded to: those of a prompt beside them that fills the batch, as the longest one always does."""
_BESIDE = 4
"""Prompts of that length that are tried side by side."""
_ROUNDINGS = 16
"""How many roundings apart the values of two batch shapes may be. What a model makes of a length is far more: it takes
the prompts for twice to twelve times as long."""
_FINEST = 2.0**-17
"""The least that is told from rounding, which adds up over tens of layers."""
_FINEST_ON_DEVICES = 2.0**-10
"""As a GPU may round float32 within a product (TF32)."""


def pad(batch: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask `[n_prompts, longest]` int64: prompts on the left, zeros on the right."""
    shape = len(batch), max(len(ids) for ids in batch)
    ids = np.zeros(shape, dtype=np.int64)
    mask = np.zeros(shape, dtype=np.int64)
    for row, prompt in enumerate(batch):
        ids[row, : len(prompt)] = prompt
        mask[row, : len(prompt)] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


def shows_padding(
    run: Callable[[Tensor, Tensor], Sequence[Tensor]],
    *,
    vocabulary: int,
    max_tokens: int | None,
    rounding: float,
) -> bool:
    """Return whether the values of prompts depend on the padding beside them. Costs six passes of 259 tokens in all.

    Prompts of several lengths run in one batch twice, with other ids in the padding: nothing may move, bit for bit,
    which under a mask that is honoured it does not, in batches of one shape. A model that only counts its padding
    passes that, so each prompt runs alone, too: its values may differ by rounding, as shapes do.

    Args:
        run: Takes token ids and mask, and returns a copy of `[n_prompts, n_tokens, width]` for each layer.
        vocabulary: Ids below this exist.
        max_tokens: Longest prompt.
        rounding: Of the coarsest numbers in the model, see `rounding_of`.
    """
    width = min(_WIDTH, max_tokens or _WIDTH)
    lengths = [each for each in _LENGTHS if each < width]
    if len(lengths) < 2:
        return True  # too few tokens to try
    prompts = [(7 * np.arange(length) + row + 1) % vocabulary for row, length in enumerate([*lengths, width])]
    ids, mask = pad(prompts)
    padded = run(ids, mask)
    others = torch.arange(1, width + 1, device="cpu").remainder(vocabulary).expand_as(ids)
    refilled = run(torch.where(mask == 1, ids, others), mask)
    alone = [run(*pad([prompt])) for prompt in prompts[: len(lengths)]]
    for layer, (values, again) in enumerate(zip(padded, refilled, strict=True)):
        for row, length in enumerate(lengths):
            if not torch.equal(values[row, :length], again[row, :length]):
                return True
            if _differs(values[row, :length], alone[row][layer][0], rounding):
                return True
    return False


def shows_company(
    run: Callable[[Tensor, Tensor], Sequence[Tensor]],
    *,
    vocabulary: int,
    max_tokens: int | None,
    rounding: float,
) -> bool:
    """Return whether the values of prompts depend on others of their length beside them.

    Takes what `shows_padding` does. Costs five passes of 192 tokens in all.
    """
    length = min(_WIDTH, max_tokens or _WIDTH)
    prompts = [(7 * np.arange(length) + row + 1) % vocabulary for row in range(_BESIDE)]
    together = run(*pad(prompts))
    alone = [run(*pad([prompt])) for prompt in prompts]
    return any(
        _differs(values[row], alone[row][layer][0], rounding)
        for layer, values in enumerate(together)
        for row in range(_BESIDE)
    )


def _differs(got: Tensor, wanted: Tensor, rounding: float) -> bool:
    """Whether values of one prompt, `[n_tokens, width]`, are apart by more than rounding, or no numbers."""
    got, wanted = got.double(), wanted.double()
    # By token: a few tokens of a trained model dwarf all others.
    apart = (got - wanted).norm(dim=-1) > _ROUNDINGS * rounding * wanted.norm(dim=-1)
    return not bool(torch.isfinite(wanted).all()) or bool(apart.any())


def rounding_of(dtype: torch.dtype, device: torch.device) -> float:
    """Return how much the coarsest numbers round that a model with weights of `dtype` computes with, relatively."""
    dtypes = [dtype]
    with contextlib.suppress(RuntimeError):  # a kind of device that knows no autocast
        if torch.is_autocast_enabled(device.type):
            dtypes.append(torch.get_autocast_dtype(device.type))
    return max(_FINEST if device.type == "cpu" else _FINEST_ON_DEVICES, *(torch.finfo(each).eps for each in dtypes))
