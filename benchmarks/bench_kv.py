"""What `stash.kv` costs and saves on SmolLM2-135M.

Time to first token: `generate(max_new_tokens=1)` of a prompt whose first 2,048 tokens are kept, plus 16 new ones, in
new processes. The floor is the same call with the KV in memory, given to `generate` by reference: nobody can do less.
Beside it what people write today: one safetensors file of 60 tensors, copied out into a DynamicCache. Loading the model
and taking its fingerprint happen once for a loaded model, and are not in these figures. Memory is touched just before
each, since what a virtual machine's host has to fetch first would drown everything else.

Nothing to reuse: prompts that nobody saw, `generate` with and without, in turns, by the wall's clock and by the
processor's (of all threads: the weights are read again in another one); and what the call spends outside
`model.generate`. Rounds differ by far more than the goal allows, so there are many, and the middle half of their ratios
is printed beside the median.

A conversation of 20 growing turns: how many tokens are fed to the model over all of them.

Storage: 100 prompts of 1,256 tokens that share their first 1,000, put with made-up KV of SmolLM2's shape: what the
folder takes, against one prefix and the suffixes.
"""

from __future__ import annotations

import gc
import json
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measuring import (
    MIB,
    Report,
    Scratch,
    Timing,
    arguments,
    drop_pages,
    in_new_process,
    interleave,
    ratio,
    touch_memory,
)
from torch import Tensor
from workloads import SMOLLM2, quiet

PREFIX, SUFFIX = 2048, 16
GOAL_WARM, AIM_WARM, GOAL_COLD = 1.15, 1.05, 1.5
GOAL_ADDED = 1.02
GOAL_STORED = 1.1
TOUCH_BYTES = 400 * MIB
FIRST = {"max_new_tokens": 1, "do_sample": False, "pad_token_id": 0}


def load() -> Any:
    quiet()
    from lmstash.cli.demo.model import load as load_model

    return load_model(SMOLLM2)[0]


def some_ids(n_tokens: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(100, 40_000, (1, n_tokens), generator=generator)


def fill(task: dict[str, Any]) -> dict[str, Any]:
    """Keep the prefix, in a stash and in a file of tensors."""
    from safetensors.torch import save_file

    import lmstash

    model, ids = load(), some_ids(PREFIX + SUFFIX, 1)[:, :PREFIX]
    started = time.perf_counter()
    with torch.no_grad():
        cache = model(ids, use_cache=True, logits_to_keep=1).past_key_values
    seconds = time.perf_counter() - started
    with lmstash.open(task["folder"]) as stash:
        stash.kv(model).put(ids, cache)
    sides = {
        f"{side}{number}": getattr(layer, side)
        for number, layer in enumerate(cache.layers)
        for side in ("keys", "values")
    }
    save_file(sides, task["file"])
    return {"prefill": seconds, "bytes": sum(each.nbytes for each in sides.values())}


class Contenders:
    """Ways to the first token, in one process."""

    def __init__(self, task: dict[str, Any]) -> None:
        from safetensors.torch import load_file

        import lmstash

        self.model, self.file = load(), task["file"]
        self.prefix = some_ids(PREFIX + SUFFIX, 1)[:, :PREFIX]
        self.seed = 1000 * task["turn"] + 7
        self.stash = lmstash.open(task["folder"])
        self.kv = self.stash.kv(self.model)
        self.frozen = self.stash.kv(self.model, assume_frozen=True)
        self.held = (
            [] if task["cold"] else self._pairs({name: each.clone() for name, each in load_file(self.file).items()})
        )
        for each in (self.model, self.kv, self.frozen):  # load code
            each.generate(some_ids(4, 99), **FIRST)
        self.stash.flush()

    @property
    def ids(self) -> Tensor:
        """The prefix, and what nobody saw yet."""
        self.seed += 1
        return torch.cat([self.prefix, some_ids(SUFFIX, self.seed)], dim=1)

    def _pairs(self, sides: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        return [(sides[f"keys{number}"], sides[f"values{number}"]) for number in range(len(sides) // 2)]

    def by_reference(self, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        for layer, (keys, values) in zip(cache.layers, pairs, strict=True):
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
        return self.model.generate(self.ids, past_key_values=cache, **FIRST)

    def by_file(self) -> Tensor:
        from safetensors.torch import load_file
        from transformers import DynamicCache

        pairs = self._pairs(load_file(self.file))
        cache = DynamicCache(pairs, config=self.model.config)
        return self.model.generate(self.ids, past_key_values=cache, **FIRST)

    def ways(self) -> dict[str, Callable[[], Tensor]]:
        return {
            "floor": lambda: self.by_reference(self.held),
            "lmstash": lambda: self.kv.generate(self.ids, **FIRST),
            "lmstash, assume_frozen": lambda: self.frozen.generate(self.ids, **FIRST),
            "safetensors, DynamicCache": self.by_file,
        }


def timed(way: Callable[[], Tensor]) -> tuple[float, float]:
    """Return wall and processor seconds (of all threads)."""
    gc.collect()
    touch_memory(TOUCH_BYTES)
    gc.disable()
    cpu, wall = time.process_time(), time.perf_counter()
    way()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    gc.enable()
    return wall, cpu


def race(task: dict[str, Any]) -> dict[str, Any]:
    """Run every contender in a fresh process, in the order given."""
    contenders = Contenders(task)
    for each in Path(task["folder"]).rglob("*"):  # the cold race of the round before dropped its pages
        if each.is_file():
            each.read_bytes()
    ways = contenders.ways()
    taken: dict[str, Any] = {}
    for name in task["order"]:
        wall, cpu = timed(ways[name])
        taken[name] = {"wall": wall, "cpu": cpu}
        contenders.stash.flush()
    assert min(kv.stats.tokens_reused for kv in (contenders.kv, contenders.frozen)) >= PREFIX
    return taken


def race_cold(task: dict[str, Any]) -> dict[str, Any]:
    """Drop the folder's pages, then run one contender."""
    contenders = Contenders(task | {"cold": True})
    words = drop_pages(Path(task["folder"]), Path(task["file"]).parent)
    wall, cpu = timed(contenders.ways()[task["order"][0]])
    return {"wall": wall, "cpu": cpu, "words": words}


def first_tokens(report: Report, scratch: Scratch, rounds: int) -> None:
    folder, file = scratch.fresh("kv"), scratch.fresh("file") / "kv.safetensors"
    task: dict[str, Any] = {"folder": str(folder), "file": str(file), "cold": False}
    filled = in_new_process(task | {"what": "fill"})
    names = ["floor", "lmstash", "lmstash, assume_frozen", "safetensors, DynamicCache"]
    warm: dict[str, Timing] = {name: Timing() for name in names}
    cold: dict[str, Timing] = {name: Timing() for name in names if name != "floor"}
    words = ""
    for turn in range(rounds):
        task |= {"turn": turn}
        order = names[turn % len(names) :] + names[: turn % len(names)]
        taken = in_new_process(task | {"what": "race", "order": order})
        for name, each in taken.items():
            warm[name].wall.append(each["wall"])
            warm[name].cpu.append(each["cpu"])
        for name, timing in cold.items():
            each = in_new_process(task | {"what": "race_cold", "order": [name]})
            timing.wall.append(each["wall"])
            timing.cpu.append(each["cpu"])
            words = each["words"]
    floor = warm["floor"]
    rows = []
    for pages, timings in (("warm", warm), ("cold", cold)):
        for name, timing in timings.items():
            rows.append(
                [
                    f"{name}, {pages}",
                    1000 * timing.seconds,
                    1000 * min(timing.wall),
                    1000 * timing.cpu_seconds,
                    ratio(timing.wall, floor.wall),
                    min(timing.wall) / min(floor.wall),
                ]
            )
    rows.append(["no cache (prefill alone)", 1000 * filled["prefill"], "", "", filled["prefill"] / floor.seconds, ""])
    columns = ["contender", "median, ms", "least, ms", "CPU median, ms", "x floor, median of rounds", "x floor, least"]
    report.table(f"First token of {PREFIX:,} kept + {SUFFIX} new tokens, new processes ({words})", columns, rows)
    report.goal(
        "warm store against the floor, median of rounds", ratio(warm["lmstash"].wall, floor.wall), GOAL_WARM, unit="x"
    )
    report.goal("the same, least against least", min(warm["lmstash"].wall) / min(floor.wall), GOAL_WARM, unit="x")
    frozen = ratio(warm["lmstash, assume_frozen"].wall, floor.wall)
    report.goal("the same with assume_frozen", frozen, AIM_WARM, unit="x")
    report.goal("cold store against the floor", ratio(cold["lmstash"].wall, floor.wall), GOAL_COLD, unit="x")


class Seconds(list[float]):
    """What something took, each time."""


def spy(model: Any) -> Seconds:
    """Have the model's class note how long each `generate` takes; call it before the model is fingerprinted.

    What the notes go to is reached by a weak reference, which fingerprints take for what it is: no part of the model.
    """
    seconds, usual = Seconds(), type(model).generate
    notes = weakref.ref(seconds)

    def generate(self: Any, *given: Any, **named: Any) -> Any:
        started = time.perf_counter()
        out = usual(self, *given, **named)
        kept = notes()
        if kept is not None:
            kept.append(time.perf_counter() - started)
        return out

    type(model).generate = generate
    return seconds


def nothing_to_reuse(report: Report, scratch: Scratch, rounds: int, n_tokens: int, n_new: int) -> None:
    import lmstash

    model = load()
    inner = spy(model)
    with lmstash.open(scratch.fresh("new")) as stash:
        kv = stash.kv(model)
        want = {**FIRST, "max_new_tokens": n_new}
        outside: list[float] = []
        turn = 0

        def plain(timing: Timing) -> None:
            with timing.measure(touch_bytes=TOUCH_BYTES):
                model.generate(some_ids(n_tokens, 1000 + turn // 2), **want)

        def cached(timing: Timing) -> None:
            with timing.measure(touch_bytes=TOUCH_BYTES):
                kv.generate(some_ids(n_tokens, 1000 + turn // 2), **want)
            outside.append(timing.wall[-1] - inner[-1])

        contenders = {"model.generate": plain, "kv.generate": cached}

        def counted(way: Callable[[Timing], None]) -> Callable[[Timing], None]:
            def run(timing: Timing) -> None:
                nonlocal turn
                way(timing)
                turn += 1

            return run

        timings = interleave({name: counted(way) for name, way in contenders.items()}, rounds)
        stash.flush()
        assert kv.stats.tokens_reused == 0
        assert kv.stats.tokens_kept >= rounds * n_tokens
    ours, theirs = timings["kv.generate"], timings["model.generate"]
    ratios = sorted(mine / other for mine, other in zip(ours.wall, theirs.wall, strict=True))
    middle = f"{ratios[len(ratios) // 4]:.3f} to {ratios[-1 - len(ratios) // 4]:.3f}"
    rows = [
        ["model.generate", theirs.seconds, min(theirs.wall), theirs.cpu_seconds, 1.0, "", 1.0, ""],
        [
            "kv.generate",
            ours.seconds,
            min(ours.wall),
            ours.cpu_seconds,
            ratio(ours.wall, theirs.wall),
            middle,
            ratio(ours.cpu, theirs.cpu),
            1000 * median(outside),
        ],
    ]
    columns = ["what", "median, s", "least, s", "CPU median, s", "ratio, median of rounds", "middle half of rounds"]
    columns += ["CPU ratio, median of rounds", "outside generate, ms"]
    report.table(f"Nothing to reuse: {n_tokens:,} tokens and {n_new} new ones", columns, rows)
    share = 1 + median(outside) / theirs.seconds
    report.goal(
        f"nothing to reuse, {n_tokens} + {n_new} tokens: wall, median of rounds",
        ratio(ours.wall, theirs.wall),
        GOAL_ADDED,
        unit="x",
    )
    report.goal("the same by the processor's time", ratio(ours.cpu, theirs.cpu), GOAL_ADDED, unit="x")
    report.goal("the same by what is spent outside model.generate", share, GOAL_ADDED, unit="x")


def conversation(report: Report, scratch: Scratch, turns: int) -> None:
    import lmstash

    model = load()
    fed = 0

    def count(module: Any, given: Any, named: Any) -> None:
        nonlocal fed
        fed += named["input_ids"].numel()

    count.__dict__["_lmstash"] = True  # reads only
    model.register_forward_pre_hook(count, with_kwargs=True)
    with lmstash.open(scratch.fresh("talk")) as stash:
        kv = stash.kv(model)
        ids = some_ids(60, 5)
        last = asked = 0
        for turn in range(turns):
            last = ids.shape[1]
            asked += last
            out = kv.generate(ids, **{**FIRST, "max_new_tokens": 12})
            ids = torch.cat([out, some_ids(18, 10 + turn)], dim=1)
    report.table(
        f"A conversation of {turns} turns",
        ["tokens of all prompts", "of the last prompt", "fed to the model, answers included"],
        [[asked, last, fed]],
    )
    report.goal(f"tokens fed over {turns} turns", fed, last + 20)


def storage(report: Report, scratch: Scratch, count: int) -> None:
    from transformers import DynamicCache

    import lmstash

    model = load()
    config = model.config
    heads, dim = config.num_key_value_heads, config.head_dim
    generator = torch.Generator().manual_seed(0)
    n_tokens, shared = 1256, 1000
    pairs = [
        tuple(torch.randn(1, heads, n_tokens, dim, generator=generator) for _ in range(2))
        for _ in range(config.num_hidden_layers)
    ]
    with lmstash.open(scratch.fresh("many"), capacity_bytes=16 * 2**30) as stash:
        kv = stash.kv(model, assume_frozen=True)
        for number in range(count):
            ids = torch.cat([some_ids(shared, 3), some_ids(n_tokens - shared, 100 + number)], dim=1)
            kv.put(ids, DynamicCache(pairs, config=config))
        stash.flush()
        taken = stash.info().physical_bytes
    token_bytes = 2 * config.num_hidden_layers * heads * dim * 4
    least = (shared + count * (n_tokens - shared)) * token_bytes
    report.table(
        f"{count} prompts that share {shared:,} of {n_tokens:,} tokens",
        ["folder, MB", "prefix and suffixes, MB", "ratio", "each prompt on its own, ratio"],
        [[taken / 1e6, least / 1e6, taken / least, count * n_tokens * token_bytes / least]],
    )
    report.goal(f"bytes stored of {count} prompts", taken / least, GOAL_STORED, unit="x")


WORK = {"fill": fill, "race": race, "race_cold": race_cold}


def main() -> None:
    args = arguments(__doc__)
    if args.worker:
        task = json.loads(args.worker)
        print(json.dumps(WORK[task["what"]](task)))
        return
    if not (SMOLLM2 / "config.json").exists():
        print("needs SmolLM2: run `make model`")
        raise SystemExit(2)
    report = Report("kv", quick=args.quick)
    rounds = args.rounds or (2 if args.quick else 8)
    with Scratch(args.dir) as scratch:
        first_tokens(report, scratch, rounds)
        nothing_to_reuse(report, scratch, rounds * (1 if args.quick else 3), 128 if args.quick else 512, 16)
        conversation(report, scratch, 5 if args.quick else 20)
        storage(report, scratch, 10 if args.quick else 100)
    report.finish()


if __name__ == "__main__":
    main()
