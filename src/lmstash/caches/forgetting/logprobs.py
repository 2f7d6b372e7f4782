"""Which log-probabilities are of a prompt: after its beginnings those with their keys, behind it by the tokens kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lmstash.caches.forgetting.trail import Trail, components, peeked
from lmstash.codecs.tensors import decode_header
from lmstash.errors import FormatError
from lmstash.identity.chain import BLOCK_TOKENS, chain_key
from lmstash.identity.tokens import digest_token_bytes
from lmstash.store.base import EntryInfo, Store


def meant(store: Store, namespace: str, trails: Sequence[Trail]) -> set[bytes]:
    """Return the keys of the entries of one model that are of the prompt. Reads the values of those that may be."""
    gone: set[bytes] = set()
    unread: list[EntryInfo] = []
    for entry in store.entries(namespace):
        n_tokens = entry.n_tokens
        what = {name: str(each) for name, each in components(entry).items()}
        for trail in trails:
            if n_tokens <= trail.n_tokens:
                if _key(trail.id_after(n_tokens), what) == entry.key:
                    gone.add(entry.key)
            elif n_tokens <= trail.most_tokens:
                unread.append(entry)
                break
    for entry, value in peeked(store, unread):
        if value is None or _is_over(value, entry.n_tokens, trails):
            gone.add(entry.key)
    return gone


def roots_said(store: Store, entries: Iterator[EntryInfo]) -> set[bytes]:
    """Return the roots that short contexts say they follow. Reads their values."""
    short = [entry for entry in entries if 0 < entry.n_tokens <= BLOCK_TOKENS]
    said = (_part(value, "parent") for _, value in peeked(store, short) if value is not None)
    return {root for root in said if root is not None and len(root) == 32}


def _key(chain_id: bytes, what: dict[str, str]) -> bytes | None:
    try:
        return chain_key(chain_id, **what)
    except TypeError:  # it does not say what it is
        return None


def _is_over(value: memoryview, n_tokens: int, trails: Sequence[Trail]) -> bool:
    """Whether what an entry holds is of the prompt; what cannot be told counts as such."""
    after, tokens, digest = (_part(value, name) for name in ("parent", "tokens", "tokens_digest"))
    last = (n_tokens - 1) % BLOCK_TOKENS + 1
    if after is None:
        return True
    if tokens is not None:
        return any(trail.shares(after, tokens[: 4 * last]) for trail in trails)
    return any(trail.may_share(after, last, digest or b"", digest_token_bytes) for trail in trails)


def _part(value: memoryview, name: str) -> bytes | None:
    try:
        spec = decode_header(value).tensors.get(name)
    except FormatError:
        return None
    return None if spec is None else bytes(value[spec.offset : spec.offset + spec.nbytes])
