"""lm-eval's own cache of answers (`CachingLM` of 0.4.13), and ours in its place.

Hits: a harness asks what is all kept, and gets it, `generate_until` of one call with all requests. Both derive their
keys from the same requests of some 220 bytes with answers of 115; the progress bars of theirs are switched off. The
limit beside them: SHA-256 of each request's JSON and a look-up in a dict.

Overhead: SmolLM2 answers greedy generations and likelihoods of which nothing is kept. Counted is CPU time of all
threads: of the evaluation through `CachedLM`, and, of that, of what the model itself took. (Two runs beside each other
differ by more than 1 % here.) What is paid once, to know who the model is and whether it stayed so, is told from what
is paid for each request, and the goal is for an evaluation of 1,000 such requests.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lm_eval.api.model
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from measuring import ROOT, Report, Scratch, Timing, arguments, interleave, ratio

import lmstash
from lmstash.adapters.lm_eval import CachedLM
from lmstash.adapters.lm_eval.asking.partials import Hook, Pending
from lmstash.adapters.lm_eval.who.vouching import Vouched

GOAL_HITS, GOAL_OVERHEAD = 20.0, 0.01
LARGE = 1_000
MODEL = ROOT / ".cache/models/smollm2"


class Saying(lm_eval.api.model.LM):
    """Says the same of every prompt."""

    def loglikelihood(self, requests: list[Any]) -> Any:
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood

    def generate_until(self, requests: list[Any]) -> list[str]:
        return [
            f"The answer to {each.args[0][:12]} is what it is, {'as far as anybody can tell ' * 3}."
            for each in requests
        ]


class Timed(HFLM):
    """The harness's own model, and what it took: an attribute, since a list that its code names would count."""

    seconds: float = 0.0

    def generate_until(self, *given: Any, **options: Any) -> Any:
        started = time.process_time()
        try:
            return super().generate_until(*given, **options)
        finally:
            self.seconds += time.process_time() - started

    def loglikelihood(self, *given: Any, **options: Any) -> Any:
        started = time.process_time()
        try:
            return super().loglikelihood(*given, **options)
        finally:
            self.seconds += time.process_time() - started


def asking(n: int) -> list[Any]:
    options = {"until": ["\n\n", "Q:"], "max_gen_toks": 64, "do_sample": False, "temperature": 0.0}
    prompts = [f"Q{i:06}: {'how many words does a question need to be asked ' * 4}\nA:" for i in range(n)]
    return [Instance("generate_until", {}, (p, dict(options)), 0, ("task", i, 1)) for i, p in enumerate(prompts)]


def hits(report: Report, folder: Path, n: int, rounds: int) -> None:
    lm_eval.api.model.tqdm = lambda each, **_: each
    requests = asking(n)
    rates: list[list[Any]] = []
    started = time.perf_counter()
    theirs = lm_eval.api.model.CachingLM(Saying(), str(folder / "theirs.db"))
    said = theirs.generate_until(requests)
    theirs.dbdict.commit(blocking=True)
    their_put = n / (time.perf_counter() - started)
    started = time.perf_counter()
    with lmstash.open(folder / "ours") as stash:
        assert CachedLM(Saying(), stash, model="saying").generate_until(requests) == said
    our_put = n / (time.perf_counter() - started)
    known = {
        hashlib.sha256(json.dumps(each.args).encode()).digest(): one for each, one in zip(requests, said, strict=True)
    }

    def run_theirs(timing: Timing) -> None:
        lm = lm_eval.api.model.CachingLM(Saying(), str(folder / "theirs.db"))
        with timing.measure():
            assert lm.generate_until(requests) == said
        lm.dbdict.close()

    def run_ours(timing: Timing) -> None:
        with lmstash.open(folder / "ours") as stash:
            lm = CachedLM(Saying(), stash, model="saying")
            with timing.measure():
                assert lm.generate_until(requests) == said
            assert lm.counts.hits == n

    def run_limit(timing: Timing) -> None:
        with timing.measure():
            assert [known[hashlib.sha256(json.dumps(each.args).encode()).digest()] for each in requests] == said

    took = interleave({"lm-eval": run_theirs, "lmstash": run_ours, "limit": run_limit}, rounds)
    puts = {"lm-eval": their_put, "lmstash": our_put, "limit": float("nan")}
    for name, timing in took.items():
        cpu = f"{timing.cpu_seconds / n * 1e6:.1f}"
        rates.append([name, f"{puts[name]:,.0f}", f"{n / timing.seconds:,.0f}", f"{timing.seconds / n * 1e6:.1f}", cpu])
    report.table(f"{n:,} answers", ["", "puts/s", "hits/s", "us a hit", "CPU us a hit"], rates)
    faster = 1 / ratio(took["lmstash"].wall, took["lm-eval"].wall)
    report.goal("batch hits, times those of CachingLM", faster, GOAL_HITS, at_least=True, unit="x")


@contextmanager
def clocked(owner: Any, name: str, clock: Any, spent: list[float]) -> Iterator[None]:
    """Add up what a method of our own takes."""
    plain, lock = getattr(owner, name), threading.Lock()

    def timed(*given: Any, **options: Any) -> Any:
        started = clock()
        try:
            return plain(*given, **options)
        finally:
            with lock:
                spent.append(clock() - started)

    setattr(owner, name, timed)
    try:
        yield
    finally:
        setattr(owner, name, plain)


def overhead(report: Report, folder: Path, n: int) -> None:
    torch.set_num_threads(1)
    inner = Timed(pretrained=str(MODEL), device="cpu", batch_size=4)
    facts = "Water boils at a hundred degrees. The sun rises in the east. A day has twenty-four hours. " * 3
    generations = [
        Instance(
            "generate_until",
            {},
            (f"{facts}\nQ: {i} and {i}?\nA:", {"until": ["\n\n\n"], "max_gen_toks": 32}),
            0,
            ("g", i, 1),
        )
        for i in range(n)
    ]
    pairs = [
        Instance("loglikelihood", {}, (f"{facts} Number {i} is", f" {word} of the list"), k, ("c", i, 1))
        for i in range(2 * n)
        for k, word in enumerate(("first", "last", "none", "one"))
    ]
    reports: list[float] = []
    threads: list[float] = []
    looks: list[float] = []
    with (
        lmstash.open(folder / "overhead") as stash,
        clocked(Hook, "add_partial", time.process_time, reports),
        clocked(Pending, "_work", time.thread_time, threads),
        clocked(Vouched, "look", time.process_time, looks),
        clocked(Vouched, "end", time.process_time, looks),
    ):
        started, wall = time.process_time(), time.perf_counter()
        lm = CachedLM(inner, stash, harmless=["seconds"])
        looks.append(time.process_time() - started)
        lm.generate_until(generations)
        lm.loglikelihood(pairs)
        total, wall = time.process_time() - started, time.perf_counter() - wall
        of_model, once = inner.seconds - sum(reports) - sum(threads), sum(looks)
        n_requests = lm.counts.computed
        assert n_requests == len(generations) + len(pairs)
        lm.generate_until(generations)
        assert lm.counts.hits == len(generations), "what was computed was not kept"
    each = (total - of_model - once) / n_requests
    share = (once + LARGE * each) / (LARGE * of_model / n_requests)
    rows = [
        ["the whole evaluation", f"{total:.2f}", ""],
        ["the model", f"{of_model:.2f}", f"{of_model / n_requests * 1e3:.1f} ms"],
        ["lmstash, once", f"{once:.2f}", ""],
        ["lmstash, for each request", f"{each * n_requests:.2f}", f"{each * 1e3:.2f} ms"],
    ]
    words = f"{n_requests} requests to SmolLM2, nothing kept, {wall:.0f} s"
    report.table(words, ["", "CPU s", "a request"], rows)
    report.goal(f"overhead where nothing hits, of {LARGE:,} requests", share, GOAL_OVERHEAD)


def main() -> None:
    given = arguments(__doc__, parts=("hits", "overhead"))
    report = Report("responses_lm_eval", quick=given.quick)
    with Scratch(given.dir) as scratch:
        folder = scratch.fresh("lm_eval")
        if given.part in (None, "hits"):
            hits(report, folder, 2_000 if given.quick else 20_000, given.rounds or 3)
        if given.part in (None, "overhead"):
            overhead(report, folder, 2 if given.quick else 8)
    report.finish()


if __name__ == "__main__":
    main()
