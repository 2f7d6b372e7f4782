"""What the caches need to know of an array, whoever made it: torch, NumPy or MLX."""

from __future__ import annotations

import copy
import sys
from typing import Any


def is_array(value: Any) -> bool:
    """Whether `value` is a tensor or an array of any library."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def owned(value: Any) -> Any:
    """Return a copy of an array that shares memory with nothing; anything else (None, a `DynamicCache`) as it is.

    A row or a slice keeps the whole block alive that it was cut from, and an array that a caller still holds may be
    written to: a cache keeps neither.
    """
    if not is_array(value):
        return value
    for name in ("clone", "copy"):  # torch, NumPy
        method = getattr(value, name, None)
        if callable(method):
            return method()
    if _is_mlx(value):
        return type(value)(value)  # `copy.deepcopy` would share the buffer
    return copy.deepcopy(value)


def token_slices(kv: Any, n_tokens: int) -> list[Any]:
    """Return copies of the first tokens of KV `[2, n_layers, n_heads, n_tokens, head_dim]`, one each along axis 3.

    There are fewer where the KV ends before. What has no shape but can be sliced is taken to be long enough.
    """
    n_there = kv.shape[3] if hasattr(kv, "shape") else n_tokens
    slices = [owned(kv[:, :, :, index : index + 1, :]) for index in range(min(n_tokens, n_there))]
    if slices and _is_mlx(slices[0]):
        sys.modules["mlx.core"].eval(slices)  # until then they would hold on to the whole block
    return slices


def _is_mlx(value: Any) -> bool:
    return type(value).__module__ == "mlx.core"
