"""Remove the least valuable entries until the stash takes at most a given size. The stash's limit stays as it is.

Exit code 1 when it takes more all the same: pinned entries stay, and so does what an empty stash takes.
"""

from __future__ import annotations

import argparse

from lmstash.cli.output import print_json, say, size
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
        if after > to_bytes:
            say(f"that is more than {size(to_bytes)}: what is pinned stays, and what an empty stash takes")
    return int(after > to_bytes)
