"""A prompt on the token-block chain of one model: which stretches of tokens, named by what they follow, are its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from lmstash.identity.chain import BLOCK_TOKENS, chain_ids_of_bytes, prefix_id
from lmstash.store.base import EntryInfo, Store

BLOCK_BYTES = 4 * BLOCK_TOKENS
_READ_BYTES = 64 * 2**20
"""Values of about so many bytes are read together."""


class Trail:
    """One prompt under one root. Stretches lie within a block: 1 to 64 tokens after the id of the blocks before."""

    def __init__(self, root: bytes, data: bytes) -> None:
        """Follow token ids, as `token_bytes` makes them, from a root on. Costs about a microsecond a block."""
        self.data = data
        self.n_tokens = len(data) // 4
        self.chain = [root, *chain_ids_of_bytes(root, data)]
        """The root, and the id after each full block."""
        self.rest = data[(len(self.chain) - 1) * BLOCK_BYTES :]
        """The tokens after the last full block."""
        self.most_tokens = len(self.chain) * BLOCK_TOKENS if self.rest else self.n_tokens
        """Where the block ends in which the prompt ends."""
        self._blocks = {chain_id: number for number, chain_id in enumerate(self.chain)}
        self._ids: dict[int, bytes] = {}

    def tokens_after(self, chain_id: bytes) -> bytes:
        """Return the prompt's tokens in the block after a chain id; nothing where it does not come by, or ends."""
        block = self._blocks.get(chain_id)
        return b"" if block is None else self.data[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]

    def id_after(self, n_tokens: int) -> bytes:
        """Return the id of the prompt's first tokens: the chain's where they end with a block."""
        found = self._ids.get(n_tokens)
        if found is None:
            block, more = divmod(n_tokens, BLOCK_TOKENS)
            found = self.chain[block]
            if more:
                found = prefix_id(found, self.data[block * BLOCK_BYTES : 4 * n_tokens])
            self._ids[n_tokens] = found
        return found

    def shares(self, after: bytes, tokens: bytes) -> bool:
        """Whether a stretch after a chain id and the prompt are alike as far as both go."""
        mine = self.tokens_after(after)
        n_bytes = min(len(mine), len(tokens))
        return n_bytes > 0 and mine[:n_bytes] == tokens[:n_bytes]

    def may_share(self, after: bytes, n_tokens: int, digest: bytes, digest_of: Callable[[bytes], bytes]) -> bool:
        """As `shares`, of a stretch that keeps only the digest of its tokens: one that goes on longer may be."""
        mine = self.tokens_after(after)
        return bool(mine) and (4 * n_tokens > len(mine) or digest_of(mine[: 4 * n_tokens]) == digest)


def peeked(store: Store, entries: Sequence[EntryInfo]) -> Iterator[tuple[EntryInfo, memoryview | None]]:
    """Yield entries with their values, None for what cannot be read; some are read together. That is no use of them."""
    part: list[EntryInfo] = []
    n_bytes = 0
    for entry in entries:
        if part and n_bytes + entry.nbytes > _READ_BYTES:
            yield from zip(part, store.peek_many([each.key for each in part]), strict=True)
            part, n_bytes = [], 0
        part.append(entry)
        n_bytes += entry.nbytes
    if part:
        yield from zip(part, store.peek_many([each.key for each in part]), strict=True)


def components(entry: EntryInfo) -> dict[str, object]:
    """Return the components of an entry's identity as they are written beside it; nothing where there are none."""
    identity = entry.meta.get("id")
    named = identity.get("components") if isinstance(identity, dict) else None
    return named if isinstance(named, dict) else {}


def after_of(named: dict[str, object]) -> bytes:
    """Return the chain id that an entry says it follows; nothing where it says none."""
    after = named.get("after")
    try:
        return bytes.fromhex(after) if isinstance(after, str) else b""
    except ValueError:
        return b""


def number(named: dict[str, object], name: str) -> int:
    """Return a number that an entry says; 0 where it says none."""
    value = named.get(name)
    return value if isinstance(value, int) else 0


def roots_said(entries: Iterator[EntryInfo]) -> set[bytes]:
    """Return the roots that entries at the beginning of a prompt say they follow."""
    said = {after_of(named) for entry in entries if number(named := components(entry), "start") == 0}
    return said - {b""}
