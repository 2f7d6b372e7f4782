"""How far a store keeps the blocks of a prompt: found through the token-block chain, without reading a value.

So a new process finds what an old one kept. The look-up goes forward in windows that grow: a prompt of which nothing is
kept costs a few hashes however long it is, and one that is kept whole costs its hashes and a handful of index queries.
It ends with the first window that has a hole and nothing behind it.
Blocks may be missing in between (eviction prefers ends, but does not promise it), so presence is never inferred from a
later block; what is there behind a hole is reported too, for whoever can fill the hole.

After the last block of the unbroken run the *tail* is looked for: fewer than 64 tokens, kept under the id before them
and their first token, with all of its tokens beside it. It is matched as far as they agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lmstash.identity.chain import BLOCK_TOKENS, chain_ids_of_bytes, chain_keys, tail_key
from lmstash.identity.tokens import TokenIds, digest_token_bytes, token_bytes
from lmstash.prefix.node import TOKEN_BYTES, shared_bytes
from lmstash.store.base import EntryInfo, Store

_BLOCK_BYTES = BLOCK_TOKENS * TOKEN_BYTES
_FIRST_WINDOW = 8
_GROWTH = 4
_LAST_WINDOW = 512
_TOKENS = "tail"
_DIGEST = "tail_digest"


@dataclass(frozen=True, slots=True)
class Tail:
    """A kept tail that agrees with a prompt."""

    key: bytes
    """What it is kept under."""
    n_tokens: int
    """Its first tokens that the prompt has too: at least 1."""
    n_kept: int
    """All of its tokens."""


@dataclass(slots=True)
class KeptPrefix:
    """What is kept of one prompt. A snapshot: reading the blocks may find some gone."""

    n_blocks: int = 0
    """Blocks kept from the start on without a hole."""
    keys: list[bytes] = field(default_factory=list)
    """Keys of all blocks that were looked for; the first `n_blocks` are kept."""
    chain: list[bytes] = field(default_factory=list)
    """Their chain ids."""
    later: list[int] = field(default_factory=list)
    """Numbers of blocks that are kept behind the first hole, as far as was looked."""
    tail: Tail | None = None
    """After the first `n_blocks`."""

    @property
    def n_tokens(self) -> int:
        """Tokens kept from the start on without a hole."""
        return self.n_blocks * BLOCK_TOKENS + (0 if self.tail is None else self.tail.n_tokens)


def find_kept(
    store: Store, root: bytes, ids: TokenIds, *, kind: str, site: str, layout: str, dtype: str, tail: bool = True
) -> KeptPrefix:
    """Say how far the blocks of one prompt are kept: `find_kept_many` of one."""
    return find_kept_many(store, root, [ids], kind=kind, site=site, layout=layout, dtype=dtype, tail=tail)[0]


def find_kept_many(
    store: Store,
    root: bytes,
    prompts: Sequence[TokenIds],
    *,
    kind: str,
    site: str,
    layout: str,
    dtype: str,
    tail: bool = True,
) -> list[KeptPrefix]:
    """Say how far the blocks of each prompt are kept.

    Reads the store's index and the headers of tails. Counts as no use. Costs about 3 us for each block looked for,
    which are those that are kept and at most four times as many, and a query for each window for all prompts together.

    Args:
        store: Where to look.
        root: `chain_root` of the model.
        prompts: Token ids.
        kind: With `site`, `layout` and `dtype` what is looked for, as in `chain_key`.
        site: See `kind`.
        layout: See `kind`.
        dtype: See `kind`.
        tail: Whether to look for tails.

    Raises:
        InvalidArgumentError: As `tokens.token_bytes`.
    """
    what = {"kind": kind, "site": site, "layout": layout, "dtype": dtype}
    datas = [token_bytes(ids) for ids in prompts]
    out = [KeptPrefix() for _ in datas]
    present: list[list[bool]] = [[] for _ in datas]
    asked = [number for number, data in enumerate(datas) if len(data) >= _BLOCK_BYTES]
    window = _FIRST_WINDOW
    while asked:
        wanted: dict[bytes, bool] = {}
        for number in asked:
            _hash_on(out[number], root, datas[number], window, what)
            wanted.update(dict.fromkeys(out[number].keys[len(present[number]) :], False))
        wanted.update(zip(wanted, store.contains_many(list(wanted)), strict=True))
        more: list[int] = []
        for number in asked:
            seen, keys = present[number], out[number].keys
            found = [wanted[key] for key in keys[len(seen) :]]
            seen.extend(found)
            goes_on = False not in found or True in found[found.index(False) :]
            if goes_on and len(seen) < len(datas[number]) // _BLOCK_BYTES:
                more.append(number)
        asked = more
        window = min(window * _GROWTH, _LAST_WINDOW)
    for kept, seen in zip(out, present, strict=True):
        kept.n_blocks = seen.index(False) if False in seen else len(seen)
        kept.later = [number for number in range(kept.n_blocks, len(seen)) if seen[number]]
    if tail:
        _find_tails(store, root, datas, out, what)
    return out


def tail_meta(tokens: TokenIds, *, private: bool = False) -> dict[str, str]:
    """Return the facts to keep beside a tail, by which `find_kept` matches it.

    Args:
        tokens: All of its tokens.
        private: Keep only their digest: the tail then matches as a whole or not at all.
    """
    data = token_bytes(tokens)
    return {_DIGEST: digest_token_bytes(data).hex()} if private else {_TOKENS: data.hex()}


def shared_tail(meta: dict[str, Any], n_tokens: int, data: bytes, at: int = 0) -> int:
    """Return how many tokens a tail and a prompt have in common.

    Args:
        meta: What is kept beside the tail.
        n_tokens: How many tokens the tail has.
        data: The prompt, as `token_bytes`.
        at: Where in `data` the tail would begin.
    """
    digest = meta.get(_DIGEST)
    if digest is not None:
        end = at + n_tokens * TOKEN_BYTES
        return n_tokens if end <= len(data) and digest_token_bytes(data[at:end]).hex() == digest else 0
    try:
        tokens = bytes.fromhex(meta[_TOKENS])
    except (KeyError, ValueError, TypeError):
        return 0
    if len(tokens) != n_tokens * TOKEN_BYTES:
        return 0
    return shared_bytes(tokens, data, at) // TOKEN_BYTES


def _hash_on(kept: KeptPrefix, root: bytes, data: bytes, window: int, what: dict[str, str]) -> None:
    """Name the next blocks of a prompt."""
    start = len(kept.chain) * _BLOCK_BYTES
    part = data[start : start + window * _BLOCK_BYTES]
    new = chain_ids_of_bytes(kept.chain[-1] if kept.chain else root, part)
    kept.chain.extend(new)
    kept.keys.extend(chain_keys(new, **what))


def _find_tails(store: Store, root: bytes, datas: list[bytes], out: list[KeptPrefix], what: dict[str, str]) -> None:
    keys: dict[bytes, EntryInfo | None] = {}
    places: list[tuple[int, int, bytes]] = []
    for number, (data, kept) in enumerate(zip(datas, out, strict=True)):
        at = kept.n_blocks * _BLOCK_BYTES
        if at < len(data):
            first = int.from_bytes(data[at : at + TOKEN_BYTES], "little")
            key = tail_key(kept.chain[kept.n_blocks - 1] if kept.n_blocks else root, first, **what)
            keys[key] = None
            places.append((number, at, key))
    if keys:
        keys.update(zip(keys, store.describe_many(list(keys)), strict=True))
    for number, at, key in places:
        info = keys[key]
        if info is not None:
            n_tokens = shared_tail(info.meta, info.n_tokens, datas[number], at)
            if n_tokens:
                out[number].tail = Tail(key, n_tokens, info.n_tokens)
