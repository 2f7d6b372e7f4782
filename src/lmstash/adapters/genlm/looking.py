"""What the cache of log-probabilities has in memory of a context, in the shape of genlm-backend's `walk_cache`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lmstash.adapters.genlm.token_trie import TokenTrie
from lmstash.caches.logprobs.cache import Logprobs
from lmstash.caches.logprobs.engine import ANSWER, ROW, Engine
from lmstash.prefix.tree import Handle


def look(cache: Logprobs, token_ids: Sequence[int]) -> tuple[TokenTrie, int, Any, int]:
    """Return what `AsyncTransformer.walk_cache` says; KV is copied out."""
    with cache._lock:  # an engine that another thread has at work would be taken for one that was interrupted
        engine = cache._now()
        handle = engine.index.match(list(token_ids))
        handle.pin()
        try:
            found = [handle.deepest(kind) for kind in (ROW, ANSWER)]
            matched = max([depth for each in found if each is not None for depth in each[:1]], default=0)
            node = TokenTrie()
            if matched:
                node.logprobs = cache.next_token_logprobs(token_ids[:matched])
                if handle.covered >= matched:
                    node.past_key_values = _kv(engine, handle, matched)
            base = min(handle.covered, len(token_ids) - 1)
            return node, matched, _kv(engine, handle, base), base
        finally:
            handle.release()


def _kv(engine: Engine, handle: Handle, n_tokens: int) -> Any:
    """Return a `DynamicCache` of the first tokens, or None when there are none."""
    pool = engine.feeder._pool
    if pool is None or n_tokens == 0:
        return None
    from transformers import DynamicCache

    form = pool.form
    planes = [plane.zeros(1, n_tokens, form.device) for plane in form.planes]
    pool.read(handle.slots(0, n_tokens), [plane[:, 0] for plane in planes])
    sides: list[list[torch.Tensor]] = [[planes[plane][member] for plane, member in layer] for layer in form.places]
    return DynamicCache([(keys, values) for keys, values in sides])
