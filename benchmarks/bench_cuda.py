"""What identity and activations cost on an NVIDIA GPU: needs one, and ends with exit code 2 without.

Fingerprint: SHA-256 of every weight, once for a loaded model. Check: what every call pays to know that the weights are
still those, beside one read of as many bytes by the device. Cold: `stash.activations` into an empty folder, `flush()`
included, against the bare forward pass of the same base model over identical batches, no hooks, in turns. Warm: the
same call again.

The models are Llamas of random weights in bfloat16, of 1.2 and 3.2 billion parameters, or the one of `--model`.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measuring import Report, Scratch, Timing, arguments, interleave, ratio

GOAL_ADDED_PERCENT = 3.0
GOAL_CHECK_TIMES_READ = 2.0
SIZES = {
    "llama-1.2B": {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "head_dim": 64},
    "llama-3.2B": {"hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 24, "head_dim": 128},
}
SHARED = {"vocab_size": 128256, "intermediate_size": 8192, "num_key_value_heads": 8, "tie_word_embeddings": True}
POOLS: dict[str, Any] = {"last token": "last", "mean": "mean", "raw": None}


def make(name: str, quick: bool) -> Any:
    """Make a Llama of random weights on the GPU, in bfloat16."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = SIZES[name] | ({"num_hidden_layers": 4} if quick else {})
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            return LlamaForCausalLM(LlamaConfig(**SHARED, **sizes)).eval()
    finally:
        torch.set_default_dtype(default)


def load(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to("cuda").eval()


def repeat(call: Callable[[], object], rounds: int) -> Timing:
    """Time `call` to its end on the device."""
    import torch

    timing = Timing()
    call()
    for _ in range(rounds):
        torch.cuda.synchronize()
        with timing.measure():
            call()
            torch.cuda.synchronize()
    return timing


def identity(report: Report, models: dict[str, Callable[[], Any]], rounds: int) -> None:
    """Measure the fingerprint and the check of each model, and what a device read of as many bytes takes."""
    import torch

    import lmstash
    from lmstash.identity.memory import device_sums
    from lmstash.identity.models.watch import ModelWatch

    rows = []
    for name, build in models.items():
        model = build()
        device = str(next(model.parameters()).device)
        n_bytes = sum(each.nbytes for each in {*model.parameters(), *model.buffers()})
        buffer = torch.randint(-(2**62), 2**62, (n_bytes // 8,), device=device).view(torch.int32)
        read = repeat(lambda at=buffer: torch.amax(at), rounds)
        del buffer
        fingerprint = repeat(lambda of=model: lmstash.fingerprint(of), min(rounds, 3))
        watch = ModelWatch(model)
        assert watch._reading is not None
        probe = watch._reading.probe
        with_triton = device_sums._working.get(device, False)
        check, sums = repeat(watch.refresh, rounds), repeat(probe.holds, rounds)
        device_sums._working[device] = False
        plain = repeat(probe.holds, rounds)
        device_sums._working[device] = with_triton
        for what, each in (
            ("one read by the device", read),
            (f"all sums, {'Triton' if with_triton else 'Triton does not work here'}", sums),
            ("all sums, torch alone", plain),
            ("the check of a call, all of it", check),
            ("fingerprint", fingerprint),
        ):
            rows.append([f"{name}, {n_bytes / 1e9:.2f} GB", what, 1000 * each.seconds, n_bytes / each.seconds / 1e9])
        what = f"{name}: the sums take, in device reads of the same bytes"
        report.goal(what, sums.seconds / read.seconds, GOAL_CHECK_TIMES_READ)
        del model, watch, probe
        torch.cuda.empty_cache()
    report.table("Who a model on the GPU is", ["model", "what", "ms", "GB/s"], rows)


def planned(asked: list[list[int]]) -> list[tuple[Any, Any]]:
    """Return the batches that lmstash will make of these prompts: ids and mask, padded on the right."""
    import torch

    from lmstash.caches.activations.batching import ACCELERATOR_BATCH_TOKENS, plan_batches

    out = []
    for batch in plan_batches([len(each) for each in asked], None, ACCELERATOR_BATCH_TOKENS):
        longest = max(len(asked[index]) for index in batch)
        padded = torch.zeros(len(batch), longest, dtype=torch.int64)
        mask = torch.zeros_like(padded)
        for row, index in enumerate(batch):
            padded[row, : len(asked[index])] = torch.tensor(asked[index])
            mask[row, : len(asked[index])] = 1
        out.append((padded, mask))
    return out


def extraction(report: Report, model: Any, count: int, rounds: int, folder: Path | None) -> None:
    """Measure cold calls against the bare forward pass, and warm ones."""
    import torch

    import lmstash

    draw = random.Random(0)
    asked = [[draw.randrange(1000) for _ in range(draw.randrange(32, 512))] for _ in range(count)]
    batches = planned(asked)
    n_layers = model.config.num_hidden_layers
    layers = {"last token": [n_layers // 3, 2 * n_layers // 3, n_layers - 1]}
    layers |= {"mean": layers["last token"], "raw": [n_layers - 1]}
    device = next(model.parameters()).device

    def bare(timing: Timing) -> None:
        torch.cuda.synchronize()
        with timing.measure(), torch.inference_mode():
            for padded, mask in batches:
                model.base_model(input_ids=padded.to(device), attention_mask=mask.to(device), use_cache=False)
            torch.cuda.synchronize()

    flushes = {pool: Timing() for pool in POOLS}
    warm = {pool: Timing() for pool in POOLS}
    with Scratch(folder) as scratch:

        def cold(pool: str) -> Callable[[Timing], None]:
            def run(timing: Timing) -> None:
                with lmstash.open(scratch.fresh(pool), capacity_bytes="20GB", strict=True, trust_env=False) as stash:
                    acts = stash.activations(model)
                    with timing.measure():
                        acts(asked, layers[pool], POOLS[pool], progress=False, cache_only=True)
                        started = time.perf_counter()  # no `measure` within another: it collects garbage
                        stash.flush()
                        flushes[pool].wall.append(time.perf_counter() - started)
                    with warm[pool].measure():
                        acts(asked, layers[pool], POOLS[pool], on_miss="error")

            return run

        runs = {"bare forward pass": bare, **{f"cold, {pool}": cold(pool) for pool in POOLS}}
        bare(Timing())
        timings = interleave(runs, rounds)
    base = timings["bare forward pass"]
    rows: list[list[Any]] = [["bare forward pass", base.seconds, "", "", ""]]
    for pool in POOLS:
        each = timings[f"cold, {pool}"]
        added = 100 * (ratio(each.wall, base.wall) - 1)
        rows.append([f"cold, {pool}", each.seconds, added, flushes[pool].seconds, warm[pool].seconds])
        report.goal(f"cold, {pool}: added to the bare pass", added, GOAL_ADDED_PERCENT, unit=" %")
    title = f"{count} prompts, {sum(map(len, asked)):,} tokens, {len(batches)} batches, layers {layers}"
    report.table(title, ["what", "wall, s", "added, %", "of which flush, s", "warm, s"], rows)


def main() -> None:
    args = arguments(__doc__, takes_model=True)
    try:
        import torch
    except ImportError:
        torch = None
    if torch is None or not torch.cuda.is_available():
        print("This measures an NVIDIA GPU, and torch sees none here: nothing is measured.", file=sys.stderr)
        raise SystemExit(2)
    report = Report("cuda", quick=args.quick)
    report.note(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    models: dict[str, Callable[[], Any]] = {name: lambda name=name: make(name, args.quick) for name in SIZES}
    if args.model is not None:
        models = {args.model.name: lambda: load(args.model)}
    rounds = args.rounds or (2 if args.quick else 5)
    identity(report, models, 4 * rounds)
    first = next(iter(models.values()))()
    extraction(report, first, 100 if args.quick else 1000, rounds, args.dir)
    report.finish()


if __name__ == "__main__":
    main()
