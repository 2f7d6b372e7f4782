"""`stash.logprobs` under a particle program: what it costs beside perfect bookkeeping, and what a hit costs.

The workload is that of `../shared/data/smc`: SmolLM2, 32 particles x 30 steps after the first 200 tokens of its prompt,
resampled every 5 steps. Its `reference` computes each distinct context once, with one KV row for each and one token a
pass. genlm-backend 0.3.1, as it comes, keeps no KV: it runs two steps and is scaled up by the tokens that it would have
to feed.

Seconds are of the processor, all threads, with one torch thread; lmstash's include looking whether the model changed.
"""

from __future__ import annotations

import asyncio
import importlib.util
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import peers
import torch
import workloads
from measuring import Report, Scratch, Timing, arguments, interleave, ratio
from torch import Tensor

DATA = peers.ROOT.parent / "shared/data/smc"
GOAL_OF_REFERENCE, GOAL_OF_THEIRS, GOAL_LOOKUP_US = 1.1, 1 / 50, 10.0
HIT_ROUNDS, HIT_REPLAYS = 5, 16

Steps = Sequence[Sequence[list[int]]]


def load_reference() -> Any:
    spec = importlib.util.spec_from_file_location("smc_reference", DATA / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.reference


def plain_row(model: Any, context: Sequence[int]) -> Tensor:
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([context]), logits_to_keep=1).logits[0, -1].float(), -1)


def replay(lp: Any, steps: Steps, timing: Timing) -> list[Tensor]:
    """Ask for every step; only the asking is timed."""
    out: list[Tensor] = []
    with timing.measure():
        for contexts in steps:
            out.append(lp.batch_next_token_logprobs(contexts))
            if len(out) > 1:
                out[-2] = out[-2][:1].clone()  # a program drops a step's rows when it has the next ones
    return out


# --- the whole workload ---------------------------------------------------------------------------------------------


def fed_by_released(contexts: Sequence[list[int]]) -> int:
    """Return how many tokens genlm-backend feeds for one step: batches of 20, of which equal contexts are one."""
    batches = [contexts[start : start + 20] for start in range(0, len(contexts), 20)]
    return sum(sum(map(len, {tuple(each) for each in batch})) for batch in batches)


def run_released(model: Any, steps: Steps) -> tuple[float, float, list[Tensor]]:
    """Run genlm-backend over two steps; returns its seconds for all, microseconds of a hit, and its answers."""
    import genlm.backend.llm.base as base
    from genlm.backend.llm import AsyncTransformer

    base.decode_vocab = lambda tokenizer: ([], [])  # takes seconds, and nobody asks for it here
    released = AsyncTransformer(model, workloads.tokenizer())

    async def ask() -> list[Tensor]:
        return [await released.batch_next_token_logprobs(contexts) for contexts in steps[:2]]

    started = time.process_time()
    answers = asyncio.run(ask())
    seconds = time.process_time() - started
    scaled = seconds * sum(map(fed_by_released, steps)) / sum(map(fed_by_released, steps[:2]))
    started = time.process_time()
    asyncio.run(ask())
    hit_us = 1e6 * (time.process_time() - started) / sum(map(len, steps[:2]))
    return scaled, hit_us, answers


def workload(report: Report, model: Any, n_particles: int, n_steps: int, rounds: int) -> Steps:
    """Measure the whole workload; returns its contexts."""
    import lmstash

    reference = load_reference()
    ids = workloads.tokenizer().encode((DATA / "prompt.txt").read_text())[:200]
    steps: list[list[list[int]]] = []
    fed: list[int] = []
    last: dict[str, list[Tensor]] = {}

    def bookkeeping(timing: Timing) -> None:
        found, seconds = reference(model, ids, n_particles, n_steps)
        steps[:] = found
        timing.cpu.append(seconds)
        timing.wall.append(seconds)

    def ours(**options: Any) -> Callable[[Timing], None]:
        def run(timing: Timing) -> None:
            with lmstash.open("memory://") as stash:
                lp = stash.logprobs(model, **options)
                last[str(options)] = replay(lp, steps, timing)
                fed.append(lp.fed_tokens)

        return run

    bookkeeping(Timing())  # the contexts to ask for
    contenders = {"reference": bookkeeping, "lmstash": ours(), "lmstash, assume_frozen": ours(assume_frozen=True)}
    timings = interleave(contenders, rounds)
    theirs, hit_us, expected = run_released(model, steps)
    base = timings["reference"].cpu
    n_queries = n_particles * n_steps
    rows = [
        [name, each.cpu_seconds, ratio(each.cpu, base), n_queries / each.cpu_seconds] for name, each in timings.items()
    ]
    rows.append(
        ["genlm-backend 0.3.1, scaled up", theirs, theirs / timings["reference"].cpu_seconds, n_queries / theirs]
    )
    title = f"{n_particles} particles x {n_steps} steps after {len(ids)} tokens ({n_queries} queries)"
    report.table(title, ["who", "CPU, s", "of the reference", "queries a second"], rows)
    distinct = len({tuple(each) for contexts in steps for each in contexts})
    report.note(f"tokens fed by lmstash: {fed[-1]:,} for {distinct:,} distinct contexts after a prompt of {len(ids)}")
    chosen = random.Random(0).sample(range(1, n_steps), min(8, n_steps - 1))
    answers = last[str({})]
    worst = max(float((answers[step][0] - plain_row(model, steps[step][0])).abs().max()) for step in chosen)
    with lmstash.open("memory://") as stash:
        lp = stash.logprobs(model)
        first = [lp.batch_next_token_logprobs(contexts) for contexts in steps[:2]]
    apart = max(float((mine - other).abs().max()) for mine, other in zip(first, expected, strict=True))
    report.note(
        f"largest difference: {worst:.1e} nats from a pass of its own ({len(chosen)} contexts), "
        f"{apart:.1e} from genlm-backend (two steps); its own hit: {hit_us:.0f} us"
    )
    report.goal(
        "CPU of the particles, of the reference", ratio(timings["lmstash"].cpu, base), GOAL_OF_REFERENCE, unit="x"
    )
    report.goal("of genlm-backend's default", timings["lmstash"].cpu_seconds / theirs, GOAL_OF_THEIRS, unit="x")
    return steps


# --- hits -----------------------------------------------------------------------------------------------------------


class Copying:
    """What is left of a hit if finding it costs nothing: rows copied side by side into fresh memory."""

    def __init__(self, rows: Tensor, steps: list[list[int]]) -> None:
        """Copy these of the `rows`, step by step, over and over."""
        self._rows = rows
        self._steps = [torch.tensor(each) for each in steps]
        self._step = 0

    def batch_next_token_logprobs(self, contexts: Sequence[list[int]]) -> Tensor:
        """Return the next step's rows."""
        self._step += 1
        return self._rows.index_select(0, self._steps[(self._step - 1) % len(self._steps)])


def hits(report: Report, model: Any, steps: Steps, folder: Path, rounds: int) -> None:
    """Measure what a query costs whose answer is known, in each form."""
    import lmstash

    distinct = [list(each) for each in dict.fromkeys(tuple(each) for contexts in steps for each in contexts)]
    place = {tuple(context): row for row, context in enumerate(distinct)}
    n_queries = sum(map(len, steps))
    with lmstash.open("memory://") as stash:
        lp = stash.logprobs(model, row_bytes="1GB")
        exact = torch.cat([lp.batch_next_token_logprobs(distinct[at : at + 64]) for at in range(0, len(distinct), 64)])
        stash.flush()
        frozen = stash.logprobs(model, row_bytes="1GB", assume_frozen=True)  # finds the hidden states in the stash
        for contexts in steps:
            frozen.batch_next_token_logprobs(contexts)
        copying = Copying(exact, [[place[tuple(each)] for each in contexts] for contexts in steps])

        def asks(cache: Any) -> Callable[[Timing], None]:
            def run(timing: Timing) -> None:
                with timing.measure():  # so long that whole looks at the model have their usual share
                    for _ in range(HIT_REPLAYS):
                        for contexts in steps:
                            cache.batch_next_token_logprobs(contexts)

            return run

        timings = interleave({"copy": asks(copying), "frozen": asks(frozen), "watched": asks(lp)}, HIT_ROUNDS)
    each_us = {name: 1e6 * timing.cpu_seconds / (n_queries * HIT_REPLAYS) for name, timing in timings.items()}
    rows = [
        ["the copy of a row alone", each_us["copy"], 0.0, 0.0],
        ["hot row, assume_frozen", each_us["frozen"], each_us["frozen"] - each_us["copy"], 0.0],
        ["hot row, the model watched", each_us["watched"], each_us["watched"] - each_us["copy"], 0.0],
    ]
    sample = distinct[:: max(1, len(distinct) // 128)]
    for form in ("hidden", "uint16", "exact"):
        with lmstash.open(folder / form) as stash:
            lp = stash.logprobs(model, keep=form, row_bytes=0, assume_frozen=True)
            truth = lp.batch_next_token_logprobs(sample)  # as first computed
            stash.flush()
            if form != "exact":
                rows.append([f"{form}, in RAM", *ask_once(lp, sample, truth)])
            if form == "hidden":
                rows.append([f"{form}, in RAM, one at a time", *ask_once(lp, sample[:32], truth[:32], at_once=1)])
        with lmstash.open(folder / form) as stash:
            lp = stash.logprobs(model, keep=form, row_bytes=0, answer_bytes=0, assume_frozen=True)
            rows.append([f"{form}, in a folder", *ask_once(lp, sample, truth)])
            n_bytes = stash.info().physical_bytes
            report.note(
                f"{form}: {lp.answer_bytes:,} bytes an answer; the folder takes {n_bytes / len(sample):,.0f} each"
            )
    title = "A query whose answer is known, in batches of 32"
    report.table(title, ["answer", "CPU, us", "beside one copy, us", "largest error, nats"], rows)
    lookup_us, look_us = lookups(model, steps, max(3, rounds))
    report.note(
        f"finding a row: {lookup_us:.1f} us (the same contexts over a vocabulary of 97, whose rows cost no copy); "
        f"a look at SmolLM2: {look_us:,.0f} us a call, {look_us / len(steps[0]):.1f} us a query of {len(steps[0])}"
    )
    report.goal("look-up of a hot row beside its copy, assume_frozen", lookup_us, GOAL_LOOKUP_US, unit=" us")
    watched_us = lookup_us + look_us / len(steps[0])
    report.goal("the same and a look at the model for each batch", watched_us, GOAL_LOOKUP_US, unit=" us")
    beside_us = each_us["watched"] - each_us["copy"]
    report.goal("the workload replayed, watched, without its copies", beside_us, GOAL_LOOKUP_US, unit=" us")


def lookups(model: Any, steps: Steps, rounds: int) -> tuple[float, float]:
    """Return microseconds to find a hot row, and of a look whether the model changed.

    The difference of two copies of 200 KB from cold memory is mostly noise, so finding is measured where there is
    next to nothing to copy: a tiny model of 97 words, and the workload's contexts with their ids taken modulo 97.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    import lmstash

    config = LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    small = [[[token % 97 for token in context] for context in contexts] for contexts in steps]
    timing = Timing()
    with lmstash.open("memory://") as stash:
        lp = stash.logprobs(LlamaForCausalLM(config).eval(), assume_frozen=True)
        for contexts in small:
            lp.batch_next_token_logprobs(contexts)
        for _ in range(rounds):
            replay(lp, small, timing)
        watch = stash.logprobs(model)._watch
        watch.recognise()
        looks: list[float] = []
        for _ in range(100):
            started = time.process_time()
            watch.recognise()
            looks.append(time.process_time() - started)
    return 1e6 * timing.cpu_seconds / sum(map(len, small)), 1e6 * sorted(looks)[len(looks) // 2]


def ask_once(lp: Any, contexts: list[list[int]], truth: Tensor, at_once: int = 32) -> tuple[float, str, float]:
    """Return microseconds a context, nothing, and the largest error."""
    batches = [contexts[at : at + at_once] for at in range(0, len(contexts), at_once)]
    started = time.process_time()
    rows = [lp.batch_next_token_logprobs(batch) for batch in batches]
    spent = time.process_time() - started
    return 1e6 * spent / len(contexts), "", float((torch.cat(rows) - truth).abs().max())


# --- scores ---------------------------------------------------------------------------------------------------------


def scores(report: Report, model: Any, rounds: int) -> None:
    """Measure the score of a text beside one plain pass that does the same."""
    import lmstash

    ids = workloads.tokenizer().encode((DATA / "prompt.txt").read_text())[:200]

    def plain(timing: Timing) -> None:
        with timing.measure(), torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, :-1].float()
            torch.log_softmax(logits, -1).gather(1, torch.tensor(ids[1:])[:, None])

    def ours(timing: Timing) -> None:
        with lmstash.open("memory://") as stash:
            lp = stash.logprobs(model, assume_frozen=True)
            with timing.measure():
                lp.score(ids)

    timings = interleave({"one plain pass": plain, "score": ours}, rounds)
    rows = [[name, each.cpu_seconds, ratio(each.cpu, timings["one plain pass"].cpu)] for name, each in timings.items()]
    report.table(f"The log-probability of each of {len(ids)} tokens", ["who", "CPU, s", "of the pass"], rows)


def main() -> None:
    args = arguments(__doc__)
    workloads.quiet()
    if not workloads.SMOLLM2.exists() or not DATA.exists():
        print(f"needs {workloads.SMOLLM2} (make model) and {DATA}")
        raise SystemExit(2)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(workloads.SMOLLM2).eval()
    report = Report("particles", quick=args.quick)
    rounds = args.rounds or (1 if args.quick else 3)
    steps = workload(report, model, *((8, 6) if args.quick else (32, 30)), rounds)
    with Scratch(args.dir) as scratch:
        hits(report, model, steps, scratch.fresh("stores"), rounds)
    scores(report, model, rounds)
    report.finish()


if __name__ == "__main__":
    main()
