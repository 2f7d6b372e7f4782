"""One process of the demonstration: extracts activations, through lmstash or plainly, and leaves them in a file.

Run as `python -m lmstash.cli.demo.worker TASK`, where TASK is the JSON of a `Task`. The last line on stdout is the JSON
of what was measured. Each run is a process of its own, so that nothing but the store carries over.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

POOL = "last"


@dataclass(frozen=True, slots=True)
class Task:
    """What one process does."""

    way: str
    """`stash`: through lmstash. `plain`: own hooks, one prompt after the other, no lmstash."""
    model: str
    """Folder of the model."""
    store: str
    """Folder of the store."""
    out: str
    """File (`.npy`) for the result. Shape: `[n_prompts, n_layers, hidden]`."""
    layers: list[int]
    limit: int
    """Prompts to take."""
    n_threads: int

    def encode(self) -> str:
        """Return the JSON that `decode` reads."""
        return json.dumps(asdict(self))

    @staticmethod
    def decode(text: str) -> Task:
        """Return the task that `encode` wrote."""
        return Task(**json.loads(text))


def read_prompts(limit: int) -> list[str]:
    """Return the first `limit` of the prompts shipped in the package."""
    path = Path(__file__).with_name("prompts.json")
    return json.loads(path.read_text(encoding="utf-8"))["prompts"][:limit]


def extract_through_stash(task: Task, model: Any, tokenizer: Any, prompts: list[str]) -> tuple[Any, dict[str, Any]]:
    """Return activations `[n_prompts, n_layers, hidden]` and what the store counted."""
    import lmstash

    started = time.perf_counter()
    with lmstash.open(task.store, strict=True, trust_env=False) as stash:
        acts = stash.activations(model, tokenizer)
        missing = len(acts.missing(prompts, layers=task.layers, pool=POOL))
        result = acts(prompts, layers=task.layers, pool=POOL, progress=sys.stderr.isatty())
        stash.flush()
        seconds = time.perf_counter() - started
        info = stash.info()
    return result, {
        "seconds": seconds,
        "computed": missing,
        "read": len(prompts) - missing,
        "entries": info.entries,
        "stored_bytes": info.physical_bytes,
    }


def extract_plainly(task: Task, model: Any, tokenizer: Any, prompts: list[str]) -> tuple[Any, dict[str, Any]]:
    """Return the same by hooks set here and one forward pass for each prompt: what the store must agree with."""
    import torch

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
    return torch.stack(rows), {"seconds": seconds}


def work(task: Task) -> dict[str, Any]:
    """Do `task`; return seconds and counts. `process_seconds` is everything from the first import on."""
    started = time.perf_counter()
    import numpy as np
    import torch

    from lmstash.cli.demo.model import load

    torch.set_num_threads(task.n_threads)
    model, tokenizer = load(Path(task.model))
    prompts = read_prompts(task.limit)
    extract = extract_through_stash if task.way == "stash" else extract_plainly
    result, measured = extract(task, model, tokenizer, prompts)
    np.save(task.out, result.numpy())
    return measured | {"process_seconds": time.perf_counter() - started}


if __name__ == "__main__":
    try:
        print(json.dumps(work(Task.decode(sys.argv[1]))))
    except KeyboardInterrupt:
        sys.exit(130)  # the process that started this one says so
