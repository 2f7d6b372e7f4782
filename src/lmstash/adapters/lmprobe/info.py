"""Records that describe what is kept, with lmprobe's names and fields."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class ModelCacheInfo:
    """What is kept under one model name."""

    model_name: str | None
    model_hash: str
    """As lmprobe makes it: the first 16 hex digits of the name's SHA-256."""
    size_bytes: int
    num_prompts: int
    num_layers: int
    """Distinct layers, raw or pooled."""
    has_pooled: bool
    has_perplexity: bool
    has_logits: bool = False

    @property
    def size_gb(self) -> float:
        """The size in GiB."""
        return self.size_bytes / 1024**3

    def __repr__(self) -> str:
        """One line for people."""
        flags = ("pooled", self.has_pooled), ("logits", self.has_logits), ("perplexity", self.has_perplexity)
        also = "".join(f", {word}" for word, there in flags if there)
        name = self.model_name or f"(hash {self.model_hash})"
        return f"{name}: {_size(self.size_bytes)}, {self.num_prompts:,} prompts, {self.num_layers} layers{also}"


@dataclass
class CacheInfo:
    """How much is kept, in all and by model."""

    cache_dir: Path | str
    total_size_bytes: int
    """Of activations and their sidecars; a store may hold other kinds beside them."""
    models: list[ModelCacheInfo] = field(default_factory=list)
    oldest_mtime: float | None = None
    newest_mtime: float | None = None
    cache_limit_bytes: int | None = None
    """None when unlimited or switched off."""

    @property
    def total_size_gb(self) -> float:
        """The size in GiB."""
        return self.total_size_bytes / 1024**3

    def __repr__(self) -> str:
        """A short report for people."""
        limit = "" if self.cache_limit_bytes is None else f" of {_size(self.cache_limit_bytes)}"
        lines = [f"{self.cache_dir}: {_size(self.total_size_bytes)}{limit} of activations"]
        lines += [f"  {model!r}" for model in sorted(self.models, key=lambda each: -each.size_bytes)]
        for word, moment in (("oldest", self.oldest_mtime), ("newest", self.newest_mtime)):
            if moment is not None:
                lines.append(f"  {word} entry: {time.strftime('%Y-%m-%d', time.localtime(moment))}")
        return "\n".join(lines)


@dataclass
class CachedPromptInfo:
    """What is kept for one prompt of one model."""

    raw_layers: list[int]
    pooled: dict[str, list[int]]
    """Layers by pooling strategy."""
    has_logits: bool
    """Full logits; the top k of them do not count."""
    logits_top_k: int | None
    has_perplexity: bool
    has_token_perplexity: bool
    num_tokens: int | None
    router_layers: list[int] = field(default_factory=list)


def _size(nbytes: int) -> str:
    return f"{nbytes / 2**30:.1f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:.1f} MiB"
