"""Writing the catalog: after each call, what is kept now by name and prompt."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from hashlib import sha256

from lmstash.adapters.lmprobe.catalog import Reading, Shape, record_keys, record_write, register
from lmstash.adapters.lmprobe.layout import hash16
from lmstash.adapters.lmprobe.slots import note_written
from lmstash.caches.activations.context import Context
from lmstash.caches.activations.prompts import Prompts
from lmstash.store.base import Store

_LISTS_KNOWN = 64
_RECORDS_ASKED = 16
_NO_KEY = bytes(32)


class Recorder:
    """Keeps the catalog of one store for one extractor.

    Every record is asked for after a call, as records may have been evicted; but of a list of prompts that was recorded
    before, and of which nothing had to be computed, only 16. Threads may share it.
    """

    def __init__(self) -> None:
        """Know of nothing."""
        self._slots: dict[Reading | Shape, bytes] = {}
        self._lists: OrderedDict[bytes, list[bytes]] = OrderedDict()
        """Lists of prompts that were recorded in full, and some keys of their records."""

    def record(
        self,
        context: Context,
        reading: Reading,
        prompts: Prompts,
        n_tokens: Sequence[int | None],
        layers: Sequence[int],
        missing: Callable[[int], tuple[int, ...]],
        *,
        computed: bool,
    ) -> None:
        """Index what is kept of a call.

        Args:
            context: Store and identity.
            reading: Who was read.
            prompts: Distinct prompts.
            n_tokens: Of each, as far as known.
            layers: What was asked for.
            missing: Says which positions of `layers` are not kept for a prompt.
            computed: Whether anything had to be computed.
        """
        if not prompts:
            return
        store = context.store
        name = self._name_list(context, prompts)
        some = None if computed else self._lists.get(name)
        n_written = 0
        if some is None or not all(store.contains_many(some)):
            n_written = self._write_records(context, reading, prompts, n_tokens, missing, name)
        self._register(store, [reading, *_shape(context, prompts, layers, missing)])
        if computed or n_written:
            note_written(store, hash16(reading.name))

    def _name_list(self, context: Context, prompts: Prompts) -> bytes:
        who = f"{context.source.name}\0{context.model.hex()}\0{context.storage}\0"
        texts = "\0".join(prompts.plain_texts())
        return sha256((who + texts).encode("utf-8", "surrogatepass")).digest()

    def _write_records(
        self,
        context: Context,
        reading: Reading,
        prompts: Prompts,
        n_tokens: Sequence[int | None],
        missing: Callable[[int], tuple[int, ...]],
        name: bytes,
    ) -> int:
        keys = record_keys_of(context, prompts)
        writes = []
        complete = True
        there = context.store.contains_many(keys)
        for index, (key, kept, prompt, tokens) in enumerate(zip(keys, there, prompts, n_tokens, strict=True)):
            if kept:
                continue
            if tokens is None or missing(index):
                complete = False
            else:
                writes.append(record_write(key, context, prompt, tokens, reading.by_tokens))
        if writes:
            context.store.put_many(writes, replace=False)
        if complete:
            self._lists[name] = keys[:: -(-len(keys) // _RECORDS_ASKED)]
            while len(self._lists) > _LISTS_KNOWN:
                self._lists.popitem(last=False)
        return len(writes)

    def _register(self, store: Store, facts: Sequence[Reading | Shape]) -> None:
        """Take a slot for each fact that has none, as far as this object knows, or not any more."""
        there = store.contains_many([self._slots.get(fact, _NO_KEY) for fact in facts])
        for fact, kept in zip(facts, there, strict=True):
            if not kept:
                self._slots[fact] = register(store, fact) or _NO_KEY


def record_keys_of(context: Context, prompts: Prompts) -> list[bytes]:
    """Return the keys of the records of prompts under the identity of a call."""
    hashes = [hash16(text) for text in prompts.plain_texts()]
    return record_keys(context.source.name, context.model, context.storage_dtype, hashes)


def _shape(
    context: Context, prompts: Prompts, layers: Sequence[int], missing: Callable[[int], tuple[int, ...]]
) -> list[Shape]:
    """Return which layers are kept of some prompt; nothing when none are."""
    nowhere = set(range(len(layers)))
    for index in range(len(prompts)):
        nowhere.intersection_update(missing(index))
        if not nowhere:
            break
    kept = tuple(layer for position, layer in enumerate(layers) if position not in nowhere)
    name = context.source.name
    return [Shape(name, hash16(name), context.namespace, kept)] if kept else []
