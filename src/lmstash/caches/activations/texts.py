"""Texts already tokenized: an index in front of the tokenizer, by chunks of a list of texts.

Token ids are the identity of prompts, so a warm call on strings would spend most of its time in the tokenizer. The ids
of 1,024 texts at a time are kept under a hash of these texts and of all that the tokenizer is, which is read anew at
each use: serialising a tokenizer of 50,000 words takes as long as tokenizing some 45 kB, so short lists do without.
Nothing cheaper is certain: a tokenizer can be trained anew in place and keep its size, its settings and most of its
words, and it keeps no count of its changes. A list that was extended finds its full chunks again; a shuffled one is
tokenized. Ids spell out text: never used in private mode.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from lmstash.codecs.tensors import decode_tensors, encode_tensors
from lmstash.errors import FormatError, InvalidArgumentError
from lmstash.events import MissReason
from lmstash.identity.keys import Key
from lmstash.store.base import Entry, Store, Write

CHUNK_TEXTS = 1024
_CHARACTERS_PER_WORD = 1
"""Texts shorter than this times the vocabulary are tokenized: asking what the tokenizer is would cost as much."""
_HARMLESS = frozenset({"padding_side", "verbose", "deprecation_warnings"})
"""Settings that decide how batches are padded and what is printed; `tokenize` does neither, and others change them."""


class TextIndex:
    """Token ids by text, over one store and one tokenizer. Threads may share it."""

    def __init__(
        self, store: Store, tokenizer: Any, *, salt: bytes | str | None = None, ttl_seconds: float | None = None
    ) -> None:
        """Index what `tokenizer` makes of texts; one that cannot be told apart from another is simply called."""
        self._store = store
        self._tokenizer = tokenizer
        self._salt = salt
        self._ttl_seconds = ttl_seconds

    def tokenize(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return `[n_tokens]` uint32 for each text, as the tokenizer would without truncation and padding."""
        identity = self._identity() if self._pays(texts) else None
        if identity is None:
            return tokenize(texts, self._tokenizer)
        chunks = [texts[start : start + CHUNK_TEXTS] for start in range(0, len(texts), CHUNK_TEXTS)]
        keys = [self._key(identity, chunk) for chunk in chunks]
        entries = self._store.fetch_many(keys)
        found = [self._read(key, entry, len(chunk)) for key, entry, chunk in zip(keys, entries, chunks, strict=True)]
        absent = [number for number, ids in enumerate(found) if ids is None]
        started = time.perf_counter()
        fresh = iter(
            tokenize([text for number in absent for text in chunks[number]], self._tokenizer) if absent else ()
        )
        seconds = (time.perf_counter() - started) / max(1, len(absent))
        writes: list[Write] = []
        for number in absent:
            ids = found[number] = [next(fresh) for _ in chunks[number]]
            writes.append(self._write(keys[number], ids, identity, seconds))
        if writes and self._identity() == identity:
            self._store.put_many(writes)
        return [ids for chunk in found for ids in chunk or ()]

    def _pays(self, texts: Sequence[str]) -> bool:
        words = getattr(self._tokenizer, "vocab_size", None)
        return isinstance(words, int) and sum(map(len, texts)) >= _CHARACTERS_PER_WORD * words

    def _identity(self) -> bytes | None:
        """Return a digest of all that decides what ids come out, None when that cannot be told.

        Finer than a tokenizer's fingerprint, which forgives settings that do not matter: here they cost a miss.
        """
        import tokenizers
        import transformers

        tokenizer = self._tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        kind = type(tokenizer)
        if not isinstance(backend, tokenizers.Tokenizer) or not kind.__module__.startswith("transformers."):
            return None
        model = backend.model
        if any(getattr(model, name, None) is not None for name in ("dropout", "alpha", "nbest_size")):
            return None  # draws random numbers
        settings = {name: value for name, value in vars(tokenizer).items() if value is not backend}
        if "__call__" in settings:
            return None
        try:
            # As `tokenize` leaves them: what batches were padded to meanwhile does not matter.
            if backend.padding is not None:
                backend.no_padding()
            if backend.truncation is not None:
                backend.no_truncation()
            rules: Any = backend.__getstate__()
        except Exception:  # parts of it are written in Python
            return None
        told = sorted((name, repr(value)) for name, value in settings.items() if name not in _HARMLESS)
        if any(" at 0x" in value for _, value in told):
            return None  # an address says nothing of what lies there
        versions = (transformers.__version__, tokenizers.__version__)
        facts = (f"{kind.__module__}.{kind.__qualname__}", versions, told)
        digest = hashlib.sha256(repr(facts).encode("utf-8", "surrogatepass") + b"\0")
        digest.update(rules)
        return digest.digest()

    def _key(self, identity: bytes, texts: Sequence[str]) -> bytes:
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        digest = hashlib.sha256(np.array([len(encoded), *map(len, encoded)], dtype="<u8").tobytes())
        digest.update(b"".join(encoded))
        return Key({"kind": "texts", "tokenizer": identity, "texts": digest.digest(), "salt": self._salt}).digest

    def _read(self, key: bytes, entry: Entry | None, n_texts: int) -> list[np.ndarray] | None:
        if entry is None:
            return None
        try:
            kept = decode_tensors(entry.value, framework="numpy")
            ends = np.cumsum(kept["lengths"].astype(np.int64))
            fits = kept["key"].tobytes() == key and len(ends) == n_texts and ends[-1] == len(kept["ids"])
            if fits and kept["ids"].dtype == kept["lengths"].dtype == np.uint32:
                bounds = [0, *ends.tolist()]
                return [kept["ids"][start:end] for start, end in pairwise(bounds)]
        except (FormatError, InvalidArgumentError, KeyError, IndexError):
            pass
        self._store.events.miss(entry.namespace, key, MissReason.MISMATCH)
        return None

    def _write(self, key: bytes, ids: list[np.ndarray], identity: bytes, seconds: float) -> Write:
        tensors = {
            "ids": np.concatenate(ids),
            "lengths": np.array([len(each) for each in ids], dtype=np.uint32),
            "key": np.frombuffer(key, dtype=np.uint8),
        }
        return Write(
            key,
            encode_tensors(tensors),
            namespace=f"prompts/{identity.hex()[:16]}",
            meta={"texts": len(ids)},
            compute_seconds=seconds,
            n_tokens=len(tensors["ids"]),
            ttl_seconds=self._ttl_seconds,
        )


def tokenize(texts: Sequence[str], tokenizer: Any) -> list[np.ndarray]:
    """Return `[n_tokens]` uint32 for each text: one call, everything off that a tokenizer's defaults may switch on."""
    only_ids = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
    encoded = tokenizer(list(texts), padding=False, truncation=False, **only_ids)["input_ids"]
    return [np.array(ids, dtype=np.uint32) for ids in encoded]
