"""What an entry holds: the keys and values of up to 64 consecutive tokens in every layer, and which tokens they are.

The tensors of all layers that are alike lie one after another in one *part*, keys first: a block is then a few
contiguous tensors, and a layer's share of it a view. An entry may begin with tokens whose KV another entry holds: then it
names that one (`base`) and how many tokens to take from there (`skip`), and holds the rest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmstash.codecs.header import Layout
from lmstash.codecs.tensors import decode_header, decode_tensors, encode_tensors
from lmstash.errors import FormatError
from lmstash.identity.chain import BLOCK_TOKENS
from lmstash.store.base import KEY_BYTES, Buffer, Entry

_KEY, _TOKENS, _DIGEST, _BASE, _PART = "key", "tokens", "digest", "base", "part"


@dataclass(frozen=True, slots=True)
class Shape:
    """What the KV of one token looks like, layer by layer: `(heads, dim, dtype)` for K of each layer, then V of each."""

    sides: tuple[tuple[int, int, str], ...]

    @classmethod
    def of(cls, keys: Sequence[Tensor], values: Sequence[Tensor]) -> Shape:
        """Describe tensors `[batch, heads, n_tokens, dim]`, one for each layer that keeps any."""
        return cls(tuple((each.shape[1], each.shape[3], _name(each.dtype)) for each in (*keys, *values)))

    @property
    def n_layers(self) -> int:
        """Layers that keep keys and values."""
        return len(self.sides) // 2

    @property
    def runs(self) -> list[tuple[int, int]]:
        """First and last (exclusive) of the sides that are alike and lie in one part."""
        out: list[tuple[int, int]] = []
        for at, side in enumerate(self.sides):
            if out and self.sides[out[-1][0]] == side:
                out[-1] = out[-1][0], at + 1
            else:
                out.append((at, at + 1))
        return out

    @property
    def token_bytes(self) -> int:
        """Bytes that one token takes, as computed."""
        return sum(heads * dim * getattr(torch, dtype).itemsize for heads, dim, dtype in self.sides)

    def encode(self) -> str:
        """Return the shape as text, alike sides counted."""
        return json.dumps([[last - first, *self.sides[first]] for first, last in self.runs], separators=(",", ":"))



@lru_cache(maxsize=256)
def decode_shape(text: str) -> Shape | None:
    """Return what `Shape.encode` wrote; None for anything else."""
    try:
        sides: list[tuple[int, int, str]] = []
        for count, heads, dim, dtype in json.loads(text):
            if not isinstance(getattr(torch, dtype, None), torch.dtype) or not 0 < count <= 1 << 16:
                return None
            sides += [(int(heads), int(dim), str(dtype))] * count
    except (ValueError, TypeError):
        return None
    return Shape(tuple(sides)) if sides and len(sides) % 2 == 0 else None


@dataclass(frozen=True, slots=True)
class Piece:
    """One entry, checked."""

    key: bytes
    parent: bytes
    """Key of the block that it follows, or nothing."""
    tokens: np.ndarray | None
    """`[n_tokens]` uint32; None in private mode."""
    digest: bytes
    """Stands for the tokens in private mode."""
    n_tokens: int
    skip: int
    """Tokens at the beginning whose KV lies in `base`."""
    base: bytes
    """Key of that entry, or nothing."""
    shape: Shape | None
    """None when the entry holds no KV of its own."""
    parts: list[Tensor]
    """`[n_sides, heads, n_tokens - skip, dim]` each, as stored."""
    compute_seconds: float
    n_bytes: int


def encode_piece(
    key: bytes,
    *,
    tokens: np.ndarray | None,
    digest: bytes,
    n_tokens: int,
    skip: int = 0,
    base: bytes = b"",
    shape: Shape | None = None,
    parts: Sequence[Tensor] = (),
) -> list[Buffer]:
    """Return an entry's bytes as buffers; those of the parts are the tensors' own memory."""
    tensors: dict[str, Any] = {f"{_PART}{number}": part for number, part in enumerate(parts)}
    tensors[_KEY] = np.frombuffer(key, np.uint8)
    if tokens is None:
        tensors[_DIGEST] = np.frombuffer(digest, np.uint8)
    else:
        tensors[_TOKENS] = np.ascontiguousarray(tokens, np.uint32)
    if base:
        tensors[_BASE] = np.frombuffer(base, np.uint8)
    metadata = {"n": str(n_tokens), "skip": str(skip)}
    if shape is not None:
        metadata["shape"] = shape.encode()
    return list(encode_tensors(tensors, metadata=metadata))


def decode_piece(entry: Entry, key: bytes, parent: bytes) -> Piece | None:
    """Return what an entry holds, checked against its own words; None when it is not a piece, or another's.

    Args:
        entry: As fetched.
        key: It was asked for by this key.
        parent: The key of the block that it must follow.
    """
    try:
        layout = decode_header(entry.value)
        tensors = decode_tensors(entry.value, framework="torch")
    except FormatError:
        return None
    if entry.parent != parent or _bytes(tensors, _KEY) != key:
        return None
    facts = _facts(layout)
    if facts is None:
        return None
    n_tokens, skip, shape = facts
    base = _bytes(tensors, _BASE)
    digest = _bytes(tensors, _DIGEST)
    tokens = tensors.get(_TOKENS)
    if (tokens is None) == (not digest) or (skip > 0) != (len(base) == KEY_BYTES) or (tokens is None and skip):
        return None
    if tokens is not None and (tokens.dtype != torch.uint32 or tuple(tokens.shape) != (n_tokens,)):
        return None
    parts: list[Tensor] = []
    if shape is not None:
        for number, (first, last) in enumerate(shape.runs):
            part = tensors.get(f"{_PART}{number}")
            heads, dim, _ = shape.sides[first]
            if part is None or tuple(part.shape) != (last - first, heads, n_tokens - skip, dim):
                return None
            parts.append(part)
    if (shape is None) != (skip == n_tokens):
        return None
    ids = None if tokens is None else tokens.numpy()
    return Piece(
        key, parent, ids, digest, n_tokens, skip, base, shape, parts, entry.compute_seconds, len(entry.value)
    )


def _facts(layout: Layout) -> tuple[int, int, Shape | None] | None:
    try:
        n_tokens, skip = int(layout.metadata["n"]), int(layout.metadata["skip"])
    except (KeyError, ValueError):
        return None
    if not 0 < n_tokens <= BLOCK_TOKENS or not 0 <= skip <= n_tokens:
        return None
    text = layout.metadata.get("shape")
    shape = None if text is None else decode_shape(text)
    return None if text is not None and shape is None else (n_tokens, skip, shape)


def _bytes(tensors: Mapping[str, Tensor], name: str) -> bytes:
    held = tensors.get(name)
    return b"" if held is None or held.dtype != torch.uint8 else held.numpy().tobytes()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
