"""The index by name and prompt: what lmprobe users ask by, while entries are named by who computed them over what.

Two kinds of small entries, each written whole and never changed, so that no two writers can lose one another's:

* a *reading* per model name, identity, storage dtype and set of layers: what was extracted under that name;
* a *record* per model name, identity, storage dtype and prompt: the prompt's tokens.

Neither claims that a value is kept. Whether one is, the store is asked by the value's own key.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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
from lmstash.identity.keys import Key
from lmstash.store.base import Store, Write

READINGS = "lmprobe/models"
RECORDS = "lmprobe/prompts"


@dataclass(frozen=True)
class Reading:
    """What was extracted under one model name, in one go."""

    name: str
    model: bytes
    """Digest of who computed."""
    storage_dtype: str | None
    layers: tuple[int, ...]
    by_tokens: bool
    """Kept by token ids (a live model), not by text."""
    causal: bool
    n_layers: int | None
    """Layers the model has, when known."""

    def write(self) -> Write:
        """Return the entry to put."""
        meta = {
            "name": self.name,
            "model": self.model.hex()[:16],
            "digest": self.model.hex(),
            "storage": self.storage_dtype,
            "layers": list(self.layers),
            "by_tokens": self.by_tokens,
            "causal": self.causal,
            "n_layers": self.n_layers,
        }
        what = (self.name, self.model, self.storage_dtype, self.layers)
        return Write(Key({"what": "lmprobe reading", "of": what}).digest, b"", namespace=READINGS, meta=meta)


@dataclass(frozen=True)
class Record:
    """One prompt under one model name."""

    n_tokens: int
    ids: np.ndarray | None
    """`[n_tokens]` uint32; None when kept by text, or when the stash is private."""
    text: str | None
    """The prompt; None when the stash is private."""


def record_key(name: str, model: bytes, storage_dtype: str | None, prompt_hash: str) -> bytes:
    """Return the key of a prompt's record; `prompt_hash` as lmprobe makes it."""
    what = (hash16(name), model, storage_dtype, prompt_hash)
    return Key({"what": "lmprobe prompt", "of": what}).digest


def record_write(context: Context, name: str, prompt: Prompt, n_tokens: int, by_tokens: bool) -> Write:
    """Return the entry of one prompt's record."""
    text = prompt.text or ""
    known = by_tokens and not context.private
    meta = {"name": name, "model": context.model.hex()[:16], "prompt": hash16(text), "tokens": n_tokens}
    if not context.private and prompt.excerpt is not None:
        meta["text"] = prompt.excerpt
    ids = prompt.ids.astype("<u4").tobytes() if known else None
    value = encode_record({"n_tokens": n_tokens, "ids": ids, "text": None if context.private else text})
    key = record_key(name, context.model, context.storage_dtype, hash16(text))
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


def readings(store: Store, name: str | None = None) -> Iterator[Reading]:
    """Yield what was extracted under `name` (under any name, when None)."""
    for entry in store.entries(READINGS):
        meta = entry.meta
        if (name is None or meta.get("name") == name) and "digest" in meta:
            yield Reading(
                name=str(meta["name"]),
                model=bytes.fromhex(meta["digest"]),
                storage_dtype=meta.get("storage"),
                layers=tuple(meta.get("layers", ())),
                by_tokens=bool(meta.get("by_tokens")),
                causal=bool(meta.get("causal")),
                n_layers=meta.get("n_layers"),
            )


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
        """Not known."""
        return None

    def layers(self, site: str) -> Sequence[int] | None:
        """Layers there are, None when not known."""
        return None if self._reading.n_layers is None else range(self._reading.n_layers)

    def causal(self) -> bool:
        """As remembered."""
        return self._reading.causal

    def compute(self, batch: Sequence[np.ndarray], layers: Sequence[int], site: str, pool: Pool) -> list[Values]:
        """There is no model: nothing is computed."""
        return []
