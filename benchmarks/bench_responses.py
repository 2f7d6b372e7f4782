"""100,000 small responses: put, found again one by one and in batches, looked up in vain, opened, and their size.

Requests of about 220 bytes of real text, answers of about 115, one question of an evaluation each. Puts are batches of
256, the flush after them included. Everybody makes their keys from the request in the measured time. `diskcache` and
SQLite (WAL, 256 rows a transaction; SHA-256 of sorted JSON as key, JSON as value) do the same; both keep the answer
alone, ours the request beside it, since it can be searched. lmms-eval's `ResponseCache` is driven as the harness does
it: `execute` over instances, and `finalize`, without which nothing is found. The size is compared with the requests
and answers as plain JSON lines.
"""

from __future__ import annotations

import hashlib
import json
import random
import sqlite3
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from measuring import Report, Scratch, Timing, arguments, interleave, ratio, sync_files

COUNT = 100_000
BATCH = 256
SINGLE = 20_000
GOAL_PUT, GOAL_HIT, GOAL_BATCH_HIT, GOAL_MISS = 20_000, 40_000, 100_000, 60_000
GOAL_PUT_RATIO = 5.0
GOAL_OPEN_MS, GOAL_SIZE, GOAL_SIZE_ZSTD = 20.0, 1.8, 1.3


def words() -> list[str]:
    """Return the words of the standard library's sources: text as people write it."""
    import email
    import unittest

    files = [Path(each.__file__ or "").parent for each in (email, unittest)]
    text = " ".join(path.read_text(errors="replace") for each in files for path in sorted(each.glob("*.py")))
    return text.split()


def work(count: int) -> list[tuple[dict[str, Any], str, dict[str, Any]]]:
    """Return requests, answers and tags."""
    said, draw = words(), random.Random(0)

    def text(n_bytes: int) -> str:
        start, out = draw.randrange(len(said) - 100), ""
        while len(out) < n_bytes:
            out += said[start] + " "
            start += 1
        return out

    return [
        (
            {"prompt": f"Question {number}: {text(170)}\nAnswer:", "max_tokens": 64, "temperature": 0.0},
            text(100),
            {"task": "gsm8k", "doc": number},
        )
        for number in range(count)
    ]


def key_of(request: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


class Lmstash:
    name = "lmstash"
    compress = False

    def __init__(self, folder: Path) -> None:
        import lmstash

        self.stash = lmstash.open(folder, capacity_bytes="2GB", strict=True, trust_env=False)
        self.responses = self.stash.responses(model="provider/model", compress=self.compress)
        self.get = self.responses.get
        self.get_many: Callable[[Sequence[Any]], list[Any]] = self.responses.get_many

    def put(self, part: Sequence[tuple[Any, Any, Any]]) -> None:
        requests, answers, tags = zip(*part, strict=True)
        self.responses.put_many(requests, answers, tags=tags)

    def flush(self) -> None:
        self.stash.flush()

    def close(self) -> None:
        self.stash.close()


class Compressed(Lmstash):
    name = "lmstash, zstd"
    compress = True


class DiskCache:
    name = "diskcache"

    def __init__(self, folder: Path) -> None:
        from diskcache import Cache

        self.folder = folder
        self.cache: Any = Cache(str(folder), size_limit=2**40, eviction_policy="none")

    def put(self, part: Sequence[tuple[Any, Any, Any]]) -> None:
        with self.cache.transact():
            for request, answer, _tags in part:
                self.cache.set(key_of(request), answer)

    def get(self, request: Any) -> Any:
        return self.cache.get(key_of(request))

    def get_many(self, requests: Sequence[Any]) -> list[Any]:
        return [self.get(each) for each in requests]

    def flush(self) -> None:
        sync_files(self.folder)

    def close(self) -> None:
        self.cache.close()


class Sqlite:
    name = "sqlite"

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.base = sqlite3.connect(folder / "cache.db", isolation_level=None)
        self.base.execute("PRAGMA journal_mode=WAL")
        self.base.execute("PRAGMA synchronous=NORMAL")
        self.base.execute("CREATE TABLE IF NOT EXISTS kept (key TEXT PRIMARY KEY, value TEXT)")

    def put(self, part: Sequence[tuple[Any, Any, Any]]) -> None:
        self.base.execute("BEGIN")
        rows = [(key_of(request), json.dumps(answer)) for request, answer, _tags in part]
        self.base.executemany("INSERT OR REPLACE INTO kept VALUES (?, ?)", rows)
        self.base.execute("COMMIT")

    def get(self, request: Any) -> Any:
        row = self.base.execute("SELECT value FROM kept WHERE key = ?", (key_of(request),)).fetchone()
        return None if row is None else json.loads(row[0])

    def get_many(self, requests: Sequence[Any]) -> list[Any]:
        keys = [key_of(each) for each in requests]
        marks = ",".join("?" * len(keys))
        found = dict(self.base.execute(f"SELECT key, value FROM kept WHERE key IN ({marks})", keys))
        return [json.loads(found[key]) if key in found else None for key in keys]

    def flush(self) -> None:
        sync_files(self.folder)

    def close(self) -> None:
        self.base.close()


class LmmsEval:
    name = "lmms-eval"

    def __init__(self, folder: Path) -> None:
        from lmms_eval.caching.response_cache import ResponseCache

        self.cache: Any = ResponseCache.create(str(folder), model="provider/model", model_args="a=1", task_dict={})
        self.answers: Sequence[Any] = ()

    def generate_until(self, _requests: Sequence[Any]) -> Sequence[Any]:
        """Answer as the model that the cache asks for what it has not."""
        return self.answers

    def ask(self, part: Sequence[tuple[Any, Any, Any]]) -> list[Any]:
        return self.cache.execute(self, "generate_until", [instance_of(request, tags) for request, _, tags in part])

    def put(self, part: Sequence[tuple[Any, Any, Any]]) -> None:
        self.answers = [answer for _, answer, _ in part]
        self.ask(part)

    def flush(self) -> None:
        self.cache.finalize(success=True)


def instance_of(request: dict[str, Any], tags: dict[str, Any]) -> Any:
    from lmms_eval.api.instance import Instance

    kwargs = {name: value for name, value in request.items() if name != "prompt"}
    return Instance(
        request_type="generate_until",
        arguments=(request["prompt"], kwargs, None, tags["doc"], tags["task"], "test"),
        idx=0,
        metadata={"task": tags["task"], "doc_id": tags["doc"], "repeats": 1, "split": "test"},
    )


CONTENDERS: tuple[Any, ...] = (Lmstash, Compressed, DiskCache, Sqlite)


def beside_lmms_eval(report: Report, scratch: Scratch, tasks: Sequence[tuple[Any, Any, Any]], rounds: int) -> None:
    """Put, flush included, and find again; fewer of them, since lmms-eval syncs a file for each."""
    folders = {each: scratch.path / f"beside-{each.name}" for each in (Lmstash, LmmsEval)}

    def fill(contender: Any) -> Callable[[Timing], None]:
        def run(timing: Timing) -> None:
            cache = contender(scratch.fresh(folders[contender].name))
            with timing.measure():
                for start in range(0, len(tasks), BATCH):
                    cache.put(tasks[start : start + BATCH])
                cache.flush()
            if contender is Lmstash:
                cache.close()

        return run

    def find(contender: Any) -> Callable[[Timing], None]:
        def run(timing: Timing) -> None:
            cache = contender(folders[contender])
            with timing.measure():
                for start in range(0, len(tasks), 500):
                    part = tasks[start : start + 500]
                    found = cache.ask(part) if contender is LmmsEval else cache.get_many([each[0] for each in part])
                    assert found == [each[1] for each in part]
            if contender is Lmstash:
                cache.close()

        return run

    puts = interleave({each.name: fill(each) for each in folders}, rounds)
    hits = interleave({each.name: find(each) for each in folders}, rounds)
    report.table(
        f"{len(tasks):,} of them beside lmms-eval's ResponseCache, each per second (median of {rounds})",
        ["", "put", "batch, in order"],
        [[name, len(tasks) / puts[name].seconds, len(tasks) / hits[name].seconds] for name in puts],
    )
    times = 1 / ratio(puts[Lmstash.name].wall, puts[LmmsEval.name].wall)
    report.goal("put, times lmms-eval's ResponseCache", times, GOAL_PUT_RATIO, at_least=True, unit="x")


def quiet_lmms_eval() -> None:
    """Its own log says each of its steps."""
    from loguru import logger

    logger.remove()


def main() -> int:
    options = arguments(__doc__)
    count = COUNT // 10 if options.quick else COUNT
    rounds = options.rounds or (1 if options.quick else 3)
    report = Report("responses", quick=options.quick)
    tasks = work(count)
    plain = sum(len(json.dumps({"request": request, "response": answer} | tags)) + 1 for request, answer, tags in tasks)
    draw = random.Random(1)
    asked = draw.sample(tasks, min(SINGLE, count))
    unknown = [request | {"max_tokens": 65} for request, _answer, _tags in asked]
    results: dict[str, dict[str, Timing]] = {}
    opened: dict[str, Any] = {}
    sizes: dict[str, float] = {}
    with Scratch(options.dir) as scratch:

        def fill(contender: Any) -> Callable[[Timing], None]:
            def run(timing: Timing) -> None:
                folder = scratch.fresh(contender.name.replace(", ", "-"))
                cache = contender(folder)
                with timing.measure():
                    for start in range(0, count, BATCH):
                        cache.put(tasks[start : start + BATCH])
                    cache.flush()
                cache.close()
                sizes[contender.name] = sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())

            return run

        results["put"] = interleave({each.name: fill(each) for each in CONTENDERS}, rounds)

        def opening(contender: Any) -> Callable[[Timing], None]:
            def run(timing: Timing) -> None:
                if contender.name in opened:
                    opened[contender.name].close()
                with timing.measure():
                    cache = contender(scratch.path / contender.name.replace(", ", "-"))
                    assert cache.get(asked[0][0]) == asked[0][1]
                opened[contender.name] = cache

            return run

        results["open"] = interleave({each.name: opening(each) for each in CONTENDERS}, rounds)

        def single(cache: Any) -> Callable[[Timing], None]:
            def run(timing: Timing) -> None:
                with timing.measure():
                    for request, answer, _tags in asked:
                        if cache.get(request) != answer:
                            raise AssertionError("a wrong answer")

            return run

        def batches(cache: Any, those: list[Any]) -> Callable[[Timing], None]:
            def run(timing: Timing) -> None:
                with timing.measure():
                    for start in range(0, len(those), 500):
                        part = those[start : start + 500]
                        if cache.get_many([each[0] for each in part]) != [each[1] for each in part]:
                            raise AssertionError("a wrong answer")

            return run

        def misses(cache: Any) -> Callable[[Timing], None]:
            def run(timing: Timing) -> None:
                with timing.measure():
                    for request in unknown:
                        if cache.get(request) is not None:
                            raise AssertionError("a wrong hit")

            return run

        results["hit"] = interleave({name: single(each) for name, each in opened.items()}, rounds)
        results["batch, in order"] = interleave({name: batches(each, tasks) for name, each in opened.items()}, rounds)
        shuffled = draw.sample(tasks, count)
        results["batch, shuffled"] = interleave(
            {name: batches(each, shuffled) for name, each in opened.items()}, rounds
        )
        results["miss"] = interleave({name: misses(each) for name, each in opened.items()}, rounds)
        for each in opened.values():
            each.close()
        quiet_lmms_eval()
        beside_lmms_eval(report, scratch, tasks[: count // 5], rounds)

    n_calls = {"put": count, "hit": len(asked), "miss": len(asked), "batch, in order": count, "batch, shuffled": count}
    rate = {what: {name: n / each.seconds for name, each in results[what].items()} for what, n in n_calls.items()}
    report.table(
        f"{count:,} responses, each per second (median of {rounds})",
        ["", *n_calls, "open and first hit, ms", "size / plain JSON"],
        [
            [
                each.name,
                *[rate[what][each.name] for what in n_calls],
                results["open"][each.name].seconds * 1e3,
                sizes[each.name] / plain,
            ]
            for each in CONTENDERS
        ],
    )
    ours = Lmstash.name
    report.goal("put, flush included", rate["put"][ours], GOAL_PUT, at_least=True, unit="/s")
    report.goal("single hits", rate["hit"][ours], GOAL_HIT, at_least=True, unit="/s")
    report.goal("batch hits, in order", rate["batch, in order"][ours], GOAL_BATCH_HIT, at_least=True, unit="/s")
    report.goal("batch hits, shuffled", rate["batch, shuffled"][ours], GOAL_BATCH_HIT, at_least=True, unit="/s")
    report.goal("single misses", rate["miss"][ours], GOAL_MISS, at_least=True, unit="/s")
    report.goal("open", results["open"][ours].seconds * 1e3, GOAL_OPEN_MS, unit=" ms")
    report.goal("size with zstd / plain", sizes[Compressed.name] / plain, GOAL_SIZE_ZSTD, unit="x")
    report.goal("size / plain", sizes[ours] / plain, GOAL_SIZE, unit="x")
    hits = results["hit"]
    report.note(f"a single hit against diskcache's: {ratio(hits[ours].wall, hits['diskcache'].wall):.2f}x its time")
    report.finish()
    return 0


if __name__ == "__main__":
    sys.exit(main())
