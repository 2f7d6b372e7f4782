"""What is kept, asked by model name and prompt; and removing it again."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path
from typing import Any

from lmstash.adapters.lmprobe import config
from lmstash.adapters.lmprobe.catalog import (
    READINGS,
    RECORDS,
    NamedSource,
    Reading,
    Record,
    read_records,
    readings,
    record_keys,
)
from lmstash.adapters.lmprobe.imported import INDEX, imported_key, index_key, read_index
from lmstash.adapters.lmprobe.info import CachedPromptInfo, CacheInfo, ModelCacheInfo
from lmstash.adapters.lmprobe.layout import hash16
from lmstash.adapters.lmprobe.source import SITE, text_prompt
from lmstash.adapters.lmprobe.text_shelf import TextShelf
from lmstash.caches.activations.context import Context
from lmstash.caches.activations.pooled import PooledShelf
from lmstash.caches.activations.prompts import Prompt
from lmstash.caches.activations.raw import RawShelf
from lmstash.errors import InvalidArgumentError
from lmstash.stash import Stash
from lmstash.unset import UNSET

POOLS = {"last_token": "last", "first_token": "first", "mean": "mean", "max": "max"}
"""lmprobe's names of pooling strategies, and lmstash's."""
_HASH = re.compile(r"[0-9a-f]{16}")
_POOLED = re.compile(r"pooled_(.+)_layer_(\d+)")


def cache_info(model: str | None = None) -> CacheInfo:
    """Report how much is kept.

    Costs about 10 us per entry of activations: it reads the facts beside entries, never their values.

    Args:
        model: Report on this model name only.
    """
    stash = config.current_stash()
    store = stash.store
    whole = store.info()
    sizes = {each.namespace: each.nbytes for each in whole.namespaces}
    found: dict[str, _Tally] = {}
    by_namespace: dict[str, list[_Tally]] = {}
    times: list[float] = []
    # Two passes: what lies under which name, then what it is.
    for entry in store.entries("lmprobe/"):
        meta = entry.meta
        name = meta.get("name")
        model_hash = str(meta["model_hash"]) if entry.namespace == INDEX else hash16(str(name))
        if entry.namespace not in (READINGS, RECORDS, INDEX) or (model is not None and model_hash != hash16(model)):
            continue
        tally = found.setdefault(model_hash, _Tally(name))
        if entry.namespace != READINGS:
            tally.prompts.add(str(meta.get("prompt")))
        whole_name = f"lmprobe-{model_hash}" if entry.namespace == INDEX else meta.get("model")
        namespace = f"activations/{whole_name}"
        if namespace not in tally.namespaces:
            tally.namespaces.add(namespace)
            by_namespace.setdefault(namespace, []).append(tally)
    for entry in store.entries("activations/") if found else ():
        for tally in by_namespace.get(entry.namespace, ()):
            times.append(entry.created)
            tally.note(entry.meta)
    wanted = None if model is None else set().union(*(tally.namespaces for tally in found.values()))
    limit = whole.capacity_bytes if config.limit_bytes() is UNSET else config.limit_bytes()
    return CacheInfo(
        cache_dir=whole.location if "://" in whole.location else Path(whole.location),
        total_size_bytes=sum(
            nbytes
            for namespace, nbytes in sizes.items()
            if (namespace.startswith(("activations/", "lmprobe/")) if wanted is None else namespace in wanted)
        ),
        models=[
            tally.info(model_hash, sum(sizes.get(each, 0) for each in tally.namespaces))
            for model_hash, tally in found.items()
        ],
        oldest_mtime=min(times, default=None),
        newest_mtime=max(times, default=None),
        cache_limit_bytes=limit or None,
    )


def discover_cached(model_name: str, prompt: str) -> CachedPromptInfo | None:
    """Say what is kept for a prompt, without loading a model.

    Only what can be found is named: entries are asked for by their own keys, so nothing evicted stays listed. Those
    that hold several layers are read (64 KiB at most), which costs some 10 us each. Values of several identities under
    one name are taken together; extraction serves only those of the model that asks. A private stash keeps no token
    ids, so that there nothing can be said of what a live model computed.

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
    for reading in readings(stash.store, hash16(model_name)):
        [key] = record_keys(reading.name, reading.model, reading.storage_dtype, [hash16(prompt)])
        record = read_records(stash.store, [key])[0] if stash.store.contains(key) else None
        if record is None:
            continue
        there = _Probe(stash, reading, record, prompt)
        raw.update(there.raw())
        router.update(there.router())
        for name, pool in POOLS.items():
            pooled.setdefault(name, set()).update(there.pooled(pool))
        if raw or any(pooled.values()):
            found.num_tokens = record.n_tokens
    _add_imported(stash, model_name, prompt, found, raw, router, pooled)
    found.raw_layers = sorted(raw)
    found.router_layers = sorted(router)
    found.pooled = {name: sorted(layers) for name, layers in pooled.items() if layers}
    empty = CachedPromptInfo([], {}, False, None, False, False, found.num_tokens)
    return None if found == empty else found


def clear_cache() -> int:
    """Remove all activations and what this adapter keeps beside them; other kinds of entries and other files stay.

    Returns:
        How many entries of activations were removed.
    """
    store = config.current_stash().store
    removed = store.prune(namespace="activations/").entries
    store.prune(namespace="lmprobe/")
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
    """Remove everything kept for one prompt: raw and pooled values of all layers, and what was imported.

    Values of a shared prefix go with it; prompts that share it compute it anew. No file of lmprobe's is touched.

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


class _Probe:
    """Asks a store which values of one prompt and one identity it has."""

    def __init__(self, stash: Stash, reading: Reading, record: Record, prompt: str) -> None:
        self._store: Any = stash.store
        self._reading = reading
        self._record = record
        self._layers = reading.layers
        self._stash = stash
        self._prompt = text_prompt(prompt) if record.ids is None else Prompt(record.ids, prompt)

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
        return self._there("router_logits", None) if self._record.ids is not None else []

    def keys(self) -> list[bytes]:
        """Return the key of everything that might be kept."""
        places = ((SITE, None), ("router_logits", None), *((SITE, pool) for pool in POOLS.values()))
        return list(chain.from_iterable(self._shelf(site, pool).keys() for site, pool in places))

    def _there(self, site: str, pool: str | None) -> list[int]:
        shelf = self._shelf(site, pool)
        shelf.look()
        missing = set(shelf.missing(0))
        return [layer for position, layer in enumerate(self._layers) if position not in missing]

    def _shelf(self, site: str, pool: str | None) -> RawShelf | PooledShelf | TextShelf:
        stash, reading = self._stash, self._reading
        source = NamedSource(reading)
        context = Context(self._store, source, reading.model, reading.storage_dtype, stash.salt, stash.private, None)
        if pool is not None:
            return PooledShelf(context, [self._prompt], self._layers, site, pool, None, [0])
        if reading.by_tokens:
            return RawShelf(context, [self._prompt], self._layers, site, None)
        return TextShelf(context, [self._prompt], self._layers, None, [None])


class _Tally:
    """Counts what is kept under one model name."""

    def __init__(self, name: str | None) -> None:
        self.name = name
        self.namespaces: set[str] = set()
        self.prompts: set[str] = set()
        self._layers: set[int] = set()
        self._kinds: set[str] = set()

    def note(self, meta: dict[str, Any]) -> None:
        """Take in the facts beside one entry."""
        tensor = meta.get("tensor")
        if isinstance(tensor, str):
            self._note_tensor(tensor)
            return
        components = meta.get("id", {}).get("components", {})
        if components.get("site") == SITE:
            together = components.get("layers", [components.get("layer")])
            self._layers.update(layer for layer in together if isinstance(layer, int))
            if components.get("pool") is not None:
                self._kinds.add("pooled")

    def info(self, model_hash: str, nbytes: int) -> ModelCacheInfo:
        """Return what was counted."""
        kinds = self._kinds
        return ModelCacheInfo(
            model_name=self.name,
            model_hash=model_hash,
            size_bytes=nbytes,
            num_prompts=len(self.prompts),
            num_layers=len(self._layers),
            has_pooled="pooled" in kinds,
            has_perplexity="perplexity" in kinds,
            has_logits="logits" in kinds,
        )

    def _note_tensor(self, tensor: str) -> None:
        if match := _POOLED.fullmatch(tensor):
            self._kinds.add("pooled")
            self._layers.add(int(match[2]))
        elif tensor.startswith("layer_"):
            self._layers.add(int(tensor[6:]))
        elif tensor.startswith("logits"):
            self._kinds.add("logits")
        elif tensor == "perplexity":
            self._kinds.add("perplexity")


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
        if match := _POOLED.fullmatch(tensor):
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
