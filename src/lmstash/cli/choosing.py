"""Which entries a command line means: the conditions that `ls`, `prune` and `export` share."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator

from lmstash.caches.models import ModelNames, names_model
from lmstash.caches.tags import NAMED, has_tag, is_like
from lmstash.cli.exchanges import KIND
from lmstash.errors import InvalidArgumentError
from lmstash.settings import parse_age, parse_bytes
from lmstash.store.base import EntryInfo, Store


def add_conditions(parser: argparse.ArgumentParser, *, any_kind: bool = True) -> None:
    """Add a filter for each condition; `any_kind`: those that only other kinds than responses have, too."""
    if any_kind:
        parser.add_argument("--kind", help="for instance activations")
    parser.add_argument("--model", help="a model's name, its last part, or 8 or more leading digits of its fingerprint")
    parser.add_argument("--tag", help="entries with this tag, a word or NAME=VALUE; may be a pattern: task=gsm8k*")
    for name in NAMED:
        dest = f"of_{name}"  # `run` is what a parsed command line runs
        parser.add_argument(f"--{name}", dest=dest, metavar="WORD", help=f"responses of this {name}; may be a pattern")
    text = "entries whose kept text (of responses: request or answer) contains this; private stashes keep no prompts"
    parser.add_argument(
        "--text", "--grep", help=text if any_kind else "responses whose request or answer contains this"
    )
    if any_kind:
        parser.add_argument("--larger", metavar="SIZE", help="values over this size, for instance 1MB")
    parser.add_argument("--older", metavar="AGE", help="not used for this long, for instance 7d, 12h, 30m")


def named_facts(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the facts of responses that were given: their task, doc, split, run and user."""
    return {name: value for name in NAMED if (value := getattr(arguments, f"of_{name}")) is not None}


def chosen_entries(store: Store, arguments: argparse.Namespace, names: ModelNames) -> Iterator[EntryInfo]:
    """Yield the entries that meet the conditions.

    Raises:
        InvalidArgumentError: A size or an age cannot be read.
    """
    chosen, text, kind = build_filter(arguments, names), arguments.text, arguments.kind
    for entry in store.entries(f"{kind}/" if kind else None):
        if chosen(entry) and (text is None or (entry.kind != KIND and text in str(entry.meta.get("text", "")))):
            yield entry
    if text is not None and kind in (None, KIND):
        from lmstash.caches.responses.answers.finding import Conditions, scan

        yield from (kept.entry for kept in scan(store, Conditions(text=text), also=chosen))


def build_selector(
    store: Store, arguments: argparse.Namespace, names: ModelNames
) -> Callable[[EntryInfo], bool] | None:
    """Return what tells whether an entry of the kind asked for meets the conditions; None: there is but the kind.

    Raises:
        InvalidArgumentError: There is no condition, or a size or an age cannot be read.
    """
    of_entries = ("model", "tag", "larger", "older")
    chosen = build_filter(arguments, names)
    if arguments.text is not None:
        keys = {entry.key for entry in chosen_entries(store, arguments, names)}
        return lambda entry: entry.key in keys and chosen(entry)
    if named_facts(arguments) or any(getattr(arguments, name) is not None for name in of_entries):
        return chosen
    if arguments.kind is None:
        raise InvalidArgumentError(
            "there is no condition: give one, as --older 30d; `lmstash clear` removes everything"
        )
    return None


def build_filter(arguments: argparse.Namespace, names: ModelNames) -> Callable[[EntryInfo], bool]:
    """Return what tells whether an entry meets the conditions, but for kind and text.

    Raises:
        InvalidArgumentError: A size or an age cannot be read.
    """
    larger = parse_bytes(arguments.larger) if arguments.larger else None
    deadline = time.time() - parse_age(arguments.older) if arguments.older else None
    named = named_facts(arguments)

    def chosen(entry: EntryInfo) -> bool:
        return (
            (arguments.model is None or names_model(entry, arguments.model, names))
            and (arguments.tag is None or has_tag(entry.meta, arguments.tag))
            and all(is_like(entry.meta.get(name), value) for name, value in named.items())
            and (larger is None or entry.nbytes > larger)
            and (deadline is None or entry.last_used < deadline)
        )

    return chosen
