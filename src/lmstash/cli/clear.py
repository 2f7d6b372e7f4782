"""Remove every entry. Shows how many those are, and asks. Files that lmstash did not write are never touched."""

from __future__ import annotations

import argparse

from lmstash.cli.output import print_json, size
from lmstash.cli.place import UNANSWERED, confirmed, open_named
from lmstash.store.base import Removed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --yes."""
    parser.add_argument("--yes", action="store_true", help="do not ask")


def run(arguments: argparse.Namespace) -> int:
    """Remove everything, once the person agrees."""
    with open_named(arguments, write=True) as stash:
        info = stash.info()
        would = Removed(info.entries, sum(each.nbytes for each in info.namespaces))
        answer = confirmed(arguments, would, "(all)")
        removed = stash.clear() if answer else None
    if arguments.json:
        done = None if removed is None else {"entries": removed.entries, "nbytes": removed.nbytes}
        print_json("clear", would_remove={"entries": would.entries, "nbytes": would.nbytes}, removed=done)
    elif removed is not None:
        print(f"removed {removed.entries:,} entries ({size(removed.nbytes)})")
    return UNANSWERED if answer is None else 0
