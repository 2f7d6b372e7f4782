"""An evaluation in processes of its own, for the tests that kill it or change its ranks.

evaluation.py STASH TASKS MODEL LOG TASK,...              one process, batches of two; LOG tells of each batch
evaluation.py STASH TASKS MODEL LOG TASK,... --ranks N,N  one evaluation after the other, each on so many processes
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import lm_eval.evaluator
import torch
import torch.distributed
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

import lmstash
from lmstash.adapters.lm_eval import CachedLM

lm_eval.evaluator.add_env_info = lambda results: None  # pyright: ignore[reportAttributeAccessIssue]


class Ranked(HFLM):
    """An `HFLM` on several processes without GPUs, which the harness's own does not offer."""

    def join(self) -> None:
        if torch.distributed.is_initialized():
            self._rank, self._world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()

    def all_gather(self, tensor: Any) -> Any:
        out = [torch.zeros_like(tensor) for _ in range(self.world_size)]
        torch.distributed.all_gather(out, tensor)
        return torch.stack(out)

    def gather_object(self, obj: Any, dst: int = 0) -> Any:
        out: list[Any] | None = [None] * self.world_size if self.rank == dst else None
        torch.distributed.gather_object(obj, out, dst=dst)
        return out

    def barrier(self) -> None:
        torch.distributed.barrier()


def evaluate(given: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(1)
    log = logging.getLogger("batches")  # which is no part of who answers, unlike what a function reads elsewhere
    log.addHandler(logging.FileHandler(given.log, delay=True))
    log.setLevel(logging.INFO)
    log.propagate = False
    for name in ("_model_call", "_model_generate"):
        plain = getattr(HFLM, name)

        def call(self: Any, *arguments: Any, _plain: Any = plain, **options: Any) -> Any:
            log.info("batch")
            return _plain(self, *arguments, **options)

        setattr(HFLM, name, call)
    inner = Ranked(pretrained=given.model, device="cpu", batch_size=2)
    inner.join()
    with lmstash.open(given.stash) as stash:
        lm = CachedLM(inner, stash)
        lm_eval.evaluator.simple_evaluate(
            model=lm,
            tasks=given.tasks_to_run.split(","),
            task_manager=TaskManager(include_path=given.tasks, include_defaults=False),
            bootstrap_iters=0,
        )
        return {"rank": inner.rank, **lm.counts.as_dict()}


def on_ranks(given: argparse.Namespace, n_ranks: int) -> list[dict[str, Any]]:
    """Evaluate on so many forked processes; returns what each counted."""
    with tempfile.TemporaryDirectory() as folder:
        children = []
        for rank in range(n_ranks):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    if n_ranks > 1:
                        where = f"file://{folder}/meet"
                        patience = timedelta(seconds=120)
                        torch.distributed.init_process_group(
                            "gloo", init_method=where, rank=rank, world_size=n_ranks, timeout=patience
                        )
                    Path(folder, f"{rank}.json").write_text(json.dumps(evaluate(given)))
                    code = 0
                finally:
                    os._exit(code)
            children.append(child)
        codes = [os.waitpid(child, 0)[1] for child in children]
        if any(codes):
            sys.exit(f"ranks ended with {codes}")
        return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(n_ranks)]


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("stash", "tasks", "model", "log", "tasks_to_run"):
        parser.add_argument(name)
    parser.add_argument("--ranks")
    given = parser.parse_args()
    if given.ranks:
        print(json.dumps([on_ranks(given, int(number)) for number in given.ranks.split(",")]))
    else:
        print(json.dumps(evaluate(given)))


if __name__ == "__main__":
    main()
