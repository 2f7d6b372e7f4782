"""Say why a look-up hits or misses, and which part of its identity differs from the nearest kept entry.

`lmstash why KEY` asks about one key. `lmstash why --prompt TEXT` asks about an activation as a program would, by what
it names: --model, --layer, --site, --pool, --storage; parts that are not named are not compared. `lmstash why
--request JSON` (or `@FILE`) asks about a response, with --model and --occurrence.
"""

from __future__ import annotations

import argparse
import difflib
import time
from dataclasses import dataclass
from typing import Any

from lmstash.cli.models import explain_models
from lmstash.cli.output import clip, facts, print_json, style
from lmstash.cli.place import components, find_entry, model_of, open_named, plain
from lmstash.errors import InvalidArgumentError, LmstashError, NotFoundError
from lmstash.store.base import EntryInfo, Store

TEXT_CHARACTERS = 200
"""How much of a prompt an entry keeps."""
_PARTS = ("model", "layer", "site", "pool", "storage")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the two ways of asking."""
    parser.add_argument("key", metavar="KEY", nargs="?", help="a key in hex; its first digits will do")
    parser.add_argument("--prompt", metavar="TEXT", help="the prompt that was looked up")
    parser.add_argument("--request", metavar="JSON", help="the request that was looked up, or @FILE that holds it")
    parser.add_argument("--occurrence", metavar="N", type=int, default=0, help="the how-manieth answer (default: 0)")
    parser.add_argument("--model", help="a model's name, or 8 or more leading hex digits of its fingerprint")
    parser.add_argument("--layer", type=int, help="the layer that was looked up")
    parser.add_argument("--site", help="the site that was looked up, for instance block_out")
    parser.add_argument("--pool", help="the pooling that was looked up: last, mean, a token index, or none for raw")
    parser.add_argument("--storage", help="the dtype it is kept in: exact, float16, bfloat16 or float32")
    parser.add_argument("--kind", default="activations", help="the kind to look among (default: activations)")


def run(arguments: argparse.Namespace) -> int:
    """Answer; exit code 1 where the look-up would miss."""
    if [arguments.key, arguments.prompt, arguments.request].count(None) != 2:
        raise InvalidArgumentError("give a KEY, --prompt TEXT or --request JSON (one of them)")
    with open_named(arguments) as stash:
        if arguments.request is not None:
            from lmstash.cli.why_request import by_request

            answer = by_request(stash.store, arguments.request, arguments.model, arguments.occurrence)
        elif arguments.key is not None:
            answer = by_key(stash.store, arguments.key)
        else:
            answer = by_prompt(stash.store, arguments)
    if arguments.json:
        print_json("why", **answer)
    else:
        print(style(answer["answer"], "green" if answer["hit"] else "yellow"))
        shown = [("nearest kept entry", answer["nearest"][:16])] if answer.get("nearest") else []
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


@dataclass(slots=True)
class _Candidate:
    entry: EntryInfo
    differing: list[tuple[str, Any, Any]]
    likeness: float

    @property
    def distance(self) -> tuple[int, float]:
        return len(self.differing), -self.likeness


def by_prompt(store: Store, arguments: argparse.Namespace) -> dict[str, Any]:
    """Find the entry nearest to what was looked up, and what differs."""
    from lmstash.caches.models import ModelNames, names_model

    names = ModelNames(store)
    asked: dict[str, Any] = {"prompt": arguments.prompt[:TEXT_CHARACTERS]}
    asked |= {name: getattr(arguments, name) for name in _PARTS if getattr(arguments, name) is not None}
    if "pool" in asked:
        asked["pool"] = _read_pool(asked["pool"])
    best: _Candidate | None = None
    silent = total = 0
    for entry in store.entries(f"{arguments.kind}/"):
        total += 1
        text = entry.meta.get("text")
        if not isinstance(text, str):
            silent += 1
            continue
        kept: dict[str, Any] = {**components(entry), "prompt": text[:TEXT_CHARACTERS]}
        if "layers" in kept:  # an entry holds several: the one asked for, if it is among them
            kept["layer"] = asked.get("layer") if asked.get("layer") in kept["layers"] else kept["layers"]
        same = names_model(entry, asked.get("model", ""), names)
        kept["model"] = asked.get("model") if same else model_of(entry, names)
        candidate = _compare(entry, asked, kept)
        if best is None or candidate.distance < best.distance:
            best = candidate
    if best is None:
        hidden = f"; {silent:,} entries keep no text (a private stash)" if silent else ""
        return miss(f"miss (absent): none of {total:,} entries of kind {arguments.kind} keeps a prompt{hidden}")
    if not best.differing:
        if best.entry.expires is not None and best.entry.expires <= time.time():
            return miss("miss (expired): kept, but older than its ttl_seconds", best.entry)
        unnamed = [name for name in _PARTS if name not in asked]
        rest = f" ({', '.join(unnamed)} not compared)" if unnamed else ""
        rest += "; past its first 200 characters a prompt is not compared" if len(arguments.prompt) > 200 else ""
        return {"hit": True, "answer": f"kept{rest}", "nearest": best.entry.key.hex(), "differences": []}
    names = ", ".join(name for name, _, _ in best.differing)
    if "model" in asked and any(name == "model" for name, _, _ in best.differing):
        best.differing += explain_models(store, asked["model"], str(best.entry.meta.get("model", "")))
    return miss(f"miss (absent): {names} not as kept", best.entry, best.differing)


def _compare(entry: EntryInfo, asked: dict[str, Any], kept: dict[str, Any]) -> _Candidate:
    from lmstash.identity.keys import Key

    ours, theirs = Key(asked), Key({name: kept[name] for name in asked if name in kept})
    differing = [(each.name, each.ours, each.theirs) for each in ours.explain(theirs)]
    same = asked["prompt"] == kept["prompt"]
    likeness = 1.0 if same else difflib.SequenceMatcher(None, asked["prompt"], kept["prompt"]).quick_ratio()
    return _Candidate(entry, differing, likeness)


def _read_pool(text: str) -> str | int | None:
    if text.lower() in ("none", "raw"):
        return None
    return int(text) if text.removeprefix("-").isdigit() else text


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
