"""Values of one size in RAM, each in a slot with a number: no value holds on to the batch it came from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_SLAB_BYTES = 8 * 2**20


class Slab:
    """Slots of `n_bytes` each, taken from the system some megabytes at a time and used again. Not locked."""

    def __init__(self, n_bytes: int, capacity_bytes: int) -> None:
        """Hold at most `capacity_bytes`."""
        self.n_bytes = n_bytes
        self.capacity = capacity_bytes // n_bytes
        """In slots."""
        self._step = min(max(1, _SLAB_BYTES // n_bytes), max(1, self.capacity))
        self._parts: list[Tensor] = []
        self._free: list[int] = []
        self._fresh = 0

    @property
    def held_bytes(self) -> int:
        """Memory taken, whether in use or not."""
        return sum(part.nbytes for part in self._parts)

    @property
    def room(self) -> int:
        """Slots that can be taken."""
        return self.capacity - self._fresh + len(self._free)

    def take(self) -> int:
        """Return a slot; there must be room."""
        if self._free:
            return self._free.pop()
        slot = self._fresh
        self._fresh += 1
        if slot >= len(self._parts) * self._step:
            rows = min(self._step, self.capacity - slot)
            self._parts.append(torch.empty((rows, self.n_bytes), dtype=torch.uint8, device="cpu"))
        return slot

    def give_back(self, slots: Sequence[int]) -> None:
        """Take slots that nobody needs any more."""
        self._free.extend(slots)

    def __getitem__(self, slot: int) -> Tensor:
        """Return the memory of a slot, `[n_bytes]` uint8."""
        return self._parts[slot // self._step][slot % self._step]
