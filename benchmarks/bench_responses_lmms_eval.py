"""100,000 small responses through lmms-eval's own `ResponseCache` and through lmstash's in its place.

Both are driven as the harness drives them: `create`, `execute` over instances with a prompt of 220 bytes, a document
and a `doc_to_visual`, `finalize`; the model is an echo that costs nothing, so that all time is the cache's. "put" is a
first run with what makes its answers durable (lmms-eval's merge into its shared database included, since nothing is
found without it), "hit" a second run of another cache object. lmstash reads each document and what its functions make
of it, lmms-eval does not look at them. The floor is SHA-256 and JSON of each request, and one file written at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.caching.response_cache import ResponseCache as Theirs
from measuring import Report, Timing, arguments, interleave

from lmstash.adapters.lmms_eval import ResponseCache as Ours

N_RESPONSES = 100_000
GOAL_PUT_RATIO, GOAL_PUT_RATE, GOAL_HIT_RATE = 5.0, 20_000, 100_000


class Echo:
    """Answers about 115 bytes at no cost."""

    def __init__(self, docs: list[dict[str, Any]]) -> None:
        self.task_dict = {"mini": {"test": docs}}
        self.batch_size = 1024

    def generate_until(self, requests: list[Any]) -> list[str]:
        return [f"answer to {each.doc_id} " + "y" * 100 for each in requests]


def shown(doc: dict[str, Any]) -> list[Any]:
    """Show nothing: text tasks of the harness have such a function, too."""
    return []


def instances(docs: list[dict[str, Any]]) -> list[Instance]:
    kwargs = {"max_new_tokens": 16, "until": ["\n"], "temperature": 0, "do_sample": False}
    told = {"task": "mini", "repeats": 1, "split": "test"}
    return [
        Instance(
            request_type="generate_until",
            arguments=(doc["question"], kwargs, shown, number, "mini", "test"),
            idx=0,
            metadata={**told, "doc_id": number},
        )
        for number, doc in enumerate(docs)
    ]


def run(cache_class: Any, root: Path, requests: list[Instance], lm: Echo) -> None:
    cache = cache_class.create(str(root), model="echo", model_args="a=1", task_dict={})
    answers = cache.execute(lm, "generate_until", requests)
    cache.finalize(success=True)
    assert len(answers) == len(requests)
    assert answers[-1].startswith(f"answer to {len(requests) - 1} ")


def main() -> None:
    options = arguments(__doc__)
    n = N_RESPONSES // 10 if options.quick else N_RESPONSES
    rounds = options.rounds or 1
    docs = [{"question": f"Question {k}: " + "x" * 200, "answer": str(k)} for k in range(n)]
    requests, lm = instances(docs), Echo(docs)
    folder = Path(tempfile.mkdtemp(dir=options.dir))
    os.environ["LMMS_LOCAL_CACHE"] = ""
    report = Report("bench_responses_lmms_eval", quick=options.quick)
    roots: dict[str, Path] = {}

    def put(name: str, cache_class: Any) -> Callable[[Timing], None]:
        def work(timing: Timing) -> None:
            roots[name] = Path(tempfile.mkdtemp(dir=folder)) / "cache"
            with timing.measure():
                run(cache_class, roots[name], requests, lm)

        return work

    def hit(name: str, cache_class: Any) -> Callable[[Timing], None]:
        def work(timing: Timing) -> None:
            with timing.measure():
                run(cache_class, roots[name], requests, lm)

        return work

    def floor(timing: Timing) -> None:
        place = folder / "floor"
        with timing.measure(), place.open("wb") as file:
            lines = []
            for each in requests:
                text = json.dumps([each.args[0], each.args[1], docs[each.doc_id], each.doc_id]).encode()
                lines.append(hashlib.sha256(text).digest() + text + b"y" * 115)
            file.write(b"".join(lines))
            file.flush()
            os.fsync(file.fileno())

    try:
        puts = interleave({"ours": put("ours", Ours), "theirs": put("theirs", Theirs), "floor": floor}, rounds)
        hits = interleave({"ours": hit("ours", Ours), "theirs": hit("theirs", Theirs)}, rounds)
        sizes = {name: sum(f.stat().st_size for f in root.rglob("*") if f.is_file()) for name, root in roots.items()}
        rows = [
            [f"put, {name}", n / each.seconds, n / each.cpu_seconds, sizes.get(name, 0) / 1e6]
            for name, each in puts.items()
        ]
        rows += [[f"hit, {name}", n / each.seconds, n / each.cpu_seconds, ""] for name, each in hits.items()]
        report.table(f"{n:,} responses", ["", "a second (wall)", "a second (CPU)", "MB"], rows)
        ratio = puts["theirs"].seconds / puts["ours"].seconds
        report.goal("put, times lmms-eval's", ratio, GOAL_PUT_RATIO, at_least=True)
        report.goal("puts a second, flush included", n / puts["ours"].seconds, GOAL_PUT_RATE, at_least=True)
        report.goal("hits a second", n / hits["ours"].seconds, GOAL_HIT_RATE, at_least=True)
        report.finish()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
