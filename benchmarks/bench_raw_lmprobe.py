"""Raw activations beside lmprobe: loading entries of 0.5 MiB, a call in which everything is kept, and its peak memory.

Raw load: 1,000 entries (4 layers x 32 tokens x 1,024 float32), pages there, all results held, each contender in a new
process, so that its memory is fresh; beside it the copy of the same bytes into fresh memory. Warm call: 1,000 short
prompts through a 4-layer Llama, memory touched before; beside it what copying and checking the same bytes takes. Peak
memory: what the process grows by while a call returns a large result.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import workloads
from measuring import (
    MIB,
    Report,
    Scratch,
    Timing,
    arguments,
    in_new_process,
    interleave,
    peak_bytes,
    ratio,
    reset_peak,
    touched,
)
from xxhash import xxh3_64_intdigest

N_LAYERS, N_TOKENS, HIDDEN = 4, 32, 1024
ENTRY_BYTES = N_LAYERS * N_TOKENS * HIDDEN * 4
LAYERS = list(range(N_LAYERS))
COPY = "copy into fresh memory"
LIMIT = "its bytes copied and checked, no more"
GOAL_RAW, GOAL_WARM, GOAL_PEAK = 0.7, 1 / 10, 1.3
WIDE = {"n_layers": 4, "n_tokens": 256, "hidden": 1024, "batch_size": 4}
WIDE_BYTES = 4 * 256 * 1024 * 4
_ROUNDS_PER_ROUND = 3
"""Warm calls are short, and in the first 15 seconds of a model's life each of them reads the weights: they are not what
lasts."""
_TOUCHED_BYTES = 400 * MIB
"""More than a call of a thousand prompts asks the system for, so that the host's speed at that is not what is timed."""


# --- raw load -----------------------------------------------------------------------------------------------------


def ids_of(number: int) -> list[int]:
    return [number, *range(1, N_TOKENS)]


def fill_raw(folder: Path, count: int) -> None:
    """Keep the same values by lmprobe, by `stash.tensors`, and by `stash.activations`."""
    import lmstash

    cache = workloads.use_lmprobe(folder / "lmprobe")
    mask = torch.ones(1, N_TOKENS, dtype=torch.int64)
    values = torch.randn(count, N_LAYERS, N_TOKENS, HIDDEN, generator=torch.Generator().manual_seed(0))
    for text, value in zip(workloads.texts(count), values, strict=True):
        side_by_side = torch.cat(list(value), dim=-1)[None]
        cache.save_prompt_activations(workloads.NAME, text, LAYERS, side_by_side, mask)
    with lmstash.open(folder / "tensors", strict=True, trust_env=False) as stash:
        for number, value in enumerate(values):
            stash.tensors.put(number, {f"layer_{layer}": value[layer] for layer in LAYERS})
    by_ids = {tuple(ids_of(number)): list(value) for number, value in enumerate(values)}
    with lmstash.open(folder / "activations", strict=True, trust_env=False) as stash:
        acts = stash.activations(extractor=workloads.ValuesAtHand(by_ids, N_LAYERS))
        acts([ids_of(number) for number in range(count)], LAYERS, None, cache_only=True, progress=False)


def load_raw(name: str, folder: Path, count: int) -> dict[str, float]:
    """Load every entry once, all held."""
    import lmstash

    timing = Timing()
    total = count * ENTRY_BYTES
    held: list[Any]
    if name == COPY:
        whole = touched(count * ENTRY_BYTES)
        sources = [whole[start : start + ENTRY_BYTES] for start in range(0, len(whole), ENTRY_BYTES)]
        held = [None] * count
        with timing.measure(total):
            for number, source in enumerate(sources):
                memory = np.empty(ENTRY_BYTES, np.uint8)
                memory[:] = source
                held[number] = memory
    elif name == "lmprobe":
        cache = workloads.use_lmprobe(folder / "lmprobe")
        texts = workloads.texts(count)
        cache.load_prompt_activations(workloads.NAME, texts[0], LAYERS)
        with timing.measure(total):
            held = [cache.load_prompt_activations(workloads.NAME, text, LAYERS)[0] for text in texts]
    elif name == "stash.activations, raw":
        with lmstash.open(folder / "activations", strict=True, trust_env=False) as stash:
            acts = stash.activations(extractor=workloads.ValuesAtHand({}, N_LAYERS))
            acts([ids_of(0)], LAYERS, None, on_miss="error")
            with timing.measure(total):
                held = acts([ids_of(number) for number in range(count)], LAYERS, None, on_miss="error")
    else:
        from lmstash.identity.keys import Key

        with lmstash.open(folder / "tensors", strict=True, trust_env=False) as stash:
            stash.tensors.get(0)
            keys = [Key({"kind": "tensors", "key": number, "salt": None}).digest for number in range(count)]
            with timing.measure(total):
                if name == "stash.tensors.get":
                    held = [stash.tensors.get(number) for number in range(count)]
                else:
                    held = stash.store.get_many(keys)
    assert sum(each is not None for each in held) == count, name
    return {"wall": timing.seconds, "cpu": timing.cpu_seconds}


def raw_loads(report: Report, scratch: Scratch, count: int, rounds: int) -> None:
    in_new_process({"do": "fill_raw", "folder": str(scratch.path), "count": count})
    names = [COPY, "stash.store.get_many", "stash.tensors.get", "stash.activations, raw", "lmprobe"]
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            task = {"do": "load_raw", "name": name, "folder": str(scratch.path), "count": count}
            taken[name].append(in_new_process(task))
    rows = []
    for name, each in taken.items():
        wall, cpu = (median(one[clock] for one in each) for clock in ("wall", "cpu"))
        speed = ratio([one["wall"] for one in taken[COPY]], [one["wall"] for one in each])
        rows.append([name, wall, cpu, count * ENTRY_BYTES / 1e9 / wall, speed])
        if name in names[1:4]:
            report.goal(f"{name} against a {COPY}", speed, GOAL_RAW, at_least=True, unit="x")
    title = f"Raw load of {count:,} entries of 0.5 MiB, checksums on"
    report.table(title, ["who", "wall, s", "CPU, s", "GB/s", "of the copy's speed"], rows)


# --- a call in which everything is kept ---------------------------------------------------------------------------


def warm_calls(report: Report, scratch: Scratch, count: int, rounds: int) -> None:
    from lmprobe.cache import CachedExtractor as Theirs
    from lmprobe.extraction import ActivationExtractor

    import lmstash
    from lmstash.adapters import lmprobe as adapter

    model = scratch.fresh("llama")
    workloads.save_tiny_llama(model)
    workloads.use_lmprobe(scratch.fresh("lmprobe"))
    extractor = ActivationExtractor(str(model), device="cpu", layers=LAYERS, batch_size=32)
    prompts = workloads.texts(count)
    stash = lmstash.open(scratch.fresh("adapter"), strict=True, trust_env=False)
    adapter.set_cache_backend(stash)
    theirs, ours = Theirs(extractor), adapter.CachedExtractor(extractor)
    acts = stash.activations(extractor.model, extractor.tokenizer)
    tables: list[np.ndarray] = []

    def limit() -> list[np.ndarray]:
        copies = [each.copy() for each in tables]
        list(map(xxh3_64_intdigest, copies))
        return copies

    calls: dict[str, Callable[[], Any]] = {
        "lmprobe.CachedExtractor": lambda: theirs.extract(prompts),
        "lmstash CachedExtractor": lambda: ours.extract(prompts),
        "stash.activations, raw": lambda: acts(prompts, LAYERS, None, progress=False),
        "stash.activations, last token": lambda: acts(prompts, LAYERS, "last", progress=False),
    }

    def once(call: Callable[[], Any]) -> Callable[[Timing], None]:
        def run(timing: Timing) -> None:
            with timing.measure(_TOUCHED_BYTES):
                call()

        return run

    first = interleave({name: once(call) for name, call in calls.items()}, 1)
    stash.flush()
    tables += [each.numpy() for each in calls["stash.activations, raw"]()]
    calls[LIMIT] = limit
    values, mask = calls["lmprobe.CachedExtractor"]()
    kept, same_mask = calls["lmstash CachedExtractor"]()
    furthest = (values * mask[..., None] - kept).abs().max().item()
    assert torch.equal(mask, same_mask)
    assert furthest < 1e-4, furthest
    warm = interleave({name: once(call) for name, call in calls.items()}, _ROUNDS_PER_ROUND * rounds)
    base = warm["lmprobe.CachedExtractor"]
    rows = []
    for name, each in warm.items():
        share = ratio(each.wall, base.wall)
        cold = first[name].seconds if name in first else ""
        rows.append([name, cold, each.seconds, each.cpu_seconds, share, ratio(each.cpu, base.cpu)])
        if each is not base and name != LIMIT:
            report.goal(f"warm call, {name}, against lmprobe's", share, GOAL_WARM, unit="x")
    columns = ["who", "first call, s", "warm, s", "warm CPU, s", "of lmprobe's wall", "of its CPU"]
    report.table(f"{count:,} short prompts, 4-layer Llama, {values.nbytes / MIB:.0f} MiB returned", columns, rows)
    adapter.set_cache_backend("memory://")
    stash.close()


# --- peak memory --------------------------------------------------------------------------------------------------


def large(name: str, folder: Path, count: int, *, fill: bool) -> dict[str, float]:
    """Fill, or call once with everything kept; returns the peak over what the process held before."""
    import lmstash
    from lmstash.adapters import lmprobe as adapter

    prompts = [f"prompt {number}" for number in range(count)]
    ids = [[number + 1, *range(1, WIDE["n_tokens"])] for number in range(count)]
    wide = workloads.Wide(**WIDE)
    if name == "lmprobe.CachedExtractor":
        from lmprobe.cache import CachedExtractor

        workloads.use_lmprobe(folder / "wide-lmprobe")
        theirs = CachedExtractor(wide)
        if fill:
            theirs.extract(prompts, cache_only=True)
            return {}
        theirs.extract(prompts[:1])
        before = reset_peak()
        result: Any = theirs.extract(prompts)
        return measured(before, result[0].nbytes)
    where = folder / ("wide-adapter" if "Cached" in name else "wide-activations")
    with lmstash.open(where, strict=True, trust_env=False) as stash:
        if "Cached" in name:
            adapter.set_cache_backend(stash)
            ours = adapter.CachedExtractor(wide)
            if fill:
                ours.extract(prompts, cache_only=True)
                return {}
            ours.extract(prompts[:1])
            before = reset_peak()
            result = ours.extract(prompts)
            return measured(before, result[0].nbytes)
        shape = WIDE["n_layers"], WIDE["n_tokens"], WIDE["hidden"]
        values = {tuple(each): list(torch.randn(shape)) for each in ids} if fill else {}
        acts = stash.activations(extractor=workloads.ValuesAtHand(values, WIDE["n_layers"]))
        if fill:
            acts(ids, LAYERS, None, cache_only=True, progress=False)
            return {}
        acts(ids[:1], LAYERS, None, on_miss="error")
        before = reset_peak()
        result = acts(ids, LAYERS, None, on_miss="error")
        return measured(before, sum(each.nbytes for each in result))


def measured(before: int, n_bytes: int) -> dict[str, float]:
    return {"result": n_bytes, "peak": peak_bytes() - before}


def peaks(report: Report, scratch: Scratch, n_bytes: int) -> None:
    count = n_bytes // WIDE_BYTES
    rows = []
    for name in ("lmprobe.CachedExtractor", "lmstash CachedExtractor", "stash.activations, raw"):
        task = {"do": "large", "name": name, "folder": str(scratch.path), "count": count}
        in_new_process(task | {"fill": True})
        taken = in_new_process(task | {"fill": False})
        share = taken["peak"] / taken["result"]
        rows.append([name, taken["result"] / MIB, taken["peak"] / MIB, share])
        if not name.startswith("lmprobe"):
            report.goal(f"peak memory of a warm call, {name}", share, GOAL_PEAK, unit="x")
    title = f"A result of {n_bytes // MIB:,} MiB, everything kept, a new process"
    report.table(title, ["who", "result, MiB", "peak above before, MiB", "times the result"], rows)


def work(task: dict[str, Any]) -> Any:
    workloads.quiet()
    folder, count = Path(task["folder"]), task["count"]
    if task["do"] == "fill_raw":
        return fill_raw(folder, count)
    if task["do"] == "load_raw":
        return load_raw(task["name"], folder, count)
    return large(task["name"], folder, count, fill=task["fill"])


def main() -> None:
    args = arguments(__doc__)
    if args.worker:
        print(json.dumps(work(json.loads(args.worker))))
        return
    workloads.quiet()
    report = Report("raw_lmprobe", quick=args.quick)
    rounds = args.rounds or (1 if args.quick else 5)
    with Scratch(args.dir) as scratch:
        raw_loads(report, scratch, 100 if args.quick else 1_000, rounds)
        warm_calls(report, scratch, 100 if args.quick else 1_000, rounds)
        peaks(report, scratch, (80 if args.quick else 800) * MIB)
    report.finish()


if __name__ == "__main__":
    main()
