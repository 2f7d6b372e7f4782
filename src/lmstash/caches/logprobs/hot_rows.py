"""Exact rows of the contexts used last: what a hit costs beside the copy of a row is made here.

By a plain dict in the order of use, not by the prefix index, of which the look-up costs five times as much: a row
answers for exactly its context.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from lmstash.caches.logprobs.slab import Slab

_OVERHEAD_BYTES = 512
"""What a row costs beside its numbers, counted against the budget: its name and its place in the dict."""
_NAME_BYTES = 4096
"""Longer contexts go by a digest, lest names take more than rows."""


class HotRows:
    """Rows of `n_logits` float32 within a byte budget, least recently used out first. Not locked."""

    def __init__(self, n_logits: int, capacity_bytes: int) -> None:
        """Hold nothing."""
        n_slots = capacity_bytes // (4 * n_logits + _OVERHEAD_BYTES)
        self._slab = Slab(4 * n_logits, n_slots * 4 * n_logits)
        self._slot_of: OrderedDict[bytes, int] = OrderedDict()

    @property
    def held_bytes(self) -> int:
        """Memory taken."""
        return self._slab.held_bytes + _OVERHEAD_BYTES * len(self._slot_of)

    def __len__(self) -> int:
        """How many rows are held."""
        return len(self._slot_of)

    def find(self, contexts: Sequence[bytes]) -> list[int | None]:
        """Return for each context the slot of its row, or None; counts as a use. Costs about 0.6 us each."""
        slot_of = self._slot_of
        get, use = slot_of.get, slot_of.move_to_end
        out: list[int | None] = []
        for context in contexts:
            name = context if len(context) <= _NAME_BYTES else _digest(context)
            slot = get(name)
            if slot is not None:
                use(name)
            out.append(slot)
        return out

    def read(self, slots: Sequence[int]) -> Tensor:
        """Return copies of rows, `[n, n_logits]`."""
        return self._slab.read(slots, torch.float32)

    def put(self, contexts: Sequence[bytes], rows: Tensor) -> None:
        """Keep rows `[n, n_logits]`, or what is there already; of more than there is room for, the last ones."""
        slab, slot_of = self._slab, self._slot_of
        values = rows.view(torch.uint8)
        for number in range(max(0, len(contexts) - slab.capacity), len(contexts)):
            context = contexts[number]
            name = context if len(context) <= _NAME_BYTES else _digest(context)
            if name in slot_of:
                slot_of.move_to_end(name)
                continue
            if not slab.room:
                slab.give_back([slot_of.popitem(last=False)[1]])
            slot_of[name] = slab.put(values[number])

    def close(self) -> None:
        """Free the memory."""
        self._slot_of.clear()
        self._slab.close()


def _digest(context: bytes) -> bytes:
    return b"\0" + hashlib.sha256(context).digest()  # 33 bytes, so no context's own
