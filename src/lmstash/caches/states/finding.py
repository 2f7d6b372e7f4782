"""How much of a prompt is kept: the longest prefix, to the token, and where its K/V lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

_FIRST_WINDOW = 8
_GROWTH = 3
_MOST_KNOWN = 1 << 16
_MOST_POINTERS = 1 << 12


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


class Known:
    """Asks a store what it keeps, and remembers what is there until something is removed or replaced.

    Only a store that counts removals by every process (`removals()`) is remembered of; any other is asked each time.
    What has expired meanwhile is found to be gone when it is read. Threads may share it.
    """

    def __init__(self, store: Store) -> None:
        """Take the store."""
        self._store = store
        self._removals: Callable[[], int] | None = getattr(store, "removals", None)
        self._state = -1
        self._keys: set[bytes] = set()
        self._pointers: dict[bytes, Piece] = {}

    def there(self, keys: Sequence[bytes]) -> list[bool]:
        """Return which keys are kept."""
        known = self._fresh()
        if known is None:
            return self._store.contains_many(keys)
        unknown = [key for key in keys if key not in known]
        if not unknown:
            return [True] * len(keys)
        found = {key for key, kept in zip(unknown, self._store.contains_many(unknown), strict=True) if kept}
        if len(known) + len(found) <= _MOST_KNOWN:
            known |= found
        return [key in known or key in found for key in keys]

    def add(self, keys: Sequence[bytes], state: int) -> None:
        """Note that keys were put, if nothing was removed or replaced since `state`."""
        if self._fresh() is not None and state == self._state:
            self._keys.update(keys)

    @property
    def state(self) -> int:
        """A number that changes when something is removed or replaced."""
        self._fresh()
        return self._state

    def pointer(self, key: bytes, parent: bytes) -> Piece | None:
        """Return the pointer kept under a key, if it is one."""
        known = self._fresh()
        piece = self._pointers.get(key) if known is not None else None
        if piece is None:
            entry = self._store.fetch_many([key])[0]
            piece = None if entry is None else decode_piece(entry, key, parent)
            if known is not None and piece is not None and len(self._pointers) < _MOST_POINTERS:
                self._pointers[key] = piece
        return piece if piece is not None and piece.layout is None and piece.parent == parent else None

    def _fresh(self) -> set[bytes] | None:
        """Return the keys that are certainly kept; None when that cannot be known without asking."""
        if self._removals is None:
            return None
        state = self._removals()
        if state != self._state or len(self._keys) >= _MOST_KNOWN or len(self._pointers) >= _MOST_POINTERS:
            self._keys, self._pointers, self._state = set(), {}, state
        return self._keys


class Finder:
    """Looks for prompts in one store. Threads may share it."""

    def __init__(self, store: Store, namespace: str) -> None:
        """Take where to look."""
        self._store = store
        self._namespace = namespace
        self.known = Known(store)
        """What is certainly kept."""

    def match(self, path: Path) -> Match:
        """Return how far a prompt is kept.

        Costs some microseconds for each block the first time and less afterwards, and reads a pointer.
        """
        blocks = path.blocks
        n_blocks = 0
        while n_blocks < len(blocks):
            window = blocks[n_blocks : n_blocks + max(_FIRST_WINDOW, n_blocks * _GROWTH)]
            there = self.known.there(window)
            if False in there:
                n_blocks += there.index(False)
                break
            n_blocks += len(window)
        tokens = path.tokens(n_blocks)
        if not tokens:
            return Match(path, n_blocks)
        pointers = path.pointers(n_blocks)
        asked = [*pointers, path.tail(n_blocks)] if len(tokens) < BLOCK_BYTES else pointers
        there = self._store.contains_many(asked)
        if len(asked) > len(pointers) and there.pop():
            return Match(path, n_blocks, len(tokens) // TOKEN_BYTES, asked[-1], len(POINTED))
        # What the longest pointer names is at most 15 tokens shorter than the best.
        for number in range(len(pointers) - 1, -1, -1):
            if there[number]:
                piece = self.known.pointer(pointers[number], path.parent(n_blocks))
                common = 0 if piece is None else piece.common(path.chain[n_blocks], tokens)
                if piece is not None and common >= POINTED[number] and all(self.known.there([piece.base])):
                    return Match(path, n_blocks, common, piece.base, number + 1)
        return Match(path, n_blocks)

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
        return piece if all(check() for check in found.checks) else None

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
