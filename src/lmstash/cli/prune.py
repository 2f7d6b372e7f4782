"""Remove the entries that meet every condition given. Shows how many those are, and asks."""

from __future__ import annotations

import argparse

from lmstash.cli.output import parse_age, print_json, size
from lmstash.cli.place import UNANSWERED, confirmed, open_named, say_models


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the conditions."""
    parser.add_argument("--kind", help="for instance activations")
    parser.add_argument("--model", help="a model's name, its last part, or 8 or more leading digits of its fingerprint")
    parser.add_argument("--tag", help="entries with this tag, a word or NAME=VALUE; may be a pattern: task=gsm8k*")
    parser.add_argument("--older", metavar="AGE", help="not used for this long, for instance 7d, 12h, 30m")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    parser.add_argument("--yes", action="store_true", help="do not ask")


def run(arguments: argparse.Namespace) -> int:
    """Remove what meets the conditions, once the person agrees."""
    conditions = {
        "kind": arguments.kind,
        "model": arguments.model,
        "tag": arguments.tag,
        "older_than": parse_age(arguments.older) if arguments.older else None,
    }
    with open_named(arguments, write=not arguments.dry_run) as stash:
        would = stash.prune(**conditions, dry_run=True)
        if not would.entries:
            say_models(stash.store, arguments.model)
        counted = {"entries": would.entries, "nbytes": would.nbytes}
        answer = False if arguments.dry_run else confirmed(arguments, would, "that meet the conditions")
        removed = stash.prune(**conditions) if answer else None
    if arguments.json:
        done = None if removed is None else {"entries": removed.entries, "nbytes": removed.nbytes}
        print_json("prune", would_remove=counted, removed=done)
    elif removed is not None:
        print(f"removed {removed.entries:,} entries ({size(removed.nbytes)})")
    elif arguments.dry_run:
        print(f"would remove {would.entries:,} entries ({size(would.nbytes)})")
    return UNANSWERED if answer is None else 0
