"""`stash.tensors`: tensors that people name themselves, by any JSON-able identity."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lmstash.caches.tags import as_words
from lmstash.errors import FormatError
from lmstash.store.base import Store, default_ttl


class Tensors:
    """Tensors under any JSON-able identity: for people who bring their own kind of value."""

    namespace = "tensors/user"

    def __init__(
        self,
        store: Store,
        *,
        salt: bytes | str | None = None,
        private: bool = False,
        ttl_seconds: float | None = None,
    ) -> None:
        """Keep tensors in `store`."""
        self.store = store
        self._salt, self._private, self._ttl_seconds = salt, private, default_ttl(ttl_seconds)

    def put(
        self,
        key: Any,
        tensors: Mapping[str, Any],
        *,
        compute_seconds: float = 0.0,
        tags: Sequence[str] | str | None = (),
        ttl_seconds: float | None = None,
    ) -> bool:
        """Keep `tensors` (torch or numpy) under `key`.

        Args:
            key: Any JSON-able identity; types count (`1` is not `True` and not `"1"`).
            tensors: Arrays by name.
            compute_seconds: What they cost to compute.
            tags: Words to prune by.
            ttl_seconds: Seconds until they expire; default: the stash's.

        Returns:
            Whether they are kept.
        """
        from lmstash.codecs.tensors import encode_tensors

        words = as_words(tags)
        meta: dict[str, Any] = {"tags": list(words)} if words else {}
        if not self._private:
            meta["key"] = json.loads(json.dumps(key, default=repr))
        return self.store.put(
            self._digest(key),
            encode_tensors(tensors),
            namespace=self.namespace,
            meta=meta,
            compute_seconds=compute_seconds,
            ttl_seconds=self._ttl_seconds if ttl_seconds is None else ttl_seconds,
        )

    def get(self, key: Any, *, framework: str = "torch") -> dict[str, Any] | None:
        """Return the tensors kept under `key`, or None. They are the caller's own: writing into them harms nothing.

        Args:
            key: As given to `put`.
            framework: `"torch"` or `"numpy"`.
        """
        from lmstash.codecs.tensors import decode_tensors

        digest = self._digest(key)
        entry = self.store.fetch_many([digest])[0]
        if entry is None:
            return None
        try:
            if framework == "numpy":
                return dict(decode_tensors(entry.value, framework="numpy"))
            return dict(decode_tensors(entry.value, framework="torch"))
        except FormatError as error:
            self.store.events.damage(self.namespace, digest, str(error))
            if self.store.strict:
                raise
            return None

    def delete(self, key: Any) -> bool:
        """Remove what is kept under `key`; returns whether anything was removed."""
        return self.store.delete(self._digest(key))

    def _digest(self, key: Any) -> bytes:
        from lmstash.identity.keys import Key

        return Key({"kind": "tensors", "key": key, "salt": self._salt}).digest
