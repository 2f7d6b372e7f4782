"""How many requests a model of the harness computes at once: its batch, or what it asks a server for side by side."""

from __future__ import annotations

from typing import Any

from lmstash.adapters.lm_eval.who.addresses import is_client

_BATCH = ("batch_size_per_gpu", "batch_size", "_batch_size")
_SIDE_BY_SIDE = ("num_concurrent", "num_cpus", "max_workers", "concurrency", "max_concurrency")
_CLIENT = 64
"""Where a client of a server says neither."""


def batch_size_of(lm: Any) -> int:
    """Return how many requests a model computes at once, as far as it says; 1 where it does not say."""
    batch = next((size for size in (_size(lm, name) for name in _BATCH) if size), 0)
    beside = max(_size(lm, name) for name in _SIDE_BY_SIDE)
    if getattr(lm, "adaptive_concurrency", False):  # then it may come to do so many
        beside = max(beside, _size(getattr(lm, "adaptive_config", None), "max_concurrency"))
    if batch or beside:
        return max(batch, beside)
    return _CLIENT if any(map(is_client, getattr(lm, "__dict__", {}).values())) else 1


def _size(held: Any, name: str) -> int:
    try:
        said: Any = getattr(held, name, None)
        return max(0, int(said))
    except (TypeError, ValueError, AttributeError, NotImplementedError):
        return 0
