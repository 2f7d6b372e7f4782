"""Write kept responses to a file that other tools read: one row each, with request, answer, tags, time and cost.

`lmstash import responses FILE` reads JSONL back into another stash. Requests and answers are written as JSON; what JSON
has no word for is an object with one key that starts with `$` (`{"$tuple": [...]}`), as docs/format.md says.
"""

from __future__ import annotations

import argparse
import sys

from lmstash.cli.choosing import add_conditions, named_facts
from lmstash.cli.output import print_json, say
from lmstash.cli.place import open_named
from lmstash.errors import InvalidArgumentError
from lmstash.settings import parse_age

FORMATS = ("jsonl", "parquet")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what is written where."""
    parser.add_argument("what", choices=["responses"], help="what is exported")
    parser.add_argument("--format", choices=FORMATS, default="jsonl", help="parquet needs pyarrow (default: jsonl)")
    parser.add_argument("--out", metavar="FILE", required=True, help="the file, replaced if it is there; - is stdout")
    add_conditions(parser, any_kind=False)


def run(arguments: argparse.Namespace) -> int:
    """Write the file, and say how many rows it has."""
    from lmstash.caches.models import ModelNames, names_model
    from lmstash.caches.responses.answers.finding import Conditions
    from lmstash.caches.responses.exporting import export_responses

    if arguments.out == "-" and arguments.json:
        raise InvalidArgumentError("--json prints on stdout, too: name a file with --out")
    older = parse_age(arguments.older) if arguments.older else None
    conditions = Conditions(tag=arguments.tag, text=arguments.text, older_than=older, **named_facts(arguments))
    with open_named(arguments) as stash:
        names = ModelNames(stash.store)
        n_rows = export_responses(
            stash.store,
            sys.stdout if arguments.out == "-" else arguments.out,
            arguments.format,
            conditions=conditions,
            also=lambda entry: arguments.model is None or names_model(entry, arguments.model, names),
        )
    if arguments.json:
        print_json("export", out=arguments.out, format=arguments.format, rows=n_rows)
    else:
        say(f"{n_rows:,} responses written to {arguments.out}")
    return 0
