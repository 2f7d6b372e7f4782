"""How much of a prompt is kept: the longest prefix, to the token, and where its K/V lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from lmstash.caches.states.blob import Span
from lmstash.caches.states.layout import Layout
from lmstash.caches.states.naming import BLOCK_BYTES, POINTED, Path
from lmstash.caches.states.pieces import Piece, decode_piece
from lmstash.events import MissReason
from lmstash.identity.chain import BLOCK_TOKENS
from lmstash.prefix.node import TOKEN_BYTES
from lmstash.store.base import Store
from lmstash.store.loans import borrow_many


@dataclass(frozen=True, slots=True)
class Match:
    """What is kept of one prompt, by the store's index; reading it may find some gone."""

    path: Path
    n_blocks: int
    """Whole blocks that are kept, from the first on."""
    common: int = 0
    """Tokens after these blocks that `target` begins with, too."""
    target: bytes = b""
    """Key of a piece that follows these blocks, or nothing."""
    pointed: int = 0
    """Pointers after these blocks that can stay as they are, shortest first."""

    @property
    def n_tokens(self) -> int:
        """Tokens that are kept."""
        return self.n_blocks * BLOCK_TOKENS + self.common


@dataclass(slots=True)
class Found:
    """K/V of the first tokens of a prompt, lent by the store: to be copied soon, and `checks` are still to be asked."""

    layout: Layout | None = None
    spans: list[Span] = field(default_factory=list)
    n_tokens: int = 0
    compute_seconds: float = 0.0
    pieces: dict[bytes, Piece] = field(default_factory=dict)
    checks: list[Callable[[], bool]] = field(default_factory=list)
    """Tell whether what was read is undamaged."""


class Finder:
    """Looks for prompts in one store. Keeps nothing; threads may share it."""

    def __init__(self, store: Store, namespace: str) -> None:
        """Take where to look."""
        self._store = store
        self._namespace = namespace

    def match(self, path: Path) -> Match:
        """Return how far a prompt is kept.

        Costs about 3 us a block on disk and half of one in memory, and reads at most eight pointers.
        """
        there = self._store.contains_many(path.blocks)
        n_blocks = there.index(False) if False in there else len(there)
        tokens = path.tokens(n_blocks)
        if not tokens:
            return Match(path, n_blocks)
        if len(tokens) < BLOCK_BYTES and self._store.contains(tail := path.tail(n_blocks)):
            return Match(path, n_blocks, len(tokens) // TOKEN_BYTES, tail, len(POINTED))
        pointers = path.pointers(n_blocks)
        kept = [key for key, is_there in zip(pointers, self._store.contains_many(pointers), strict=True) if is_there]
        best, target, pointed = 0, b"", 0
        for key, entry in zip(kept, self._store.fetch_many(kept), strict=True) if kept else ():
            piece = None if entry is None else decode_piece(entry, key, path.parent(n_blocks))
            if piece is None or piece.layout is not None:
                continue
            common = piece.common(path.chain[n_blocks], tokens)
            if common >= POINTED[pointers.index(key)] and self._store.contains(piece.base):
                pointed = pointers.index(key) + 1
                if common > best:
                    best, target = common, piece.base
        return Match(path, n_blocks, best, target, pointed)

    def read(self, match: Match, at_most: int) -> Found:
        """Return K/V of the first tokens of a prompt: as many as are kept, at most `at_most`, and undamaged so far."""
        path = match.path
        n_tokens = min(match.n_tokens, at_most)
        n_blocks = min(match.n_blocks, -(-n_tokens // BLOCK_TOKENS))
        wanted = {path.blocks[block]: path.parent(block) for block in range(n_blocks)}
        if n_tokens > match.n_blocks * BLOCK_TOKENS:
            wanted[match.target] = path.parent(match.n_blocks)
        found = Found()
        self._fetch(wanted, found)
        bases = {p.base: p.parent for p in found.pieces.values() if p.base and p.base not in found.pieces}
        self._fetch(bases, found)
        for block, key in enumerate(wanted):
            asked = min(BLOCK_TOKENS, n_tokens - block * BLOCK_TOKENS)
            piece = found.pieces.get(key)
            spans = None if piece is None else self._spans(piece, path.chain[block], path.tokens(block), asked, found)
            if piece is None or not spans:
                break
            found.spans += spans
            found.n_tokens += asked
            found.compute_seconds += piece.compute_seconds
        return found

    def target(self, match: Match) -> Piece | None:
        """Return the piece that a prompt's next tokens begin like, if it and what it leans on can be used."""
        if not match.target:
            return None
        path, block = match.path, match.n_blocks
        found = Found()
        self._fetch({match.target: path.parent(block)}, found)
        piece = found.pieces.get(match.target)
        if piece is not None and piece.base:
            self._fetch({piece.base: piece.parent}, found)
        if piece is None or self._spans(piece, path.chain[block], path.tokens(block), match.common, found) is None:
            return None
        return piece if all([check() for check in found.checks]) else None

    def _fetch(self, wanted: dict[bytes, bytes], found: Found) -> None:
        """Read entries, each of which must follow the block whose key is beside its own."""
        keys = list(wanted)[::-1]  # the first ones last, which are then the latest used
        for key, loan in zip(keys, borrow_many(self._store, keys), strict=True) if keys else ():
            if loan is None:
                continue
            piece = decode_piece(loan.entry, key, wanted[key])
            if piece is not None:
                found.pieces[key] = piece
                if loan.check is not None:
                    found.checks.append(loan.check)
            elif loan.check is None or loan.check():
                self._store.events.miss(self._namespace, key, MissReason.MISMATCH)

    @staticmethod
    def _spans(piece: Piece, chain_id: bytes, tokens: bytes, n_tokens: int, found: Found) -> list[Span] | None:
        """Return where the first tokens of a piece lie, which must be `tokens`; None where they cannot be used."""
        if piece.common(chain_id, tokens) < n_tokens:
            return None
        out: list[Span] = []
        layout = piece.layout
        if piece.skip:
            base = found.pieces.get(piece.base)
            if base is None or base.skip or base.layout is None or base.parent != piece.parent:
                return None
            shared = min(piece.skip, n_tokens)
            if base.n_tokens < piece.skip or base.common(chain_id, tokens) < shared:
                return None
            if layout is not None and layout != base.layout:
                return None
            layout = base.layout
            out.append(Span(base.payload, base.n_tokens, 0, shared))
        if n_tokens > piece.skip:
            out.append(Span(piece.payload, piece.n_tokens - piece.skip, 0, n_tokens - piece.skip))
        if layout is None or found.layout not in (None, layout):
            return None
        found.layout = layout
        return out


