"""Run an evaluation harness's own command line, and ask the model only what it has not answered before.

    lmstash eval lm_eval --model hf --model_args pretrained=MODEL --tasks TASK
    lmstash eval --model-is 'my-server 2026-11' lm_eval --model gguf --model_args base_url=... --tasks TASK

All that follows the harness's name is its own, and passed on as it stands. An evaluation that was killed goes on where
it was; one with another metric, or on another number of ranks, computes nothing again. At the end it is told how many
requests were answered from the stash.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
from typing import Any

from lmstash.cli.output import print_json
from lmstash.cli.place import location
from lmstash.errors import InvalidArgumentError

HARNESSES = ("lm_eval", "lmms_eval")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what comes before the harness's name."""
    parser.add_argument(
        "--model-is", metavar="NAME", help="declare which model answers, where lmstash cannot see it (vLLM, servers)"
    )
    parser.add_argument("--revision", metavar="TEXT", help="declare the version of a model behind an API")
    parser.add_argument("--imported", metavar="NAME", help="use what `lmstash import lm-eval --model NAME` took over")
    parser.add_argument("--refresh", action="store_true", help="compute anew, and replace what is kept")
    parser.add_argument("harness", choices=HARNESSES, help="whose command line follows")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="passed on as they stand")


def run(arguments: argparse.Namespace) -> int:
    """Hand over to the harness's adapter, and print what became of the requests.

    `lmstash.adapters.HARNESS.launching.run(argv, place, **options)` returns an exit code, and numbers of requests by
    what became of them.
    """
    options: dict[str, Any] = {
        "model": arguments.model_is,
        "revision": arguments.revision,
        "imported": arguments.imported,
        "refresh": arguments.refresh or None,
    }
    given = {name: value for name, value in options.items() if value is not None}
    try:
        launching = importlib.import_module(f"lmstash.adapters.{arguments.harness}.launching")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != arguments.harness:
            raise
        raise InvalidArgumentError(f"{arguments.harness} is not installed in {sys.prefix}: pip install it") from error
    # With --json, stdout is for our document alone.
    with contextlib.redirect_stdout(sys.stderr) if arguments.json else contextlib.nullcontext():
        code, counts = launching.run(arguments.arguments, location(arguments), **given)
    if arguments.json:
        print_json("eval", harness=arguments.harness, exit_code=code, requests=counts)
    else:
        print(f"lmstash: {_said(counts)}", file=sys.stderr)
    return code


def _said(counts: dict[str, int]) -> str:
    asked = counts.get("asked", 0)
    if not asked:
        return "no requests were made"
    kept = {name: number for name, number in counts.items() if number and name not in ("asked", "computed")}
    rest = "".join(f", {number:,} {name}" for name, number in kept.items())
    return f"{asked:,} requests{rest}, {counts.get('computed', 0):,} computed"
