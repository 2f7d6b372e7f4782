"""Under which identity values are kept, and what is written beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmstash.caches.activations.pooling import Pool
from lmstash.caches.activations.prompts import TEXT_KEPT_CHARACTERS
from lmstash.caches.activations.source import Source
from lmstash.codecs.dtypes import restore, to_storage
from lmstash.codecs.header import Layout
from lmstash.codecs.tensors import decode_header, encode_tensors, torch_dtype
from lmstash.errors import FormatError
from lmstash.events import MissReason
from lmstash.identity.encoding import Component, to_json
from lmstash.identity.keys import SCHEMA_VERSION, Key
from lmstash.identity.tokens import digest_text
from lmstash.store.base import KEY_BYTES, Entry, Store, Write

KIND = "activations"
VALUE = "value"
"""Name of the tensor in every entry."""
KEY = "key"
"""Name of the entry's own key beside it: a value found under another key is not used, whatever store it came from."""
EXACT = "exact"
"""Stands in keys for "in the dtype it was computed in"."""


@dataclass(frozen=True)
class Context:
    """One model on one store, as it is for the length of one call."""

    store: Store
    source: Source
    model: bytes
    """Digest of who computes."""
    storage_dtype: str | None
    salt: bytes | str | None
    private: bool
    ttl_seconds: float | None
    tags: Sequence[str] = ()

    @property
    def namespace(self) -> str:
        """Where the entries live."""
        return namespace_of(self.model)

    @property
    def storage(self) -> str:
        """The storage dtype as a key component."""
        return self.storage_dtype or EXACT

    def rounded(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return `value` as it is kept, and as it is handed out: the same in a cold run and in a warm one."""
        if self.storage_dtype is None:
            return value, value
        kept, overflowed = to_storage(value, self.storage_dtype)
        if overflowed:
            self.store.events.overflow()
        return kept, kept if kept.dtype == value.dtype else restore(kept, value.dtype)

    def about(self, text: str | None) -> str:
        """Return the JSON members kept beside entries of a prompt: its text's id and, unless private, its beginning."""
        if text is None:
            return ""
        excerpt = "" if self.private else f',"text":{json.dumps(text[:TEXT_KEPT_CHARACTERS])}'
        return f'{excerpt},"text_id":"{digest_text(text)}"'

    def write(
        self,
        key: bytes,
        tensors: Mapping[str, Any],
        computed: torch.dtype,
        about: str,
        identity: Mapping[str, object],
        *,
        seconds: float,
        n_tokens: int,
        parent: bytes = b"",
    ) -> Write:
        """Describe one entry: `tensors` to keep, and the facts beside them.

        The buffers show the tensors' memory: hand the write to the store before they change.

        Args:
            key: Of the entry.
            tensors: What to keep, by name.
            computed: The dtype the value was computed in, which is the one handed out.
            about: What `about` returned.
            identity: What `describe` returned.
            seconds: Its share of the time to compute.
            n_tokens: Tokens it covers.
            parent: The key of the entry it extends.
        """
        return Write(
            key,
            encode_tensors(
                {**tensors, KEY: np.frombuffer(key, np.uint8)}, metadata=self.metadata(dtype_name(computed))
            ),
            namespace=self.namespace,
            meta=self.meta(identity, about),
            parent=parent,
            compute_seconds=seconds,
            n_tokens=n_tokens,
            ttl_seconds=self.ttl_seconds,
        )

    def metadata(self, computed: str) -> dict[str, str] | None:
        """Return what the header of an entry says of a value computed in the dtype with this name."""
        return None if self.storage_dtype is None else {"dtype": computed}

    def meta(self, identity: Mapping[str, object], about: str) -> bytes:
        """Return the facts kept beside an entry: what `describe` and `about` returned, and what a call shares."""
        return f'{{"id":{json.dumps(identity, separators=(",", ":"))},{self._shared}{about}}}'.encode()

    @cached_property
    def _shared(self) -> str:
        """What is kept beside every entry of a call, as JSON members."""
        facts: dict[str, Any] = {"model": self.model.hex()[:16], "name": self.source.name}
        if self.tags:
            facts["tags"] = list(self.tags)
        return json.dumps(facts, separators=(",", ":"))[1:-1]

    def common(self, site: str, pool: Pool, *, by: str) -> bytes:
        """Return the digest of all that is in the keys of a call's entries but what tells them from each other."""
        named = {**self._named(site, pool), "by": by}
        return Key({**named, "model": self.model, "salt": self.salt}).digest

    def describe(self, site: str, pool: Pool, **components: Component) -> dict[str, object]:
        """Return the identity kept beside an entry: everything that is in its key, but for the salt and the model."""
        named: dict[str, Component] = {**self._named(site, pool), **components}
        return {"schema": SCHEMA_VERSION, "components": {name: to_json(each) for name, each in named.items()}}

    def _named(self, site: str, pool: Pool) -> dict[str, Component]:
        named: dict[str, Component] = {"kind": KIND, "site": site, "pool": pool, "storage": self.storage}
        padded_tokens = self.source.padded_tokens(site)
        if padded_tokens is not None:  # versions that padded all kept what is not to be served
            named["padded_tokens"] = padded_tokens
        return named

    def unfit(self, key: bytes) -> None:
        """Count an entry that was found but is not what was asked for."""
        self.store.events.miss(self.namespace, key, MissReason.MISMATCH)

    def refreshed(self, keys: Sequence[bytes]) -> None:
        """Count entries that were not looked for, on the caller's word."""
        for key in keys:
            self.store.events.miss(self.namespace, key, MissReason.REFRESH)


def namespace_of(model: bytes) -> str:
    """Return the namespace of the entries of the model with this digest."""
    return f"{KIND}/{model.hex()[:16]}"


def described(entry: Entry) -> tuple[tuple[int, ...], torch.dtype] | None:
    """Return shape and computed dtype of the value in an entry. Costs 2 us for a known header.

    None when it holds no value, or one that was kept under another key: each carries its own.
    """
    try:
        layout = decode_header(entry.value)
        start = layout.tensors[KEY].offset
        if entry.value[start : start + KEY_BYTES] != entry.key:
            return None
        shape = layout.tensors[VALUE].shape
    except (FormatError, KeyError):
        return None
    dtype = value_dtype(layout)
    return None if dtype is None else (shape, dtype)


def value_dtype(layout: Layout) -> torch.dtype | None:
    """Return the dtype in which the value was computed that lies in an entry; None where it does not say so."""
    try:
        name = layout.metadata.get("dtype")
        dtype = torch_dtype(layout.tensors[VALUE].dtype) if name is None else getattr(torch, name)
    except (FormatError, KeyError, AttributeError):
        return None
    return dtype if isinstance(dtype, torch.dtype) else None


def dtype_name(dtype: torch.dtype) -> str:
    """Return a dtype's plain name, such as "bfloat16"."""
    return str(dtype).removeprefix("torch.")
