"""The second job: questions about one long document, each answered by `generate`. Its KV is computed once."""

from __future__ import annotations

import time
from typing import Any

from lmstash.cli.demo.worker import Task, read_prompts
from lmstash.stash import Stash

QUESTIONS = [
    "Which of these functions reads a file?",
    "Name a class that is mentioned above.",
    "What is said of the return value?",
]
DOCUMENT_TOKENS = 1000
NEW_TOKENS = 12


def prompts(tokenizer: Any) -> list[Any]:
    """Return token ids `[1, n_tokens]` for each question, the document before it."""
    import torch

    text = "You answer questions about this documentation.\n" + "\n".join(read_prompts(300))
    document = tokenizer(text)["input_ids"][:DOCUMENT_TOKENS]
    return [torch.tensor([document + tokenizer(f"\n\nQ: {each}\nA:")["input_ids"]]) for each in QUESTIONS]


def through_stash(stash: Stash, task: Task, model: Any, tokenizer: Any) -> tuple[Any, dict[str, Any]]:
    """Return what was generated `[n_questions, n_new]` and what was measured."""
    asked = prompts(tokenizer)
    started = time.perf_counter()
    kv = stash.kv(model)
    answers = [kv.generate(ids, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False) for ids in asked]
    seconds = time.perf_counter() - started
    kv.flush()
    stash.flush()
    fed = kv.stats.tokens_asked - kv.stats.tokens_reused
    return _new(answers, asked), {"seconds": seconds, "computed": fed, "read": kv.stats.tokens_reused}


def plainly(task: Task, model: Any, tokenizer: Any) -> tuple[Any, dict[str, Any]]:
    """Return the same by `model.generate`."""
    asked = prompts(tokenizer)
    started = time.perf_counter()
    options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
    answers = [model.generate(ids, **options) for ids in asked]
    seconds = time.perf_counter() - started
    return _new(answers, asked), {"seconds": seconds, "computed": sum(ids.numel() for ids in asked), "read": 0}


def _new(answers: list[Any], asked: list[Any]) -> Any:
    import numpy as np

    return np.stack([answer[0, ids.shape[1] :].numpy() for answer, ids in zip(answers, asked, strict=True)])
