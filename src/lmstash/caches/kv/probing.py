"""Does a model continue from its cache? Asked of models that are not known to, before anything is kept for them.

Some families ignore part of a cache when several tokens are fed onto it (Mamba and Jamba did in transformers 5.23).
Such a model would answer wrongly, and silently.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lmstash.caches.kv.families import Family
from lmstash.caches.kv.naming import namespace_of
from lmstash.caches.kv.recurrent import load, snapshot
from lmstash.identity.fingerprint import Fingerprint
from lmstash.identity.keys import Key
from lmstash.store.base import Store

_TOKENS, _CUT = 80, 48
_NOISE = {torch.float32: 1e-4, torch.float64: 1e-4}
_HALF_NOISE = 2e-2
"""Most that continuing may differ from one pass at any token, as a share of the largest logit: what a change of matrix
shapes makes is a hundredth of it."""


def verdict(store: Store, model: Any, family: Family, fingerprint: Fingerprint) -> bool:
    """Return what `continues` says; asked once for each model, and kept."""
    key = Key({"kind": "kv probe", "model": fingerprint.digest, "version": 1}).digest
    known = store.get_many([key])[0]
    if known is not None and bytes(known[:32]) == fingerprint.digest and len(known) == 33:
        return known[32] == 1
    try:
        found = continues(model, family)
    except ValueError:  # of snapshot
        found = False
    namespace = namespace_of(fingerprint.digest)
    store.put(key, fingerprint.digest + bytes([found]), namespace=namespace, meta={"id": {"kind": "kv probe"}})
    return found


def continues(model: Any, family: Family) -> bool:
    """Return whether feeding the rest of a prompt onto the cache of its beginning says what one pass says.

    Costs three forward passes of up to 80 tokens.
    """
    vocabulary = int(getattr(model.config, "vocab_size", 0) or 0)
    if vocabulary < 2:
        return False
    ids = (torch.arange(_TOKENS) * 7919 % vocabulary)[None].to(model.device)
    with torch.no_grad():
        whole = _logits(model, family, ids, family.empty(model), 0)[_CUT:]
        cache: Any = family.empty(model)
        _logits(model, family, ids[:, :_CUT], cache, 0)
        if family.linear:
            cache = _moved(model, family, cache)
        continued = _logits(model, family, ids[:, _CUT:], cache, _CUT)
    noise = _NOISE.get(next(cache.layers[number].keys.dtype for number in family.kept), _HALF_NOISE)
    return float((continued - whole).abs().max()) <= noise * float(whole.abs().max())


def _moved(model: Any, family: Family, cache: Any) -> Any:
    """Return a fresh cache that holds what `cache` does, which must be all that the model knows of its prefix."""
    state = snapshot(cache, family.linear)
    fresh: Any = family.empty(model)
    for number in family.kept:
        layer = cache.layers[number]
        fresh.layers[number].update(layer.keys.clone(), layer.values.clone())
    load(fresh, state, model.device)
    # Whatever the model keeps elsewhere is of another prompt now.
    _logits(model, family, torch.full((1, _CUT), 1, device=model.device), family.empty(model), 0)
    return fresh


def _logits(model: Any, family: Family, ids: Tensor, cache: Any, start: int) -> Tensor:
    inputs: dict[str, Any] = {"input_ids": ids}
    if "position_ids" in family.takes:
        inputs["position_ids"] = torch.arange(start, start + ids.shape[1], device=ids.device)[None]
    return model(**inputs, **{family.argument: cache}, use_cache=True).logits[0].float()
