"""What is kept, asked by model name and prompt; and removing it again."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path
from typing import Any

from lmstash.adapters.lmprobe import config
from lmstash.adapters.lmprobe.catalog import Reading, Record, read_records, readings, record_keys
from lmstash.adapters.lmprobe.counting import POOLED, count
from lmstash.adapters.lmprobe.imported import imported_key, index_key, read_index
from lmstash.adapters.lmprobe.info import CachedPromptInfo, CacheInfo
from lmstash.adapters.lmprobe.layout import hash16
from lmstash.adapters.lmprobe.source import ROUTER, SITE, text_prompts
from lmstash.adapters.lmprobe.text_shelf import TextShelf
from lmstash.adapters.lmprobe.unrecorded import Kept, kept_by_text
from lmstash.caches.activations.context import Context
from lmstash.caches.activations.pooled import PooledShelf
from lmstash.caches.activations.prompts import Prompt, Prompts
from lmstash.caches.activations.raw import RawShelf
from lmstash.errors import InvalidArgumentError
from lmstash.stash import Stash
from lmstash.unset import UNSET

POOLS = {"last_token": "last", "first_token": "first", "mean": "mean", "max": "max"}
"""lmprobe's names of pooling strategies, and lmstash's."""
TEXTS = "prompts/"
"""Where `lmstash.caches.activations.texts` keeps lists of token ids."""
_HASH = re.compile(r"[0-9a-f]{16}")


def cache_info(model: str | None = None) -> CacheInfo:
    """Report how much is kept, by model name; names of which nothing is kept are left out.

    Costs a few milliseconds, however much is kept: it asks the store's own counters, the catalog, and looks at 64
    entries. What a store of more than 64 entries cannot tell without reading them all is told like this:

    * `num_prompts`: of the identity (weights and storage dtype, or import) that has most. Never more than it has
      entries, but a prompt that was evicted may be counted while the record of its tokens is still there. Texts that
      are the same tokens may be counted as one. Records are entries, and may go before the values they tell of: then
      there are fewer, or the name is left out, until `extract` is asked for the prompts again.
    * `num_layers` and the kinds: of everything that was extracted or imported while some of it is kept: a layer whose
      last entry went alone is still counted. What `stash.activations` keeps of the same model counts in the sizes, and
      for the rest as far as the 64 entries show it.
    * `oldest_mtime`, `newest_mtime`: when the first and the last call that kept something ended.

    `discover_cached` says exactly what is kept of a prompt.

    Args:
        model: Report on this model name only.
    """
    counted = count(config.current_stash().store, model)
    limit = config.limit_bytes()
    if limit is not UNSET:
        counted.cache_limit_bytes = limit or None
    return counted


def discover_cached(model_name: str, prompt: str) -> CachedPromptInfo | None:
    """Say what is kept for a prompt, without loading a model.

    Only what is there is named: nothing evicted stays listed. Values of several identities under one name are taken
    together; extraction serves only those of the model that asks.

    Of a prompt that a `CachedExtractor` saw, entries are asked for by their own keys, in the storage dtype of that
    extractor. Those that hold several layers are read (half a MiB at most), which costs 10 to 100 us each.

    Of any other prompt, and in a private stash, entries are found by what `stash.activations` keeps beside them: the
    model's name and a digest of the text. That goes through all entries, 15 us each, but again only when something was
    kept since. Raw values are named only where they are known to be there from the first token to the last, which
    cannot be told of prompts that end with a full block of 64 tokens, of those whose first blocks another prompt had
    computed before, and in a private stash of any longer than a block. A stash with a salt finds nothing in this way;
    one without finds entries under a salt in the same folder, too.

    Args:
        model_name: As the extractor names it.
        prompt: The prompt's text.

    Returns:
        None if nothing is kept.
    """
    stash = config.current_stash()
    found = CachedPromptInfo([], {}, False, None, False, False, None)
    raw: set[int] = set()
    router: set[int] = set()
    pooled: dict[str, set[int]] = {}
    known = readings(stash.store, hash16(model_name))
    told = False
    for reading in known:
        [key] = record_keys(reading.name, reading.model, reading.storage_dtype, [hash16(prompt)])
        record = read_records(stash.store, [key])[0] if stash.store.contains(key) else None
        if record is None:
            continue
        told = told or record.ids is not None or not reading.by_tokens
        there = _Probe(stash, reading, record, prompt)
        raw.update(there.raw())
        router.update(there.router())
        for name, pool in POOLS.items():
            pooled.setdefault(name, set()).update(there.pooled(pool))
        if raw or any(pooled.values()):
            found.num_tokens = record.n_tokens
    if not told:
        models = {reading.model.hex()[:16] for reading in known}
        for kept in kept_by_text(stash, model_name, prompt, models):
            _add_kept(kept, found, raw, router, pooled)
    _add_imported(stash, model_name, prompt, found, raw, router, pooled)
    found.raw_layers = sorted(raw)
    found.router_layers = sorted(router)
    found.pooled = {name: sorted(layers) for name, layers in pooled.items() if layers}
    empty = CachedPromptInfo([], {}, False, None, False, False, found.num_tokens)
    return None if found == empty else found


def clear_cache() -> int:
    """Remove all activations and what is kept beside them (lists of token ids too, as ids spell out text).

    Other kinds of entries and other files stay.

    Returns:
        How many entries of activations were removed.
    """
    store = config.current_stash().store
    removed = store.prune(namespace="activations/").entries
    store.prune(namespace="lmprobe/")
    store.prune(namespace=TEXTS)
    return removed


def evict() -> None:
    """Enforce the limit. It holds while writing, so there is nothing left to do unless other processes lowered it."""
    store = config.current_stash().store
    limit = config.limit_bytes()
    if limit is not UNSET and limit:
        store.set_capacity(limit)


def get_prompt_cache_dir(model_name: str, prompt: str) -> Path:
    """Return the path by which `invalidate_extraction_cache` knows a prompt. There is no such folder."""
    return Path(config.current_stash().store.info().location) / hash16(model_name) / hash16(prompt)


def invalidate_extraction_cache(cache_dir: Path) -> None:
    """Remove everything kept for a prompt that a `CachedExtractor` saw, and what was imported for it, of all layers.

    What `stash.activations` kept of any other prompt goes with `stash.forget(prompt=)`, which is told the text.

    Values of a shared prefix go with it; prompts that share it compute it anew. Lists of token ids go as a whole, since
    ids spell out text and any of them may hold this prompt's: they are made again. No file of lmprobe's is touched.

    Args:
        cache_dir: What `get_prompt_cache_dir` returns, in this adapter or in lmprobe: its last two parts count.

    Raises:
        InvalidArgumentError: It does not end in the two hashes.
    """
    model_hash, prompt_hash = (("", "", *Path(cache_dir).parts))[-2:]
    prompt_hash = prompt_hash.removesuffix(".safetensors")
    if not (_HASH.fullmatch(model_hash) and _HASH.fullmatch(prompt_hash)):
        raise InvalidArgumentError(f"{cache_dir} does not name a prompt: use get_prompt_cache_dir(model_name, prompt)")
    stash = config.current_stash()
    keys = [index_key(model_hash, prompt_hash)]
    imported = read_index(stash.store, model_hash, prompt_hash)
    keys += [imported_key(model_hash, prompt_hash, tensor) for tensor in (imported.tensors if imported else ())]
    for reading in readings(stash.store, model_hash):
        [key] = record_keys(reading.name, reading.model, reading.storage_dtype, [prompt_hash])
        record = read_records(stash.store, [key])[0]
        if record is not None:
            keys += [key, *_Probe(stash, reading, record, record.text or "").keys()]
    stash.store.delete_many(keys)
    stash.store.prune(namespace=TEXTS)


class _Probe:
    """Asks a store which values of one prompt and one identity it has."""

    def __init__(self, stash: Stash, reading: Reading, record: Record, prompt: str) -> None:
        self._store: Any = stash.store
        self._reading = reading
        self._record = record
        self._layers = reading.layers
        self._stash = stash
        self._prompts = text_prompts([prompt]) if record.ids is None else Prompts.of([Prompt(record.ids, prompt)])

    def raw(self) -> list[int]:
        """Layers whose raw values are kept."""
        if self._reading.by_tokens and self._record.ids is None:
            return []  # a private stash keeps no token ids to ask by
        return self._there(SITE, None)

    def pooled(self, pool: str) -> list[int]:
        """Layers whose values pooled in this way are kept."""
        return self._there(SITE, pool) if self._record.ids is not None else []

    def router(self) -> list[int]:
        """Layers whose router logits are kept."""
        return self._there(ROUTER, None) if self._record.ids is not None else []

    def keys(self) -> list[bytes]:
        """Return the key of everything that might be kept."""
        places = ((SITE, None), (ROUTER, None), *((SITE, pool) for pool in POOLS.values()))
        return list(chain.from_iterable(self._shelf(site, pool).keys() for site, pool in places))

    def _there(self, site: str, pool: str | None) -> list[int]:
        shelf = self._shelf(site, pool)
        shelf.look()
        missing = set(shelf.missing(0))
        return [layer for position, layer in enumerate(self._layers) if position not in missing]

    def _shelf(self, site: str, pool: str | None) -> RawShelf | PooledShelf | TextShelf:
        stash, reading = self._stash, self._reading
        source = reading.source()
        context = Context(self._store, source, reading.model, reading.storage_dtype, stash.salt, stash.private, None)
        if pool is not None:
            return PooledShelf(context, self._prompts, self._layers, site, pool, None, [0])
        if reading.by_tokens:
            return RawShelf(context, self._prompts, self._layers, site, None)
        return TextShelf(context, self._prompts, self._layers, None, [None])


def _add_kept(
    kept: Kept, found: CachedPromptInfo, raw: set[int], router: set[int], pooled: dict[str, set[int]]
) -> None:
    name = next((name for name, pool in POOLS.items() if pool == kept.pool), None)
    if kept.site == SITE and name is not None:
        pooled.setdefault(name, set()).update(kept.layers)
    elif kept.pool is None:
        (router if kept.site == ROUTER else raw).update(kept.layers)
    if kept.layers and kept.site == SITE and (name is not None or kept.pool is None):
        found.num_tokens = kept.n_tokens


def _add_imported(
    stash: Stash,
    name: str,
    prompt: str,
    found: CachedPromptInfo,
    raw: set[int],
    router: set[int],
    pooled: dict[str, set[int]],
) -> None:
    model_hash, prompt_hash = hash16(name), hash16(prompt)
    imported = read_index(stash.store, model_hash, prompt_hash)
    if imported is None or imported.text not in (None, prompt):
        return
    keys = [imported_key(model_hash, prompt_hash, tensor) for tensor in imported.tensors]
    there = stash.store.contains_many(keys)
    for tensor, kept in zip(imported.tensors, there, strict=True):
        if not kept:
            continue
        if match := POOLED.fullmatch(tensor):
            pooled.setdefault(match[1], set()).add(int(match[2]))
        elif tensor.startswith("layer_"):
            raw.add(int(tensor[6:]))
            found.num_tokens = found.num_tokens or imported.n_tokens
        elif tensor.startswith("router_layer_"):
            router.add(int(tensor[13:]))
    kept_names = {tensor for tensor, kept in zip(imported.tensors, there, strict=True) if kept}
    found.has_logits = "logits" in kept_names
    found.logits_top_k = imported.top_k if "logits_top_k_values" in kept_names else None
    found.has_perplexity = "perplexity" in kept_names
    found.has_token_perplexity = "token_perplexity" in kept_names
