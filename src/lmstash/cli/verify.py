"""Read every entry and check every checksum; with --repair drop what is damaged. Exit code 1 when something is."""

from __future__ import annotations

import argparse
import time

from lmstash.cli.output import print_json, say, size, style
from lmstash.cli.place import location, open_named, repair_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --repair."""
    parser.add_argument("--repair", action="store_true", help="drop what is damaged (it will be computed anew)")


def run(arguments: argparse.Namespace) -> int:
    """Check everything."""
    started = time.perf_counter()
    with open_named(arguments, write=arguments.repair) as stash:
        report = stash.verify(repair=arguments.repair)
    seconds = time.perf_counter() - started
    if arguments.json:
        fields = {"entries": report.entries, "nbytes": report.nbytes, "seconds": seconds}
        print_json("verify", ok=report.ok, damaged=report.damaged, repaired=report.repaired, **fields)
        return 0 if report.ok else 1
    for line in report.damaged:
        print(f"{style('damaged', 'red')}  {line}")
    print(f"{report.entries:,} entries, {size(report.nbytes)} checked in {seconds:.1f} s: ", end="")
    if report.ok:
        print(style("all good", "green"))
        return 0
    print(style(f"{len(report.damaged):,} damaged", "red"))
    say("what was damaged has been dropped" if report.repaired else f"drop it with: {repair_line(location(arguments))}")
    return 1
