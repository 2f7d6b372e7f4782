"""The first job: activations of some hundred prompts, the last token's, at four layers."""

from __future__ import annotations

import sys
import time
from typing import Any

from lmstash.cli.demo.worker import Task, read_prompts
from lmstash.stash import Stash

POOL = "last"


def through_stash(stash: Stash, task: Task, model: Any, tokenizer: Any) -> tuple[Any, dict[str, Any]]:
    """Return activations `[n_prompts, n_layers, hidden]` and what was measured."""
    prompts = read_prompts(task.limit)
    started = time.perf_counter()
    acts = stash.activations(model, tokenizer)
    missing = len(acts.missing(prompts, layers=task.layers, pool=POOL))
    result = acts(prompts, layers=task.layers, pool=POOL, progress=sys.stderr.isatty())
    stash.flush()
    seconds = time.perf_counter() - started
    return result.numpy(), {"seconds": seconds, "computed": missing, "read": len(prompts) - missing}


def plainly(task: Task, model: Any, tokenizer: Any) -> tuple[Any, dict[str, Any]]:
    """Return the same by hooks set here and one forward pass for each prompt: what the store must agree with."""
    import torch

    prompts = read_prompts(task.limit)
    seen: dict[int, Any] = {}

    def keep(layer: int) -> Any:
        def hook(_module: Any, _arguments: Any, output: Any) -> None:
            seen[layer] = (output[0] if isinstance(output, tuple) else output)[0, -1].clone()

        return hook

    hooks = [model.model.layers[layer].register_forward_hook(keep(layer)) for layer in task.layers]
    started = time.perf_counter()
    rows = []
    with torch.inference_mode():
        for prompt in prompts:
            model.model(torch.tensor([tokenizer(prompt)["input_ids"]]), use_cache=False)
            rows.append(torch.stack([seen[layer] for layer in task.layers]))
    seconds = time.perf_counter() - started
    for hook in hooks:
        hook.remove()
    return torch.stack(rows).numpy(), {"seconds": seconds, "computed": len(prompts), "read": 0}
