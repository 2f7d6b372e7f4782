"""How much is kept under each model name, told without a walk over the entries.

Bytes and numbers come from the store's own counters, by namespace; layers and kinds from the shapes in the catalog, and
from a look at a few entries. A store that holds no more than those few is told exactly.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from lmstash.adapters.lmprobe.catalog import as_reading, as_shape, records_namespace
from lmstash.adapters.lmprobe.imported import imported_hash, imported_namespace, index_namespace
from lmstash.adapters.lmprobe.info import CacheInfo, ModelCacheInfo
from lmstash.adapters.lmprobe.layout import hash16
from lmstash.adapters.lmprobe.slots import last_written, names_in, read_facts
from lmstash.adapters.lmprobe.source import SITE
from lmstash.caches.activations.context import KIND, namespace_of
from lmstash.store.base import EntryInfo, NamespaceInfo, Store

LOOKED_AT = 64
"""Entries looked at in any store; one that holds no more is read whole."""
POOLED = re.compile(r"pooled_(.+)_layer_(\d+)")
"""lmprobe's name of a pooled tensor: strategy and layer."""


def count(store: Store, model: str | None) -> CacheInfo:
    """Return what is kept under every model name, or under one (see `cache_info`); the limit is the store's."""
    whole = store.info()
    held = {each.namespace: each for each in whole.namespaces if each.entries}
    names = set(names_in(held)) | {found for each in held if (found := imported_hash(each)) is not None}
    chosen = sorted(names if model is None else names & {hash16(model)})
    counts = _read_counts(store, chosen, held)
    looked = list(islice(store.entries(), LOOKED_AT)) if counts else []
    for each in counts:
        each.look(looked, complete=whole.entries <= LOOKED_AT)
    times = [moment for each in counts for moment in each.times]
    if whole.entries > LOOKED_AT:
        times += last_written(store, [each.model_hash for each in counts])
    wanted = {namespace for each in counts for namespace in each.namespaces}
    if model is None:
        wanted |= {each for each in held if each.startswith((f"{KIND}/", "lmprobe/"))}
    return CacheInfo(
        cache_dir=whole.location if "://" in whole.location else Path(whole.location),
        total_size_bytes=sum(held[each].nbytes for each in wanted),
        models=[each.info() for each in counts],
        oldest_mtime=min(times, default=None),
        newest_mtime=max(times, default=None),
        cache_limit_bytes=whole.capacity_bytes or None,
    )


def tensor_facts(tensors: Iterable[str]) -> tuple[set[int], set[str]]:
    """Return the layers and the kinds that imported tensors show, by lmprobe's names of them."""
    layers: set[int] = set()
    kinds: set[str] = set()
    for tensor in tensors:
        if match := POOLED.fullmatch(tensor):
            kinds.add("pooled")
            layers.add(int(match[2]))
        elif tensor.startswith("layer_"):
            layers.add(int(tensor[6:]))
        elif tensor.startswith("logits"):
            kinds.add("logits")
        elif tensor == "perplexity":
            kinds.add("perplexity")
    return layers, kinds


class _Count:
    """What is kept under one model name."""

    def __init__(self, model_hash: str, held: Mapping[str, NamespaceInfo]) -> None:
        self.model_hash = model_hash
        self.namespaces: set[str] = set()
        """Where its values lie; only such as hold any."""
        self.times: list[float] = []
        self._held = held
        self._name: str | None = None
        self._prompts = 0
        self._layers: set[int] = set()
        self._kinds: set[str] = set()

    def add(self, name: str | None, values: str, records: str) -> None:
        """Take in one identity, or an import: where its values and the records of its prompts lie."""
        self._name = self._name or name
        if values in self._held:
            self.namespaces.add(values)
            listed = self._held[records].entries if records in self._held else 0
            # A record outlives the values it tells of; but no prompt is kept without a value of its own.
            self._prompts = max(self._prompts, min(listed, self._held[values].entries))

    def note(self, name: str | None, namespace: str, layers: Iterable[int], kinds: Iterable[str]) -> None:
        """Take in what was once kept in a namespace."""
        self._name = self._name or name
        if namespace in self.namespaces:
            self._layers.update(layers)
            self._kinds.update(kinds)

    def look(self, entries: Iterable[EntryInfo], *, complete: bool) -> None:
        """Take in entries that are kept now, of any namespace; `complete` when there are no others."""
        if complete:
            self._layers, self._kinds, self.times = set(), set(), []
        for entry in entries:
            if entry.namespace in self.namespaces:
                self.times.append(entry.created)
                self._look_at(entry.meta)

    def info(self) -> ModelCacheInfo:
        """Return what was counted."""
        return ModelCacheInfo(
            model_name=self._name,
            model_hash=self.model_hash,
            size_bytes=sum(self._held[each].nbytes for each in self.namespaces),
            num_prompts=self._prompts,
            num_layers=len(self._layers),
            has_pooled="pooled" in self._kinds,
            has_perplexity="perplexity" in self._kinds,
            has_logits="logits" in self._kinds,
        )

    def _look_at(self, meta: dict[str, Any]) -> None:
        tensor = meta.get("tensor")
        if isinstance(tensor, str):
            layers, kinds = tensor_facts([tensor])
            self._layers |= layers
            self._kinds |= kinds
            return
        components = meta.get("id", {}).get("components", {})
        if components.get("site") == SITE:
            together = components.get("layers", [components.get("layer")])
            self._layers.update(layer for layer in together if isinstance(layer, int))
            if components.get("pool") is not None:
                self._kinds.add("pooled")


def _read_counts(store: Store, model_hashes: list[str], held: Mapping[str, NamespaceInfo]) -> list[_Count]:
    """Return what the catalog and the store's counters say of some names, without those of which nothing is kept."""
    counts: list[_Count] = []
    for model_hash, facts in read_facts(store, model_hashes).items():
        found = _Count(model_hash, held)
        found.add(None, imported_namespace(model_hash), index_namespace(model_hash))
        for fact, created in facts:
            found.times.append(created)
            if (reading := as_reading(fact)) is not None:
                where = records_namespace(reading.name, reading.model, reading.storage_dtype)
                found.add(reading.name, namespace_of(reading.model), where)
        for fact, _ in facts:
            if (shape := as_shape(fact)) is not None:
                found.note(shape.name, shape.namespace, shape.layers, shape.kinds)
        if found.namespaces:
            counts.append(found)
    return counts
