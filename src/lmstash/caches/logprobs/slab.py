"""Values of one size in RAM, each in a slot with a number: no value holds on to the batch it came from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lmstash.caches.logprobs.memory import zeros


class Slab:
    """Slots of `n_bytes` each. Takes pages from the system as slots are used for the first time. Not locked.

    Attributes:
        n_bytes: Of a slot.
        capacity: In slots.
    """

    def __init__(self, n_bytes: int, capacity_bytes: int) -> None:
        """Hold at most `capacity_bytes`."""
        self.n_bytes = n_bytes
        self.capacity = capacity_bytes // n_bytes
        self._values = zeros((self.capacity, n_bytes), torch.uint8, "cpu")
        self._free: list[int] = []
        self._fresh = 0
        """Slots below this number have been taken at least once."""

    @property
    def held_bytes(self) -> int:
        """Memory taken, whether in use or not."""
        return self._fresh * self.n_bytes

    @property
    def room(self) -> int:
        """Slots that can be taken."""
        return self.capacity - self._fresh + len(self._free)

    def put(self, value: Tensor) -> int:
        """Copy a value `[n_bytes]` uint8 into a slot and return its number; there must be room."""
        if self._free:
            slot = self._free.pop()
        else:
            slot = self._fresh
            self._fresh += 1
        self._values[slot] = value
        return slot

    def give_back(self, slots: Sequence[int]) -> None:
        """Take slots that nobody needs any more."""
        self._free.extend(slots)

    def close(self) -> None:
        """Free the memory; nothing can be put or read any more."""
        self.capacity = self._fresh = 0
        self._values = zeros((0, self.n_bytes), torch.uint8, "cpu")

    def read(self, slots: Sequence[int], dtype: torch.dtype = torch.uint8) -> Tensor:
        """Return copies of values, `[n, n_bytes / itemsize]`."""
        values = self._values.view(dtype)
        return values.index_select(0, torch.tensor(slots, dtype=torch.int64, device="cpu"))
