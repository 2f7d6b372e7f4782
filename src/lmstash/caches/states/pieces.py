"""What an entry holds: the K/V of some consecutive tokens in every layer, and which tokens they are.

An entry may begin with tokens whose K/V another entry holds: then it names that one (`base`) and how many tokens to
take from there (`skip`), and holds the rest. One that holds none is a pointer: it says which piece goes on from here.

Bytes: magic, flags, n_tokens, skip, length of the layout's text; the entry's own key; the key of its base or zeros; the
tokens (uint32, or in private mode a digest of 32 bytes); the layout's text; zeros up to a multiple of 64; the payload.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

import numpy as np

from lmstash.caches.states.layout import Layout, decode_layout
from lmstash.errors import CorruptEntryError
from lmstash.identity.chain import BLOCK_TOKENS
from lmstash.prefix.node import TOKEN_BYTES
from lmstash.store.base import KEY_BYTES, Buffer, Entry

_MAGIC = b"lmstash\x01"
_HEAD = struct.Struct(f"<8sIIII{KEY_BYTES}s{KEY_BYTES}s")
_PRIVATE = 1
_NONE = bytes(KEY_BYTES)
_ALIGNED = 64
_DIGEST = b"lmstash states tokens 1\0"


@dataclass(frozen=True, slots=True)
class Piece:
    """One entry, checked."""

    key: bytes
    parent: bytes
    """Key of the block that it follows, or nothing."""
    tokens: bytes | None
    """4 bytes each; None in private mode."""
    digest: bytes
    """Stands for the tokens in private mode."""
    n_tokens: int
    skip: int
    base: bytes
    """Key of the entry that holds the first `skip` tokens, or nothing."""
    layout: Layout | None
    """None when the entry holds no K/V of its own."""
    payload: np.ndarray
    """`[n_bytes]` uint8: of the tokens after `skip`."""
    compute_seconds: float

    def common(self, chain_id: bytes, tokens: bytes) -> int:
        """Return how many tokens the piece and a prompt begin with alike, given both follow `chain_id`."""
        if self.tokens is None:
            n_bytes = self.n_tokens * TOKEN_BYTES
            whole = len(tokens) >= n_bytes and digest_tokens_after(chain_id, tokens[:n_bytes]) == self.digest
            return self.n_tokens if whole else 0
        return common_tokens(self.tokens, tokens)


def encode_piece(
    key: bytes,
    *,
    chain_id: bytes,
    tokens: bytes,
    private: bool,
    skip: int = 0,
    base: bytes = b"",
    layout: Layout | None = None,
    payload: np.ndarray | None = None,
) -> list[Buffer]:
    """Return an entry's bytes as buffers; the payload is the caller's memory.

    Args:
        key: Under which it is kept.
        chain_id: What its tokens follow.
        tokens: 4 bytes each.
        private: Keep only a digest of them.
        skip: Tokens whose K/V lies in `base`.
        base: Key of that entry.
        layout: Of the payload.
        payload: Of the tokens after `skip`; None for a pointer.
    """
    text = b"" if layout is None else layout.text
    flags = _PRIVATE if private else 0
    said = digest_tokens_after(chain_id, tokens) if private else tokens
    n_tokens = len(tokens) // TOKEN_BYTES
    head = _HEAD.pack(_MAGIC, flags, n_tokens, skip, len(text), key, base or _NONE) + said + text
    if payload is None:
        return [head]
    return [head + bytes(-len(head) % _ALIGNED), payload.data]


def decode_piece(entry: Entry, key: bytes, parent: bytes) -> Piece | None:
    """Return what an entry holds, checked against its own words; None when it is not a piece, or another's.

    Costs a few microseconds; the payload is a view of the entry's memory, which may be read-only.

    Args:
        entry: As fetched.
        key: It was asked for by this key.
        parent: The key of the block that it must follow.
    """
    value = memoryview(entry.value)
    if len(value) < _HEAD.size or entry.parent != parent:
        return None
    magic, flags, n_tokens, skip, text_bytes, own, base = _HEAD.unpack_from(value)
    if magic != _MAGIC or own != key or flags & ~_PRIVATE:
        return None
    if not 0 < n_tokens <= BLOCK_TOKENS or not 0 <= skip <= n_tokens or (base == _NONE) != (skip == 0):
        return None
    said_end = _HEAD.size + (KEY_BYTES if flags & _PRIVATE else n_tokens * TOKEN_BYTES)
    text_end = said_end + text_bytes
    if text_end > len(value) or (text_bytes == 0) != (skip == n_tokens):
        return None
    said = bytes(value[_HEAD.size : said_end])
    layout = None
    start = text_end
    if text_bytes:
        try:
            layout = decode_layout(bytes(value[said_end:text_end]))
        except CorruptEntryError:
            return None
        start += -start % _ALIGNED
        if len(value) - start != (n_tokens - skip) * layout.token_bytes:
            return None
    elif len(value) != text_end:
        return None
    private = bool(flags & _PRIVATE)
    return Piece(
        key,
        parent,
        None if private else said,
        said if private else b"",
        n_tokens,
        skip,
        base if skip else b"",
        layout,
        np.frombuffer(value[start:], np.uint8) if layout is not None else np.empty(0, np.uint8),
        entry.compute_seconds,
    )


def read_tokens(value: memoryview) -> tuple[int, bytes | None, bytes] | None:
    """Return how many tokens an entry is over, which, and their digest in private mode; None when it is no piece."""
    if len(value) < _HEAD.size:
        return None
    magic, flags, n_tokens, _skip, _text_bytes, _own, _base = _HEAD.unpack_from(value)
    private = bool(flags & _PRIVATE)
    said = bytes(value[_HEAD.size : _HEAD.size + (KEY_BYTES if private else n_tokens * TOKEN_BYTES)])
    if magic != _MAGIC or not 0 < n_tokens <= BLOCK_TOKENS or len(said) % TOKEN_BYTES:
        return None
    return n_tokens, None if private else said, said if private else b""


def digest_tokens_after(chain_id: bytes, tokens: bytes) -> bytes:
    """Return 32 bytes that stand for tokens after a chain id, where tokens themselves must not be kept."""
    return hashlib.sha256(_DIGEST + chain_id + len(tokens).to_bytes(4, "little") + tokens).digest()


def common_tokens(one: bytes, other: bytes) -> int:
    """Return how many tokens two sequences begin with alike."""
    n = min(len(one), len(other)) // TOKEN_BYTES
    if one[: n * TOKEN_BYTES] == other[: n * TOKEN_BYTES]:
        return n
    ours, theirs = np.frombuffer(one, "<u4", n), np.frombuffer(other, "<u4", n)
    return int(np.argmax(ours != theirs))
