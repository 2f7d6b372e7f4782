"""The third job: particles that grow from one prompt, each asking for next-token log-probabilities at every step.

This is what constrained decoding and sequential Monte Carlo do. Each takes one of the likeliest tokens, by a seeded
draw; every other step the particles are drawn anew, so that many share what they begin with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from lmstash.cli.demo.worker import Task, read_prompts
from lmstash.stash import Stash

N_PARTICLES = 8
N_STEPS = 6
PROMPT_TOKENS = 100
N_LIKELIEST = 4


def through_stash(stash: Stash, task: Task, model: Any, tokenizer: Any) -> tuple[Any, dict[str, Any]]:
    """Return the log-probabilities asked for `[n_steps, n_particles, vocabulary]` and what was measured."""
    started = time.perf_counter()
    lp = stash.logprobs(model)
    rows, contexts = _grow(tokenizer, lp.batch_next_token_logprobs)
    seconds = time.perf_counter() - started
    lp.flush()
    stash.flush()
    stats = stash.stats
    return rows, {"seconds": seconds, "computed": contexts - stats.hits, "read": stats.hits}


def plainly(task: Task, model: Any, tokenizer: Any) -> tuple[Any, dict[str, Any]]:
    """Return the same by one forward pass over each distinct context."""
    import torch

    known: dict[tuple[int, ...], Any] = {}

    def ask(contexts: Sequence[Sequence[int]]) -> Any:
        with torch.inference_mode():
            for each in map(tuple, contexts):
                if each not in known:
                    logits = model(torch.tensor([each]), use_cache=False, logits_to_keep=1).logits
                    known[each] = torch.log_softmax(logits[0, -1].float(), -1)
            return torch.stack([known[tuple(each)] for each in contexts])

    started = time.perf_counter()
    rows, contexts = _grow(tokenizer, ask)
    return rows, {"seconds": time.perf_counter() - started, "computed": contexts, "read": 0}


def _grow(tokenizer: Any, ask: Callable[[Sequence[Sequence[int]]], Any]) -> tuple[Any, int]:
    """Return every answer, and how many distinct contexts were asked for."""
    import random

    import numpy as np

    draw = random.Random(0)
    prompt = tokenizer(" ".join(read_prompts(10)))["input_ids"][:PROMPT_TOKENS]
    particles = [list(prompt) for _ in range(N_PARTICLES)]
    answers = []
    distinct: set[tuple[int, ...]] = set()
    for step in range(N_STEPS):
        distinct.update(map(tuple, particles))
        rows = ask(particles).numpy()
        answers.append(rows)
        for particle, row in zip(particles, rows, strict=True):
            particle.append(int(row.argsort()[-draw.randint(1, N_LIKELIEST)]))
        if step % 2:
            particles = [list(draw.choice(particles)) for _ in particles]
    return np.stack(answers), len(distinct)
