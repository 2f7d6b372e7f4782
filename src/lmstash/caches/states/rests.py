"""What cannot be cut: the state of recurrent and sliding-window layers, kept whole at chosen places of a prompt.

A rest belongs to exactly the tokens that it was saved after. It is found at ends of blocks by the chain, and elsewhere
by a *mark*, which the block that it lies in has: the tokens from the block's start to it. A block has one mark for each
first token, the latest.
"""

from __future__ import annotations

import struct
from hashlib import sha256

from lmstash.caches.states.blob import State
from lmstash.caches.states.keeping import Facts
from lmstash.caches.states.naming import Path
from lmstash.events import MissReason
from lmstash.identity.chain import BLOCK_TOKENS
from lmstash.prefix.node import TOKEN_BYTES
from lmstash.store.base import KEY_BYTES, Store, Write

MAGIC = b"lmstash\x02"
"""What the bytes of a rest begin with."""
_HEAD = struct.Struct(f"<8sII{KEY_BYTES}s")
_MARK = b"lmstash states mark 1\0"


class Rests:
    """Rests in one store. Keeps nothing itself; threads may share it."""

    def __init__(self, store: Store, namespace: str) -> None:
        """Take where they are kept."""
        self._store = store
        self._namespace = namespace

    def places(self, path: Path, most: int) -> list[int]:
        """Return after how many tokens, at most `most`, there are rests of a prompt; the longest first.

        Reads the index, and the marks that there are.
        """
        n_blocks = min(len(path.blocks), most // BLOCK_TOKENS)
        ends = {path.rest(block * BLOCK_TOKENS): block * BLOCK_TOKENS for block in range(1, n_blocks + 1)}
        numbers = [block for block in range(n_blocks + 1) if path.tokens(block)]
        marks = {mark_key(path.chain[block], path.tokens(block)): block for block in numbers}
        asked = [*ends, *marks]
        if not asked:
            return []
        there = dict(zip(asked, self._store.contains_many(asked), strict=True))
        out = {ends[key] for key in ends if there[key]}
        kept = [key for key in marks if there[key]]
        for key, value in zip(kept, self._store.get_many(kept), strict=True) if kept else ():
            tokens = b"" if value is None else bytes(value)
            n_tokens = marks[key] * BLOCK_TOKENS + len(tokens) // TOKEN_BYTES
            if tokens and n_tokens <= most and path.tokens(marks[key]).startswith(tokens):
                out.add(n_tokens)
        inner = [n for n in out if n % BLOCK_TOKENS]
        for n, kept_there in zip(inner, self._store.contains_many([path.rest(n) for n in inner]), strict=True):
            if not kept_there:
                out.discard(n)
        return sorted(out, reverse=True)

    def read(self, path: Path, n_tokens: int) -> tuple[bytes, memoryview] | None:
        """Return the text of the layout and the rest after exactly `n_tokens`; None when it is not there or damaged."""
        key = path.rest(n_tokens)
        entry = self._store.fetch_many([key])[0]
        if entry is None:
            return None
        value = memoryview(entry.value)
        if len(value) >= _HEAD.size:
            magic, held, text_bytes, own = _HEAD.unpack_from(value)
            start = _HEAD.size + text_bytes
            if magic == MAGIC and held == n_tokens and own == key and start <= len(value):
                return bytes(value[_HEAD.size : start]), value[start:]
        self._store.events.miss(self._namespace, key, MissReason.MISMATCH)
        return None

    def writes(self, path: Path, state: State, meta: bytes, facts: Facts) -> list[Write]:
        """Return the entries that keep the rest after all tokens of `path`; nothing where it is kept."""
        n_tokens = path.n_tokens
        key = path.rest(n_tokens)
        if self._store.contains(key):
            return []
        block, more = divmod(n_tokens, BLOCK_TOKENS)
        parent, namespace, ttl_seconds = path.parent(block), path.names.namespace, facts.ttl_seconds
        text = state.layout.text
        # A copy: the state is its owner's.
        rest = state.data[state.rest :].tobytes()
        value = [_HEAD.pack(MAGIC, n_tokens, len(text), key) + text, rest]
        seconds = facts.seconds_per_token * n_tokens
        out = [Write(key, value, namespace, meta, parent, seconds, n_tokens, ttl_seconds)]
        if more and not facts.private:  # a mark spells out tokens
            mark = mark_key(path.chain[block], path.tokens(block))
            out.append(Write(mark, path.tokens(block), namespace, meta, parent, ttl_seconds=ttl_seconds))
        return out


def mark_key(chain_id: bytes, tokens: bytes) -> bytes:
    """Return the key of the mark in the block after a chain id that begins as `tokens` do, 4 bytes each."""
    return sha256(_MARK + chain_id + tokens[:TOKEN_BYTES]).digest()
