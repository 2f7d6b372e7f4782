"""What the K and V rows of one token look like in a model, and a pool of token slots in RAM that holds them."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmstash.caches.logprobs.memory import zeros

_SLAB_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Plane:
    """K and V tensors of equal shape, which lie in one tensor: nearly every model has one plane."""

    heads: int
    width: int
    dtype: torch.dtype
    members: int
    """K or V tensors."""

    @property
    def token_bytes(self) -> int:
        """Bytes of one token."""
        return self.members * self.heads * self.width * self.dtype.itemsize

    def zeros(self, rows: int, tokens: int, device: torch.device) -> Tensor:
        """Return memory for the KV of some rows, `[members, rows, heads, tokens, width]`.

        Zeros, since attention multiplies what is masked by 0, and a number that is none would stay one.
        """
        return zeros((self.members, rows, self.heads, tokens, self.width), self.dtype, device)


@dataclass(frozen=True, slots=True)
class KVForm:
    """The planes of a model, and where in them each layer's K and V lie."""

    planes: tuple[Plane, ...]
    places: tuple[tuple[tuple[int, int], tuple[int, int]], ...]
    """For each layer (plane, member) of K and of V."""
    device: torch.device

    @property
    def token_bytes(self) -> int:
        """Bytes of one token in all layers."""
        return sum(plane.token_bytes for plane in self.planes)

    @classmethod
    def of(cls, layers: Sequence[Any]) -> KVForm | None:
        """Read it off the layers of a filled transformers cache; None where they are not plain K and V rows."""
        members: dict[tuple[int, int, torch.dtype], int] = {}
        places: list[tuple[tuple[int, int], tuple[int, int]]] = []
        devices: set[torch.device] = set()
        for layer in layers:
            pair: list[tuple[int, int]] = []
            for tensor in (layer.keys, layer.values):
                if not isinstance(tensor, Tensor) or tensor.ndim != 4:
                    return None
                shape = tensor.shape[1], tensor.shape[3], tensor.dtype
                member = members.get(shape, 0)
                members[shape] = member + 1
                pair.append((list(members).index(shape), member))
                devices.add(tensor.device)
            places.append((pair[0], pair[1]))
        if len(devices) != 1:
            return None
        planes = tuple(Plane(heads, width, dtype, count) for (heads, width, dtype), count in members.items())
        return cls(planes, tuple(places), devices.pop())


class SlotPool:
    """KV of single tokens, each in a slot with a number. Memory is taken by the slab as it is needed; not locked.

    Who keeps the numbers says when they are free again. A slab is `[members, heads, tokens, width]`, so that tokens in
    neighbouring slots are copied together.
    """

    def __init__(self, form: KVForm, capacity_bytes: int) -> None:
        """Hold at most `capacity_bytes`, rounded up to a slab."""
        self.form = form
        self.capacity = capacity_bytes // form.token_bytes
        """In tokens."""
        self._slab_tokens = min(max(1, _SLAB_BYTES // form.token_bytes), max(1, self.capacity))
        self._slabs: list[list[Tensor]] = []
        self._free: array[int] = array("I")
        """Slots that were given back, taken from the end."""
        self._fresh = 0
        """Slots below this number have been handed out at least once."""

    @property
    def held_bytes(self) -> int:
        """Memory taken, whether in use or not."""
        return len(self._slabs) * self._slab_tokens * self.form.token_bytes

    def take(self, n_tokens: int) -> array[int] | None:
        """Return slots for `n_tokens`, neighbours if it can; None when there are not so many left."""
        if n_tokens > self.capacity - self._fresh + len(self._free):
            return None
        fresh = min(n_tokens, self.capacity - self._fresh) if not self._free else 0
        slots = array("I", range(self._fresh, self._fresh + fresh))
        self._fresh += fresh
        if fresh < n_tokens:
            again = min(n_tokens, len(self._free))
            if again:
                slots += array("I", sorted(self._free[-again:]))
                del self._free[-again:]
            fresh = n_tokens - len(slots)
            slots += array("I", range(self._fresh, self._fresh + fresh))
            self._fresh += fresh
        while self._fresh > len(self._slabs) * self._slab_tokens:
            planes = self.form.planes
            self._slabs.append([each.zeros(1, self._slab_tokens, self.form.device)[:, 0] for each in planes])
        return slots

    def give_back(self, slots: array[int]) -> None:
        """Take slots that nobody needs any more."""
        self._free.extend(slots)

    def close(self) -> None:
        """Free the memory; nothing can be taken any more."""
        self.capacity = self._fresh = 0
        self._slabs, self._free = [], array("I")

    def write(self, slots: array[int], rows: Sequence[Tensor]) -> None:
        """Copy KV into slots; `rows` for each plane are `[members, heads, n_tokens, width]`."""
        for slab, inside, where in self._runs(slots):
            for mine, theirs in zip(self._slabs[slab], rows, strict=True):
                if isinstance(inside, slice):
                    mine[:, :, inside] = theirs[:, :, where]
                else:
                    mine.index_copy_(2, inside.to(mine.device), theirs[:, :, where])

    def read(self, slots: Sequence[int], rows: Sequence[Tensor]) -> None:
        """Copy KV out of slots, as `write` took it."""
        for slab, inside, where in self._runs(slots):
            for mine, theirs in zip(self._slabs[slab], rows, strict=True):
                if isinstance(inside, slice):
                    theirs[:, :, where] = mine[:, :, inside]
                else:
                    theirs[:, :, where] = mine.index_select(2, inside.to(mine.device))

    def _runs(self, slots: Sequence[int]) -> Iterator[tuple[int, slice | Tensor, slice]]:
        """Yield slab, places in it, and which of the slots these are: in stretches of one slab."""
        size = self._slab_tokens
        start, n_slots = 0, len(slots)
        while start < n_slots:
            slab = slots[start] // size
            low, high = slab * size, (slab + 1) * size
            stop = start + 1
            together = True
            while stop < n_slots and low <= slots[stop] < high:
                together = together and slots[stop] == slots[stop - 1] + 1
                stop += 1
            first = slots[start] - low
            if together:
                yield slab, slice(first, first + stop - start), slice(start, stop)
            else:
                places = torch.tensor([each - low for each in slots[start:stop]], device="cpu")
                yield slab, places, slice(start, stop)
            start = stop
