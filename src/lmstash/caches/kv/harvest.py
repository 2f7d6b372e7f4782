"""What a model computed, cut into new entries."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmstash.caches.kv.blocks import Shape, encode_piece
from lmstash.caches.kv.finding import Match
from lmstash.caches.kv.naming import KIND, LAYOUT, Path, digest_after
from lmstash.codecs.dtypes import to_storage
from lmstash.identity.chain import BLOCK_TOKENS
from lmstash.identity.keys import SCHEMA_VERSION
from lmstash.store.base import Buffer, Write

LEAST_SHARED = 16
"""Tokens that must be saved for a block to lean on another one: reading it then reads both."""


@dataclass(slots=True)
class Harvest:
    """New entries of one call."""

    fresh: dict[bytes, Write] = field(default_factory=dict)
    again: dict[bytes, Write] = field(default_factory=dict)
    """Those that replace what is there."""
    overflows: int = 0
    worst_error: float = 0.0
    """Largest difference between a value and what is kept of it, over the largest value of its tensor."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is said of every entry."""

    name: str
    """Of the model."""
    storage_dtype: str | None
    whole: bool
    """Blocks are of use only whole, so that nothing need say where one begins."""
    private: bool
    ttl_seconds: float | None


class Cutter:
    """Cuts one row of a cache into entries. Copies what it takes, so that the cache may be used on at once."""

    def __init__(
        self,
        path: Path,
        match: Match,
        known: Collection[bytes],
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        facts: Facts,
        seconds_per_token: float,
        out: Harvest,
    ) -> None:
        """Take what was computed.

        Args:
            path: Names of the prompt, as far as there is KV.
            match: What was kept of it before.
            known: Keys of blocks that are kept by now.
            keys: `[heads, n_tokens, dim]` of each layer that keeps any.
            values: Likewise.
            facts: Said of every entry.
            seconds_per_token: What a token cost.
            out: Where entries go.
        """
        self._path = path
        self._match = match
        self._known = known
        self._sides = [*keys, *values]
        self._shape = Shape.of([each[None] for each in keys], [each[None] for each in values])
        self._facts = facts
        self._seconds = seconds_per_token
        self._out = out

    def cut(self) -> None:
        """Add the entries that are new. Costs a copy of their bytes, and about 0.1 ms a block."""
        n_blocks = len(self._path.blocks)
        for block in range(self._match.n_blocks, n_blocks):
            self._block(block)
        if len(self._path.ids) > n_blocks * BLOCK_TOKENS:
            self._tail(n_blocks)

    def _block(self, block: int) -> None:
        path, match, key = self._path, self._match, self._path.blocks[block]
        if (key in self._known and key not in match.unfit) or key in self._out.fresh or key in self._out.again:
            return
        at_slot = block == match.n_blocks
        skip = match.leaning if at_slot and match.leaning >= LEAST_SHARED else 0
        write = self._write(key, block, path.tokens(block), match.base if skip else b"", skip)
        (self._out.again if key in match.unfit else self._out.fresh)[key] = write
        # Others that begin like this block shall find it; one whole block is enough for all that begin alike.
        if not skip and not self._facts.whole and not (at_slot and self._leans()):
            slot = path.slot(block)
            assert slot is not None
            there = self._out.again.get(slot)
            if there is None or there.n_tokens:  # of several rows, or a tail of another one
                self._out.again[slot] = self._write(slot, block, path.tokens(block), key, BLOCK_TOKENS)

    def _tail(self, block: int) -> None:
        path, match, key = self._path, self._match, self._path.slot(block)
        assert key is not None
        tokens = path.tokens(block)
        at_slot = block == match.n_blocks
        if (at_slot and match.common == len(tokens)) or key in self._out.again:
            return
        skip = match.leaning if at_slot and self._leans() else 0
        self._out.again[key] = self._write(key, block, tokens, match.base if skip else b"", skip)

    def _leans(self) -> bool:
        """Whether what is in the slot after the kept blocks leans on a whole block that can be used."""
        match = self._match
        return bool(match.base) and match.path.slot(match.n_blocks) not in match.unfit

    def _write(self, key: bytes, block: int, tokens: np.ndarray, base: bytes, skip: int) -> Write:
        path, facts = self._path, self._facts
        start, n_tokens = block * BLOCK_TOKENS, len(tokens)
        parts = self._parts(start + skip, start + n_tokens)
        value: list[Buffer] = encode_piece(
            key,
            tokens=None if facts.private else tokens,
            digest=digest_after(path.chain[block], tokens) if facts.private else b"",
            n_tokens=n_tokens,
            skip=skip,
            base=base,
            shape=self._shape if parts else None,
            parts=parts,
        )
        return Write(
            key,
            value,
            namespace=path.names.namespace,
            meta=self._meta(block, n_tokens, skip),
            parent=path.parent(block),
            compute_seconds=self._seconds * (n_tokens - skip),
            n_tokens=n_tokens - skip,
            ttl_seconds=facts.ttl_seconds,
        )

    def _parts(self, start: int, stop: int) -> list[Tensor]:
        """Return copies of the KV of some tokens, as they are kept."""
        if start == stop:
            return []
        out: list[Tensor] = []
        for first, last in self._shape.runs:
            whole = torch.stack([side[:, start:stop] for side in self._sides[first:last]]).cpu()
            kept, overflowed = to_storage(whole, self._facts.storage_dtype)
            if kept.dtype != whole.dtype:
                scale = float(whole.abs().max())
                if scale > 0:
                    error = float((kept.to(whole.dtype) - whole).abs().max()) / scale
                    self._out.worst_error = max(self._out.worst_error, error)
            self._out.overflows += overflowed
            out.append(kept)
        return out

    def _meta(self, block: int, n_tokens: int, skip: int) -> bytes:
        names = self._path.names
        components: dict[str, Any] = {
            "kind": KIND,
            "layout": LAYOUT,
            "storage": names.storage,
            "start": block * BLOCK_TOKENS,
            "n_tokens": n_tokens,
            "skip": skip,
            "after": self._path.chain[block].hex(),
        }
        facts = {"model": names.model.hex()[:16], "name": self._facts.name}
        identity = {"schema": SCHEMA_VERSION, "components": components}
        return json.dumps({"id": identity, **facts}, separators=(",", ":")).encode()
