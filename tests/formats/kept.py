"""What every kind of kept value is written and read with; the kinds are in `kept_values.py` and `kept_answers.py`."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import torch

MODEL = hashlib.sha256(b"a model that values were kept of").digest()


def numbers(seed: int, *shape: int) -> np.ndarray:
    """Float32 numbers that follow from `seed`; float16 holds each of them, too."""
    count = np.arange(math.prod(shape), dtype=np.int64)
    return (((count * 7919 + seed * 104_729) % 2003 - 1001) / 64).astype(np.float32).reshape(shape)


def ids(count: int, seed: int = 0) -> list[int]:
    """Token ids; the same beginning for the same seed."""
    return [(place * 31 + seed * 57 + 3) % 120 for place in range(count)]


def fork(count: int, at: int) -> list[int]:
    """As `ids(count)` up to token `at`, and different from there on."""
    return ids(at) + ids(count - at, seed=1)


def told(value: Any) -> Any:
    """Return JSON that tells values apart, types included; of arrays dtype, shape and digest."""
    if isinstance(value, torch.Tensor):
        data = value.contiguous().reshape(-1).view(torch.uint8).numpy()
        return [str(value.dtype).removeprefix("torch."), list(value.shape), _digest(data.tobytes())]
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        return [f"numpy {type(value).__name__} {array.dtype.name}", list(array.shape), _digest(array.tobytes())]
    if isinstance(value, dict):
        return {"dict": [[told(key), told(each)] for key, each in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [told(each) for each in value]}
    if isinstance(value, set | frozenset):
        return {type(value).__name__: sorted(map(repr, value))}
    if hasattr(value, "tobytes") and hasattr(value, "mode"):
        return [f"image {value.mode}", list(value.size), _digest(value.tobytes())]
    if isinstance(value, bytes) and len(value) > 100:
        return ["bytes", len(value), _digest(value)]
    return f"{type(value).__name__} {value!r}"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
