"""`OutputCache`: genlm-backend's LRU of output tensors, without what goes wrong in it."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

from lmstash.adapters.genlm.arrays import owned


class OutputCache:
    """Keeps up to `maxsize` tensors, least recently used out first, and hands out copies.

    Tensors are kept in memory of their own, on the device they came from or, with `move_to_cpu`, on the CPU; what is
    handed out is a fresh tensor on the original device. A get and a set cost one copy of the tensor.

    Differs from genlm-backend 0.2.2 and 0.3.1: overwriting a key evicts no other and makes it the latest; with
    `maxsize` 0 or less nothing is kept (theirs raises KeyError); a kept row does not keep its batch alive; writing to
    a tensor that was put or got does not change the cache; a `maxsize` made smaller counts from the next set on.

    Threads may share it. Attributes: `maxsize`, `move_to_cpu` (both may be changed) and `cache`, the `OrderedDict` of
    key -> (device, tensor), oldest first.
    """

    def __init__(self, maxsize: int, move_to_cpu: bool = False) -> None:
        """Make an empty cache.

        Args:
            maxsize: how many tensors are kept at most.
            move_to_cpu: keep tensors in CPU memory.
        """
        self.maxsize = maxsize
        self.move_to_cpu = move_to_cpu
        self.cache: OrderedDict[Hashable, tuple[Any, Any]] = OrderedDict()

    def __getitem__(self, key: Hashable) -> Any:
        """Return a copy of the tensor under `key`, on its device, and make it the latest; KeyError when absent."""
        device, value = self.cache[key]
        with contextlib.suppress(KeyError):  # another thread has just evicted it; the value in hand is still right
            self.cache.move_to_end(key)
        return value.to(device) if value.device != device else owned(value)

    def __setitem__(self, key: Hashable, value: Any) -> None:
        """Keep a copy of `value` under `key` as the latest, and evict the oldest until `maxsize` holds."""
        if self.maxsize > 0:
            device = value.device
            kept = value.cpu() if self.move_to_cpu else value
            entry = (device, owned(value) if kept is value else kept)
            self.cache.pop(key, None)
            self.cache[key] = entry
        else:
            self.cache.pop(key, None)
        while len(self.cache) > max(self.maxsize, 0):
            with contextlib.suppress(KeyError):  # emptied by another thread
                self.cache.popitem(last=False)

    def __contains__(self, key: Hashable) -> bool:
        """Whether `key` is kept; does not count as a use."""
        return key in self.cache

    def __len__(self) -> int:
        """How many tensors are kept."""
        return len(self.cache)

    def clear(self) -> None:
        """Forget every tensor."""
        self.cache.clear()
