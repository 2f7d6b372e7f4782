"""The index by name and prompt: what lmprobe users ask by, while entries are named by who computed them over what.

Three kinds of small entries, found by key and never by listing, so that asking costs the same however much is kept:

* a *reading* for each identity and storage dtype that was read under a model name;
* a *shape* for each set of layers that was kept of a model;
* a *record* for each prompt of a reading: its tokens. Each reading has a namespace for its records, so that the store's
  own counters know how many there are.

None claims that a value is kept. Whether one is, the store is asked by the value's own key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import Any

import numpy as np

from lmstash.adapters.lmprobe.layout import hash16
from lmstash.adapters.lmprobe.slots import keep_fact, read_facts
from lmstash.adapters.lmprobe.source import ROUTER, SITE
from lmstash.caches.activations.context import EXACT, Context
from lmstash.caches.activations.prompts import Prompt
from lmstash.caches.activations.unloaded import UnloadedSource
from lmstash.codecs.records import decode_record, encode_record
from lmstash.errors import FormatError
from lmstash.identity.keys import Key
from lmstash.identity.tokens import digest_text
from lmstash.store.base import Store, Write

LAYERS_TRIED = 256
"""Layers asked for when an extractor does not say how many its model has."""
_RECORDS = "lmprobe/prompts"
_DOMAIN = b"lmstash lmprobe record 1\0"


@dataclass(frozen=True)
class Reading:
    """Who was read under a model name."""

    name: str
    model: bytes
    """Digest of who computed."""
    storage_dtype: str | None
    by_tokens: bool
    """Kept by token ids (a live model), not by text."""
    causal: bool
    n_layers: int | None
    """Layers the model has, when known."""
    width: int | None
    """Values per token of a layer, when known: it decides which layers are kept together."""
    n_experts: int | None
    """Router logits per token, when known and not none."""
    padded_tokens: int | None = None
    """How long batches may be in which prompts are padded, as `Source.padded_tokens`."""

    @property
    def layers(self) -> range:
        """Layers of which something may be kept."""
        return range(LAYERS_TRIED if self.n_layers is None else self.n_layers)

    def source(self) -> UnloadedSource:
        """Return what stands in for the model: enough to name its entries."""
        widths = {SITE: self.width, ROUTER: self.n_experts}
        told = {"layers": self.layers, "widths": widths, "padded_tokens": self.padded_tokens}
        return UnloadedSource(self.name, causal=self.causal, **told)


@dataclass(frozen=True)
class Shape:
    """What was kept of a model, in one call or import, told once for all prompts."""

    name: str | None
    """The model's name, where it is known."""
    model_hash: str
    """Of its name."""
    namespace: str
    """Where the values lie."""
    layers: tuple[int, ...]
    """Raw or pooled."""
    kinds: tuple[str, ...] = ()
    """Which of "pooled", "logits" and "perplexity" are among them."""


@dataclass(frozen=True)
class Record:
    """One prompt under one model name."""

    n_tokens: int
    ids: np.ndarray | None
    """`[n_tokens]` uint32; None when kept by text, or when the stash is private."""
    text: str | None
    """The prompt; None when the stash is private."""


def records_namespace(name: str, model: bytes, storage_dtype: str | None) -> str:
    """Where the records of one reading lie."""
    return f"{_RECORDS}/{hash16(name)}/{model.hex()[:16]}-{storage_dtype or EXACT}"


def record_keys(name: str, model: bytes, storage_dtype: str | None, prompt_hashes: Sequence[str]) -> list[bytes]:
    """Return the keys of the records of prompts, which are named by their hashes as lmprobe makes them."""
    common = {"what": "lmprobe record", "model_name": hash16(name), "model": model, "storage": storage_dtype}
    start = _DOMAIN + Key(common).digest
    return [sha256(start + each.encode()).digest() for each in prompt_hashes]


def record_write(key: bytes, context: Context, prompt: Prompt, n_tokens: int, by_tokens: bool) -> Write:
    """Return the entry of one prompt's record; `key` is that of `record_keys`."""
    text = prompt.text or ""
    known = by_tokens and not context.private
    meta = {"name": context.source.name, "model": context.model.hex()[:16], "prompt": hash16(text), "tokens": n_tokens}
    if prompt.text is not None:
        meta["text_id"] = digest_text(prompt.text)
    if not context.private and prompt.excerpt is not None:
        meta["text"] = prompt.excerpt
    ids = prompt.ids.astype("<u4").tobytes() if known else None
    value = encode_record({"n_tokens": n_tokens, "ids": ids, "text": None if context.private else text})
    namespace = records_namespace(context.source.name, context.model, context.storage_dtype)
    return Write(key, value, namespace=namespace, meta=meta, n_tokens=n_tokens, ttl_seconds=context.ttl_seconds)


def read_records(store: Store, keys: Sequence[bytes]) -> list[Record | None]:
    """Return the records under `keys`; what is not there or cannot be read is None."""
    out: list[Record | None] = []
    for value in store.get_many(keys):
        try:
            said = None if value is None else decode_record(bytes(value))
            if isinstance(said, dict) and isinstance(n_tokens := said.get("n_tokens"), int):
                ids = said.get("ids")
                known = np.frombuffer(ids, dtype="<u4").astype(np.uint32) if isinstance(ids, bytes) else None
                text = said.get("text")
                out.append(Record(n_tokens, known, text if isinstance(text, str) else None))
                continue
        except (FormatError, ValueError):
            pass
        out.append(None)
    return out


def readings(store: Store, model_hash: str) -> list[Reading]:
    """Return who was read under the model name that has this hash."""
    facts = read_facts(store, [model_hash])[model_hash]
    return [reading for fact, _ in facts if (reading := as_reading(fact)) is not None]


def register(store: Store, known: Reading | Shape) -> bytes:
    """Make sure that a reading or a shape is known, and return the key of its slot."""
    if isinstance(known, Reading):
        meta = {"name": known.name, "model": known.model.hex()[:16], "storage": known.storage_dtype}
        fact = {"what": "reading", **asdict(known)}
        if known.padded_tokens is None:  # as versions wrote it that knew nothing of padding
            del fact["padded_tokens"]
        return keep_fact(store, hash16(known.name), fact, meta)
    listed = {"layers": list(known.layers), "kinds": list(known.kinds)}
    fact = {"what": "shape", **asdict(known), **listed}
    return keep_fact(store, known.model_hash, fact, {"name": known.name, **listed})


def as_reading(fact: Mapping[str, Any]) -> Reading | None:
    """Return a fact as a reading, if it is one."""
    try:
        return Reading(**{name: each for name, each in fact.items() if name != "what"})
    except TypeError:
        return None


def as_shape(fact: Mapping[str, Any]) -> Shape | None:
    """Return a fact as a shape, if it is one."""
    try:
        shape = Shape(**{name: each for name, each in fact.items() if name != "what"})
        return replace(shape, layers=tuple(map(int, shape.layers)), kinds=tuple(map(str, shape.kinds)))
    except (TypeError, ValueError):
        return None
