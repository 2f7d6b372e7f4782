"""What is kept of a model's class from run to run: which attributes it changes, and how they were in the last run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lmstash.adapters.lmms_eval.who.growth import bare
from lmstash.caches.between_runs import listed, never_the_same
from lmstash.identity.encoding import Component
from lmstash.identity.keys import Key
from lmstash.store.base import Store

STATE = "lmms_eval/state"
"""Where it is kept which attributes of which class are counters and logs."""


def kept_changes(store: Store, lm: Any, parts: Mapping[str, bytes], harmless: frozenset[str]) -> frozenset[str] | None:
    """Return what models of this class were seen to change; None where none has answered yet.

    Args:
        store: Where that is kept.
        lm: The model object.
        parts: As it was read.
        harmless: Names of attributes that change no answer.
    """
    key = _key(lm, parts, harmless)
    try:
        kept = store.get(key) if store.contains(key) else None
        return None if kept is None else frozenset(map(str, json.loads(bytes(kept))))
    except (ValueError, TypeError):
        return None


def save_changes(
    store: Store, lm: Any, parts: Mapping[str, bytes], harmless: frozenset[str], changes: frozenset[str]
) -> None:
    """Keep it. Arguments are those of `kept_changes`."""
    store.put(_key(lm, parts, harmless), json.dumps(sorted(changes)).encode(), namespace=STATE)


def tell_what_never_stays(
    store: Store, lm: Any, name: str | None, parts: Mapping[str, bytes], values: Mapping[str, bytes]
) -> None:
    """Warn of attributes and globals that were new in each of the last runs: no answer of theirs was found.

    Args:
        store: Where it is noted.
        lm: The model object.
        name: What the harness calls it.
        parts: All that counts.
        values: Those among these that may be told to be harmless.
    """
    kind = _name_of(lm)
    code: dict[Component, Component] = {part: data for part, data in parts.items() if part not in values}
    found = never_the_same(store, ["lmms_eval model", kind, name], code, values)
    if found:
        said = sorted({bare(each) or each.partition(":")[2] for each in found})
        store.events.warn_once(
            f"runs {kind}",
            "lmstash: %s of %s had new values in each of the last 3 runs, so that what those kept was not found. If "
            "the program makes them anew each time and they change no answer, say ResponseCache(..., harmless=%s)",
            *(listed(said), kind, said[:5]),
        )


def _key(lm: Any, parts: Mapping[str, bytes], harmless: frozenset[str]) -> bytes:
    # Its class's code, without the globals that this names.
    code = {name: data for name, data in parts.items() if name.startswith("code:") and ":" not in name[5:]}
    said = {"what": f"{STATE} 5", "class": _name_of(lm), "code": {**code}, "harmless": sorted(harmless)}
    return Key(said).digest


def _name_of(lm: Any) -> str:
    return f"{type(lm).__module__}.{type(lm).__qualname__}"
