"""The log-probability of each token of a text after those before it, from one forward pass.

Kept by the token-block chain, 64 tokens to an entry of 256 bytes: texts that begin alike share the blocks of that
beginning.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from lmstash.caches.logprobs.engine import Engine
from lmstash.caches.logprobs.language_model import Reuse
from lmstash.identity.chain import BLOCK_TOKENS


def score(engine: Engine, context: bytes) -> Tensor:
    """Return the log-probability of each token of `context` but the first one, `[n_tokens - 1]` float32."""
    n_tokens = len(context) >> 2
    if n_tokens < 2:
        return torch.empty(0, dtype=torch.float32, device="cpu")
    if engine.model.reuse is Reuse.NOTHING:  # what a token is worth depends on what follows: no block stands alone
        return _computed(engine, context, list(range(1, n_tokens)))
    step = 4 * BLOCK_TOKENS
    names = [context[: min(start + step, len(context))] for start in range(0, len(context), step)]
    blocks = torch.zeros((len(names), BLOCK_TOKENS), dtype=torch.float32, device="cpu")
    found, held = engine.score_shelf.fetch(names)
    if found:
        blocks[torch.tensor(found, device="cpu")] = held.view(torch.float32)
    there = set(found)
    lacking = [number for number in range(len(names)) if number not in there]
    if lacking:
        targets = [
            target
            for number in lacking
            for target in range(max(1, number * BLOCK_TOKENS), min(n_tokens, (number + 1) * BLOCK_TOKENS))
        ]
        started, n_drawn = time.perf_counter(), engine.model.n_drawn
        blocks.view(-1)[torch.tensor(targets, dtype=torch.int64, device="cpu")] = _computed(engine, context, targets)
        seconds = (time.perf_counter() - started) / len(lacking)
        values, kept = blocks[torch.tensor(lacking, device="cpu")].view(torch.uint8), [names[each] for each in lacking]
        if not engine.drop_drawn(engine.score_shelf, kept, n_drawn):
            engine.save(engine.score_shelf, kept, values, seconds)
    return blocks.view(-1)[1:n_tokens].clone()


def _computed(engine: Engine, context: bytes, targets: list[int]) -> Tensor:
    """Return the log-probability of the tokens at some places after what precedes each."""
    if not targets:
        return torch.empty(0, dtype=torch.float32, device="cpu")
    finals = engine.feeder.states_inside(context, targets)
    ids = torch.frombuffer(bytearray(context), dtype=torch.int32).to(torch.int64) & 0xFFFFFFFF
    return engine.model.picked(finals, ids[torch.tensor(targets, device="cpu")])
