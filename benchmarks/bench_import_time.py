"""What `import lmstash` costs beyond bare Python, and that it loads nothing heavy.

Each figure is a process of its own, the two kinds in turns; the interpreter's own start is taken off.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

from measuring import Report, arguments

HEAVY = ("numpy", "torch", "asyncio", "sqlite3", "apsw", "transformers", "xxhash", "safetensors")
GOAL_MS = 40.0
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def start(code: str) -> tuple[float, float]:
    """Return wall and processor milliseconds of a new interpreter that runs `code`."""
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, env=ENVIRONMENT)
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return 1000 * wall, 1000 * cpu


def main() -> None:
    args = arguments(__doc__)
    report = Report("import_time", quick=args.quick)
    rounds = args.rounds or (5 if args.quick else 31)
    codes = {"bare Python": "pass", "import lmstash": "import lmstash", "import json (for scale)": "import json"}
    for code in codes.values():
        start(code)  # bytecode and pages are there from now on
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in codes}
    for _ in range(rounds):
        for name, code in codes.items():
            taken[name].append(start(code))
    rows = []
    for name, times in taken.items():
        added = [each[0] - bare[0] for each, bare in zip(times, taken["bare Python"], strict=True)]
        wall, cpu = (statistics.median(each[place] for each in times) for place in (0, 1))
        rows.append([name, wall, cpu, statistics.median(added)])
    report.table("A new process", ["what", "wall, ms", "CPU, ms", "beyond bare Python, ms"], rows)
    code = (
        "import sys; bare = set(sys.modules); import lmstash, json; print(json.dumps(sorted(set(sys.modules) - bare)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    modules = done.stdout.split()
    loaded = [name for name in HEAVY if name in modules]
    print(f"\n{len(modules)} modules: {', '.join(modules)}")
    report.goal("import lmstash beyond bare Python", rows[1][3], GOAL_MS, unit=" ms")
    report.goal(f"heavy modules loaded (of {', '.join(HEAVY)})", len(loaded), 0)
    report.finish()


if __name__ == "__main__":
    main()
