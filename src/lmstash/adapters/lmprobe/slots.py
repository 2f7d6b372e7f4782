"""Facts about model names, in numbered slots that are found by key: asking costs the same however much is kept.

A slot is taken once and not changed, so no two writers lose one another's. Slots may be evicted like everything else,
so whoever depends on a fact asks now and then whether its slot is still there, and takes one again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from lmstash.codecs.records import decode_record, encode_record
from lmstash.errors import FormatError
from lmstash.identity.keys import Key, KeyFamily
from lmstash.store.base import Entry, Store, Write

MAX_SLOTS = 1024
"""Facts that are told apart under one model name."""
FACTS = "lmprobe/models"
_SLOTS_AT_ONCE = 16
_OWN = re.compile(rf"{FACTS}/([0-9a-f]{{16}})")
_keys = KeyFamily({"what": "lmprobe fact"}, ("model_name", "slot"))


def facts_namespace(model_hash: str) -> str:
    """Where the facts about a model name lie: each name has its own, so that a store's own counters list the names."""
    return f"{FACTS}/{model_hash}"


def names_in(namespaces: Iterable[str]) -> list[str]:
    """Return the hashes of the model names about which these namespaces hold facts."""
    return [match[1] for each in namespaces if (match := _OWN.fullmatch(each))]


def read_facts(store: Store, model_hashes: Sequence[str]) -> dict[str, list[tuple[dict[str, Any], float]]]:
    """Return what is known of some model names: each fact, and when it was first kept (Unix seconds)."""
    out: dict[str, list[tuple[dict[str, Any], float]]] = {each: [] for each in model_hashes}
    pending = list(out)
    for start in range(0, MAX_SLOTS, _SLOTS_AT_ONCE):
        keys = {key: name for name in pending for key in _slots(name, start)}
        there = [key for key, kept in zip(keys, store.contains_many(list(keys)), strict=True) if kept]
        for key, entry in zip(there, store.fetch_many(there), strict=True):
            fact = None if entry is None else _decoded(entry)
            if entry is not None and fact is not None:
                out[keys[key]].append((fact, entry.created))
        going_on = {keys[key] for key in there}
        pending = [name for name in pending if name in going_on]
        if not pending:
            break
    return out


def keep_fact(store: Store, model_hash: str, fact: dict[str, Any], meta: dict[str, Any]) -> bytes:
    """Make sure that a fact about a model name has a slot, and return the slot's key.

    Empty when there is no slot left.
    """
    value = encode_record(fact)
    empty: list[bytes] = []
    for start in range(0, MAX_SLOTS, _SLOTS_AT_ONCE):
        keys = _slots(model_hash, start)
        there = store.contains_many(keys)
        taken = [key for key, kept in zip(keys, there, strict=True) if kept]
        for key, kept in zip(taken, store.get_many(taken), strict=True):
            if kept is not None and bytes(kept) == value:
                return key
        empty += [key for key, kept in zip(keys, there, strict=True) if not kept]
        if not taken:
            break
    for key in empty:
        store.put_many([Write(key, value, namespace=facts_namespace(model_hash), meta=meta)], replace=False)
        now = store.get(key)
        if now is None or bytes(now) == value:
            return key
        # Another writer was faster: the next slot, then.
    return b""


def note_written(store: Store, model_hash: str) -> None:
    """Note that values were kept under a model name just now."""
    store.put(_written(model_hash), b"", namespace=facts_namespace(model_hash), meta={"what": "last written"})


def last_written(store: Store, model_hashes: Sequence[str]) -> list[float]:
    """Return when values were last kept under these names, as far as that is known (Unix seconds)."""
    keys = [_written(each) for each in model_hashes]
    there = [key for key, kept in zip(keys, store.contains_many(keys), strict=True) if kept]
    return [entry.created for entry in store.fetch_many(there) if entry is not None]


def _slots(model_hash: str, start: int) -> list[bytes]:
    return [_keys.digest(model_hash, slot) for slot in range(start, start + _SLOTS_AT_ONCE)]


def _written(model_hash: str) -> bytes:
    return Key({"what": "lmprobe written", "model_name": model_hash}).digest


def _decoded(entry: Entry) -> dict[str, Any] | None:
    try:
        fact = decode_record(bytes(entry.value))
    except FormatError:
        return None
    return fact if isinstance(fact, dict) else None
