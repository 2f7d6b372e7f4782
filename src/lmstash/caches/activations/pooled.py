"""Pooled values: one entry per prompt and layer, so that layers are added without rewriting what is kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lmstash.caches.activations.context import KIND, VALUE, Context, described
from lmstash.caches.activations.prompts import Prompt
from lmstash.caches.activations.results import PooledResult
from lmstash.codecs.rows import stack_rows
from lmstash.identity.keys import KeyFamily
from lmstash.identity.tokens import digest_tokens
from lmstash.store.base import Entry, Write

_FETCH_BYTES = 4 * 2**20
"""Entries are fetched about this many bytes at a time, so that a warm call holds little beside its result."""
_FETCH_ENTRIES = 2048


class PooledShelf:
    """Where the pooled values of some prompts are kept, and which of them are. Used by one thread, for one call."""

    def __init__(
        self,
        context: Context,
        prompts: Sequence[Prompt],
        layers: Sequence[int],
        site: str,
        pool: str | int,
        result: PooledResult | None,
        rows: Sequence[int],
    ) -> None:
        """Name the entries. Costs about 3 us per prompt and 1 us per layer of it.

        Args:
            context: Store and identity.
            prompts: Distinct prompts.
            layers: Distinct layers, in the order of the result.
            site: Where values are read.
            pool: A canonical pooling.
            result: Receives values; None when only the store is to be filled.
            rows: For each prompt its row in `result`.
        """
        self._context = context
        self._prompts = prompts
        self._layers = layers
        self._site = site
        self._pool = pool
        self._result = result
        self._rows = rows
        self._width = context.source.width(site)
        common = {"kind": KIND, "site": site, "pool": pool, "storage": context.storage}
        family = KeyFamily({**common, "model": context.model, "salt": context.salt}, ("tokens", "layer"))
        self._tokens = [digest_tokens(prompt.ids) for prompt in prompts]
        self._keys = [family.digest(tokens, layer) for tokens in self._tokens for layer in layers]
        self._missing = [True] * len(self._keys)
        self._unfit: set[int] = set()

    def absent(self) -> list[int]:
        """Return the prompts of which something must be computed."""
        n_layers = len(self._layers)
        return sorted({index // n_layers for index, missing in enumerate(self._missing) if missing})

    def missing(self, prompt: int) -> tuple[int, ...]:
        """Return the positions of the layers that must be computed for one prompt."""
        start = prompt * len(self._layers)
        return tuple(position for position in range(len(self._layers)) if self._missing[start + position])

    def look(self) -> None:
        """Ask which entries are there, without reading them."""
        self._missing = [not there for there in self._context.store.contains_many(self._keys)]

    def refresh(self) -> None:
        """Count every entry as not looked for."""
        self._context.refreshed(self._keys)

    def load(self) -> None:
        """Read what is there into the result."""
        per_fetch = min(_FETCH_ENTRIES, max(1, _FETCH_BYTES // (4 * (self._width or 4096) + 512)))
        for start in range(0, len(self._keys), per_fetch):
            self._place(start, self._context.store.fetch_many(self._keys[start : start + per_fetch]))

    def keep(
        self, members: Sequence[int], positions: Sequence[int], values: Sequence[Sequence[Tensor]], seconds: float
    ) -> tuple[list[Write], list[Write]]:
        """Take what one batch computed.

        Args:
            members: The prompts of the batch.
            positions: The layer positions computed.
            values: For each of them and each member, `[width]`.
            seconds: What the batch cost.

        Returns:
            Entries that are new, and entries that replace unusable ones.
        """
        fresh: list[Write] = []
        again: list[Write] = []
        n_layers = len(self._layers)
        share = seconds / max(1, sum(len(self._prompts[member]) for member in members) * len(positions))
        for column, member in enumerate(members):
            prompt = self._prompts[member]
            identity = self._context.describe(self._site, self._pool, tokens=self._tokens[member], layer=0)
            for row, position in enumerate(positions):
                index = member * n_layers + position
                if not self._missing[index]:
                    continue
                computed = values[row][column]
                kept, handed = self._context.rounded(computed)
                if self._result is not None:
                    target = self._result.rows(len(handed), handed.dtype)
                    target[self._rows[member] * n_layers + position] = handed
                write = self._context.write(
                    self._keys[index],
                    {VALUE: kept},
                    computed,
                    prompt,
                    _with_layer(identity, self._layers[position]),
                    seconds=share * len(prompt),
                    n_tokens=len(prompt),
                )
                (again if index in self._unfit else fresh).append(write)
                self._missing[index] = False
        return fresh, again

    def _place(self, start: int, entries: Sequence[Entry | None]) -> None:
        assert self._result is not None
        n_layers = len(self._layers)
        usable: list[int] = []
        buffers: list[memoryview] = []
        seen: dict[torch.dtype, None] = {}
        for index, entry in enumerate(entries, start):
            if entry is None:
                continue
            dtype = self._fitting(entry)
            if dtype is None:
                self._reject(index)
                continue
            seen[dtype] = None
            usable.append(index)
            buffers.append(entry.value)
        target: Tensor | None = None
        for dtype in seen:
            target = self._result.rows(self._width or 0, dtype)
        if target is None:
            return
        places = [self._rows[index // n_layers] * n_layers + index % n_layers for index in usable]
        unusable = set(stack_rows(buffers, VALUE, target, places))
        for position, index in enumerate(usable):
            if position in unusable:
                self._reject(index)
            else:
                self._missing[index] = False

    def _fitting(self, entry: Entry) -> torch.dtype | None:
        """Return the dtype of an entry's value; None when it is not what was asked for."""
        found = described(entry)
        if found is None or len(found[0]) != 1:
            return None
        (width,), dtype = found
        if self._width is None:
            self._width = width
        return dtype if width == self._width else None

    def _reject(self, index: int) -> None:
        self._unfit.add(index)
        self._context.unfit(self._keys[index])


def _with_layer(identity: dict[str, object], layer: int) -> dict[str, object]:
    components = identity["components"]
    assert isinstance(components, dict)
    return {**identity, "components": {**components, "layer": layer}}
