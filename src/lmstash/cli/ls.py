"""List entries, the most recently used first, by kind, model, tag, text, size or age; responses by task, too.

An entry that says `(emptied)` holds no layers: `refresh=True` put what it had into another one of the same prompt.
"""

from __future__ import annotations

import argparse
import heapq
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from lmstash.caches.models import ModelNames
from lmstash.cli.choosing import add_conditions, chosen_entries
from lmstash.cli.exchanges import KIND, place_in_task, words_of
from lmstash.cli.output import age, clip, print_json, say, size, table
from lmstash.cli.place import components, describe, model_of, open_named, say_models
from lmstash.store.base import EntryInfo

ORDERS: dict[str, Callable[[EntryInfo], Any]] = {
    "used": lambda entry: entry.last_used,
    "created": lambda entry: entry.created,
    "size": lambda entry: entry.nbytes,
    "hits": lambda entry: entry.hits,
    "seconds": lambda entry: entry.compute_seconds,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the filters."""
    add_conditions(parser)
    parser.add_argument("--sort", choices=ORDERS, default="used", help="greatest first (default: used)")
    parser.add_argument("--limit", metavar="N", type=int, default=50, help="at most this many, 0 for all (default: 50)")


def run(arguments: argparse.Namespace) -> int:
    """Print the entries that meet every filter."""
    total = nbytes = 0

    def counted(entries: Iterator[EntryInfo]) -> Iterator[EntryInfo]:
        nonlocal total, nbytes
        for entry in entries:
            total, nbytes = total + 1, nbytes + entry.nbytes
            yield entry

    with open_named(arguments) as stash:
        names = ModelNames(stash.store)
        found = counted(chosen_entries(stash.store, arguments, names))
        limit = arguments.limit if arguments.limit > 0 else sys.maxsize
        key = ORDERS[arguments.sort]
        entries = heapq.nlargest(limit, found, key=key) if arguments.limit > 0 else sorted(found, key=key, reverse=True)
        said = {} if arguments.json else words_of(stash.store, entries)
        if not entries:
            say_models(stash.store, arguments.model)
    if arguments.json:
        described = [describe(entry) | {"model": model_of(entry, names)} for entry in entries]
        print_json("ls", total=total, nbytes=nbytes, entries=described)
        return 0
    if entries:
        now = time.time()
        rows = [
            (
                entry.key.hex()[:12],
                entry.kind,
                clip(model_of(entry, names), 24),
                clip(place_of(entry), 28),
                f"{entry.n_tokens:,}" if entry.n_tokens else "-",
                size(entry.nbytes),
                age(now - entry.last_used),
                clip(entry.meta.get("text", said.get(entry.key, "")), 60),
            )
            for entry in entries
        ]
        print(table(rows, ("key", "kind", "model", "site", "tokens", "size", "used", "text"), right="tokens size used"))
    more = f"; --limit 0 shows the other {total - len(entries):,}" if total > len(entries) else ""
    say(f"{total:,} entries, {size(nbytes)}{more}")
    return 0


def place_of(entry: EntryInfo) -> str:
    """Return where in the model a value was read off, in a few words: `block_out 3,7 last`."""
    if entry.kind == KIND:
        return place_in_task(entry)
    named = components(entry)
    words = [named[name] for name in ("site", "layer", "layers", "pool") if named.get(name) is not None]
    words = [",".join(map(str, each)) or "(emptied)" if isinstance(each, list) else each for each in words]
    return " ".join(map(str, words)) or "-"
