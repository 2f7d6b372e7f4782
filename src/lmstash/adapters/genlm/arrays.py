"""What the caches need to know of an array, whoever made it: torch, NumPy or MLX."""

from __future__ import annotations

import copy
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
    clone = getattr(value, "clone", None)
    return clone() if callable(clone) else copy.deepcopy(value)
