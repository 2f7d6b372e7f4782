"""Prompts, extractors and a tiny model: the work that lmprobe and lmstash are both given."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
SMOLLM2 = ROOT / ".cache/models/smollm2"
NAME = "bench/values-at-hand"


def quiet() -> None:
    """One thread, and no words from libraries."""
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}
    torch.set_num_threads(1)


def tokenizer() -> Any:
    """Return SmolLM2's tokenizer (`make model` puts it there)."""
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(SMOLLM2)
    found.pad_token = found.pad_token or found.eos_token
    return found


def texts(count: int) -> list[str]:
    """Return distinct prompts of a dozen words."""
    return [f"The number {i} is called {i * 7919 % 1_000_003} in the land of primes." for i in range(count)]


def vectors(count: int, hidden: int) -> Tensor:
    """Return what was "computed" for each prompt: `[count, hidden]`, float32."""
    return torch.randn(count, hidden, generator=torch.Generator().manual_seed(0))


class ValuesAtHand:
    """An extractor that computes nothing: it hands out values that are in memory already.

    `values` is by token ids, one tensor for each layer, `[n_tokens, hidden]`.
    """

    name = NAME
    fingerprint = "values at hand, 1"

    def __init__(self, values: dict[tuple[int, ...], Sequence[Tensor]], n_layers: int) -> None:
        """Hand out `values`."""
        self.values = values
        self.n_layers = n_layers

    def extract(self, batch: Sequence[Sequence[int]], layers: Sequence[int], site: str) -> list[list[Tensor]]:
        """Return views that copy nothing."""
        found = [self.values[tuple(ids)] for ids in batch]
        return [[each[layer] for each in found] for layer in layers]


class VectorsAtHand:
    """The same for one layer in which all tokens of a prompt have one vector: `vectors` `[n, hidden]`, rows by ids.

    Prompts that lie side by side in `vectors`, and are asked for in that order, are handed out where they are.
    """

    name = NAME
    fingerprint = "vectors at hand, 1"
    n_layers = 1

    def __init__(self, rows: dict[tuple[int, ...], int], vectors: Tensor) -> None:
        """Hand out `vectors`."""
        self.rows = rows
        self.vectors = vectors

    def extract(self, batch: Sequence[Sequence[int]], layers: Sequence[int], site: str) -> list[Tensor]:
        """Return one padded tensor, a view; copied where the prompts do not lie side by side."""
        first, last = self.rows[tuple(batch[0])], self.rows[tuple(batch[-1])]
        if last - first + 1 == len(batch):
            chosen = self.vectors[first : last + 1]
        else:
            chosen = self.vectors[[self.rows[tuple(ids)] for ids in batch]]
        return [chosen[:, None].expand(-1, max(map(len, batch)), -1)]


class Wide:
    """What lmprobe calls an extractor, without a model: `n_tokens` for each prompt, values from the prompt's length."""

    def __init__(self, n_layers: int, n_tokens: int, hidden: int, batch_size: int = 4) -> None:
        """Say the shape."""
        self.model_name = NAME
        self.layer_indices = list(range(n_layers))
        self.batch_size = batch_size
        self.n_tokens = n_tokens
        self.width = n_layers * hidden

    def extract_batch(self, prompts: list[str], layers: list[int], remote: bool = False) -> tuple[Tensor, Tensor]:
        """Return `[n, n_tokens, n_layers * hidden]` and a mask of ones."""
        numbers = torch.tensor([float(len(prompt)) for prompt in prompts])
        values = numbers[:, None, None].expand(-1, self.n_tokens, self.width).clone()
        return values, torch.ones(len(prompts), self.n_tokens, dtype=torch.int64)


def save_tiny_llama(folder: Path) -> None:
    """Write a 4-layer Llama of random weights, hidden 256, with SmolLM2's tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    words = tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).eval().save_pretrained(folder)
    words.save_pretrained(folder)


def use_lmprobe(folder: Path) -> Any:
    """Let lmprobe keep its cache in `folder`, forgetting what it remembers of another; returns its cache module."""
    os.environ["LMPROBE_CACHE_DIR"] = str(folder)
    from lmprobe import cache

    cache.set_cache_backend(str(folder))
    cache.clear_header_cache()
    cache.clear_mask_cache()
    return cache
