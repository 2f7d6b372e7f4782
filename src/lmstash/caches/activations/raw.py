"""Raw values: every token of a prompt. Of causal models kept by token prefix, of others by exact prompt.

A causal model's values for a token are a function of the tokens up to it. They are kept in blocks of 64 tokens on the
token-block chain, bundles of layers for each block and site: prompts with one prefix share its entries. What is left
over is a tail, found only by exactly its tokens (with a begin-of-text token all short prompts would else fight for one
slot). Every entry keeps its tokens (in private mode their digest) and the key of the block before it, compared before
use.

Where prompts overlap, the values kept first are the ones everybody gets, also in the run that computes the rest: a cold
run returns what a warm one will.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmstash.caches.activations.bundles import BundleShelf
from lmstash.caches.activations.contents import DIGEST, TOKENS
from lmstash.caches.activations.context import Context
from lmstash.caches.activations.pieces import Piece, group_size
from lmstash.caches.activations.prompts import Prompts
from lmstash.caches.activations.results import RawResult
from lmstash.identity.chain import BLOCK_TOKENS, chain_ids_of_bytes, chain_root
from lmstash.identity.encoding import Component
from lmstash.identity.tokens import digest_token_bytes

_BLOCK_BYTES = 4 * BLOCK_TOKENS


class RawShelf(BundleShelf):
    """Where the raw values of some prompts are kept, and which of them are. Used by one thread, for one call."""

    def __init__(
        self,
        context: Context,
        prompts: Prompts,
        layers: Sequence[int],
        site: str,
        result: RawResult | None,
    ) -> None:
        """Name the entries. Costs about 5 us per prompt and 3 us per block and group of layers.

        Args:
            context: Store and identity.
            prompts: Distinct prompts.
            layers: Distinct layers, in the order of the result.
            site: Where values are read.
            result: Receives values; None when only the store is to be filled.
        """
        self._width = context.source.width(site)
        super().__init__(context, prompts, layers, site, None, self._width)
        self._result = result
        self._apart = result is not None and result.adopts
        if context.source.causal():
            self._name_chains()
        else:
            common = self._common("prompt")
            for prompt, data in enumerate(prompts.names):
                self._join(prompt, digest_token_bytes(data), common, 0, data, None)

    def _name_chains(self) -> None:
        root = chain_root(self._context.model, salt=self._context.salt)
        block_common, tail_common = self._common("block"), self._common("tail")
        for prompt, data in enumerate(self._prompts.names):
            before: Piece | None = None
            parent_id, start = root, 0
            if len(data) >= _BLOCK_BYTES:
                for parent_id in chain_ids_of_bytes(root, data):
                    tokens = data[4 * start : 4 * start + _BLOCK_BYTES]
                    before = self._join(prompt, parent_id, block_common, start, tokens, before)
                    start += BLOCK_TOKENS
            if 4 * start < len(data):
                tokens = data[4 * start :]
                self._join(prompt, parent_id + digest_token_bytes(tokens), tail_common, start, tokens, before)

    def _join(self, prompt: int, name: bytes, common: bytes, start: int, tokens: bytes, before: Piece | None) -> Piece:
        """Let a prompt have a piece, which others may have already."""
        piece = self._pieces.get(name)
        if piece is None:
            n_tokens = len(tokens) // 4
            piece = Piece(common, name, start, n_tokens, tokens, group_size(n_tokens, self._width))
            self._add(piece, before)
        piece.prompts.append(prompt)
        self._of.setdefault(prompt, []).extend(piece.bundles)
        return piece

    def _place(
        self,
        piece: Piece,
        positions: slice | list[int],
        bits: np.ndarray,
        dtype: torch.dtype,
        owned: bool = False,
    ) -> None:
        if self._result is not None:
            if owned and len(piece.prompts) == 1 and self._result.adopt(piece.prompts[0], positions, bits, dtype):
                return
            for prompt in piece.prompts:
                self._result.fill(prompt, positions, piece.start, bits, dtype)

    def _cut(self, value: Tensor, piece: Piece) -> Tensor:
        return value[piece.start : piece.start + piece.n_tokens]

    def _beside(self, piece: Piece) -> tuple[dict[str, Any], dict[str, Component]]:
        ids = np.frombuffer(piece.tokens, np.uint32)
        digest = digest_token_bytes(piece.tokens)
        named: dict[str, Component] = {"tokens": digest, "start": piece.start}
        if self._context.private:
            return {DIGEST: np.frombuffer(digest, dtype=np.uint8)}, named
        return {TOKENS: ids}, named
