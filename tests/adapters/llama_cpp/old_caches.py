"""Makes folders as llama-cpp-python's own `LlamaDiskCache` makes them, with small states in the place of real ones."""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from llama_cpp import LlamaDiskCache
from llama_cpp.llama import LlamaState

N_VOCAB = 50


def small_blob(n_tokens: int, *, n_layers: int = 2, row_bytes: int = 8, seed: int = 0) -> bytes:
    """Return a state of the form that llama.cpp writes (flash attention on, f16), with random rows."""
    random = np.random.default_rng(seed)
    out = struct.pack("<I5s", 5, b"llama") + struct.pack("<II", 1, n_tokens)
    out += b"".join(struct.pack("<iIi", place, 1, 0) for place in range(n_tokens))
    out += struct.pack("<II", 0, n_layers)
    for _ in range(2 * n_layers):
        rows = random.standard_normal(n_tokens * row_bytes // 2).astype(np.float16)
        out += struct.pack("<iQ", 1, row_bytes) + rows.tobytes()
    return out


def small_state(tokens: list[int], *, n_ctx: int = 256, n_rows: int | None = None, **changed: Any) -> LlamaState:
    """Return a state as `Llama.save_state` makes it after `tokens` were evaluated."""
    input_ids = np.full(n_ctx, 7, dtype=np.intc)
    input_ids[: len(tokens)] = tokens
    blob = changed.pop("llama_state", small_blob(len(tokens), seed=sum(tokens)))
    fields = {
        "input_ids": input_ids,
        "scores": np.zeros((len(tokens) if n_rows is None else n_rows, N_VOCAB), dtype=np.single),
        "n_tokens": len(tokens),
        "llama_state": blob,
        "llama_state_size": len(blob),
        "seed": 0xFFFFFFFF,
    }
    return LlamaState(**fields | changed)


def store(cache: LlamaDiskCache, tokens: list[int], state: Any = None) -> None:
    """Keep what llama-cpp-python keeps after a completion: one token more is in the key than in the state."""
    with contextlib.redirect_stderr(io.StringIO()):  # it prints
        cache[[*tokens, 9]] = small_state(tokens) if state is None else state


def maker(folder: Path) -> Callable[..., tuple[Path, LlamaDiskCache]]:
    """Return a function that makes a folder with these sequences of tokens; it returns it and its open cache."""

    def make(*sequences: list[int], name: str = "old") -> tuple[Path, LlamaDiskCache]:
        cache = LlamaDiskCache(str(folder / name))
        for tokens in sequences:
            store(cache, tokens)
        return folder / name, cache

    return make
