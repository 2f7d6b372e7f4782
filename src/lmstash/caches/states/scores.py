"""Scores: the logits after every token, kept beside the K/V for models that were asked for all of them.

A *run* holds the rows of 16 tokens that follow one another, from a multiple of 16 on, or of fewer where a sequence
ends. Its key stands for all tokens up to its end, so that prompts share runs as they share blocks. A prompt that parts
from a kept one within a run finds the runs before it: up to 15 tokens fewer than of K/V.

Bytes: magic, n_rows, n_vocab, form, the entry's own key, zeros up to 64 bytes; then the rows `[n_rows, n_vocab]`
float32 as they are (form 0), or taken apart (form 1): the low two bytes of each number, then the third bytes, then the
highest ones, compressed. Logits are noise but for sign and exponent, so that is a fifth smaller, as is compressing all
of it, which takes three times as long to undo. Bits come back as they were.
"""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Callable
from typing import Final

import numpy as np

from lmstash.caches.states.buffers import buffer
from lmstash.caches.states.keeping import Facts
from lmstash.caches.states.naming import Path, touch
from lmstash.codecs.compression import compress, decompress
from lmstash.errors import CorruptEntryError, MissingDependencyError
from lmstash.events import MissReason
from lmstash.identity.chain import BLOCK_TOKENS
from lmstash.identity.keys import SCHEMA_VERSION
from lmstash.store.base import KEY_BYTES, Buffer, Entry, Store, Write
from lmstash.store.loans import borrow_many

RUN_TOKENS: Final = 16
_MAGIC = b"lmstash\x03"
_HEAD = struct.Struct(f"<8sIII{KEY_BYTES}s")
_START = 64
_PLAIN, _COMPRESSED = 0, 1
_WINDOW = 8
"""Runs that are read at once: as many as take some 25 MB of a small vocabulary."""

Take = Callable[[int, int], "np.ndarray | None"]
"""Gives the rows of tokens from the first to before the second, `[n, n_vocab]` float32; None where they are lost."""


class Scores:
    """Scores in one store. Keeps nothing itself; threads may share it."""

    def __init__(self, store: Store, namespace: str) -> None:
        """Take where they are kept."""
        self._store = store
        self._namespace = namespace

    def covered(self, path: Path, most: int) -> int:
        """Return of how many tokens of a prompt, at most `most`, the scores are kept. Reads the index only.

        Costs about 6 us a run on disk, and half of that in memory.
        """
        keys = [key for _, key in _runs(path, most)]
        there = self._store.contains_many(keys)
        n = there.index(False) if False in there else len(there)
        if n == len(keys) - 1 and self._tail(path, most):
            return most
        return min(n * RUN_TOKENS, most)

    def read(self, path: Path, n_tokens: int, n_vocab: int) -> np.ndarray:
        """Return the scores of the first tokens, of as many as are kept and undamaged: `[n, n_vocab]` float32.

        Costs about a millisecond for 600 KB of rows.
        """
        rows = buffer(4 * n_tokens * n_vocab).view(np.float32).reshape(n_tokens, n_vocab)
        runs = _runs(path, n_tokens)
        if runs and not self._store.contains(runs[-1][1]) and (tail := self._tail(path, n_tokens)):
            runs[-1] = runs[-1][0], tail
        sound = n_tokens
        # The first ones last, which are then the latest used.
        for first in range((len(runs) - 1) // _WINDOW * _WINDOW, -1, -_WINDOW):
            window = runs[first : first + _WINDOW][::-1]
            for (start, key), loan in zip(window, borrow_many(self._store, [k for _, k in window]), strict=True):
                stop = min(start + RUN_TOKENS, n_tokens)
                if loan is None:
                    sound = start
                    continue
                kept = self._decode(loan.entry, key, n_vocab)
                if kept is None or len(kept) < stop - start:
                    sound = start
                else:
                    rows[start:stop] = kept[: stop - start]
                if loan.check is not None and not loan.check():
                    sound = start
        return rows[:sound]

    def writes(self, path: Path, take: Take, facts: Facts) -> list[Write]:
        """Return the entries that keep the scores of all tokens of `path`, without those that are kept: copies.

        Costs a pass over their bytes; compressing, where zstandard is installed, 3 ms a megabyte.
        """
        out: list[Write] = []
        for start, key, kept in self._asked(path):
            if kept:
                continue
            end = min(start + RUN_TOKENS, path.n_tokens)
            rows = take(start, end)
            if rows is None:
                break  # those after it would not be found
            out.append(
                Write(
                    key,
                    _encode(key, rows),
                    namespace=self._namespace,
                    meta=_meta(path, start, end, facts.name),
                    parent=path.parent(start // BLOCK_TOKENS),
                    ttl_seconds=facts.ttl_seconds,
                )
            )
        return out[::-1]

    def are_kept(self, path: Path) -> bool:
        """Whether the scores of all tokens of `path` are kept: they count as used now. Costs as `covered`."""
        return all(kept for _, _, kept in self._asked(path))

    def _asked(self, path: Path) -> list[tuple[int, bytes, bool]]:
        """Return where each run begins, its key and whether it is kept; those that are count as used now."""
        runs = _runs(path, path.n_tokens)
        there = self._store.contains_many([key for _, key in runs])
        touch(self._store, [key for (_, key), kept in zip(runs, there, strict=True) if kept])
        return [(start, key, kept) for (start, key), kept in zip(runs, there, strict=True)]

    def _tail(self, path: Path, n_tokens: int) -> bytes | None:
        """Return the key of the run that ends with exactly so many tokens, if it is kept and not a whole one."""
        if n_tokens % RUN_TOKENS:
            key = path.scores(n_tokens)
            return key if self._store.contains(key) else None
        return None

    def _decode(self, entry: Entry, key: bytes, n_vocab: int) -> np.ndarray | None:
        """Return the rows of an entry; None where they are not the ones that were asked for, or cannot be read."""
        value = memoryview(entry.value)
        try:
            if len(value) < _START:
                raise CorruptEntryError("it is too short")
            magic, n_rows, held_vocab, form, own = _HEAD.unpack_from(value)
            n_bytes = 4 * n_rows * n_vocab
            if magic != _MAGIC or own != key or held_vocab != n_vocab or not 0 < n_rows <= RUN_TOKENS:
                raise CorruptEntryError("it is another's")
            if form == _COMPRESSED:
                return _put_together(value[_START:], n_rows * n_vocab).reshape(n_rows, n_vocab)
            if form != _PLAIN or len(value) - _START != n_bytes:
                raise CorruptEntryError("it does not hold the rows that it says")
        except CorruptEntryError:
            self._store.events.miss(self._namespace, key, MissReason.MISMATCH)
            return None
        except MissingDependencyError as error:
            self._store.events.miss(self._namespace, key, MissReason.UNAVAILABLE)
            self._store.events.warn_once("scores zstd", "lmstash: scores that are kept cannot be read: %s", error)
            return None
        return np.frombuffer(value[_START:], "<f4").reshape(n_rows, n_vocab)


def _runs(path: Path, most: int) -> list[tuple[int, bytes]]:
    """Return where the runs of a prompt's first tokens begin, and their keys: of whole ones where it is long enough."""
    return [(start, path.scores(min(start + RUN_TOKENS, path.n_tokens))) for start in range(0, most, RUN_TOKENS)]


def _encode(key: bytes, rows: np.ndarray) -> list[Buffer]:
    n_rows, n_vocab = rows.shape
    data = np.array(rows, "<f4").reshape(-1)  # a copy: rows may change before they are written
    form, body = _PLAIN, [data.data]
    with contextlib.suppress(MissingDependencyError):
        form, body = _COMPRESSED, _take_apart(data)
    head = _HEAD.pack(_MAGIC, n_rows, n_vocab, form, key)
    return [head + bytes(_START - len(head)), *body]


def _take_apart(data: np.ndarray) -> list[Buffer]:
    halves = data.view("<u2")
    high = halves[1::2]
    return [
        np.ascontiguousarray(halves[0::2]).data,
        high.astype(np.uint8).data,
        compress((high >> 8).astype("u1").data),
    ]


def _put_together(value: memoryview, size: int) -> np.ndarray:
    if len(value) <= 3 * size:
        raise CorruptEntryError("it does not hold the rows that it says")
    tops = decompress(value[3 * size :], size)
    if len(tops) != size:
        raise CorruptEntryError("it does not hold the rows that it says")
    high = np.frombuffer(tops, np.uint8).astype("<u2")
    high <<= 8
    high |= np.frombuffer(value[2 * size : 3 * size], np.uint8)
    out = np.empty(size, "<f4")
    halves = out.view("<u2")
    halves[0::2] = np.frombuffer(value[: 2 * size], "<u2")
    halves[1::2] = high
    return out


def _meta(path: Path, start: int, end: int, name: str) -> bytes:
    components = {
        "kind": "scores",
        "start": start,
        "n_tokens": end - start,
        "after": path.chain[start // BLOCK_TOKENS].hex(),
    }
    identity = {"schema": SCHEMA_VERSION, "components": components}
    facts = {"model": path.names.model.hex()[:16], "name": name}
    return json.dumps({"id": identity, **facts}, separators=(",", ":")).encode()
