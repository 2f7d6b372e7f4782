"""What `stash.activations(...)` and its like pass on: the caches' own keyword arguments, for editors and type checkers.

What each means, and what it is when it is left out, is said where the cache is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from lmstash.caches.activations.extractor import Extractor


class CacheOptions(TypedDict, total=False):
    """What every cache takes; the stash's own where it is left out."""

    salt: bytes | str | None
    private: bool
    ttl_seconds: float | None


class ModelOptions(CacheOptions, total=False):
    """How a torch model is identified."""

    variant: str | None
    strict_numerics: bool
    assume_frozen: bool


class ActivationsOptions(ModelOptions, total=False):
    """See `lmstash.caches.activations.Activations`."""

    extractor: Extractor | None
    storage_dtype: str | None


class KVOptions(ModelOptions, total=False):
    """See `lmstash.caches.kv.KV`."""

    storage_dtype: str | None


class LogprobsOptions(ModelOptions, total=False):
    """See `lmstash.caches.logprobs.Logprobs`."""

    keep: str
    kv_bytes: int | str
    row_bytes: int | str
    answer_bytes: int | str


class ResponsesOptions(ModelOptions, total=False):
    """See `lmstash.caches.responses.Responses`."""

    base_url: str | None
    revision: str | None
    harmless: Sequence[str]
    sampled_by_default: bool | None
    keep_sampled: bool
    keep_if: Callable[[Any], bool]
    compress: bool
    wait_seconds: float
    urls: str
