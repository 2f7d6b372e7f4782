"""Pooled activations, 10,000 prompts x 1 layer (1,024 float32): saving, loading and upkeep, lmprobe and lmstash.

The values are in memory when saving begins, so that only the caches are compared. lmprobe is given texts and vectors
(`save_prompt_pooled_activations`, `load_pooled_batch`). lmstash is given an extractor that hands out the same vectors
where they lie, and prompts as texts (it then runs the tokenizer, which lmprobe never does), as token ids, and as one
token each. lmstash's saves include `flush()`; lmprobe has no such thing.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import torch
import workloads
from measuring import (
    Report,
    Scratch,
    Timing,
    arguments,
    drop_pages,
    in_new_process,
    interleave,
    ratio,
    touched,
)
from xxhash import xxh3_64_intdigest

HIDDEN = 1024
ROWS_TOGETHER = 2_048
GOAL_SHARE = 1 / 20
GOAL_INFO_MS, GOAL_EVICT_SECONDS = 10.0, 0.2
WAYS = {"lmstash, texts": "texts", "lmstash, token ids": "ids", "lmstash, one token each": "single"}


class Work:
    """The prompts in each form, and their vectors."""

    def __init__(self, count: int) -> None:
        self.tokenizer = workloads.tokenizer()
        texts = workloads.texts(count)
        ids: list[list[int]] = self.tokenizer(texts)["input_ids"]
        order = sorted(range(count), key=lambda row: -len(ids[row]))  # as lmstash asks an extractor
        self.texts = [texts[row] for row in order]
        ids = [ids[row] for row in order]
        self.vectors = workloads.vectors(count, HIDDEN)
        self.prompts: dict[str, list[Any]] = {
            "texts": self.texts,
            "ids": ids,
            "single": [[number] for number in range(count)],
        }
        by_ids = workloads.VectorsAtHand({tuple(each): row for row, each in enumerate(ids)}, self.vectors)
        by_number = workloads.VectorsAtHand({(row,): row for row in range(count)}, self.vectors)
        self.extractors = {"texts": by_ids, "ids": by_ids, "single": by_number}

    def activations(self, folder: Path, form: str) -> tuple[Any, Any]:
        """Open lmstash in `folder`; returns the stash and its activations."""
        import lmstash

        stash = lmstash.open(folder, strict=True, trust_env=False)
        return stash, stash.activations(None, self.tokenizer, extractor=self.extractors[form])


def save(work: Work, scratch: Scratch, rounds: int) -> dict[str, Timing]:
    """Save everything into empty folders; what the last round wrote stays."""

    def lmprobe(timing: Timing) -> None:
        cache = workloads.use_lmprobe(scratch.fresh("lmprobe"))
        with timing.measure(2 * work.vectors.nbytes):
            for text, vector in zip(work.texts, work.vectors, strict=True):
                cache.save_prompt_pooled_activations(workloads.NAME, text, [0], vector[None], "last_token")

    def lmstash(form: str) -> Callable[[Timing], None]:
        def once(timing: Timing) -> None:
            stash, acts = work.activations(scratch.fresh(form), form)
            with timing.measure(2 * work.vectors.nbytes):
                acts(work.prompts[form], 0, "last", cache_only=True, progress=False)
                stash.flush()
            assert stash.stats.puts >= len(work.texts)
            stash.close()

        return once

    def bare(timing: Timing) -> None:
        folder = scratch.fresh("bare")
        values = work.vectors.numpy().tobytes()
        with timing.measure(2 * work.vectors.nbytes):
            file = os.open(folder / "values", os.O_CREAT | os.O_WRONLY, 0o600)
            os.pwrite(file, values, 0)
            os.fdatasync(file)
            os.close(file)

    def least(timing: Timing) -> None:
        """What no store of this kind can spare: a name, a checksum and a row for each, and the bytes on the disk."""
        folder = scratch.fresh("least")
        index = apsw.Connection(str(folder / "index.db"))
        index.execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL")
        index.execute("CREATE TABLE entries(k INTEGER PRIMARY KEY, key BLOB, place BLOB)")
        ids, values = [array("I", prompt).tobytes() for prompt in work.prompts["single"]], work.vectors.numpy()
        with timing.measure(2 * work.vectors.nbytes):
            keys = [hashlib.sha256(each).digest() for each in ids]
            places = [struct.pack("<IQIQI", 1, 0, 0, HIDDEN, xxh3_64_intdigest(each) >> 32) for each in values]
            file = os.open(folder / "values", os.O_CREAT | os.O_WRONLY, 0o600)
            os.pwrite(file, values.data, 0)
            rows = [(xxh3_64_intdigest(key) - (1 << 63), key, place) for key, place in zip(keys, places, strict=True)]
            for start in range(0, len(rows), ROWS_TOGETHER):
                with index:
                    index.executemany("INSERT INTO entries VALUES(?, ?, ?)", rows[start : start + ROWS_TOGETHER])
            os.fdatasync(file)
            index.execute("PRAGMA synchronous = FULL; UPDATE entries SET place = place WHERE k = ?", rows[-1][:1])
            os.close(file)
        index.close()

    runs: dict[str, Callable[[Timing], None]] = {name: lmstash(form) for name, form in WAYS.items()}
    limits = {"a name, a sum and a row each, and the bytes": least, "bare pwrite + fdatasync": bare}
    return interleave({"lmprobe": lmprobe, **runs, **limits}, rounds)


def load(work: Work, scratch: Scratch, rounds: int) -> dict[str, Timing]:
    """Load everything, pages there; the results are compared with what was saved."""

    def lmprobe(timing: Timing) -> None:
        cache = workloads.use_lmprobe(scratch.path / "lmprobe")
        with timing.measure(2 * work.vectors.nbytes):
            loaded = cache.load_pooled_batch(workloads.NAME, work.texts, [0], "last_token")
        assert torch.equal(loaded, work.vectors)

    def lmstash(form: str) -> Callable[[Timing], None]:
        def once(timing: Timing) -> None:
            stash, acts = work.activations(scratch.path / form, form)
            with timing.measure(2 * work.vectors.nbytes):
                loaded = acts(work.prompts[form], 0, "last", on_miss="error")
            assert torch.equal(loaded[:, 0], work.vectors)
            stash.close()

        return once

    def tokenizing(timing: Timing) -> None:
        with timing.measure(2 * work.vectors.nbytes):
            work.tokenizer(work.texts)

    def copying(timing: Timing) -> None:
        source = touched(work.vectors.nbytes)
        with timing.measure(2 * work.vectors.nbytes):
            source.copy()

    runs: dict[str, Callable[[Timing], None]] = {name: lmstash(form) for name, form in WAYS.items()}
    others = {"the tokenizer alone": tokenizing, "copying the bytes": copying}
    return interleave({"lmprobe": lmprobe, **runs, **others}, rounds)


def load_cold(task: dict[str, Any]) -> dict[str, float]:
    """In a new process, pages dropped: what one load takes, opening included."""
    workloads.quiet()
    work = Work(task["count"])
    folder = Path(task["folder"])
    timing = Timing()
    import lmstash

    with lmstash.open("memory://", trust_env=False) as small:  # loads the modules
        small.activations(None, work.tokenizer, extractor=work.extractors["single"])([[1]], 0, "last")
    import lmstash.store.disk.store

    cache = workloads.use_lmprobe(folder / "lmprobe")
    drop_pages(folder)
    if task["form"] == "lmprobe":
        with timing.measure(2 * work.vectors.nbytes):
            loaded = cache.load_pooled_batch(workloads.NAME, work.texts, [0], "last_token")
    else:
        with timing.measure(2 * work.vectors.nbytes):
            stash, acts = work.activations(folder / task["form"], task["form"])
            loaded = acts(work.prompts[task["form"]], 0, "last", on_miss="error")[:, 0]
        stash.close()
    assert torch.equal(loaded, work.vectors)
    return {"wall": timing.seconds, "cpu": timing.cpu_seconds}


def upkeep(report: Report, work: Work, scratch: Scratch) -> None:
    """Say what is held, evict half, clear the rest: each once, in what `save` left."""
    import lmstash
    from lmstash.adapters import lmprobe as adapter

    cache = workloads.use_lmprobe(scratch.path / "lmprobe")
    stash, _ = work.activations(scratch.path / "ids", "ids")
    indexed = lmstash.open(scratch.fresh("adapter"), strict=True, trust_env=False)
    adapter.set_cache_backend(indexed)
    adapter.CachedExtractor(workloads.Wide(1, 1, HIDDEN, 256)).extract(work.texts, cache_only=True)
    taken: dict[str, tuple[Timing, Timing]] = {}

    def time_both(what: str, theirs: Callable[[], Any], ours: Callable[[], Any]) -> tuple[Any, Any]:
        timings = taken[what] = (Timing(), Timing())
        with timings[0].measure():
            first = theirs()
        with timings[1].measure():
            second = ours()
        return first, second

    _, info = time_both("info", cache.cache_info, stash.info)
    theirs, ours = time_both("cache_info (lmprobe's names)", cache.cache_info, adapter.cache_info)
    assert theirs.models[0].num_prompts == len(work.texts) == ours.models[0].num_prompts
    half = info.physical_bytes - sum(each.nbytes for each in info.namespaces) // 2
    cache.set_cache_limit(theirs.total_size_bytes / 2 / 2**30)
    time_both("evict half", cache.evict, lambda: stash.store.evict(half))
    left = cache.cache_info().models[0].num_prompts, stash.info().entries
    time_both("clear the rest", cache.clear_cache, stash.clear)
    cache.set_cache_limit(None)
    adapter.set_cache_backend("memory://")
    indexed.close()
    stash.close()
    rows = [
        [what, 1000 * first.seconds, 1000 * second.seconds, second.seconds / first.seconds]
        for what, (first, second) in taken.items()
    ]
    title = f"Upkeep at {len(work.texts):,} entries (after eviction {left[0]:,} and {left[1]:,} are left)"
    report.table(title, ["what", "lmprobe, ms", "lmstash, ms", "ratio"], rows)
    report.goal("info", 1000 * taken["info"][1].seconds, GOAL_INFO_MS, unit=" ms")
    by_name = taken["cache_info (lmprobe's names)"][1].seconds
    report.goal("cache_info of the adapter", 1000 * by_name, GOAL_INFO_MS, unit=" ms")
    report.goal("evicting half", taken["evict half"][1].seconds, GOAL_EVICT_SECONDS, unit=" s")


def main() -> None:
    args = arguments(__doc__)
    if args.worker:
        print(json.dumps(load_cold(json.loads(args.worker))))
        return
    workloads.quiet()
    report = Report("pooled_lmprobe", quick=args.quick)
    count = 1_000 if args.quick else 10_000
    rounds = args.rounds or (1 if args.quick else 3)
    work = Work(count)
    with Scratch(args.dir) as scratch:
        for what, measure in (("save", save), ("load", load)):
            timings = measure(work, scratch, rounds)
            base = timings["lmprobe"]
            rows = []
            for name, each in timings.items():
                share = ratio(each.wall, base.wall)
                cells = [each.seconds, each.cpu_seconds, 1e6 * each.seconds / count]
                rows.append([name, *cells, share, ratio(each.cpu, base.cpu)])
                if name in WAYS:
                    report.goal(f"{what} of {count:,} ({name}) against lmprobe", share, GOAL_SHARE, unit="x")
            columns = ["who", "wall, s", "CPU, s", "us a prompt", "of lmprobe's wall", "of its CPU"]
            report.table(f"{what.capitalize()} {count:,} pooled vectors of {HIDDEN} float32", columns, rows)
        rows = []
        for form in ("lmprobe", "texts", "ids"):
            taken = in_new_process({"folder": str(scratch.path), "form": form, "count": count})
            rows.append([form if form == "lmprobe" else f"lmstash, {form}", taken["wall"], taken["cpu"]])
        report.table("Load in a new process, pages dropped, opening counted", ["who", "wall, s", "CPU, s"], rows)
        upkeep(report, work, scratch)
    report.finish()


if __name__ == "__main__":
    main()
