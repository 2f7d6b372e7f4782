"""Raw values: every token of a prompt. Of causal models kept by token prefix, of others by exact prompt.

A causal model's values for a token are a function of the tokens up to it. They are kept in blocks of 64 tokens on the
token-block chain, one entry per block, site and layer: prompts with one prefix share its entries. What is left over is
a tail, found only by exactly its tokens (with a begin-of-text token all short prompts would else fight for one slot).
Every entry keeps its tokens (in private mode their digest) and the key of the block before it, compared before use.

Where prompts overlap, the values kept first are the ones everybody gets, also in the run that computes the rest: a cold
run returns what a warm one will.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmstash.caches.activations.context import KIND, VALUE, Context, described
from lmstash.caches.activations.prompts import Prompt
from lmstash.caches.activations.results import RawResult
from lmstash.codecs.tensors import decode_tensors
from lmstash.errors import FormatError
from lmstash.identity.chain import BLOCK_TOKENS, chain_ids, chain_key, chain_root
from lmstash.identity.keys import KeyFamily
from lmstash.identity.tokens import digest_tokens
from lmstash.store.base import Entry, Write

_FETCH_BYTES = 8 * 2**20
_TOKENS = "tokens"
_DIGEST = "tokens_digest"


@dataclass(slots=True)
class _Piece:
    """A stretch of tokens of one layer that is one entry, and every place it belongs to."""

    key: bytes
    parent: bytes
    start: int
    ids: np.ndarray
    position: int
    """Of the layer."""
    prompts: list[int]
    missing: bool = True
    unfit: bool = False


class RawShelf:
    """Where the raw values of some prompts are kept, and which of them are. Used by one thread, for one call."""

    def __init__(
        self,
        context: Context,
        prompts: Sequence[Prompt],
        layers: Sequence[int],
        site: str,
        result: RawResult | None,
    ) -> None:
        """Name the entries. Costs about 2 us per block and layer.

        Args:
            context: Store and identity.
            prompts: Distinct prompts.
            layers: Distinct layers, in the order of the result.
            site: Where values are read.
            result: Receives values; None when only the store is to be filled.
        """
        self._context = context
        self._prompts = prompts
        self._layers = layers
        self._site = site
        self._result = result
        self._width = context.source.width(site)
        self._pieces: dict[bytes, _Piece] = {}
        self._of: list[list[_Piece]] = [[] for _ in prompts]
        name = self._name_chain if context.source.causal() else self._name_whole
        for prompt in range(len(prompts)):
            name(prompt)

    def absent(self) -> list[int]:
        """Return the prompts of which something must be computed."""
        return [prompt for prompt, pieces in enumerate(self._of) if any(piece.missing for piece in pieces)]

    def missing(self, prompt: int) -> tuple[int, ...]:
        """Return the positions of the layers that must be computed for one prompt."""
        return tuple(sorted({piece.position for piece in self._of[prompt] if piece.missing}))

    def look(self) -> None:
        """Ask which entries are there, without reading them."""
        there = self._context.store.contains_many(list(self._pieces))
        for piece, found in zip(self._pieces.values(), there, strict=True):
            piece.missing = not found

    def refresh(self) -> None:
        """Count every entry as not looked for."""
        self._context.refreshed(list(self._pieces))

    def load(self) -> None:
        """Read what is there into the result."""
        chunk: list[_Piece] = []
        nbytes = 0
        for piece in self._pieces.values():
            chunk.append(piece)
            nbytes += len(piece.ids) * 4 * (self._width or 4096)
            if nbytes >= _FETCH_BYTES:
                self._fetch(chunk)
                chunk, nbytes = [], 0
        self._fetch(chunk)

    def keep(
        self, members: Sequence[int], positions: Sequence[int], values: Sequence[Sequence[Tensor]], seconds: float
    ) -> tuple[list[Write], list[Write]]:
        """Take what one batch computed.

        Args:
            members: The prompts of the batch.
            positions: The layer positions computed.
            values: For each of them and each member, `[n_tokens, width]`.
            seconds: What the batch cost.

        Returns:
            Entries that are new, and entries that replace unusable ones.
        """
        fresh: list[Write] = []
        again: list[Write] = []
        share = seconds / max(1, sum(len(self._prompts[member]) for member in members) * len(positions))
        row_of = {position: row for row, position in enumerate(positions)}
        for column, member in enumerate(members):
            for piece in self._of[member]:
                row = row_of.get(piece.position)
                if row is None or not piece.missing:
                    continue
                computed = values[row][column][piece.start : piece.start + len(piece.ids)]
                kept, handed = self._context.rounded(computed)
                self._hand_out(piece, handed)
                (again if piece.unfit else fresh).append(self._write(piece, member, kept, computed, share))
        return fresh, again

    def _name_chain(self, prompt: int) -> None:
        context, ids = self._context, self._prompts[prompt].ids
        root = chain_root(context.model, salt=context.salt)
        chain = chain_ids(root, ids)
        whole = len(chain) * BLOCK_TOKENS
        tail = ids[whole:]
        for position, layer in enumerate(self._layers):
            what = {"kind": KIND, "site": f"{self._site}/{layer}", "dtype": context.storage}
            parent = b""
            for block, chain_id in enumerate(chain):
                key = chain_key(chain_id, layout=f"{BLOCK_TOKENS} tokens", **what)
                start = block * BLOCK_TOKENS
                self._add(prompt, key, parent, start, ids[start : start + BLOCK_TOKENS], position)
                parent = key
            if len(tail):
                layout = f"tail {digest_tokens(tail).hex()}"
                key = chain_key(chain[-1] if chain else root, layout=layout, **what)
                self._add(prompt, key, parent, whole, tail, position)

    def _name_whole(self, prompt: int) -> None:
        context, ids = self._context, self._prompts[prompt].ids
        common = {"kind": KIND, "site": self._site, "pool": None, "storage": context.storage}
        family = KeyFamily({**common, "model": context.model, "salt": context.salt}, ("tokens", "layer"))
        tokens = digest_tokens(ids)
        for position, layer in enumerate(self._layers):
            self._add(prompt, family.digest(tokens, layer), b"", 0, ids, position)

    def _add(self, prompt: int, key: bytes, parent: bytes, start: int, ids: np.ndarray, position: int) -> None:
        piece = self._pieces.get(key)
        if piece is None:
            piece = self._pieces[key] = _Piece(key, parent, start, ids, position, [])
        piece.prompts.append(prompt)
        self._of[prompt].append(piece)

    def _fetch(self, chunk: Sequence[_Piece]) -> None:
        entries = self._context.store.fetch_many([piece.key for piece in chunk])
        for piece, entry in zip(chunk, entries, strict=True):
            if entry is None:
                continue
            value = self._fitting(piece, entry)
            if value is None:
                piece.unfit = True
                self._context.unfit(piece.key)
            else:
                self._hand_out(piece, value)

    def _fitting(self, piece: _Piece, entry: Entry) -> Tensor | None:
        """Return an entry's value in the dtype it was computed in; None when it is not what was asked for."""
        found = described(entry)
        if found is None or len(found[0]) != 2 or found[0][0] != len(piece.ids) or entry.parent != piece.parent:
            return None
        (_, width), dtype = found
        try:
            tensors = decode_tensors(entry.value, framework="torch")
        except FormatError:
            return None
        if not _names_tokens(tensors, piece.ids):
            return None
        if self._width is None:
            self._width = width
        return tensors[VALUE].to(dtype) if width == self._width else None

    def _hand_out(self, piece: _Piece, value: Tensor) -> None:
        piece.missing = False
        if self._result is not None:
            for prompt in piece.prompts:
                self._result.place(prompt, piece.position, piece.start, value)

    def _write(self, piece: _Piece, prompt: int, kept: Tensor, computed: Tensor, share: float) -> Write:
        layer = self._layers[piece.position]
        tokens = digest_tokens(piece.ids)
        what: dict[str, Any] = {VALUE: kept}
        if self._context.private:
            what[_DIGEST] = np.frombuffer(tokens, dtype=np.uint8)
        else:
            what[_TOKENS] = piece.ids
        return self._context.write(
            piece.key,
            what,
            computed,
            self._prompts[prompt],
            self._context.describe(self._site, None, tokens=tokens, layer=layer, start=piece.start),
            seconds=share * len(piece.ids),
            n_tokens=len(piece.ids),
            parent=piece.parent,
        )


def _names_tokens(tensors: dict[str, Tensor], ids: np.ndarray) -> bool:
    kept = tensors.get(_TOKENS)
    if kept is not None:
        return kept.dtype == torch.uint32 and np.array_equal(kept.numpy(), ids)
    digest = tensors.get(_DIGEST)
    return digest is not None and digest.numpy().tobytes() == digest_tokens(ids)
