"""Say why a look-up hits or misses, and which part of its identity differs from the nearest kept entry.

`lmstash why KEY` asks about one key. `lmstash why --prompt TEXT` asks about an activation as a program would, by what
it names: --model, --layer, --site, --pool, --storage; parts that are not named are not compared. `--tokens 1,2,3` asks
by token ids instead, which also tells where a text cannot: of raw values that are shared with other prompts. `lmstash
why --request JSON` (or `@FILE`) asks about a response, with --model and --occurrence.

Exit code 1 where the look-up would miss, and where that cannot be told (`"hit": null`).
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from lmstash.cli.output import clip, facts, print_json, style
from lmstash.cli.place import find_entry, open_named, plain
from lmstash.errors import InvalidArgumentError, LmstashError, NotFoundError
from lmstash.store.base import EntryInfo, Store


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the two ways of asking."""
    parser.add_argument("key", metavar="KEY", nargs="?", help="a key in hex; its first digits will do")
    parser.add_argument("--prompt", metavar="TEXT", help="the prompt that was looked up")
    parser.add_argument("--tokens", metavar="IDS", help="the prompt that was looked up, as token ids: 1,2,3")
    parser.add_argument("--request", metavar="JSON", help="the request that was looked up, or @FILE that holds it")
    parser.add_argument("--occurrence", metavar="N", type=int, default=0, help="the how-manieth answer (default: 0)")
    parser.add_argument("--model", help="a model's name, its last part, or 8 or more leading digits of its fingerprint")
    parser.add_argument("--layer", type=int, help="the layer that was looked up")
    parser.add_argument("--site", help="the site that was looked up, for instance block_out")
    parser.add_argument("--pool", help="the pooling that was looked up: last, mean, a token index, or none for raw")
    parser.add_argument("--storage", help="the dtype it is kept in: exact, float16, bfloat16 or float32")
    parser.add_argument("--kind", default="activations", help="the kind to look among (default: activations)")


def run(arguments: argparse.Namespace) -> int:
    """Answer; exit code 1 where the look-up would miss, or where that cannot be told."""
    if [arguments.key, arguments.prompt, arguments.tokens, arguments.request].count(None) != 3:
        raise InvalidArgumentError("give a KEY, --prompt TEXT, --tokens IDS or --request JSON (one of them)")
    with open_named(arguments) as stash:
        if arguments.request is not None:
            from lmstash.cli.why_request import by_request

            answer = by_request(stash.store, arguments.request, arguments.model, arguments.occurrence)
        elif arguments.key is not None:
            answer = by_key(stash.store, arguments.key)
        else:
            from lmstash.cli.why_prompt import by_prompt

            answer = by_prompt(stash.store, arguments)
    if arguments.json:
        print_json("why", **answer)
    else:
        print(style(answer["answer"], "green" if answer["hit"] else "yellow"))
        which = "entry" if answer["hit"] else "nearest kept entry"
        shown = [(which, answer["nearest"][:16])] if answer.get("nearest") else []
        if answer.get("models"):
            digits = ", ".join(answer["models"])
            shown.append(("of model", f"{digits}; another one misses: compare with lmstash.fingerprint(model).hex"))
        shown += [(each["name"], f"asked {each['asked']}; kept {each['kept']}") for each in answer["differences"]]
        if shown:
            print(facts(shown))
    return 0 if answer["hit"] else 1


def by_key(store: Store, text: str) -> dict[str, Any]:
    """Say whether the value under a key would be served, by reading it."""
    try:
        entry = find_entry(store, text)
    except NotFoundError:
        return miss(
            f"miss (absent): nothing is kept under {text}. A key is a digest and cannot be read backwards; "
            "ask with --prompt to see which part differs from what is kept"
        )
    if entry.expires is not None and entry.expires <= time.time():
        return miss("miss (expired): the entry is older than its ttl_seconds", entry)
    try:
        value = store.peek_many([entry.key])[0]
        if value is None:
            value = store.get(entry.key)  # says why not
    except LmstashError as error:
        return miss(f"miss (damaged or unreadable): {error}", entry)
    if value is None:
        reasons = ", ".join(store.events.stats.misses)
        return miss(
            f"miss ({reasons}): the entry is listed, but its bytes cannot be served. Run: lmstash verify", entry
        )
    return {"hit": True, "answer": "hit: kept, and its checksum agrees", "nearest": entry.key.hex(), "differences": []}


def miss(answer: str, nearest: EntryInfo | None = None, differing: list[tuple[str, Any, Any]] | None = None) -> Any:
    """Return the answer to a look-up that would miss, with the nearest kept entry and (name, asked, kept) of it."""
    differences = [
        {"name": name, "asked": clip(plain(ours), 80), "kept": clip(plain(theirs), 80)}
        for name, ours, theirs in differing or ()
    ]
    return {
        "hit": False,
        "answer": answer,
        "nearest": nearest.key.hex() if nearest is not None else None,
        "differences": differences,
    }
