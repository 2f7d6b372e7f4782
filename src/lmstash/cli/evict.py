"""Remove the least valuable entries until the stash takes at most a given size. The stash's limit stays as it is."""

from __future__ import annotations

import argparse

from lmstash.cli.output import print_json, size
from lmstash.cli.place import open_named
from lmstash.errors import InvalidArgumentError
from lmstash.settings import parse_bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the size."""
    parser.add_argument("--to", metavar="SIZE", required=True, help="what the stash may take afterwards, as 10GB")


def run(arguments: argparse.Namespace) -> int:
    """Make room."""
    to_bytes = parse_bytes(arguments.to)
    if to_bytes is None:
        raise InvalidArgumentError("--to needs a size, for instance 10GB")
    with open_named(arguments, write=True) as stash:
        before = stash.info().physical_bytes
        removed = stash.store.evict(to_bytes)
        after = stash.info().physical_bytes
    if arguments.json:
        print_json("evict", removed={"entries": removed.entries, "nbytes": removed.nbytes}, before=before, after=after)
    else:
        print(f"removed {removed.entries:,} entries; the stash takes {size(after)} (it took {size(before)})")
    return 0
