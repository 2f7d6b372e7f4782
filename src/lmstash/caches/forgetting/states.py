"""Which llama.cpp states are of a prompt.

Pieces and pointers say which tokens they are over. Ends, rests and scores are known by their keys alone: those after
the prompt's beginnings are made here, and so are those that follow sequences which other pieces spell out. What ends
in the block in which the prompt ends, and is neither, may be of the prompt: it goes.
"""

from __future__ import annotations

from collections.abc import Sequence

from lmstash.caches.forgetting.trail import Trail, after_of, components, number, peeked
from lmstash.caches.states.naming import ENDS, KIND, SCORES, keys_after
from lmstash.caches.states.pieces import digest_tokens_after, read_tokens
from lmstash.caches.states.rests import MAGIC, mark_key
from lmstash.identity.chain import BLOCK_TOKENS, prefix_id
from lmstash.prefix.node import TOKEN_BYTES
from lmstash.store.base import EntryInfo, Store


def meant(store: Store, model: str, trails: Sequence[Trail]) -> set[bytes]:
    """Return the keys of the entries of one model that are of the prompt. Reads the values of those that may be.

    Args:
        store: Where they are kept.
        model: The first 16 hex digits of its fingerprint.
        trails: The prompt, under every root.
    """
    search = _Search(store, trails)
    for entry in store.entries(f"{KIND}/{model}"):
        search.take(entry)
    search.read()
    for entry in store.entries(f"{SCORES}/{model}"):
        search.take_scores(entry)
    search.settle()
    for entry in store.entries(f"{ENDS}/{model}"):
        n_tokens = number(entry.meta, "n_tokens")
        if entry.parent in search.gone or search.is_own(entry.key, n_tokens):
            search.gone.add(entry.key)
    return search.gone


def _is_mark(entry: EntryInfo) -> bool:
    """Whether an entry on the shelf of pieces is a mark: it covers no tokens, and leans on no piece, as pointers do."""
    return not entry.n_tokens and not number(components(entry), "skip")


class _Search:
    """What is found of one model."""

    def __init__(self, store: Store, trails: Sequence[Trail]) -> None:
        self.gone: set[bytes] = set()
        self._store = store
        self._trails = trails
        self._marks = {
            mark_key(chain_id, tokens): chain_id
            for trail in trails
            for chain_id in trail.chain
            if (tokens := trail.tokens_after(chain_id))
        }
        self._unread: list[EntryInfo] = []
        self._doubtful: set[bytes] = set()
        """Keys of what ends in the block in which the prompt ends, over nobody knows which tokens."""
        self._at_ends: list[EntryInfo] = []
        """Rests where that block ends: they name as their parent the block itself, whatever it holds."""
        self._others: set[tuple[bytes, bytes]] = set()
        """Tokens of other prompts in these blocks, each after a chain id."""

    def is_own(self, key: bytes, n_tokens: int) -> bool:
        """Whether it is the key of something over exactly so many of the prompt's tokens, from the first on."""
        return any(
            0 < n_tokens <= trail.n_tokens and key in keys_after(trail.id_after(n_tokens)).values()
            for trail in self._trails
        )

    def take(self, entry: EntryInfo) -> None:
        """Look at the facts of a piece, a pointer, a rest or a mark."""
        named = components(entry)
        n_tokens = number(named, "n_tokens")
        if self.is_own(entry.key, number(named, "start") + n_tokens):
            self.gone.add(entry.key)
        elif _is_mark(entry):
            if entry.key in self._marks or any(entry.parent == _before(trail) for trail in self._trails):
                self._unread.append(entry)
        elif n_tokens > BLOCK_TOKENS:
            self._take_rest(entry, n_tokens)
        elif any(trail.tokens_after(after_of(named)) for trail in self._trails):
            self._unread.append(entry)

    def take_scores(self, entry: EntryInfo) -> None:
        """Look at the facts of scores."""
        named = components(entry)
        n_tokens, after = number(named, "start") + number(named, "n_tokens"), after_of(named)
        if self.is_own(entry.key, n_tokens):
            self.gone.add(entry.key)
        elif any(after == trail.chain[-1] and trail.n_tokens < n_tokens <= trail.most_tokens for trail in self._trails):
            self._doubtful.add(entry.key)

    def read(self) -> None:
        """Look into what may be of the prompt by its facts."""
        for entry, value in peeked(self._store, self._unread):
            if value is None:
                self.gone.add(entry.key)
            elif _is_mark(entry):
                self._take_mark(entry, bytes(value))
            elif bytes(value[: len(MAGIC)]) == MAGIC:
                self._take_rest(entry, entry.n_tokens)
            else:
                self._take_piece(entry, value)

    def settle(self) -> None:
        """Let go of what nobody else is known to have."""
        blocks = [entry.parent for entry in self._at_ends]
        for entry, there in zip(self._at_ends, self._store.contains_many(blocks) if blocks else (), strict=True):
            if entry.parent in self.gone or not there:
                self._doubtful.add(entry.key)
        if self._doubtful:
            for after, tokens in self._others:
                for end in range(TOKEN_BYTES, len(tokens) + 1, TOKEN_BYTES):
                    keys = keys_after(prefix_id(after, tokens[:end]))
                    self._doubtful -= {keys["rest"], keys["scores"]}
        self.gone |= self._doubtful

    def _take_mark(self, entry: EntryInfo, tokens: bytes) -> None:
        for trail in self._trails:
            for chain_id in (self._marks.get(entry.key), trail.chain[-1]):
                if chain_id is not None and mark_key(chain_id, tokens) == entry.key:
                    self._judge(entry, chain_id, tokens)

    def _take_rest(self, entry: EntryInfo, n_tokens: int) -> None:
        for trail in self._trails:
            if trail.n_tokens < n_tokens == trail.most_tokens:
                self._at_ends.append(entry)
            elif entry.parent == _before(trail) and trail.n_tokens < n_tokens < trail.most_tokens:
                self._doubtful.add(entry.key)

    def _take_piece(self, entry: EntryInfo, value: memoryview) -> None:
        said, after = read_tokens(value), after_of(components(entry))
        if said is None:  # damaged
            self.gone.add(entry.key)
            return
        n_tokens, tokens, digest = said
        if tokens is not None:
            self._judge(entry, after, tokens)
        elif any(
            trail.may_share(after, n_tokens, digest, lambda data: digest_tokens_after(after, data))
            for trail in self._trails
        ):
            self.gone.add(entry.key)

    def _judge(self, entry: EntryInfo, after: bytes, tokens: bytes) -> None:
        if any(trail.shares(after, tokens) for trail in self._trails):
            self.gone.add(entry.key)
        else:
            self._others.add((after, tokens))


def _before(trail: Trail) -> bytes:
    """Return the key of the last whole block of a prompt, or nothing: what follows it names it as its parent."""
    return keys_after(trail.chain[-1])["block"] if len(trail.chain) > 1 else b""
