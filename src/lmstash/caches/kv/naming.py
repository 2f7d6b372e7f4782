"""Under which keys the KV of a prompt lies: a block for each 64 tokens, and a slot after each block.

A block's key stands for all tokens up to its end. A slot is named by the block before it and one more token: it holds
the tail that came last there (1 to 63 tokens), or says which block begins with that token, so that a prompt that leaves
another one in the middle of a block finds how far they go together.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from hashlib import sha256

import numpy as np

from lmstash.identity.chain import BLOCK_TOKENS, chain_ids, chain_key, chain_root, tail_key

KIND = "kv"
LAYOUT = "parts 1"
"""How the bytes of an entry are laid out; part of every key."""
EXACT = "exact"
"""Stands in keys for "in the dtype it was computed in"."""
STATES = "states 1"
"""How the state of recurrent layers is laid out."""


@dataclass(frozen=True, slots=True)
class Names:
    """What the entries of one model are called under one salt."""

    model: bytes
    """Digest of who computes."""
    root: bytes
    storage: str

    @classmethod
    def of(cls, model: bytes, salt: bytes | str | None, storage_dtype: str | None) -> Names:
        """Name entries of the model with this digest."""
        return cls(model, chain_root(model, salt=salt), storage_dtype or EXACT)

    @property
    def namespace(self) -> str:
        """Where the entries live."""
        return namespace_of(self.model)

    def path(self, ids: np.ndarray) -> Path:
        """Return what the pieces of a prompt are called. Costs about 3 us a block."""
        chain = [self.root, *chain_ids(self.root, ids)]
        keys = [block_key(each, self.storage) for each in chain[1:]]
        return Path(self, ids, chain, keys)


@dataclass(frozen=True, slots=True)
class Path:
    """One prompt's pieces by name."""

    names: Names
    ids: np.ndarray
    """`[n_tokens]` uint32."""
    chain: list[bytes]
    """The root, and the id after each full block."""
    blocks: list[bytes]
    """The key of each full block."""

    @property
    def first_key(self) -> bytes:
        """Return the key under which the beginning of the prompt is kept."""
        return self.blocks[0] if self.blocks else self.slot(0) or b""

    def parent(self, block: int) -> bytes:
        """Return the key of the block before `block`, or nothing."""
        return self.blocks[block - 1] if block else b""

    def slot(self, block: int) -> bytes | None:
        """Return the key of the slot where block `block` would begin; None when no token is left for it."""
        start = block * BLOCK_TOKENS
        if start >= len(self.ids):
            return None
        names = self.names
        first = int(self.ids[start])
        return tail_key(self.chain[block], first, kind=KIND, site="slot", layout=LAYOUT, dtype=names.storage)

    def tokens(self, block: int) -> np.ndarray:
        """Return the tokens of one block; fewer than 64 where the prompt ends."""
        return self.ids[block * BLOCK_TOKENS : (block + 1) * BLOCK_TOKENS]


def block_key(chain_id: bytes, storage: str) -> bytes:
    """Return the key of the block that ends at a chain id."""
    return chain_key(chain_id, kind=KIND, site="block", layout=LAYOUT, dtype=storage)


def state_key(chain_id: bytes) -> bytes:
    """Return the key of the state of recurrent layers after a chain id."""
    return chain_key(chain_id, kind=KIND, site="state", layout=STATES, dtype=EXACT)


def namespace_of(model: bytes) -> str:
    """Return the namespace of the entries of the model with this digest."""
    return f"{KIND}/{model.hex()[:16]}"


def digest_after(chain_id: bytes, tokens: np.ndarray) -> bytes:
    """Return 32 bytes that stand for tokens after a chain id, where tokens themselves must not be kept."""
    return sha256(b"lmstash kv tokens 1\0" + chain_id + struct.pack("<I", len(tokens)) + tokens.tobytes()).digest()
