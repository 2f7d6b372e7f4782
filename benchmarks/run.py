"""Runs the benchmarks of this folder, one process each: `python benchmarks/run.py [WORD ...] [--quick]`.

One that ends with 2 lacks something here (a model, a GPU), says what, and is no failure.

A benchmark is a file `bench_<what>.py` that prints its figures when it is run. Words choose those whose names contain
one of them. What begins with `--` is passed on to each.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Run the chosen benchmarks; returns 1 if one failed."""
    words = [each for each in arguments if not each.startswith("--")]
    options = [each for each in arguments if each.startswith("--")]
    here = Path(__file__).parent
    chosen = [path for path in sorted(here.glob("bench_*.py")) if not words or any(word in path.stem for word in words)]
    if not chosen:
        there = ", ".join(path.stem.removeprefix("bench_") for path in sorted(here.glob("bench_*.py"))) or "none"
        print(f"no benchmark is called {' '.join(words)!r}; there are: {there}", file=sys.stderr)
        return 2
    failed = 0
    for path in chosen:
        print(f"\n== {path.stem}", flush=True)
        failed += subprocess.run([sys.executable, str(path), *options], check=False).returncode not in (0, 2)
    return min(failed, 1)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
