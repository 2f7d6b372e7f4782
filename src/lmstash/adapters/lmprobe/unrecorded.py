"""What is kept of a prompt that no record tells of: found by the facts that lie beside its entries.

`stash.activations` knows nothing of lmprobe's catalog; but beside each entry it keeps the model's name and a digest of
the prompt's text. Entries of one text are found by going through all of them once, 15 us each; their digests are
remembered until something was put, or a namespace holds more or less than before.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from lmstash.adapters.lmprobe.imported import imported_hash
from lmstash.adapters.lmprobe.source import ROUTER, SITE
from lmstash.caches.activations.context import KIND
from lmstash.caches.activations.unloaded import is_whole, known_tokens, parts_of, raw_layers
from lmstash.caches.models import fingerprint_of, read_digests
from lmstash.identity.tokens import digest_text
from lmstash.stash import Stash
from lmstash.store.base import EntryInfo, Store

_lock = threading.Lock()
_seen: WeakKeyDictionary[Any, tuple[tuple[Any, ...], dict[str, list[bytes]]]] = WeakKeyDictionary()
"""By store: what it held when its entries were last gone through, and the keys of these by the digest of their text."""


@dataclass(frozen=True)
class Kept:
    """Layers that are kept of a prompt in one way."""

    site: str
    pool: str | int | None
    layers: tuple[int, ...]
    n_tokens: int


def kept_by_text(stash: Stash, name: str, prompt: str, models: Collection[str]) -> Iterator[Kept]:
    """Yield what is kept of a text under a model's name, as the facts beside its entries say.

    Raw values are named only where every token of the prompt is known to be kept. Entries under a salt cannot be told
    from others by their facts, so a stash with a salt is told nothing.

    Args:
        stash: Where.
        name: Of the model.
        prompt: The text.
        models: First 16 digits of fingerprints that were read under that name, whatever the entries call them.
    """
    if stash.salt is not None:
        return
    store, text_id = stash.store, digest_text(prompt)
    raw: defaultdict[tuple[str, str, str], list[EntryInfo]] = defaultdict(list)
    for entry in store.describe_many(_keys_by_text(store).get(text_id, [])):
        if entry is None or entry.meta.get("text_id") != text_id:
            continue
        model, parts = fingerprint_of(entry), parts_of(entry)
        site, storage = str(parts.get("site")), str(parts.get("storage"))
        if entry.meta.get("name") != name and model not in models:
            continue
        if parts.get("pool") is None:
            raw[model, storage, site].append(entry)
        else:
            yield Kept(site, parts["pool"], _layers_of(parts), entry.n_tokens)
    for (model, _storage, site), pieces in raw.items():
        if site in (SITE, ROUTER):
            yield from _raw(store, model, site, pieces)


def _raw(store: Store, model: str, site: str, pieces: list[EntryInfo]) -> Iterator[Kept]:
    whole = [piece for piece in pieces if is_whole(piece)]
    for piece in whole:
        yield Kept(site, None, _layers_of(parts_of(piece)), piece.n_tokens)
    tokens = None if whole else known_tokens(store, pieces)
    digest = None if tokens is None else read_digests(store).get(model)
    if tokens is not None and digest is not None:
        layers = sorted({layer for piece in pieces for layer in _layers_of(parts_of(piece))})
        found = raw_layers(store, digest, pieces[0], layers, tokens, salt=None)
        yield Kept(site, None, tuple(found), len(tokens) // 4)


def _layers_of(parts: dict[str, Any]) -> tuple[int, ...]:
    layers = parts.get("layers", [parts.get("layer")])
    return tuple(layer for layer in layers if isinstance(layer, int))


def _keys_by_text(store: Store) -> dict[str, list[bytes]]:
    """Return the keys of all entries of activations by the digest of their text; some may be gone by now."""
    held = (each for each in store.info().namespaces if each.namespace.startswith(f"{KIND}/"))
    now = (store.events.stats.puts, *((each.namespace, each.entries, each.nbytes) for each in held))
    with _lock:
        before = _seen.get(store)
        if before is not None and before[0] == now:
            return before[1]
        found: defaultdict[str, list[bytes]] = defaultdict(list)
        for entry in store.entries(f"{KIND}/") if len(now) > 1 else ():
            text_id = entry.meta.get("text_id")
            if isinstance(text_id, str) and imported_hash(entry.namespace) is None:
                found[text_id].append(entry.key)
        _seen[store] = now, dict(found)
        return _seen[store][1]
