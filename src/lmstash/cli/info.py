"""Say what a stash holds and how full it is. Reads no entry, so it takes milliseconds whatever the number."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from lmstash.cli.output import facts, print_json, since, size, style, table
from lmstash.cli.place import open_named


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`lmstash info` takes nothing of its own."""


def run(arguments: argparse.Namespace) -> int:
    """Print the fill and the namespaces."""
    with open_named(arguments) as stash:
        info = stash.info()
    if arguments.json:
        print_json("info", **asdict(info))
        return 0
    share = f" ({info.physical_bytes / info.capacity_bytes:.1%})" if info.capacity_bytes else ""
    print(style(info.location, "bold"))
    lines = [
        ("entries", f"{info.entries:,}"),
        ("takes", f"{size(info.physical_bytes)} of {size(info.capacity_bytes)}{share}"),
        ("oldest", since(info.oldest)),
        ("newest", since(info.newest)),
    ]
    print(facts(lines))
    if info.namespaces:
        print()
        rows = [(each.namespace, f"{each.entries:,}", size(each.nbytes)) for each in info.namespaces]
        print(table(rows, ("namespace", "entries", "size"), right="entries size"))
    return 0
