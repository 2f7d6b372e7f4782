"""Values made smaller with a dictionary of their own kind: trained on the first thousand, kept in the store.

    form (1 byte, 1)   id of the dictionary (8 bytes)   a zstd frame of what `answers.pack` lays out

The dictionary is an entry of `dictionaries/<model>`, pinned, so that eviction leaves it. Where it is gone, what was
compressed with it is a miss.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final

from lmstash.codecs.dictionary import ID_BYTES, Dictionary, digest_id
from lmstash.errors import CorruptEntryError
from lmstash.identity.keys import Key
from lmstash.store.base import Buffer, Store, Write

SQUEEZED: Final = 1
_SAMPLES = 1000
_SAMPLE_BYTES = 4 << 10
"""So much of a value is a sample: what is alike in longer ones is alike in their beginnings."""
_MOST_BYTES = 1 << 28
_HEAD = bytes((SQUEEZED,))


class Squeezer:
    """Compresses the values of one namespace, and reads what was compressed. Threads may share it."""

    def __init__(self, store: Store, namespace: str, salt: str | bytes | None = None) -> None:
        """Name whose values these are; nothing is read or written yet."""
        self._store = store
        self._namespace = f"dictionaries/{namespace.partition('/')[2]}"
        self._about = {"kind": "dictionary", "namespace": namespace, "salt": salt}
        self._known: dict[bytes, Dictionary] = {}
        self._current: Dictionary | None = None
        self._samples: list[bytes] = []
        self._looked = False
        self._lock = threading.RLock()

    def squeeze(self, values: Sequence[Sequence[bytes]]) -> list[list[bytes]]:
        """Return values, in parts as `answers.pack` made them, compressed where there is a dictionary by now."""
        dictionary = self._dictionary(values)
        if dictionary is None:
            return [list(each) for each in values]
        return [[_HEAD, dictionary.id, dictionary.compress(b"".join(each))] for each in values]

    def expand(self, value: Buffer) -> Buffer:
        """Return a value as `answers.pack` made it.

        Raises:
            CorruptEntryError: It is damaged, or its dictionary is gone.
            MissingDependencyError: It is compressed, and zstandard is not installed.
        """
        view = memoryview(value)
        if not len(view) or view[0] != SQUEEZED:
            return view
        name = bytes(view[1 : 1 + ID_BYTES])
        dictionary = self._known.get(name) or self._find(name)
        if dictionary is None:
            raise CorruptEntryError("the dictionary that a value was compressed with is gone")
        return dictionary.decompress(view[1 + ID_BYTES :], _MOST_BYTES)

    def _dictionary(self, values: Sequence[Sequence[bytes]]) -> Dictionary | None:
        with self._lock:
            if self._current is None and not self._looked:
                self._looked = True
                name = self._store.get(self._key(b"current"))
                self._current = None if name is None else self._find(bytes(name))
            if self._current is None:
                self._samples += [b"".join(each)[:_SAMPLE_BYTES] for each in values]
                if len(self._samples) >= _SAMPLES:
                    self._current = Dictionary.train(self._samples)
                    self._samples = []
            current = self._current
            if current is None or self._keep(current):
                return current
            return None

    def _keep(self, dictionary: Dictionary) -> bool:
        """Have a dictionary in the store: others may have cleared it meanwhile."""
        key = self._key(dictionary.id)
        if self._store.contains(key):
            return True
        writes = [
            Write(key, dictionary.data, self._namespace),
            Write(self._key(b"current"), dictionary.id, self._namespace),
        ]
        kept = self._store.put_many(writes) == len(writes)
        self._store.pin_many([each.key for each in writes])
        self._known[dictionary.id] = dictionary
        return kept

    def _find(self, name: bytes) -> Dictionary | None:
        data = self._store.get(self._key(name))
        if data is None or digest_id(data) != name:
            return None
        dictionary = Dictionary(bytes(data))
        self._known[name] = dictionary
        return dictionary

    def _key(self, name: bytes) -> bytes:
        return Key({**self._about, "name": name}).digest
