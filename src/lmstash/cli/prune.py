"""Remove the entries that meet every condition given, as `ls` would list them. Shows how many those are, and asks."""

from __future__ import annotations

import argparse

from lmstash.caches.models import ModelNames
from lmstash.cli.choosing import add_conditions, build_selector
from lmstash.cli.output import print_json, size
from lmstash.cli.place import UNANSWERED, confirmed, open_named, say_models


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the conditions."""
    add_conditions(parser)
    parser.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    parser.add_argument("--yes", action="store_true", help="do not ask")


def run(arguments: argparse.Namespace) -> int:
    """Remove what meets the conditions, once the person agrees."""
    namespace = f"{arguments.kind}/" if arguments.kind else None
    with open_named(arguments, write=not arguments.dry_run) as stash:
        select = build_selector(stash.store, arguments, ModelNames(stash.store))
        would = stash.store.prune(select, namespace=namespace, dry_run=True)
        if not would.entries:
            say_models(stash.store, arguments.model)
        counted = {"entries": would.entries, "nbytes": would.nbytes}
        answer = False if arguments.dry_run else confirmed(arguments, would, "that meet the conditions")
        removed = stash.store.prune(select, namespace=namespace) if answer else None
    if arguments.json:
        done = None if removed is None else {"entries": removed.entries, "nbytes": removed.nbytes}
        print_json("prune", would_remove=counted, removed=done)
    elif removed is not None:
        print(f"removed {removed.entries:,} entries ({size(removed.nbytes)})")
    elif arguments.dry_run:
        print(f"would remove {would.entries:,} entries ({size(would.nbytes)})")
    return UNANSWERED if answer is None else 0
