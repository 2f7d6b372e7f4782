"""Answers in the store: one small entry for each context, many to a write, found by the token-block chain.

An entry is a safetensors encoding: the answer in its form, the entry's own key, the id of the blocks of 64 tokens
before its last 1 to 64, these tokens (their digest in private mode) and how many tokens there are. All of that is
compared with what was asked for before the answer is used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lmstash.caches.activations.publish import Publisher
from lmstash.codecs.header import ITEM_BYTES, Layout, build_header, read_layout
from lmstash.events import MissReason
from lmstash.identity.chain import BLOCK_TOKENS, chain_ids, chain_key, chain_root, prefix_id
from lmstash.identity.encoding import to_json
from lmstash.identity.keys import SCHEMA_VERSION
from lmstash.identity.tokens import digest_token_bytes
from lmstash.store.base import KEY_BYTES, Store
from lmstash.store.sheets import Sheet, fetch_sheets

KIND = "logprobs"
_TOKENS = "tokens"
_DIGEST = "tokens_digest"
_BLOCK_BYTES = 4 * BLOCK_TOKENS


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose answers these are, and how they may be kept."""

    store: Store
    model: bytes
    """Digest of who computes."""
    name: str
    salt: bytes | str | None
    private: bool
    ttl_seconds: float | None

    @property
    def namespace(self) -> str:
        """Where the entries live."""
        return f"{KIND}/{self.model.hex()[:16]}"


class Shelf:
    """Values of one size over contexts, in one store. For one thread at a time."""

    def __init__(self, owner: Owner, site: str, layout: str, specs: Sequence[tuple[str, str, tuple[int, ...]]]) -> None:
        """Keep values with these tensors.

        Args:
            owner: Whose.
            site: What of a context it is.
            layout: In which form.
            specs: The tensors of one value, in order: name, dtype, shape. Wide elements come first.
        """
        self._owner = owner
        self._root = chain_root(owner.model, salt=owner.salt)
        self._what = {"kind": KIND, "site": site, "layout": layout, "dtype": specs[-1][1]}
        tokens = (_DIGEST, "U8", (32,)) if owner.private else (_TOKENS, "U32", (BLOCK_TOKENS,))
        beside = [tokens, ("n_tokens", "U32", (1,)), ("key", "U8", (KEY_BYTES,)), ("parent", "U8", (KEY_BYTES,))]
        header = build_header([*specs, *beside], None)
        layout_of = _measured(header, [*specs, *beside])
        self._header = np.frombuffer(header, np.uint8)
        self._places = {name: slice(each.offset, each.offset + each.nbytes) for name, each in layout_of.tensors.items()}
        self._parts = [self._places[name] for name, _, _ in specs]
        self._n_bytes = layout_of.nbytes
        named = {name: to_json(each) for name, each in self._what.items()}
        identity = {"schema": SCHEMA_VERSION, "components": named}
        facts = {"id": identity, "model": owner.model.hex()[:16], "name": owner.name}
        self._meta = json.dumps(facts, separators=(",", ":")).encode()

    def key_of(self, context: bytes) -> bytes:
        """Return the key of the entry over a context."""
        return self._name(context)[0]

    def fetch(self, contexts: Sequence[bytes]) -> tuple[list[int], Tensor]:
        """Return which of these contexts are kept, and their values as bytes `[n, n_bytes]`.

        Args:
            contexts: Distinct, as token bytes.
        """
        names = [self._name(context) for context in contexts]
        found: list[int] = []
        parts: list[np.ndarray] = []
        for sheet in fetch_sheets(self._owner.store, [key for key, _, _ in names]):
            places = sheet.places.tolist()
            good = self._fitting(
                sheet.values, [contexts[place] for place in places], [names[place] for place in places]
            )
            for place, fits in zip(places, good, strict=True):
                if fits:
                    found.append(place)
                else:
                    self._owner.store.events.miss(self._owner.namespace, names[place][0], MissReason.MISMATCH)
            if good.any():
                parts.append(np.concatenate([sheet.values[good][:, part] for part in self._parts], axis=1))
        values = np.concatenate(parts) if parts else np.empty((0, sum(p.stop - p.start for p in self._parts)), np.uint8)
        return found, torch.from_numpy(values)

    def offer(self, publisher: Publisher, contexts: Sequence[bytes], values: Tensor, seconds: float) -> None:
        """Hand values to whoever saves them.

        Args:
            publisher: Saves them.
            contexts: Distinct, as token bytes.
            values: Bytes, `[n, n_bytes]`; copied.
            seconds: What one took to compute.
        """
        if not contexts:
            return
        names = [self._name(context) for context in contexts]
        sheet = np.zeros((len(contexts), self._n_bytes), np.uint8)
        sheet[:, : len(self._header)] = self._header
        start = 0
        array = values.numpy()
        for part in self._parts:
            sheet[:, part] = array[:, start : start + part.stop - part.start]
            start += part.stop - part.start
        self._describe(sheet, contexts, names)
        publisher.offer(
            [
                Sheet(
                    [key for key, _, _ in names],
                    sheet,
                    self._owner.namespace,
                    metas=[self._meta] * len(contexts),
                    compute_seconds=[seconds] * len(contexts),
                    n_tokens=[len(context) >> 2 for context in contexts],
                    ttl_seconds=self._owner.ttl_seconds,
                )
            ]
        )

    def _name(self, context: bytes) -> tuple[bytes, bytes, bytes]:
        """Return key, id of the blocks before, and the 1 to 64 tokens after them."""
        before = (len(context) - 4) // _BLOCK_BYTES * _BLOCK_BYTES
        tokens = np.frombuffer(context, np.uint32, before // 4)
        parent = chain_ids(self._root, tokens)[-1] if before else self._root
        last = context[before:]
        return chain_key(prefix_id(parent, last), **self._what), parent, last

    def _describe(
        self, sheet: np.ndarray, contexts: Sequence[bytes], names: Sequence[tuple[bytes, bytes, bytes]]
    ) -> None:
        """Write beside each value of what it is."""
        lengths = np.array([len(context) >> 2 for context in contexts], np.uint32)
        sheet[:, self._places["n_tokens"]] = lengths[:, None].view(np.uint8)
        sheet[:, self._places["key"]] = _rows([key for key, _, _ in names])
        sheet[:, self._places["parent"]] = _rows([parent for _, parent, _ in names])
        if self._owner.private:
            sheet[:, self._places[_DIGEST]] = _rows([digest_token_bytes(last) for _, _, last in names])
        else:
            sheet[:, self._places[_TOKENS]] = _rows([last.ljust(_BLOCK_BYTES, b"\0") for _, _, last in names])

    def _fitting(
        self, values: np.ndarray, contexts: Sequence[bytes], names: Sequence[tuple[bytes, bytes, bytes]]
    ) -> np.ndarray:
        """Return which entries are what was asked for: header, key, blocks before, tokens and their number."""
        if values.shape[1] != self._n_bytes:
            return np.zeros(len(values), np.bool_)
        expected = np.zeros((len(values), self._n_bytes), np.uint8)
        expected[:, : len(self._header)] = self._header
        self._describe(expected, contexts, names)
        same = (values[:, : len(self._header)] == self._header).all(axis=1)
        for name, place in self._places.items():
            if place not in self._parts:
                assert name
                same &= (values[:, place] == expected[:, place]).all(axis=1)
        return same


def _rows(parts: Sequence[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(parts), np.uint8).reshape(len(parts), -1)


def _measured(header: bytes, specs: Sequence[tuple[str, str, tuple[int, ...]]]) -> Layout:
    """Return where the tensors lie behind a header."""
    n_bytes = sum(math.prod(shape) * ITEM_BYTES[dtype] for _, dtype, shape in specs)
    return read_layout(memoryview(header + bytes(n_bytes)))
