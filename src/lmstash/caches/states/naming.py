"""Under which keys the states of a prompt lie.

A *block* stands for 64 tokens and all before them; a *tail* for the 1 to 63 tokens after the last block, and all before
them. So that a prompt that leaves another one in the middle of a block finds how far they go together, *pointers* are
kept after the first 1, 16, 32 and 48 tokens of a piece: each names a piece that goes on from there, with its tokens.
An *end* says that a sequence was kept up to here; a *rest* holds what cannot be cut, the state of recurrent or
sliding-window layers after exactly these tokens. *Scores* are the logits after some tokens: see `scores`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

from lmstash.identity.chain import BLOCK_TOKENS, chain_ids_of_bytes, chain_key, chain_keys, chain_root, prefix_id
from lmstash.identity.tokens import TokenIds, token_bytes
from lmstash.prefix.node import TOKEN_BYTES
from lmstash.store.base import Store

KIND: Final = "states"
ENDS: Final = "sequences"
"""Kind of the namespace of ends."""
SCORES: Final = "scores"
"""Kind of the namespace of scores."""
BLOCK_BYTES: Final = BLOCK_TOKENS * TOKEN_BYTES
POINTED: Final = (1, *range(16, BLOCK_TOKENS, 16))
"""After how many tokens of a piece a pointer is kept."""
_POINTER = b"lmstash states pointer 1\0"
_FORM = {"kind": KIND, "layout": "pieces 1", "dtype": "exact"}


@dataclass(frozen=True, slots=True)
class Names:
    """What the entries of one model are called under one salt."""

    model: bytes
    """Digest of who computes."""
    root: bytes

    @classmethod
    def of(cls, model: bytes, salt: bytes | str | None) -> Names:
        """Name entries of the model with this digest."""
        return cls(model, chain_root(model, salt=salt))

    @property
    def namespace(self) -> str:
        """Where pieces live."""
        return f"{KIND}/{self.model.hex()[:16]}"

    @property
    def ends(self) -> str:
        """Where ends live."""
        return f"{ENDS}/{self.model.hex()[:16]}"

    @property
    def scores(self) -> str:
        """Where scores live."""
        return f"{SCORES}/{self.model.hex()[:16]}"

    def path(self, ids: TokenIds) -> Path:
        """Return what the pieces of a prompt are called. Costs about 2 us a block.

        Raises:
            InvalidArgumentError: As `tokens.token_bytes`.
        """
        data = token_bytes(ids)
        chain = [self.root, *chain_ids_of_bytes(self.root, data)]
        return Path(self, data, chain)


@dataclass(frozen=True, slots=True)
class Path:
    """One prompt's pieces by name."""

    names: Names
    data: bytes
    """The token ids, 4 bytes each."""
    chain: list[bytes]
    """The root, and the id after each full block."""
    _keys: dict[int, bytes] = field(default_factory=dict[int, bytes])

    @property
    def n_blocks(self) -> int:
        """Full blocks."""
        return len(self.chain) - 1

    @property
    def blocks(self) -> list[bytes]:
        """The key of each full block."""
        return self.keys(0, self.n_blocks)

    def keys(self, first: int, last: int) -> list[bytes]:
        """Return the keys of some full blocks, made when they are first asked for."""
        made, last = self._keys, min(last, self.n_blocks)
        if any(block not in made for block in range(first, last)):
            made.update(enumerate(chain_keys(self.chain[first + 1 : last + 1], site="block", **_FORM), first))
        return [made[block] for block in range(first, last)]

    @property
    def n_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.data) // TOKEN_BYTES

    def first(self, n_tokens: int) -> Path:
        """Return the names of the first tokens alone."""
        n_blocks = n_tokens // BLOCK_TOKENS
        data = self.data[: n_tokens * TOKEN_BYTES]
        return Path(self.names, data, self.chain[: n_blocks + 1])

    def then(self, tokens: bytes) -> Path:
        """Return the names of a prompt of whole blocks that goes on with up to 64 tokens, 4 bytes each."""
        ends = [prefix_id(self.chain[-1], tokens)] if len(tokens) == BLOCK_BYTES else []
        return Path(self.names, self.data + tokens, [*self.chain, *ends])

    @property
    def first_key(self) -> bytes:
        """Return a key that stands for the prompt in events."""
        return self.parent(1) if len(self.chain) > 1 else self.tail(0) if self.data else b""

    def parent(self, block: int) -> bytes:
        """Return the key of the block before `block`, or nothing."""
        if not block:
            return b""
        key = self._keys.get(block - 1)
        return chain_key(self.chain[block], site="block", **_FORM) if key is None else key

    def tokens(self, block: int) -> bytes:
        """Return the tokens of one block; fewer than 64 where the prompt ends."""
        return self.data[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]

    def tail(self, block: int) -> bytes:
        """Return the key of the prompt's last tokens, where they begin with `block` and do not fill it."""
        return chain_key(prefix_id(self.chain[block], self.tokens(block)), site="tail", **_FORM)

    def pointers(self, block: int, most: int = len(POINTED)) -> list[bytes]:
        """Return the keys of the first pointers after the beginnings of `block`, shortest first."""
        tokens = self.tokens(block)
        begun = sha256(_POINTER + self.chain[block])
        out: list[bytes] = []
        for n in POINTED[:most]:
            if n * TOKEN_BYTES > len(tokens):
                break
            each = begun.copy()
            each.update(tokens[: n * TOKEN_BYTES])
            out.append(each.digest())
        return out

    def end(self) -> bytes:
        """Return the key of the end after all tokens."""
        return chain_key(self._id_after(self.n_tokens), site="end", **_FORM)

    def rest(self, n_tokens: int) -> bytes:
        """Return the key of the rest after the first tokens."""
        return chain_key(self._id_after(n_tokens), site="rest", **_FORM)

    def scores(self, n_tokens: int) -> bytes:
        """Return the key of the scores that end after the first tokens."""
        return chain_key(self._id_after(n_tokens), site="scores", **_FORM)

    def _id_after(self, n_tokens: int) -> bytes:
        block, more = divmod(n_tokens, BLOCK_TOKENS)
        chain_id = self.chain[block]
        return prefix_id(chain_id, self.tokens(block)[: more * TOKEN_BYTES]) if more else chain_id


def keys_after(chain_id: bytes) -> dict[str, bytes]:
    """Return the keys of all that may be kept of exactly the tokens up to a chain id, by what it is."""
    return {site: chain_key(chain_id, site=site, **_FORM) for site in ("block", "tail", "end", "rest", "scores")}


def touch(store: Store, keys: Sequence[bytes]) -> None:
    """Note that a prompt's entries were used, the first ones latest, where a store can be told."""
    note: Callable[[Sequence[bytes]], None] | None = getattr(store, "touch_many", None)
    if note is not None and keys:
        note(keys[::-1])
