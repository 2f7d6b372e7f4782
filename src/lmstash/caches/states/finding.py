"""How much of a prompt is kept: the longest prefix, to the token, and where its K/V lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lmstash.caches.states.blob import Span
from lmstash.caches.states.layout import Layout
from lmstash.caches.states.naming import POINTED, Path
from lmstash.caches.states.pieces import Piece, decode_piece
from lmstash.events import MissReason
from lmstash.identity.chain import BLOCK_TOKENS
from lmstash.prefix.node import TOKEN_BYTES
from lmstash.store.base import Store
from lmstash.store.loans import borrow_many

_START, _FIRST_WINDOW = 2, 8
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
    tokens: bytes = b""
    """All tokens of `target`, 4 bytes each, where it may go on in another way than the prompt and they are known."""

    @property
    def n_tokens(self) -> int:
        """Tokens that are kept."""
        return self.n_blocks * BLOCK_TOKENS + self.common

    @property
    def kept(self) -> Path:
        """What is kept with all of `target`: the same as the prompt in the first `n_tokens`."""
        return self.path.first(self.n_blocks * BLOCK_TOKENS).then(self.tokens) if self.tokens else self.path


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


@dataclass(slots=True)
class _Remembered:
    """What is certainly kept while the store counts so many removals."""

    removals: int
    ids: set[bytes] = field(default_factory=set[bytes])
    """Chain ids of whole blocks."""
    keys: set[bytes] = field(default_factory=set[bytes])
    """Of other pieces."""
    pointers: dict[bytes, Piece] = field(default_factory=dict[bytes, Piece])

    @property
    def is_full(self) -> bool:
        """Whether it takes too much room."""
        return len(self.ids) + len(self.keys) >= _MOST_KNOWN or len(self.pointers) >= _MOST_POINTERS


class Known:
    """Asks a store what it keeps, and remembers what is there until something is removed or replaced.

    Only a store that counts removals by every process (`removals()`) is remembered of; any other is asked each time.
    What has expired meanwhile is found to be gone when it is read: then call `forget`. Threads may share it.
    """

    def __init__(self, store: Store) -> None:
        """Take the store."""
        self._store = store
        self._removals: Callable[[], int] | None = getattr(store, "removals", None)
        self._remembered = _Remembered(-1)

    def leading(self, path: Path) -> int:
        """Return how many whole blocks of a prompt are known to be kept, from the first on, without asking for them."""
        known, chain = self._fresh(), path.chain
        n, total = 0, path.n_blocks
        if known is not None:
            ids = known.ids
            while n < total and chain[n + 1] in ids:
                n += 1
        return n

    def note(self, ids: Sequence[bytes], keys: Sequence[bytes], state: int) -> None:
        """Note that blocks with these chain ids, and these keys, are kept, if nothing was removed since `state`."""
        known = self._fresh()
        if known is not None and state == known.removals:
            known.ids.update(ids)
            known.keys.update(keys)

    def remembers(self, key: bytes) -> bool:
        """Return whether a key is known to be kept, without asking for it."""
        known = self._fresh()
        return known is not None and key in known.keys

    def is_there(self, key: bytes) -> bool:
        """Return whether something is kept under a key."""
        known = self._fresh()
        if known is not None and key in known.keys:
            return True
        there = self._store.contains_many([key])[0]
        if there and known is not None:
            known.keys.add(key)
        return there

    def forget(self) -> None:
        """Ask the store again: something that was there is gone."""
        self._remembered = _Remembered(-1)

    @property
    def state(self) -> int:
        """A number that changes when something is removed or replaced."""
        known = self._fresh()
        return -1 if known is None else known.removals

    def pointer(self, key: bytes, parent: bytes) -> Piece | None:
        """Return the pointer kept under a key, if it is one."""
        known = self._fresh()
        piece = known.pointers.get(key) if known is not None else None
        if piece is None:
            entry = self._store.fetch_many([key])[0]
            piece = None if entry is None else decode_piece(entry, key, parent)
            if known is not None and piece is not None:
                known.pointers[key] = piece
        return piece if piece is not None and piece.layout is None and piece.parent == parent else None

    def _fresh(self) -> _Remembered | None:
        """Return what is certainly kept; None when that cannot be known without asking."""
        if self._removals is None:
            return None
        removals, known = self._removals(), self._remembered
        if removals != known.removals or known.is_full:
            known = self._remembered = _Remembered(removals)
        return known


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

        Costs some microseconds for each block the first time and less afterwards, and reads a pointer where the prompt
        leaves what is kept.
        """
        known, total = self.known, path.n_blocks
        end = path.tail(total) if path.tokens(total) else b""
        whole = Match(path, total, len(path.tokens(total)) // TOKEN_BYTES, end, len(POINTED) if end else 0)
        n = known.leading(path)
        while n < total or (end and not known.remembers(end)):
            # One question for all that may come next: a question costs a store as much as some keys in it. Where there
            # is no pointer after the first token, there are no others.
            window = path.keys(n, n + (max(_FIRST_WINDOW, n * _GROWTH) if n else _START))
            first, state = path.pointers(n, 1), known.state
            asked = [*window, *first, *([end] if end and n + len(window) == total else [])]
            there = self._store.contains_many(asked)
            ended = len(asked) > len(window) + len(first) and there.pop()
            begun = bool(first) and there.pop()
            more = next((number for number in range(len(window)) if not there[number]), len(window))
            complete = ended and n + more == total
            known.note(path.chain[n + 1 : n + 1 + more], [end] if complete else [], state)
            n += more
            if complete or (n == total and not end):
                return whole
            if not more:
                return self._pointed(path, n) if begun else Match(path, n)
            if more < len(window) or n == total:
                return self._pointed(path, n)
        return whole

    def _pointed(self, path: Path, n_blocks: int) -> Match:
        """Return how far a prompt is kept of which no more whole blocks are."""
        tokens, pointers = path.tokens(n_blocks), path.pointers(n_blocks)
        there = self._store.contains_many(pointers)
        # What the longest pointer names is at most 15 tokens shorter than the best.
        for number in range(len(pointers) - 1, -1, -1):
            if there[number]:
                piece = self.known.pointer(pointers[number], path.parent(n_blocks))
                common = 0 if piece is None else piece.common(path.chain[n_blocks], tokens)
                if piece is not None and common >= POINTED[number] and self.known.is_there(piece.base):
                    return Match(path, n_blocks, common, piece.base, number + 1, piece.tokens or b"")
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
                self._give_up(piece, found)
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
            self._give_up(piece, found)
            return None
        return piece if all(check() for check in found.checks) else None

    def _give_up(self, piece: Piece | None, found: Found) -> None:
        """Ask again what is kept, since something is gone that was there.

        An entry that leans on one that is gone is removed: it would be promised, and hold up what replaces it.
        """
        read_only = getattr(self._store, "read_only", False)
        if piece is not None and piece.base and piece.base not in found.pieces and not read_only:
            self._store.delete(piece.key)
        self.known.forget()

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
