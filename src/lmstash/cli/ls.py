"""List entries, the most recently used first, by kind, model, tag, text, size or age."""

from __future__ import annotations

import argparse
import heapq
import sys
import time
from collections.abc import Callable
from typing import Any

from lmstash.cli.output import age, clip, parse_age, print_json, say, size, table
from lmstash.cli.place import components, describe, model_of, open_named
from lmstash.settings import parse_bytes
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
    parser.add_argument("--kind", help="for instance activations")
    parser.add_argument("--model", help="a model's name, or 8 or more leading hex digits of its fingerprint")
    parser.add_argument("--tag", help="entries that were put with this tag")
    parser.add_argument("--text", help="entries whose kept text contains this (private stashes keep none)")
    parser.add_argument("--larger", metavar="SIZE", help="values over this size, for instance 1MB")
    parser.add_argument("--older", metavar="AGE", help="not used for this long, for instance 7d, 12h, 30m")
    parser.add_argument("--sort", choices=ORDERS, default="used", help="greatest first (default: used)")
    parser.add_argument("--limit", metavar="N", type=int, default=50, help="at most this many, 0 for all (default: 50)")


def run(arguments: argparse.Namespace) -> int:
    """Print the entries that meet every filter."""
    chosen = build_filter(arguments)
    namespace = f"{arguments.kind}/" if arguments.kind else None
    total = nbytes = 0

    def counted(entry: EntryInfo) -> bool:
        nonlocal total, nbytes
        if not chosen(entry):
            return False
        total, nbytes = total + 1, nbytes + entry.nbytes
        return True

    with open_named(arguments) as stash:
        found = filter(counted, stash.store.entries(namespace))
        limit = arguments.limit if arguments.limit > 0 else sys.maxsize
        key = ORDERS[arguments.sort]
        entries = heapq.nlargest(limit, found, key=key) if arguments.limit > 0 else sorted(found, key=key, reverse=True)
    if arguments.json:
        print_json("ls", total=total, nbytes=nbytes, entries=[describe(entry) for entry in entries])
        return 0
    if entries:
        now = time.time()
        rows = [
            (
                entry.key.hex()[:12],
                entry.kind,
                clip(model_of(entry), 24),
                clip(place_of(entry), 28),
                f"{entry.n_tokens:,}" if entry.n_tokens else "-",
                size(entry.nbytes),
                age(now - entry.last_used),
                clip(entry.meta.get("text", ""), 40),
            )
            for entry in entries
        ]
        print(table(rows, ("key", "kind", "model", "site", "tokens", "size", "used", "text"), right="tokens size used"))
    more = f"; --limit 0 shows the other {total - len(entries):,}" if total > len(entries) else ""
    say(f"{total:,} entries, {size(nbytes)}{more}")
    return 0


def place_of(entry: EntryInfo) -> str:
    """Return where in the model a value was read off, in a few words: `block_out 3,7 last`."""
    named = components(entry)
    words = [named[name] for name in ("site", "layer", "layers", "pool") if named.get(name) is not None]
    words = [",".join(map(str, each)) if isinstance(each, list) else each for each in words]
    return " ".join(map(str, words)) or "-"


def build_filter(arguments: argparse.Namespace) -> Callable[[EntryInfo], bool]:
    """Return what tells whether an entry meets the filters of the command line.

    Raises:
        InvalidArgumentError: A size or an age cannot be read.
    """
    from lmstash.stash import names_model

    larger = parse_bytes(arguments.larger) if arguments.larger else None
    deadline = time.time() - parse_age(arguments.older) if arguments.older else None

    def chosen(entry: EntryInfo) -> bool:
        return (
            (arguments.model is None or names_model(entry, arguments.model))
            and (arguments.tag is None or arguments.tag in entry.meta.get("tags", ()))
            and (arguments.text is None or arguments.text in str(entry.meta.get("text", "")))
            and (larger is None or entry.nbytes > larger)
            and (deadline is None or entry.last_used < deadline)
        )

    return chosen
