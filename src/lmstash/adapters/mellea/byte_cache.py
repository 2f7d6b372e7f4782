"""A cache for `LocalHFBackend(cache=...)` that is bounded by what matters: bytes."""

from __future__ import annotations

import dataclasses
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lmstash.adapters.mellea.cache import Cache

if TYPE_CHECKING:
    from lmstash.adapters.mellea.persisting import Shelf


class ByteLRUCache(Cache):
    """Keeps values up to `capacity_bytes` of tensors, least recently used out first.

        LocalHFBackend(model_id, cache=ByteLRUCache("2GB"))
        LocalHFBackend(model_id, cache=ByteLRUCache("2GB", stash=stash, model=model))

    Counted are the bytes that a value's tensors keep alive, each storage once. A value that alone is larger than the
    limit is not kept. Values are returned as they are, not copied.

    With `stash` and `model`, values under *string* keys are also kept in the stash, under the model's fingerprint, and
    found there by later processes that run the same model: `HFAloraCacheInfo`, `DynamicCache` of full attention,
    tensors, and lists, tuples and dicts of these and of plain values. Integer keys are `id()`s (that is what mellea
    puts), which mean nothing outside their process and are used again within it: they never leave it.

    Threads may share it.

    Attributes:
        capacity_bytes: the limit; read at every put, so that a smaller one counts from the next put on.
        cache: the `OrderedDict` of key -> value, oldest first.
        on_evict: called with each value that is put out to make room.
    """

    def __init__(
        self,
        capacity_bytes: int | str | None,
        on_evict: Callable[[Any], None] | None = None,
        *,
        stash: Any = None,
        model: Any = None,
    ) -> None:
        """Make an empty cache.

        Args:
            capacity_bytes: in bytes or as `"2GB"`; None is unlimited.
            on_evict: called with each value that is put out to make room.
            stash: where values under string keys are kept too.
            model: whose state the values are; needed with `stash`.

        Raises:
            InvalidArgumentError: One of `stash` and `model` was given without the other, or the size cannot be read.
            UnsupportedModelError: The model cannot be fingerprinted safely.
        """
        from lmstash.errors import InvalidArgumentError
        from lmstash.settings import parse_bytes

        if (stash is None) != (model is None):
            raise InvalidArgumentError("values persist under a model's fingerprint: give both stash= and model=")
        self.capacity_bytes = parse_bytes(capacity_bytes)
        self.cache: OrderedDict[str | int, Any] = OrderedDict()
        self.on_evict = on_evict
        self._sizes: dict[str | int, int] = {}
        self._lock = threading.RLock()
        self._shelf: Shelf | None = None
        if stash is not None:
            from lmstash.adapters.mellea.persisting import Shelf

            self._shelf = Shelf(stash, model)

    def current_size(self) -> int:
        """Return how many values are kept in memory."""
        return len(self.cache)

    def current_bytes(self) -> int:
        """Return how many bytes the values in memory take."""
        with self._lock:
            return sum(self._sizes.get(key, 0) for key in list(self.cache))  # a signal handler may change it

    def get(self, key: str | int) -> Any | None:
        """Return the value under `key` and make it the latest, or None."""
        with self._lock:
            if key in self.cache:
                value = self.cache[key]  # first: a signal handler may put it out at the next call
                self.cache.move_to_end(key)
                return value
        if self._shelf is None or not isinstance(key, str):
            return None
        value = self._shelf.get(key)
        if value is not None:
            self._keep(key, value)
        return value

    def put(self, key: str | int, value: Any) -> None:
        """Keep `value` under `key` as the latest, and put out the oldest ones until the limit holds."""
        if self._shelf is None or not isinstance(key, str):
            self._keep(key, value)
            return
        self._shelf.drop(key)  # or after an interrupt the older value is served when memory has put this one out
        self._keep(key, value)
        self._shelf.put(key, value)

    def _keep(self, key: str | int, value: Any) -> None:
        nbytes = bytes_held(value)
        evicted: list[Any] = []
        with self._lock:
            self.cache.pop(key, None)
            for each in list(self._sizes):
                if each not in self.cache:
                    self._sizes.pop(each, None)
            used = sum(self._sizes.values())
            limit = sys.maxsize if self.capacity_bytes is None else self.capacity_bytes
            if nbytes <= limit:
                while self.cache and used + nbytes > limit:
                    oldest, gone = self.cache.popitem(last=False)
                    used -= self._sizes.pop(oldest, 0)
                    evicted.append(gone)
                self.cache[key] = value
                self._sizes[key] = nbytes
        if self.on_evict is not None:
            for gone in evicted:
                self.on_evict(gone)


def bytes_held(value: Any) -> int:
    """Return how many bytes the tensors in `value` keep alive, each storage once; of plain values their own size.

    Looks into lists, tuples, dicts, dataclasses, and transformers caches with their layers.
    """
    seen: set[int] = set()
    storages: dict[Any, int] = {}
    rest, pending = 0, [value]
    while pending:
        each = pending.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if hasattr(each, "untyped_storage"):
            try:
                storage = each.untyped_storage()
                storages[each.device, storage.data_ptr()] = storage.nbytes()
            except (NotImplementedError, RuntimeError):  # sparse, or a wrapper: no storage of its own
                rest += each.numel() * each.element_size()
        elif isinstance(each, dict):
            pending += each.values()
        elif isinstance(each, list | tuple | set | frozenset):
            pending += each
        elif dataclasses.is_dataclass(each) and not isinstance(each, type):
            pending += [getattr(each, field.name, None) for field in dataclasses.fields(each)]
        elif type(each).__module__.startswith("transformers."):  # a cache, or one of its layers
            pending += vars(each).values()
        else:
            rest += sys.getsizeof(each)
    return rest + sum(storages.values())
