"""Texts already tokenized: an index in front of the tokenizer, by chunks of a list of texts.

Token ids are the identity of prompts, so a warm call on strings would spend most of its time in the tokenizer. The ids
of 1,024 texts at a time are kept under a hash of these texts and of what decides which ids come out, which is read anew
at each use. For long lists that is all that the tokenizer is; for shorter ones its rules, and what its model makes of
every word of the texts (see `tokenizer_state`). A list that was extended finds its full chunks again; a shuffled one is
tokenized. Ids spell out text: never used in private mode.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np

from lmstash.caches.activations.tokenizer_state import TokenizerState
from lmstash.codecs.tensors import decode_tensors, encode_tensors
from lmstash.errors import FormatError, InvalidArgumentError
from lmstash.events import MissReason
from lmstash.identity.keys import Key
from lmstash.identity.tokens import pack_lists
from lmstash.store.base import Entry, Store, Write

CHUNK_TEXTS = 1024
_CHARACTERS_PER_WORD = 4
"""In texts of this many times as many characters as the vocabulary has words, the distinct words are so many that it is
cheaper to read the tokenizer as a whole."""
_LEAST_CHARACTERS = 16 * 2**10
"""Shorter texts are tokenized: that takes 12 ms, and their words are nearly all distinct."""


class TextIndex:
    """Token ids by text, over one store and one tokenizer. Threads may share it."""

    def __init__(
        self, store: Store, tokenizer: Any, *, salt: bytes | str | None = None, ttl_seconds: float | None = None
    ) -> None:
        """Index what `tokenizer` makes of texts; one that cannot be told apart from another is simply called."""
        self._store = store
        self._tokenizer = tokenizer
        self._state = TokenizerState(tokenizer)
        self._salt = salt
        self._ttl_seconds = ttl_seconds

    def tokenize(self, texts: Sequence[str]) -> list[bytes]:
        """Return each text's token ids as bytes, as the tokenizer makes them without truncation and padding."""
        by_words, identity = self._identity(texts)
        if identity is None:
            return tokenize(texts, self._tokenizer)
        chunks = [texts[start : start + CHUNK_TEXTS] for start in range(0, len(texts), CHUNK_TEXTS)]
        keys = [self._key(identity, chunk) for chunk in chunks]
        entries = self._store.fetch_many(keys)
        found = [
            self._read(key, entry, len(chunk), by_words)
            for key, entry, chunk in zip(keys, entries, chunks, strict=True)
        ]
        absent = [number for number, ids in enumerate(found) if ids is None]
        started = time.perf_counter()
        unknown = [text for number in absent for text in chunks[number]]
        if unknown:
            self._state.forget_words()
        fresh = iter(tokenize(unknown, self._tokenizer) if unknown else ())
        seconds = (time.perf_counter() - started) / max(1, len(absent))
        writes: list[Write] = []
        for number in absent:
            ids = found[number] = [next(fresh) for _ in chunks[number]]
            words = self._state.words(chunks[number], [_unpacked(each) for each in ids]) if by_words else {}
            if words is not None:
                writes.append(self._write(keys[number], ids, words, identity, seconds))
        if writes and self._identity(texts) == (by_words, identity):
            self._store.put_many(writes)
        return [ids for chunk in found for ids in chunk or ()]

    def _identity(self, texts: Sequence[str]) -> tuple[bool, bytes | None]:
        """Return whether words are to be compared, and what decides which ids come out beside them.

        Finer than a tokenizer's fingerprint, which forgives settings that do not matter: here they cost a miss.
        """
        n_characters = sum(map(len, texts))
        n_words = getattr(self._tokenizer, "vocab_size", None)
        if not isinstance(n_words, int) or n_characters < min(_LEAST_CHARACTERS, _CHARACTERS_PER_WORD * n_words):
            return False, None
        by_words = n_characters < _CHARACTERS_PER_WORD * n_words
        return by_words, self._state.rules() if by_words else self._state.whole()

    def _key(self, identity: bytes, texts: Sequence[str]) -> bytes:
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        digest = hashlib.sha256(np.array([len(encoded), *map(len, encoded)], dtype="<u8").tobytes())
        digest.update(b"".join(encoded))
        return Key({"kind": "texts", "tokenizer": identity, "texts": digest.digest(), "salt": self._salt}).digest

    def _read(self, key: bytes, entry: Entry | None, n_texts: int, by_words: bool) -> list[bytes] | None:
        if entry is None:
            return None
        try:
            kept = decode_tensors(entry.value, framework="numpy")
            ends = np.cumsum(kept["lengths"].astype(np.int64))
            fits = kept["key"].tobytes() == key and len(ends) == n_texts and ends[-1] == len(kept["ids"])
            fits = fits and kept["ids"].dtype == kept["lengths"].dtype == np.uint32
            if fits and (not by_words or self._same_words(kept)):
                data = kept["ids"].astype("<u4").tobytes()
                return [data[start:end] for start, end in pairwise([0, *(4 * ends).tolist()])]
        except (FormatError, InvalidArgumentError, KeyError, IndexError, UnicodeDecodeError):
            pass
        self._store.events.miss(entry.namespace, key, MissReason.MISMATCH)
        return None

    def _same_words(self, kept: Mapping[str, np.ndarray]) -> bool:
        """Whether the tokenizer's model still makes of every word what it made when the ids were kept."""
        words = kept["words"].tobytes().decode().split("\0")
        lengths, ids = self._state.ids_of_words(words)
        return lengths == kept["word_lengths"].tolist() and ids == kept["word_ids"].tolist()

    def _write(
        self, key: bytes, ids: list[bytes], words: Mapping[str, list[int]], identity: bytes, seconds: float
    ) -> Write:
        tensors = {
            "ids": np.frombuffer(b"".join(ids), "<u4"),
            "lengths": np.array([len(each) // 4 for each in ids], dtype=np.uint32),
            "key": np.frombuffer(key, dtype=np.uint8),
        }
        if words:
            tensors["words"] = np.frombuffer("\0".join(words).encode(), dtype=np.uint8)
            tensors["word_lengths"] = np.array(list(map(len, words.values())), dtype=np.uint32)
            tensors["word_ids"] = np.array(list(chain.from_iterable(words.values())), dtype=np.uint32)
        return Write(
            key,
            encode_tensors(tensors),
            namespace=f"prompts/{identity.hex()[:16]}",
            meta={"texts": len(ids)},
            compute_seconds=seconds,
            n_tokens=len(tensors["ids"]),
            ttl_seconds=self._ttl_seconds,
        )


def tokenize(texts: Sequence[str], tokenizer: Any) -> list[bytes]:
    """Return the token ids of each text: one call, everything off that a tokenizer's defaults may switch on."""
    only_ids = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
    return pack_lists(tokenizer(list(texts), padding=False, truncation=False, **only_ids)["input_ids"])


def _unpacked(name: bytes) -> list[int]:
    return np.frombuffer(name, "<u4").tolist()
