"""New entries of one sequence: what of its state is not kept yet, cut into pieces."""

from __future__ import annotations

import json
from dataclasses import dataclass

from lmstash.caches.states.blob import State, cut
from lmstash.caches.states.finding import Match
from lmstash.caches.states.naming import KIND, POINTED
from lmstash.caches.states.pieces import Piece, encode_piece
from lmstash.identity.chain import BLOCK_TOKENS
from lmstash.identity.keys import SCHEMA_VERSION
from lmstash.prefix.node import TOKEN_BYTES
from lmstash.store.base import Write

LEAST_SHARED = 8
"""Tokens that must be saved for a piece to lean on another one: reading it then reads both."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is said of every entry."""

    name: str
    """Of the model."""
    private: bool
    ttl_seconds: float | None
    seconds_per_token: float = 0.0


class Cutter:
    """Cuts one sequence into entries. What it returns are copies."""

    def __init__(self, match: Match, state: State, target: Piece | None, facts: Facts) -> None:
        """Take what was computed.

        Args:
            match: What is kept of it.
            state: Its state, of as many tokens.
            target: What follows the kept blocks and begins alike, if it can be leaned on.
            facts: Said of every entry.
        """
        self._path = match.path
        self._match = match
        self._state = state
        self._target = target
        self._facts = facts

    def writes(self) -> list[Write]:
        """Return the new entries, each before what it follows, so that beginnings are the latest used.

        Costs a copy of their bytes.
        """
        path, match = self._path, self._match
        n_blocks = len(path.blocks)
        out: list[Write] = []
        if not self._state.layout.parts:  # all of it is rest
            return [self._end(path.rest(path.n_tokens))]
        last = path.parent(n_blocks)
        for block in range(match.n_blocks, n_blocks):
            out += self._piece(block, path.blocks[block])
        if remaining := len(path.tokens(n_blocks)) // TOKEN_BYTES:
            if match.n_blocks == n_blocks and match.common == remaining:
                last = match.target  # holds them all
            else:
                last = path.tail(n_blocks)
                out += self._piece(n_blocks, last)
        out.append(self._end(last))
        return out[::-1]

    def _piece(self, block: int, key: bytes) -> list[Write]:
        """Return an entry, and pointers to it."""
        path, match = self._path, self._match
        tokens = path.tokens(block)
        at_slot = block == match.n_blocks
        base, skip = self._base() if at_slot else (b"", 0)
        n_tokens = len(tokens) // TOKEN_BYTES
        out = [self._write(block, key, tokens, skip, base, whole=True)]
        first = match.pointed if at_slot else 0
        for n, pointer in list(zip(POINTED, path.pointers(block), strict=False))[first:]:
            if n <= n_tokens:
                out.append(self._write(block, pointer, tokens, n_tokens, key, whole=False))
        return out

    def _base(self) -> tuple[bytes, int]:
        """Return the piece that the first new one leans on, and how many tokens it takes from there."""
        target, common = self._target, self._match.common
        if target is None:
            return b"", 0
        base, shared = (target.base, min(common, target.skip)) if target.skip else (target.key, common)
        return (base, shared) if shared >= LEAST_SHARED else (b"", 0)

    def _write(self, block: int, key: bytes, tokens: bytes, skip: int, base: bytes, *, whole: bool) -> Write:
        path, facts = self._path, self._facts
        start, n_tokens = block * BLOCK_TOKENS, len(tokens) // TOKEN_BYTES
        value = encode_piece(
            key,
            chain_id=path.chain[block],
            tokens=tokens,
            private=facts.private,
            skip=skip,
            base=base,
            layout=self._state.layout if whole else None,
            payload=cut(self._state, start + skip, start + n_tokens) if whole else None,
        )
        return Write(
            key,
            value,
            namespace=path.names.namespace,
            meta=self.meta(block, n_tokens, skip),
            parent=path.parent(block),
            compute_seconds=facts.seconds_per_token * (n_tokens - skip),
            n_tokens=n_tokens - skip,
            ttl_seconds=facts.ttl_seconds,
        )

    def _end(self, last: bytes) -> Write:
        path = self._path
        return Write(
            path.end(),
            last,
            namespace=path.names.ends,
            meta={"model": path.names.model.hex()[:16], "name": self._facts.name, "n_tokens": path.n_tokens},
            parent=last,
            ttl_seconds=self._facts.ttl_seconds,
        )

    def meta(self, block: int, n_tokens: int, skip: int) -> bytes:
        """Return the facts that are kept beside an entry."""
        path = self._path
        components = {
            "kind": KIND,
            "start": block * BLOCK_TOKENS,
            "n_tokens": n_tokens,
            "skip": skip,
            "after": path.chain[block].hex(),
        }
        facts = {"model": path.names.model.hex()[:16], "name": self._facts.name}
        identity = {"schema": SCHEMA_VERSION, "components": components}
        return json.dumps({"id": identity, **facts}, separators=(",", ":")).encode()
