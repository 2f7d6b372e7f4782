"""How much of a prompt is kept: the longest prefix, to the token."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from lmstash.caches.kv.blocks import Piece, Shape, decode_piece
from lmstash.caches.kv.naming import Path, digest_after
from lmstash.caches.writing import WriteBehind
from lmstash.events import MissReason
from lmstash.identity.chain import BLOCK_TOKENS
from lmstash.store.base import Entry, Store
from lmstash.store.loans import Loan, borrow_many


@dataclass(frozen=True, slots=True)
class Span:
    """Some tokens of a kept piece that are used."""

    parts: Sequence[Tensor]
    """`[n_sides, heads, n_tokens, dim]` each, as stored."""
    first: int
    last: int
    """Tokens of the parts, exclusive."""


@dataclass(slots=True)
class Match:
    """What is kept of one prompt."""

    path: Path
    n_blocks: int = 0
    """Whole blocks that are kept, from the first on."""
    common: int = 0
    """Tokens after these blocks that the piece in the slot begins with, too."""
    slot: Piece | None = None
    """What the slot after these blocks holds."""
    base: bytes = b""
    """Key of a whole block after these blocks that others lean on, or nothing."""
    leaning: int = 0
    """Tokens that it shares with the prompt: a new entry need not hold them."""
    spans: list[Span] = field(default_factory=list)
    shape: Shape | None = None
    unfit: set[bytes] = field(default_factory=set)
    """Keys whose entries cannot be used: they are to be replaced."""
    n_bytes: int = 0
    """Read for it."""
    compute_seconds: float = 0.0
    """What it took to compute."""

    @property
    def n_tokens(self) -> int:
        """Tokens that can be restored from `spans`."""
        return self.n_blocks * BLOCK_TOKENS + self.common

    def first(self, n_tokens: int) -> list[Span]:
        """Return the spans of the first tokens only."""
        out: list[Span] = []
        for span in self.spans:
            if n_tokens <= 0:
                break
            last = min(span.last, span.first + n_tokens)
            out.append(Span(span.parts, span.first, last))
            n_tokens -= last - span.first
        return out


class Finder:
    """Looks for prompts in one store, and in what is on its way there. Used by one thread, for one call."""

    def __init__(
        self,
        store: Store,
        queue: WriteBehind,
        namespace: str,
        *,
        lent: bool = False,
        worth: Callable[[int], bool] = lambda n_tokens: True,
    ) -> None:
        """Take where to look.

        Args:
            store: Where KV is kept.
            queue: What is on its way there.
            namespace: Of the entries.
            lent: Spans may lie in memory of the store, to be copied at once, and `checks` are still to be asked.
            worth: Whether so many tokens are worth reading.
        """
        self._store = store
        self._queue = queue
        self._namespace = namespace
        self._pieces: dict[bytes, Piece | None] = {}
        self._lent = lent
        self._worth = worth
        self.seconds = 0.0
        """What `find` took."""
        self.declined = 0
        """Prompts of which something is kept that was not worth reading."""
        self.checks: list[Callable[[], bool]] = []
        """Tell whether what was found is undamaged."""

    def find(self, paths: Sequence[Path]) -> list[Match]:
        """Return what is kept of each prompt. One look-up for all, then the payloads of what is there are read.

        Costs about a microsecond a block for what is not there.
        """
        started = time.perf_counter()
        matches = [Match(path) for path in paths]
        there = self.there([key for path in paths for key in path.blocks])
        wanted: dict[bytes, bytes] = {}
        slots: list[tuple[int, bytes | None]] = []
        for match in matches:
            path = match.path
            match.n_blocks = next((n for n, key in enumerate(path.blocks) if key not in there), len(path.blocks))
            if match.n_blocks and not self._worth(match.n_blocks * BLOCK_TOKENS):
                match.n_blocks = 0
                self.declined += 1
                slots.append((0, None))
                continue
            for block in range(match.n_blocks):
                wanted[path.blocks[block]] = path.parent(block)
            slots.append((match.n_blocks, path.slot(match.n_blocks)))
        taken = self.there([slot for _, slot in slots if slot is not None])
        for match, (block, slot) in zip(matches, slots, strict=True):
            if slot in taken:
                wanted[slot] = match.path.parent(block)
        self._fetch(wanted)
        self._fetch({piece.base: piece.parent for piece in self._pieces.values() if piece is not None and piece.base})
        for match, (block, slot) in zip(matches, slots, strict=True):
            self._take_blocks(match)
            if slot in wanted and match.n_blocks == block:
                self._take_slot(match, slot)
        self.seconds = time.perf_counter() - started
        return matches

    def there(self, keys: Sequence[bytes]) -> set[bytes]:
        """Return which keys are kept, or about to be."""
        asked = list(dict.fromkeys(keys))
        if not asked:
            return set()
        waits, kept = self._queue.waits(asked), self._store.contains_many(asked)
        return {key for key, one, other in zip(asked, waits, kept, strict=True) if one or other}

    def fetch(self, key: bytes) -> Entry | None:
        """Return one entry that is kept, or about to be, in memory of its own."""
        return self._queue.waiting([key])[0] or self._store.fetch_many([key])[0]

    def _fetch(self, wanted: dict[bytes, bytes]) -> None:
        """Read entries, each of which must follow the block whose key is beside its own."""
        keys = [key for key in wanted if key not in self._pieces]
        if not keys:
            return
        for key, entry in zip(keys, self._queue.waiting(keys), strict=True):
            if entry is not None:
                self._pieces[key] = decode_piece(entry, key, wanted[key])
        asked = [key for key in keys if key not in self._pieces]
        for key, loan in zip(asked, self._borrow(asked), strict=True):
            piece = None if loan is None else decode_piece(loan.entry, key, wanted[key])
            self._pieces[key] = piece
            if loan is None:
                continue
            if piece is None and (loan.check is None or loan.check()):
                self._store.events.miss(self._namespace, key, MissReason.MISMATCH)
            elif piece is not None and loan.check is not None:
                self.checks.append(loan.check)

    def _borrow(self, keys: Sequence[bytes]) -> list[Loan | None]:
        if self._lent:
            return borrow_many(self._store, keys)
        return [None if entry is None else Loan(entry) for entry in self._store.fetch_many(keys)]

    def _take_blocks(self, match: Match) -> None:
        path = match.path
        for block in range(match.n_blocks):
            key = path.blocks[block]
            piece = self._pieces[key]
            spans = None
            if piece is not None and _is_over(piece, path.chain[block], path.tokens(block)):
                spans = self._spans(piece, BLOCK_TOKENS)
            if piece is None or spans is None or not _fits(match, piece):
                match.unfit.add(key)
                match.n_blocks = block
                return
            self._use(match, piece, spans)

    def _take_slot(self, match: Match, key: bytes) -> None:
        piece = self._pieces[key]
        if piece is None:
            return
        start = match.n_blocks * BLOCK_TOKENS
        tokens = match.path.ids[start : start + BLOCK_TOKENS]
        if piece.tokens is not None:
            common = _common(piece.tokens, tokens)
        else:
            whole = digest_after(match.path.chain[match.n_blocks], tokens[: piece.n_tokens])
            common = piece.n_tokens if len(tokens) >= piece.n_tokens and whole == piece.digest else 0
        spans = self._spans(piece, common) if common else None
        match.slot = piece
        if spans is None or not _fits(match, piece):
            match.unfit.add(key)
            return
        match.common = common
        if piece.skip:
            match.base, match.leaning = piece.base, min(common, piece.skip)
        self._use(match, piece, spans)

    def _use(self, match: Match, piece: Piece, spans: list[Span]) -> None:
        match.spans += spans
        match.n_bytes += piece.n_bytes
        match.compute_seconds += piece.compute_seconds * sum(each.last - each.first for each in spans) / piece.n_tokens
        if match.shape is None:
            match.shape = piece.shape or self._shape(piece)

    def _shape(self, piece: Piece) -> Shape | None:
        base = self._pieces.get(piece.base)
        return None if base is None else base.shape

    def _spans(self, piece: Piece, n_tokens: int) -> list[Span] | None:
        """Return where the first tokens of a piece lie; None where another entry that it needs cannot be used."""
        out: list[Span] = []
        if piece.skip:
            base = self._pieces.get(piece.base)
            if base is None or base.skip or base.parent != piece.parent or base.tokens is None or piece.tokens is None:
                return None
            same_shape = piece.shape is None or base.shape == piece.shape
            if not same_shape or not np.array_equal(base.tokens[: piece.skip], piece.tokens[: piece.skip]):
                return None
            out.append(Span(base.parts, 0, min(n_tokens, piece.skip)))
        if n_tokens > piece.skip:
            out.append(Span(piece.parts, 0, n_tokens - piece.skip))
        return out


def _is_over(piece: Piece, chain_id: bytes, tokens: np.ndarray) -> bool:
    """Whether a piece is a whole block of exactly these tokens after this chain id."""
    if piece.n_tokens != len(tokens):
        return False
    if piece.tokens is None:
        return piece.digest == digest_after(chain_id, tokens)
    return np.array_equal(piece.tokens, tokens)


def _fits(match: Match, piece: Piece) -> bool:
    """Whether a piece looks like those before it."""
    return match.shape is None or piece.shape is None or piece.shape == match.shape


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """Return how many tokens two sequences begin with alike."""
    n = min(len(one), len(other))
    differing = np.flatnonzero(one[:n] != other[:n])
    return int(differing[0]) if len(differing) else n
