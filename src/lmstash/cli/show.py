"""Print everything known of one entry: what it answers, what it cost, when it was used, which tensors it holds.

Of a response, the request and the answer, in full.
"""

from __future__ import annotations

import argparse
from typing import Any

from lmstash.caches.models import ModelNames
from lmstash.cli.exchanges import KIND, body_of, exchange_of, in_full
from lmstash.cli.output import age, clip, facts, print_json, since, size, style
from lmstash.cli.place import describe, find_entry, model_of, open_named
from lmstash.errors import FormatError
from lmstash.store.base import EntryInfo, Store

TENSOR_KINDS = ("activations", "tensors", "kv", "logprobs")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the key."""
    parser.add_argument("key", metavar="KEY", help="the entry's key in hex; its first digits will do")


def run(arguments: argparse.Namespace) -> int:
    """Print one entry."""
    with open_named(arguments) as stash:
        entry = find_entry(stash.store, arguments.key)
        tensors = read_layout(stash.store, entry)
        asked = exchange_of(stash.store, entry) if entry.kind == KIND else {}
        model = model_of(entry, ModelNames(stash.store))
    described = describe(entry)
    if arguments.json:
        print_json("show", entry=described | {"tensors": tensors} | asked)
        return 0
    print(style(described["key"], "bold"))
    lines = [
        ("namespace", entry.namespace),
        ("model", model),
        *((f"id: {name}", clip(value, 100)) for name, value in described["components"].items()),
        *((name, clip(value, 100)) for name, value in described["meta"].items() if shown(name, value)),
        ("value", size(entry.nbytes)),
        *(("tensor", f"{each['name']}  {each['dtype']}  {each['shape']}") for each in tensors or ()),
        ("covers", f"{entry.n_tokens:,} tokens"),
        ("cost", f"{entry.compute_seconds:.3g} s to compute"),
        ("created", since(entry.created)),
        ("used", f"{since(entry.last_used)}, {entry.hits:,} hits"),
        ("expires", "never" if entry.expires is None else expiry(entry.expires)),
        ("pinned", "yes" if entry.pinned else "no"),
        ("parent", entry.parent.hex() or "-"),
    ]
    print(facts(lines))
    for name, value in asked.items():
        print(f"\n{style(name, 'bold')}\n{in_full(body_of(value) if name == 'answer' else value)}")
    return 0


def shown(name: str, value: Any) -> bool:
    """Whether a fact has a line of its own."""
    return name not in ("model", "name") and value not in ("", [], None)


def expiry(moment: float) -> str:
    """Return when an entry expires or expired."""
    import time

    left = moment - time.time()
    return f"in {age(left)}" if left > 0 else f"expired {age(-left)} ago"


def read_layout(store: Store, entry: EntryInfo) -> list[dict[str, Any]] | None:
    """Return names, dtypes and shapes of the tensors an entry holds; None where it holds something else."""
    if entry.kind not in TENSOR_KINDS:
        return None
    from lmstash.codecs.tensors import decode_header

    value = store.peek_many([entry.key])[0]
    if value is None:
        return None
    try:
        layout = decode_header(value)
    except FormatError:
        return None
    return [{"name": each.name, "dtype": each.dtype, "shape": list(each.shape)} for each in layout.tensors.values()]
