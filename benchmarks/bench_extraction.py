"""What caching adds to extracting activations of SmolLM2-135M, and what a warm call costs.

Cold: `stash.activations` into an empty folder, `flush()` included, against the bare forward pass of the same base model
over identical batches, no hooks, in turns. A machine whose speed varies by more than the goal between turns shows that
as time added or saved; so what each call spends outside the forward pass is shown too. Taking the model's fingerprint
happens once for a loaded model, not in each call, and is shown on its own. Warm: the same call in a new process, pages
dropped, opening and fingerprint included.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measuring import (
    MIB,
    ROOT,
    Report,
    Scratch,
    Timing,
    arguments,
    drop_pages,
    in_new_process,
    interleave,
    peak_bytes,
    ratio,
    reset_peak,
)

MODEL = ROOT / ".cache/models/smollm2"
LAYERS = [9, 19, 29]
GOAL_ADDED_PERCENT = 3.0
POOLS: dict[str, Any] = {"last token": "last", "raw": None}


def load() -> tuple[Any, Any]:
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
    torch.set_num_threads(1)
    from lmstash.cli.demo.model import load as load_model

    return load_model(MODEL)


def prompts(count: int) -> list[str]:
    return json.loads((ROOT / "src/lmstash/cli/demo/prompts.json").read_text())["prompts"][:count]


def batches(ids: list[list[int]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the batches that lmstash will make of these prompts: ids and mask, padded on the right."""
    from lmstash.caches.activations.batching import plan_batches

    out = []
    for batch in plan_batches([len(each) for each in ids], None):
        longest = max(len(ids[index]) for index in batch)
        padded = torch.zeros(len(batch), longest, dtype=torch.int64)
        mask = torch.zeros_like(padded)
        for row, index in enumerate(batch):
            padded[row, : len(ids[index])] = torch.tensor(ids[index])
            mask[row, : len(ids[index])] = 1
        out.append((padded, mask))
    return out


def warm(task: dict[str, Any]) -> dict[str, float]:
    """In a new process: the same call with everything kept."""
    import lmstash

    model, tokenizer = load()
    texts = prompts(task["count"])
    with lmstash.open("memory://", trust_env=False) as small:  # loads the modules
        small.activations(model, tokenizer, assume_frozen=True)
    import lmstash.store.disk.store

    first, second = Timing(), Timing()
    drop_pages(Path(task["folder"]))
    before = reset_peak()
    with first.measure():
        stash = lmstash.open(task["folder"], strict=True, trust_env=False)
        acts = stash.activations(model, tokenizer)
        values = acts(texts, LAYERS, POOLS[task["pool"]], on_miss="error")
    peak = peak_bytes() - before
    n_bytes = values.nbytes if isinstance(values, torch.Tensor) else sum(each.nbytes for each in values)
    again = None
    with second.measure():
        again = acts(texts, LAYERS, POOLS[task["pool"]], on_miss="error")
    assert len(again) == len(texts)
    stash.close()
    return {"first": first.seconds, "second": second.seconds, "bytes": n_bytes, "peak": peak}


def main() -> None:
    args = arguments(__doc__)
    if args.worker:
        print(json.dumps(warm(json.loads(args.worker))))
        return
    if not (MODEL / "config.json").exists():
        print("SmolLM2 is not converted yet: run `make model` first.", file=sys.stderr)
        raise SystemExit(2)
    import lmstash
    from lmstash.caches.activations.model_source import ModelSource

    report = Report("extraction", quick=args.quick)
    count, rounds = (6, 1) if args.quick else (40, args.rounds or 5)
    model, tokenizer = load()
    texts = prompts(count)
    ids = tokenizer(texts)["input_ids"]
    planned = batches(ids)
    fingerprint = Timing()
    with fingerprint.measure():
        lmstash.fingerprint(model)

    def bare(timing: Timing) -> None:
        with timing.measure(), torch.inference_mode():
            for padded, mask in planned:
                model.base_model(input_ids=padded, attention_mask=mask, use_cache=False)

    forward: list[float] = []
    plain = ModelSource._forward

    def timed(self: ModelSource, *arguments: Any) -> Any:
        started = time.perf_counter()
        values = plain(self, *arguments)
        forward.append(time.perf_counter() - started)
        return values

    outside: dict[str, list[float]] = {pool: [] for pool in POOLS}

    with Scratch(args.dir) as scratch:

        def cold(pool: str) -> Callable[[Timing], None]:
            def run(timing: Timing) -> None:
                with lmstash.open(scratch.fresh(pool), strict=True, trust_env=False) as stash:
                    acts = stash.activations(model, tokenizer)
                    forward.clear()
                    ModelSource._forward = timed
                    with timing.measure():
                        acts(texts, LAYERS, POOLS[pool], progress=False, cache_only=True)
                        stash.flush()
                    ModelSource._forward = plain
                    inside = sum(forward)
                    outside[pool].append(100 * (timing.wall[-1] - inside) / inside)

            return run

        with torch.inference_mode():
            model.base_model(input_ids=planned[0][0][:1, :8])  # whatever happens once
        runs = {"bare forward pass": bare, **{f"cold, {pool}": cold(pool) for pool in POOLS}}
        timings = interleave(runs, rounds)
        base = timings["bare forward pass"]
        rows = []
        for name, each in timings.items():
            wall, cpu = 100 * (ratio(each.wall, base.wall) - 1), 100 * (ratio(each.cpu, base.cpu) - 1)
            rows.append([name, each.seconds, each.cpu_seconds, wall, cpu])
            if each is not base:
                report.goal(f"{name}: added to the bare pass (wall)", wall, GOAL_ADDED_PERCENT, unit=" %")
                report.goal(f"{name}: added to the bare pass (CPU)", cpu, GOAL_ADDED_PERCENT, unit=" %")
        for pool, shares in outside.items():
            what = f"cold, {pool}: spent outside the forward pass"
            rows.append([what, "", "", median(shares), ""])
            report.goal(what, median(shares), GOAL_ADDED_PERCENT, unit=" %")
        rows.append(["the fingerprint of the model (once)", fingerprint.seconds, fingerprint.cpu_seconds, "", ""])
        title = f"{count} prompts, {sum(map(len, ids)):,} tokens, {len(planned)} batches, layers {LAYERS}"
        report.table(title, ["what", "wall, s", "CPU, s", "added, % of wall", "added, % of CPU"], rows)
        rows = []
        for pool in POOLS:
            taken = in_new_process({"folder": str(scratch.path / pool), "pool": pool, "count": count})
            speed_up = timings[f"cold, {pool}"].seconds / taken["first"]
            sizes = [taken["bytes"] / MIB, taken["peak"] / MIB]
            rows.append([pool, taken["first"], taken["second"], speed_up, *sizes])
        columns = ["pool", "first call, s", "second, s", "cold / first", "result, MiB", "peak above before, MiB"]
        report.table("Warm, in a new process, pages dropped", columns, rows)
    report.finish()


if __name__ == "__main__":
    main()
