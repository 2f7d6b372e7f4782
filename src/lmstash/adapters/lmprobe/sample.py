"""Whether imported values are those that an extractor computes now."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmstash.adapters.lmprobe.identify import is_local_lmprobe
from lmstash.adapters.lmprobe.source import right_padding

TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 5e-3, torch.bfloat16: 2e-2}
"""Largest difference that agrees, relative to the largest value of the tensor, by the dtype it was kept in: batches of
other shapes move last bits, and storing in half precision moves more."""

_POOL: dict[str, Callable[[Tensor], Tensor]] = {
    "last_token": lambda values: values[-1],
    "first_token": lambda values: values[0],
    "mean": lambda values: values.mean(dim=0),
    "max": lambda values: values.amax(dim=0),
    "min": lambda values: values.amin(dim=0),
}
_TENSOR = re.compile(r"(?:pooled_(.+)_)?layer_(\d+)")


@dataclass(frozen=True)
class Comparison:
    """How one prompt compares."""

    agrees: bool
    difference: float
    """Largest, relative to the largest value of its tensor; infinite where shapes differ."""


def compare_sample(
    extractor: Any, prompt: str, kept: Mapping[str, Tensor], tolerance: Mapping[torch.dtype, float]
) -> Comparison | None:
    """Compute one prompt again, alone, and compare every raw layer and every pooled one that can be derived.

    Args:
        extractor: The live extractor; runs one batch of one prompt.
        prompt: Its text.
        kept: Imported tensors by lmprobe's names.
        tolerance: By dtype of the tensor kept.

    Returns:
        None when nothing in `kept` can be compared.
    """
    asked = [(name, match[1], int(match[2])) for name in kept if (match := _TENSOR.fullmatch(name))]
    asked = [each for each in asked if each[1] is None or each[1] in _POOL]
    layers = sorted({layer for _, _, layer in asked})
    if not layers:
        return None
    local = is_local_lmprobe(extractor, remote=False)
    with right_padding(extractor.tokenizer) if local else nullcontext(), torch.no_grad():
        values, mask = extractor.extract_batch([prompt], layers, remote=False)
    rows = values[0][mask[0].to(values.device) != 0].detach().cpu().double()
    width = rows.shape[1] // len(layers)
    worst, agrees = 0.0, True
    for name, pool, layer in asked:
        at = layers.index(layer) * width
        computed = rows[:, at : at + width]
        there = kept[name].double()
        if pool is not None:
            computed, there = _POOL[pool](computed), there.reshape(-1)
        if computed.shape != there.shape:
            return Comparison(False, float("inf"))
        difference = float((computed - there).abs().max() / computed.abs().max().clamp_min(1e-30))
        worst = max(worst, difference)
        agrees &= difference <= tolerance.get(kept[name].dtype, 0.0)
    return Comparison(agrees, worst)
