"""Under which identity values are kept, and what is written beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmstash.caches.activations.pooling import Pool
from lmstash.caches.activations.prompts import Prompt
from lmstash.caches.activations.source import Source
from lmstash.codecs.dtypes import restore, to_storage
from lmstash.codecs.tensors import decode_header, encode_tensors, torch_dtype
from lmstash.errors import FormatError
from lmstash.events import MissReason
from lmstash.identity.encoding import Component
from lmstash.identity.keys import Key
from lmstash.store.base import KEY_BYTES, Entry, Store, Write

KIND = "activations"
VALUE = "value"
"""Name of the tensor in every entry."""
_KEY = "key"
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
        return kept, restore(kept, value.dtype)

    def write(
        self,
        key: bytes,
        tensors: Mapping[str, Any],
        computed: Tensor,
        prompt: Prompt,
        identity: Mapping[str, object],
        *,
        seconds: float,
        n_tokens: int,
        parent: bytes = b"",
    ) -> Write:
        """Describe one entry: `tensors` to keep of what was `computed`, and the facts beside it.

        The buffers show the tensors' memory: hand the write to the store before they change.

        Args:
            key: Of the entry.
            tensors: What to keep, by name.
            computed: The value as computed; its dtype is the one handed out.
            prompt: Where its text is taken from.
            identity: What `describe` returned.
            seconds: Its share of the time to compute.
            n_tokens: Tokens it covers.
            parent: The key of the entry it extends.
        """
        meta: dict[str, Any] = {
            "id": identity,
            "model": self.model.hex()[:16],
            "name": self.source.name,
        }
        if not self.private and prompt.excerpt is not None:
            meta["text"] = prompt.excerpt
        if self.tags:
            meta["tags"] = list(self.tags)
        lossy = self.storage_dtype is not None
        return Write(
            key,
            encode_tensors(
                {**tensors, _KEY: np.frombuffer(key, np.uint8)},
                metadata={"dtype": dtype_name(computed)} if lossy else None,
            ),
            namespace=self.namespace,
            meta=meta,
            parent=parent,
            compute_seconds=seconds,
            n_tokens=n_tokens,
            ttl_seconds=self.ttl_seconds,
        )

    def describe(self, site: str, pool: Pool, **components: Component) -> dict[str, object]:
        """Return the identity kept beside an entry: everything that is in its key, but for the salt and the model."""
        common = {"kind": KIND, "site": site, "pool": pool, "storage": self.storage}
        return Key({**common, **components}).describe()

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
        start = layout.tensors[_KEY].offset
        if entry.value[start : start + KEY_BYTES] != entry.key:
            return None
        spec = layout.tensors[VALUE]
        name = layout.metadata.get("dtype")
        dtype = torch_dtype(spec.dtype) if name is None else getattr(torch, name)
    except (FormatError, KeyError, AttributeError):
        return None
    return (spec.shape, dtype) if isinstance(dtype, torch.dtype) else None


def dtype_name(tensor: Tensor) -> str:
    """Return the dtype's plain name, such as "bfloat16"."""
    return str(tensor.dtype).removeprefix("torch.")
