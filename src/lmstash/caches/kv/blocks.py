"""What an entry holds: the keys and values of up to 64 consecutive tokens in every layer, and which tokens they are.

The tensors of all layers that are alike lie one after another in one *part*, keys first: a block is then a few
contiguous tensors, and a layer's share of it a view. An entry may begin with tokens whose KV another entry holds: then
it names that one (`base`) and how many tokens to take from there (`skip`), and holds the rest.

Headers repeat, so where everything lies is worked out once for each.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from lmstash.codecs.header import Layout, TensorSpec
from lmstash.codecs.tensors import decode_header, encode_tensors, torch_dtype
from lmstash.errors import FormatError
from lmstash.identity.chain import BLOCK_TOKENS
from lmstash.store.base import KEY_BYTES, Buffer, Entry

_KEY, _TOKENS, _DIGEST, _BASE, _PART = "key", "tokens", "digest", "base", "part"


@dataclass(frozen=True, slots=True)
class Shape:
    """What the KV of one token looks like: `(heads, dim, dtype)` for K of each layer, then for V of each."""

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

    @property
    def is_pointer(self) -> bool:
        """Whether it only says which block begins here."""
        return self.shape is None


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


@dataclass(frozen=True, slots=True)
class _Plan:
    """Where everything lies in entries with one header."""

    n_tokens: int
    skip: int
    shape: Shape | None
    key: slice
    tokens: slice | None
    digest: slice | None
    base: slice | None
    parts: list[tuple[torch.dtype, int, int, tuple[int, ...]]]
    """Dtype, offset, elements and shape."""


def decode_piece(entry: Entry, key: bytes, parent: bytes) -> Piece | None:
    """Return what an entry holds, checked against its own words; None when it is not a piece, or another's.

    Costs about 10 us; tensors are views of the entry's memory, also where that is read-only: never write to them.

    Args:
        entry: As fetched.
        key: It was asked for by this key.
        parent: The key of the block that it must follow.
    """
    value = entry.value
    try:
        plan = _plan_of(decode_header(value))
    except FormatError:
        return None
    if plan is None or entry.parent != parent or value[plan.key] != key:
        return None
    memory = _writable(value) if value.readonly and plan.parts else value
    return Piece(
        key,
        parent,
        None if plan.tokens is None else np.frombuffer(value[plan.tokens], np.uint32),
        b"" if plan.digest is None else bytes(value[plan.digest]),
        plan.n_tokens,
        plan.skip,
        b"" if plan.base is None else bytes(value[plan.base]),
        plan.shape,
        [torch.frombuffer(memory, dtype=d, count=count, offset=at).view(shape) for d, at, count, shape in plan.parts],
        entry.compute_seconds,
        len(value),
    )


_plans: dict[int, tuple[Layout, _Plan | None]] = {}
_KNOWN_HEADERS = 4096


def _plan_of(layout: Layout) -> _Plan | None:
    known = _plans.get(id(layout))
    if known is not None and known[0] is layout:
        return known[1]
    if len(_plans) >= _KNOWN_HEADERS:
        _plans.clear()
    plan = _read_plan(layout)
    _plans[id(layout)] = layout, plan
    return plan


def _read_plan(layout: Layout) -> _Plan | None:
    tensors, facts = layout.tensors, layout.metadata
    try:
        n_tokens, skip = int(facts["n"]), int(facts["skip"])
        shape = decode_shape(facts["shape"]) if "shape" in facts else None
    except (KeyError, ValueError):
        return None
    key, tokens, digest, base = (tensors.get(name) for name in (_KEY, _TOKENS, _DIGEST, _BASE))
    if not 0 < n_tokens <= BLOCK_TOKENS or not 0 <= skip <= n_tokens or (shape is None) != (skip == n_tokens):
        return None
    if key is None or key.nbytes != KEY_BYTES or (tokens is None) == (digest is None) or (base is None) != (skip == 0):
        return None
    if any(each is not None and each.nbytes != KEY_BYTES for each in (digest, base)):
        return None
    if (tokens is None and skip) or (tokens is not None and (tokens.dtype, tokens.shape) != ("U32", (n_tokens,))):
        return None
    parts: list[tuple[torch.dtype, int, int, tuple[int, ...]]] = []
    for number, (first, last) in enumerate(shape.runs if shape is not None else ()):
        part = tensors.get(f"{_PART}{number}")
        heads, dim, _ = shape.sides[first] if shape is not None else (0, 0, "")
        if part is None or part.shape != (last - first, heads, n_tokens - skip, dim) or not part.count:
            return None
        try:
            parts.append((torch_dtype(part.dtype), part.offset, part.count, part.shape))
        except FormatError:  # a dtype that this torch lacks
            return None
    return _Plan(n_tokens, skip, shape, _span(key), _span(tokens), _span(digest), _span(base), parts)


@overload
def _span(spec: TensorSpec) -> slice: ...
@overload
def _span(spec: TensorSpec | None) -> slice | None: ...
def _span(spec: TensorSpec | None) -> slice | None:
    return None if spec is None else slice(spec.offset, spec.offset + spec.nbytes)


def _writable(value: memoryview) -> Any:
    """Return read-only memory as a buffer that torch takes without a warning; it keeps `value` alive."""
    array = np.frombuffer(value, np.uint8)
    lent = _bytes_at(array.nbytes).from_address(array.ctypes.data)
    lent.owner = array
    return lent


@lru_cache(maxsize=1024)
def _bytes_at(n_bytes: int) -> Any:
    return ctypes.c_ubyte * n_bytes


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
