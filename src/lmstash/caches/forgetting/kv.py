"""Which KV is of a prompt: blocks and slots by the chain id and the tokens kept with them, states by the chain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmstash.caches.forgetting.trail import Trail, after_of, components, peeked
from lmstash.caches.kv.naming import block_key, digest_after, state_key
from lmstash.codecs.tensors import decode_header
from lmstash.errors import FormatError
from lmstash.store.base import EntryInfo, Store


def meant(store: Store, namespace: str, trails: Sequence[Trail]) -> set[bytes]:
    """Return the keys of the entries of one model that are of the prompt. Reads the values of those that may be."""
    gone: set[bytes] = set()
    unread: list[EntryInfo] = []
    states: list[EntryInfo] = []
    blocks: dict[str, set[bytes]] = {}
    for entry in store.entries(namespace):
        named = components(entry)
        after = after_of(named)
        if not after:
            states.append(entry)
            continue
        storage = str(named.get("storage"))
        if storage not in blocks:
            blocks[storage] = {block_key(each, storage) for trail in trails for each in trail.chain[1:]}
        if entry.key in blocks[storage]:
            gone.add(entry.key)
        elif any(trail.tokens_after(after) for trail in trails):
            unread.append(entry)
    for entry, value in peeked(store, unread):
        if value is None or _is_over(value, after_of(components(entry)), trails):
            gone.add(entry.key)
    kept = {state_key(each) for trail in trails for each in trail.chain[1:]}
    return gone | {each.key for each in states if each.key in kept or each.parent in gone}


def _is_over(value: memoryview, after: bytes, trails: Sequence[Trail]) -> bool:
    """Whether what an entry holds is of the prompt; what cannot be told counts as such."""
    try:
        layout = decode_header(value)
        n_tokens = int(layout.metadata["n"])
    except (FormatError, KeyError, ValueError):
        return True
    tokens, digest = layout.tensors.get("tokens"), layout.tensors.get("digest")
    if tokens is not None:
        said = bytes(value[tokens.offset : tokens.offset + tokens.nbytes])
        return any(trail.shares(after, said) for trail in trails)
    if digest is None:
        return True
    said = bytes(value[digest.offset : digest.offset + digest.nbytes])
    return any(
        trail.may_share(after, n_tokens, said, lambda data: digest_after(after, np.frombuffer(data, np.uint32)))
        for trail in trails
    )
