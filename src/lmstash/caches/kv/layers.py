"""The classes that transformers makes caches of, as far as the installed version has them.

What is absent is a class that nothing is an instance of, so that the others can be told apart in every version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import cache_utils

if TYPE_CHECKING:
    from transformers.cache_utils import (
        Cache,
        DummyLayer,
        DynamicCache,
        DynamicLayer,
        DynamicSlidingWindowLayer,
        LinearAttentionAndFullAttentionLayer,
        LinearAttentionLayer,
        StaticLayer,
    )
else:

    def _found(name: str) -> Any:
        return getattr(cache_utils, name, None) or type(name, (), {})

    Cache, DynamicCache = _found("Cache"), _found("DynamicCache")
    DynamicLayer, DynamicSlidingWindowLayer = _found("DynamicLayer"), _found("DynamicSlidingWindowLayer")
    DummyLayer, StaticLayer = _found("DummyLayer"), _found("StaticLayer")
    LinearAttentionLayer = _found("LinearAttentionLayer")
    LinearAttentionAndFullAttentionLayer = _found("LinearAttentionAndFullAttentionLayer")

__all__ = [
    "Cache",
    "DummyLayer",
    "DynamicCache",
    "DynamicLayer",
    "DynamicSlidingWindowLayer",
    "LinearAttentionAndFullAttentionLayer",
    "LinearAttentionLayer",
    "StaticLayer",
]
