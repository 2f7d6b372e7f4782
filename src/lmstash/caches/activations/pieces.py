"""Pieces and bundles: what entries of activations are over, and what they are named by."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field
from functools import lru_cache

BUNDLE_BYTES = 512 * 2**10
"""Most bytes of a group of more than one layer, in float32. A call that asks for fewer layers reads all of it, which
costs a tenth of a millisecond; one that asks for all is handed the memory it was read into."""
_ASSUMED_WIDTH = 1024
"""Of an extractor that does not say."""
BUNDLE_LAYERS = 64
"""Most layers of a group."""
DOMAIN = b"lmstash bundle 1\0"
"""Before everything that a key is hashed over."""
pack_place = struct.Struct(">III").pack
"""The end of a key: layers in a group, number of the group, slot."""


@lru_cache(4096)
def group_size(n_tokens: int, width: int | None, most_bytes: int = BUNDLE_BYTES) -> int:
    """Return how many layers share an entry: a power of two."""
    fitting = most_bytes // max(1, n_tokens * (_ASSUMED_WIDTH if width is None else width) * 4)
    return min(BUNDLE_LAYERS, 1 << (fitting.bit_length() - 1)) if fitting else 1


@dataclass(slots=True, eq=False)
class Piece:
    """What a value is over, and every prompt it belongs to."""

    common: bytes
    """Digest of what its key shares with those of other pieces: who, where, how."""
    name: bytes
    """What tells it from other pieces. A key is hashed over it between parts of fixed length, so it needs no end."""
    start: int
    n_tokens: int
    tokens: bytes
    """The token ids it covers, little-endian uint32; empty where `name` is all that is kept of them."""
    size: int
    """Layers in a group."""
    prompts: list[int] = field(default_factory=list)
    bundles: list[Bundle] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Bundle:
    """One group of layers of one piece."""

    piece: Piece
    number: int
    """Of the group."""
    key: bytes
    """Of slot 0."""
    parent: bytes
    lacking: tuple[int, ...]
    """Positions of the layers asked for that are not there yet, by rising layer."""
    found: int = 0
    """Slots that are taken, as far as was looked."""
    unfit: tuple[int, ...] = ()
    """Those that hold something unusable."""


def bundle_key(piece: Piece, number: int, slot: int) -> bytes:
    """Return the key of a slot of a group."""
    return hashlib.sha256(DOMAIN + piece.common + piece.name + pack_place(piece.size, number, slot)).digest()
