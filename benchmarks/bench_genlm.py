"""genlm-backend's caches and its `AsyncTransformer`, and lmstash's by the same names.

Trees: KV eviction, growth and memory of `DynamicTokenTrie` (genlm-backend 0.2.2, the last release that has it). The
release needs minutes for 10,000 nodes and a quarter of an hour for 100,000: those rows are ours alone.

Particles: SmolLM2, 32 particles x 30 steps after 200 tokens, resampled every 5 steps, asked step by step as
genlm-control asks. "bookkeeping" is what a program pays that does nothing but the model's work: each distinct context
once, one KV row for each, one token a forward pass. genlm-backend 0.3.1 runs two steps and is scaled up by the tokens
that it would feed in all (it keeps no KV, so each context is fed whole); its own answers for these steps are compared.
"""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import random
import time
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import peers
import torch
import workloads
from measuring import ROOT, Report, arguments

N_PARTICLES, N_STEPS, N_PROMPT, RESAMPLE_EVERY = 32, 30, 200, 5
GOAL_EVICT_SECONDS, GOAL_OVER_BOOKKEEPING, GOAL_OF_THEIRS = 0.05, 1.1, 1 / 50


def spent(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return CPU seconds of this thread, and the result."""
    started = time.thread_time()
    out = work()
    return time.thread_time() - started, out


# --- trees --------------------------------------------------------------------------------------------------------


def released_tree() -> Any:
    file = peers.file_of("genlm-backend==0.2.2", "genlm/backend/cache.py")
    spec = importlib.util.spec_from_file_location("genlm_cache", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.DynamicTokenTrie


def grown(kind: Any, n_nodes: int, length: int = 250, *, kv: bool = True) -> Any:
    """Return a tree of sequences of `length` tokens, fifty of which they share with others."""
    rng, root, made = random.Random(0), kind(), 0
    stems = [[rng.randrange(50_000) for _ in range(50)] for _ in range(40)]
    while made < n_nodes:
        ids = [*rng.choice(stems), *(rng.randrange(50_000) for _ in range(length - 50))]
        node, matched = root, 0
        while matched < length and node.has_token(ids[matched]):
            node, matched = node.get_token(ids[matched]), matched + 1
        ids = ids[: matched + n_nodes - made]
        n_new = len(ids) - matched
        node.extend_cache(matched, ids, None, torch.zeros(2, 1, 1, n_new, 1) if kv else None)
        made += n_new
    return root


def bytes_a_node(kind: Any, n_nodes: int) -> float:
    tracemalloc.start()
    tree = grown(kind, n_nodes, kv=False)
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del tree
    return taken / n_nodes


def trees(report: Report, *, quick: bool) -> None:
    from lmstash.adapters.genlm import DynamicTokenTrie

    theirs, rows = released_tree(), []
    gc.collect()
    gc.freeze()  # what libraries hold is not looked through again and again
    for n_nodes, with_theirs in ((1_000, True), (4_000, not quick), (100_000, False)):
        for name, kind in (("genlm-backend 0.2.2", theirs), ("lmstash", DynamicTokenTrie)):
            if kind is theirs and not with_theirs:
                continue
            growing, _ = spent(lambda kind=kind, n=n_nodes: grown(kind, n, kv=False))
            evicting = []
            for _ in range(1 if kind is theirs else 3):
                tree = grown(kind, n_nodes)
                evicting.append(spent(lambda tree=tree, n=n_nodes: tree.evict_lru_kv(n // 2))[0])
            each_us, evicting_ms = 1e6 * growing / n_nodes, 1e3 * min(evicting)
            rows.append([n_nodes, name, each_us, evicting_ms, bytes_a_node(kind, min(n_nodes, 20_000))])
    report.table("Trees with KV", ["nodes", "who", "growing, us a token", "evicting half, ms", "bytes a node"], rows)
    report.goal("evicting half of 100,000 nodes", rows[-1][3] / 1e3, GOAL_EVICT_SECONDS, unit=" s")


# --- particles ----------------------------------------------------------------------------------------------------


def bookkeeping(model: Any, prompt: list[int], n_particles: int, n_steps: int) -> tuple[list[list[list[int]]], float]:
    """Run the particles at the least cost; returns the contexts asked at each step, and CPU seconds in the model."""
    draws, picks, seconds = torch.Generator().manual_seed(0), random.Random(0), 0.0
    particles, asked, cache = [prompt] * n_particles, [], None
    row_of: dict[tuple[int, ...], int] = {}
    for step in range(n_steps):
        asked.append(particles)
        distinct = list(dict.fromkeys(map(tuple, particles)))
        started = time.thread_time()
        with torch.no_grad():
            if cache is not None:
                cache.reorder_cache(torch.tensor([row_of[each[:-1]] for each in distinct]))
            fed = torch.tensor([each if cache is None else each[-1:] for each in distinct])
            out = model(fed, past_key_values=cache, use_cache=True, logits_to_keep=1)
            rows = out.logits[:, -1].float().log_softmax(-1)
        seconds += time.thread_time() - started
        cache, row_of = out.past_key_values, {each: row for row, each in enumerate(distinct)}
        weights = rows[[row_of[tuple(each)] for each in particles]].exp()
        tokens = torch.multinomial(weights, 1, generator=draws)[:, 0].tolist()
        particles = [[*each, token] for each, token in zip(particles, tokens, strict=True)]
        if step % RESAMPLE_EVERY == RESAMPLE_EVERY - 1:
            particles = picks.choices(particles, [picks.random() ** 3 for _ in particles], k=n_particles)
    return asked, seconds


def replayed(lm: Any, asked: Sequence[Sequence[list[int]]]) -> tuple[float, list[torch.Tensor]]:
    async def ask() -> list[torch.Tensor]:
        return [await lm.batch_next_token_logprobs(contexts) for contexts in asked]

    return spent(lambda: asyncio.run(ask()))


def fed_by_released(contexts: Sequence[list[int]]) -> int:
    """Return how many tokens genlm-backend feeds for one step: batches of 20, of which equal contexts are one."""
    batches = [contexts[start : start + 20] for start in range(0, len(contexts), 20)]
    return sum(sum(map(len, {tuple(each) for each in batch})) for batch in batches)


def particles(report: Report, *, quick: bool, rounds: int) -> None:
    import genlm.backend.llm.base as base
    from genlm.backend.llm import AsyncTransformer as Released
    from transformers import AutoModelForCausalLM

    from lmstash.adapters.genlm import AsyncTransformer

    base.decode_vocab = lambda tokenizer: ([], [])  # takes seconds, and nobody asks for it here
    tokenizer = workloads.tokenizer()
    model = AutoModelForCausalLM.from_pretrained(workloads.SMOLLM2).eval()
    prompt = tokenizer.encode((ROOT / "README.md").read_text())[:N_PROMPT]
    n_particles, n_steps = (8, 6) if quick else (N_PARTICLES, N_STEPS)
    cells: dict[str, list[float]] = {"bookkeeping": [], "lmstash": [], "lmstash, asked again": []}
    asked: list[list[list[int]]] = []
    for _ in range(rounds):
        asked, seconds = bookkeeping(model, prompt, n_particles, n_steps)
        cells["bookkeeping"].append(seconds)
        lm = AsyncTransformer(model, tokenizer)
        lm.next_token_logprobs_sync([1])  # the fingerprint, and the look at what the model bears
        for name in ("lmstash", "lmstash, asked again"):
            seconds, answers = replayed(lm, asked)
            cells[name].append(seconds)
    released = Released(model, tokenizer)
    seconds, expected = replayed(released, asked[:2])
    theirs = seconds * sum(map(fed_by_released, asked)) / sum(map(fed_by_released, asked[:2]))
    worst = max(float((mine - other).abs().max()) for mine, other in zip(answers, expected, strict=False))
    least, n_queries = min(cells["bookkeeping"]), n_particles * n_steps
    shown = [*[(name, min(each)) for name, each in cells.items()], ("genlm-backend 0.3.1, scaled up", theirs)]
    rows = [[name, seconds, 1e6 * seconds / n_queries, seconds / least] for name, seconds in shown]
    columns = ["who", "CPU, s", "us a question", "of bookkeeping"]
    report.table(f"{n_particles} particles x {n_steps} steps after {len(prompt)} tokens, SmolLM2", columns, rows)
    report.note(f"largest difference from genlm-backend's answers (two steps): {worst:.2g} nats")
    over = min(ours / base for ours, base in zip(cells["lmstash"], cells["bookkeeping"], strict=True))
    report.goal("particles, of bookkeeping", over, GOAL_OVER_BOOKKEEPING, unit="x")
    report.goal("particles, of genlm-backend's default", min(cells["lmstash"]) / theirs, GOAL_OF_THEIRS, unit="x")


def main() -> None:
    args = arguments(__doc__)
    workloads.quiet()
    report = Report("genlm", quick=args.quick)
    trees(report, quick=args.quick)
    particles(report, quick=args.quick, rounds=args.rounds or (1 if args.quick else 2))
    report.finish()


if __name__ == "__main__":
    main()
