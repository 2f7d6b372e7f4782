"""One process of the demonstration: does each job, through lmstash or plainly, and leaves the results in a file.

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


@dataclass(frozen=True, slots=True)
class Task:
    """What one process does."""

    way: str
    """`stash`: through lmstash. `plain`: without it."""
    jobs: list[str]
    """Of `activations`, `kv`, `logprobs`, `states`."""
    model: str
    """Folder of the model."""
    store: str
    """Folder of the store."""
    out: str
    """File (`.npz`) for the results, one array a job."""
    layers: list[int]
    limit: int
    """Prompts to extract activations of."""
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


def work(task: Task) -> dict[str, Any]:
    """Do `task`; return what was measured of each job. `process_seconds` is everything from the first import on."""
    started = time.perf_counter()
    import numpy as np

    import lmstash
    from lmstash.cli.demo import chatting, extracting, generating, particles

    model, tokenizer = (None, None) if task.jobs == ["states"] else _load(task)
    jobs = {"activations": extracting, "kv": generating, "logprobs": particles, "states": chatting}
    results: dict[str, Any] = {}
    measured: dict[str, Any] = {}
    for name in task.jobs:
        if task.way == "plain":
            results[name], measured[name] = jobs[name].plainly(task, model, tokenizer)
            continue
        with lmstash.open(task.store, strict=True, trust_env=False) as stash:
            results[name], measured[name] = jobs[name].through_stash(stash, task, model, tokenizer)
            stored = sum(each.nbytes for each in stash.info().namespaces if each.namespace.startswith(f"{name}/"))
            measured[name]["stored_bytes"] = stored
    np.savez(task.out, allow_pickle=False, **results)
    return measured | {"process_seconds": time.perf_counter() - started}


def _load(task: Task) -> tuple[Any, Any]:
    import torch

    from lmstash.cli.demo.model import load

    torch.set_num_threads(task.n_threads)
    return load(Path(task.model))


if __name__ == "__main__":
    try:
        print(json.dumps(work(Task.decode(sys.argv[1]))))
    except KeyboardInterrupt:
        sys.exit(130)  # the process that started this one says so
