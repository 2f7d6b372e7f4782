"""The index by name and prompt: what lmprobe users ask by, while entries are named by who computed them over what.

Two kinds of small entries, found by key and never by listing, so that asking costs the same however much is kept:


* a *reading* for each identity and storage dtype that was read under a model name, in numbered slots of that name. A
  slot is taken once and not changed, so no two writers lose one another's;
* a *record* for each prompt of a reading: its tokens.

Neither claims that a value is kept. Whether one is, the store is asked by the value's own key.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from lmstash.adapters.lmprobe.layout import hash16
from lmstash.caches.activations.batching import BATCH_TOKENS
from lmstash.caches.activations.context import Context
from lmstash.caches.activations.pooling import Pool
from lmstash.caches.activations.prompts import Prompt
from lmstash.caches.activations.source import Values
from lmstash.codecs.records import decode_record, encode_record
from lmstash.errors import FormatError
from lmstash.identity.keys import Key, KeyFamily
from lmstash.identity.tokens import digest_text
from lmstash.store.base import Store, Write

LAYERS_TRIED = 256
"""Layers asked for when an extractor does not say how many its model has."""
MAX_SLOTS = 1024
"""Identities that are told apart under one model name."""
_SLOTS_AT_ONCE = 16
READINGS = "lmprobe/models"
RECORDS = "lmprobe/prompts"


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

    @property
    def layers(self) -> range:
        """Layers of which something may be kept."""
        return range(LAYERS_TRIED if self.n_layers is None else self.n_layers)


@dataclass(frozen=True)
class Record:
    """One prompt under one model name."""

    n_tokens: int
    ids: np.ndarray | None
    """`[n_tokens]` uint32; None when kept by text, or when the stash is private."""
    text: str | None
    """The prompt; None when the stash is private."""


def record_keys(name: str, model: bytes, storage_dtype: str | None, prompt_hashes: Sequence[str]) -> list[bytes]:
    """Return the keys of the records of prompts, which are named by their hashes as lmprobe makes them."""
    common = {"what": "lmprobe prompt", "model_name": hash16(name), "model": model, "storage": storage_dtype}
    family = KeyFamily(common, ("prompt",))
    return [family.digest(each) for each in prompt_hashes]


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
    return Write(key, value, namespace=RECORDS, meta=meta, n_tokens=n_tokens, ttl_seconds=context.ttl_seconds)


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
    return [reading for _, reading in _slots(store, model_hash) if reading is not None]


def register(store: Store, reading: Reading) -> bytes:
    """Make sure that a reading has a slot, and return the slot's key."""
    model_hash = hash16(reading.name)
    for key, there in _slots(store, model_hash):
        if there == reading:
            return key
        if there is not None:
            continue
        meta = {"name": reading.name, "model": reading.model.hex()[:16], "storage": reading.storage_dtype}
        value = encode_record(asdict(reading))
        store.put_many([Write(key, value, namespace=READINGS, meta=meta)], replace=False)
        kept = store.get(key)
        if kept is None or bytes(kept) == value:
            return key
        # Another writer was faster: the next slot, then.
    return b""


def _slots(store: Store, model_hash: str) -> Iterator[tuple[bytes, Reading | None]]:
    """Yield each slot of a name and what is in it; ends after a run of empty ones has been seen, and offered."""
    for start in range(0, MAX_SLOTS, _SLOTS_AT_ONCE):
        slots = range(start, start + _SLOTS_AT_ONCE)
        keys = [Key({"what": "lmprobe reading", "model_name": model_hash, "slot": slot}).digest for slot in slots]
        there = store.contains_many(keys)
        for key, kept in zip(keys, there, strict=True):
            yield key, _read_slot(store, key) if kept else None
        if not any(there):
            return


def _read_slot(store: Store, key: bytes) -> Reading | None:
    value = store.get(key)
    try:
        return None if value is None else Reading(**decode_record(bytes(value)))
    except (FormatError, TypeError):
        return None


class NamedSource:
    """Stands in a `Context` for a model that is not loaded: enough to name entries, nothing to compute with."""

    max_tokens: int | None = None
    vocabulary: int | None = None
    batch_tokens = BATCH_TOKENS
    remote = False
    max_retries = 0
    retry_seconds = 0.0
    dtype = torch.float32

    def __init__(self, reading: Reading) -> None:
        """Take what `reading` remembers of the model."""
        self.name = reading.name
        self._reading = reading

    def width(self, site: str) -> int | None:
        """As remembered."""
        return self._reading.n_experts if site == "router_logits" else self._reading.width

    def layers(self, site: str) -> Sequence[int]:
        """Layers of which something may be kept."""
        return self._reading.layers

    def causal(self) -> bool:
        """As remembered."""
        return self._reading.causal

    def compute(self, batch: Sequence[np.ndarray], layers: Sequence[int], site: str, pool: Pool) -> list[Values]:
        """There is no model: nothing is computed."""
        return []
