"""Pooled values: one vector per prompt and layer, kept in bundles of layers.

They come by the ten thousand, so what is usual goes by whole sheets: prompts of which nothing is kept, and prompts of
which all that is asked for lies in the first slot. Only the others get `Bundle` objects and go one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmstash.caches.activations.bundles import BundleShelf, Kept
from lmstash.caches.activations.contents import LAYERS
from lmstash.caches.activations.context import KEY, VALUE, Context, dtype_name
from lmstash.caches.activations.pieces import DOMAIN, Bundle, Piece, group_size
from lmstash.caches.activations.prompts import Prompts
from lmstash.caches.activations.results import PooledResult, bits_of
from lmstash.caches.activations.source import Values, own_copy
from lmstash.codecs.dtypes import restore, rows_to_storage
from lmstash.codecs.tensors import decode_header, encode_tensors
from lmstash.fresh_memory import Arena
from lmstash.identity.encoding import Component
from lmstash.identity.tokens import digest_token_bytes, digests_after, hex_digests
from lmstash.store.base import KEY_BYTES
from lmstash.store.sheets import Sheet, blank_values, fetch_sheets

_ABSENT, _SERVED, _ODD = 0, 1, 2

_BUNDLE_BYTES = 64 * 2**10
"""As in bundles, but here the next prompt's entry is read with it: what is not asked for should be little."""


class PooledShelf(BundleShelf):
    """Where the pooled values of some prompts are kept, and which of them are. Used by one thread, for one call."""

    def __init__(
        self,
        context: Context,
        prompts: Prompts,
        layers: Sequence[int],
        site: str,
        pool: str | int,
        result: PooledResult | None,
        rows: Sequence[int],
    ) -> None:
        """Name the entries. Costs about 1 us per prompt and group of its layers.

        Args:
            context: Store and identity.
            prompts: Distinct prompts.
            layers: Distinct layers, in the order of the result.
            site: Where values are read.
            pool: A canonical pooling.
            result: Receives values; None when only the store is to be filled.
            rows: For each prompt its row in `result`.
        """
        width = context.source.width(site)
        super().__init__(context, prompts, layers, site, pool, width)
        self._result = result
        self._rows = np.arange(rows.start, rows.stop) if isinstance(rows, range) else np.array(rows, np.int64)
        self._piece_common = self._common("prompt")
        self._size = group_size(1, width, _BUNDLE_BYTES)
        self._groups_asked = self._groups(self._size)
        head = DOMAIN + self._piece_common
        self._keys = [
            digests_after(head, [name + tail for name in prompts.names])
            for _number, _positions, tail in self._groups_asked
        ]
        self._states = [np.zeros(len(prompts), np.uint8) for _group in self._groups_asked]
        """For each group what is known of each prompt: nothing kept, all there, or that it has a bundle."""
        self._all = tuple(range(len(layers)))
        self._arena = Arena()
        self._known_words: dict[tuple[int, ...], tuple[str, str, str]] = {}
        self._cells = [state.data for state in self._states]
        """The same memory, thrice as fast to look into one by one."""

    def absent(self) -> list[int]:
        """Return the prompts of which something must be computed."""
        lacking = np.zeros(len(self._prompts), np.bool_)
        for state in self._states:
            lacking |= state == _ABSENT
        for piece in self._pieces.values():
            lacking[piece.prompts[0]] |= any(bundle.lacking for bundle in piece.bundles)
        return lacking.nonzero()[0].tolist()

    def missing(self, prompt: int) -> tuple[int, ...]:
        """Return the positions of the layers that must be computed for one prompt."""
        out = list(super().missing(prompt))
        for (_number, positions, _tail), cells in zip(self._groups_asked, self._cells, strict=True):
            if cells[prompt] == _ABSENT:
                out.extend(positions)
        return tuple(sorted(out))

    def missing_of(self, prompts: Sequence[int]) -> list[tuple[int, ...]]:
        """As `missing`, for some prompts."""
        if len(self._cells) > 1 or self._of:
            return super().missing_of(prompts)
        cells, everything = self._cells[0], self._all
        return [everything if cells[prompt] == _ABSENT else () for prompt in prompts]

    def look(self) -> None:
        """Ask what is there. Entries that may hold several layers are read to see which, others only asked for."""
        if self._size > 1:
            self.load()
            return
        for keys, state in zip(self._keys, self._states, strict=True):
            state[self._context.store.contains_many(keys)] = _SERVED

    def load(self) -> None:
        """Read what is there into the result."""
        for group in range(len(self._groups_asked)):
            self._load_group(group)
        self._read([bundle for bundle in self._bundles() if bundle.lacking], slot=1)

    def refresh(self) -> None:
        """Count every entry as not looked for; what is computed replaces what is kept."""
        self._single_out_all()
        super().refresh()

    def keys(self) -> list[bytes]:
        """As `BundleShelf.keys`."""
        self._single_out_all()
        return super().keys()

    def keep(self, members: Sequence[int], positions: Sequence[int], values: Sequence[Values], seconds: float) -> Kept:
        """Take what one batch computed (see `BundleShelf.keep`): whole sheets of it where nothing was kept before."""
        if self._result is not None and self._result.is_given:  # filling it may change what an extractor handed out
            values = list(map(own_copy, values))
        row_of = {position: row for row, position in enumerate(positions)}
        n_tokens = [self._prompts.lengths[member] for member in members]
        share = seconds / max(1, sum(n_tokens) * len(positions))
        sheets: list[Sheet] = []
        for group, (_number, asked, _tail) in enumerate(self._groups_asked):
            columns = (self._states[group][members] == _ABSENT).nonzero()[0]
            if not len(columns):
                continue
            picked = [values[row_of[each]] for each in asked if each in row_of]
            block = _table(picked) if len(picked) == len(asked) else None
            if block is not None:
                chosen = [members[each] for each in columns.tolist()]
                odd = self._keep_group(group, columns, chosen, block, share, sheets)
            else:
                odd = range(len(columns))
            for each in odd:
                self._single_out(group, members[columns[each]])
        others = [column for column, member in enumerate(members) if member in self._of] if self._of else []
        if not others:
            return sheets, []
        # An extractor may use its memory again for the next batch, before this one's values are saved.
        picked_values = [[layer[column].clone() for column in others] for layer in values]
        share_seconds = share * sum(n_tokens[column] for column in others) * len(positions)
        fresh, again = super().keep([members[column] for column in others], positions, picked_values, share_seconds)
        return [*sheets, *fresh], again

    def _place(
        self,
        piece: Piece,
        positions: slice | list[int],
        bits: np.ndarray,
        dtype: torch.dtype,
        owned: bool = False,
    ) -> None:
        if self._result is not None:
            self._result.place(self._rows[piece.prompts], positions, bits[None], dtype)

    def _beside(self, piece: Piece) -> tuple[dict[str, Any], dict[str, Component]]:
        return {}, {"tokens": digest_token_bytes(piece.name)}

    def _load_group(self, group: int) -> None:
        """Take what the first slots of one group hold of the prompts not looked for yet."""
        _number, asked, _tail = self._groups_asked[group]
        keys, state = self._keys[group], self._states[group]
        names = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES)
        for found in fetch_sheets(self._context.store, keys):
            for rows, contents in self._reader.partitions(found, names[found.places]):
                prompts = found.places[rows]
                if contents is None:
                    for prompt in prompts.tolist():
                        self._single_out(group, prompt, found=1, unfit=(0,))
                        self._context.unfit(keys[prompt])
                    continue
                match = self._matching(contents.held(found.values[rows[0]]), asked)
                if match.rows and self._result is not None:
                    bits = contents.bits(found.values, rows)
                    chosen = bits if match.whole else bits[:, match.rows]
                    self._result.place(self._rows[prompts], match.positions, chosen, contents.computed)
                if match.lacking:
                    for prompt in prompts.tolist():
                        self._single_out(group, prompt, found=1, lacking=match.lacking)
                else:
                    state[prompts] = _SERVED

    def _keep_group(
        self,
        group: int,
        columns: np.ndarray,
        prompts: list[int],
        block: Tensor,
        share: float,
        sheets: list[Sheet],
    ) -> Sequence[int]:
        """Add a sheet of what was computed of one group, in the order of `prompts`; returns which must go alone.

        Args:
            group: Which.
            columns: Where these prompts are in the batch.
            prompts: Of which nothing was kept.
            block: Of the whole batch, `[n_prompts, n_layers, width]`, layers by rising number.
            share: Seconds per token and layer.
            sheets: Grows.
        """
        if len(columns) < len(block):
            block = block[torch.from_numpy(columns)]
        _number, asked, _tail = self._groups_asked[group]
        storage = self._context.storage_dtype
        kept, overflowing = rows_to_storage(block, storage)
        if overflowing:
            well = sorted(set(range(len(prompts))).difference(overflowing))
            kept, block, prompts = kept[well], block[well], [prompts[each] for each in well]
        if prompts:
            computed = block.dtype
            if self._result is not None:
                handed = kept if kept.dtype == computed else restore(kept, computed)
                places = asked[0] if asked == tuple(range(asked[0], asked[0] + len(asked))) else list(asked)
                together = slice(places, places + len(asked)) if isinstance(places, int) else places
                self._result.place(self._rows[prompts], together, bits_of(handed), computed)
            layers = [self._layers[position] for position in asked]
            sheets.append(self._sheet(group, prompts, layers, kept, dtype_name(computed), share))
            self._states[group][prompts] = _SERVED
        return overflowing

    def _sheet(
        self, group: int, prompts: list[int], layers: list[int], kept: Tensor, computed: str, share: float
    ) -> Sheet:
        context = self._context
        keys = [self._keys[group][prompt] for prompt in prompts]
        named = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES)
        tensors = {LAYERS: np.array(layers, dtype=np.uint32), VALUE: kept[0], KEY: named[0]}
        first = b"".join(encode_tensors(tensors, metadata=context.metadata(computed)))
        layout = decode_header(first)
        metas = self._metas(prompts, layers)
        to_come = np.count_nonzero(self._states[group] == _ABSENT) / len(prompts)
        values, block = blank_values(
            len(prompts), len(first), max(map(len, metas)), lambda n: self._arena.take(n, int(n * to_come))
        )
        values[:, : layout.data_start] = np.frombuffer(first, np.uint8, layout.data_start)
        rows = {
            LAYERS: tensors[LAYERS].view(np.uint8),
            VALUE: bits_of(kept.contiguous()).reshape(len(prompts), -1).view(np.uint8),
            KEY: named,
        }
        for name, spec in layout.tensors.items():
            values[:, spec.offset : spec.offset + spec.nbytes] = rows[name]
        n_tokens = [self._prompts.lengths[prompt] for prompt in prompts]
        return Sheet(
            keys,
            values,
            context.namespace,
            metas,
            compute_seconds=[share * each * len(layers) for each in n_tokens],
            n_tokens=n_tokens,
            ttl_seconds=context.ttl_seconds,
            block=block,
        )

    def _metas(self, prompts: list[int], layers: list[int]) -> list[bytes]:
        """Return the facts beside each prompt's entry: what is the same for all is put into words once."""
        context, names, texts = self._context, self._prompts.names, self._prompts.texts
        start, middle, end = self._words(tuple(layers))
        tokens = hex_digests([names[prompt] for prompt in prompts])
        if texts is None:
            return [f"{start}{each}{middle}{end}".encode() for each in tokens]
        told = [context.about(texts[prompt]) for prompt in prompts]
        return [f"{start}{each}{middle}{text}{end}".encode() for each, text in zip(tokens, told, strict=True)]

    def _words(self, layers: tuple[int, ...]) -> tuple[str, str, str]:
        """Return what stands before, between and behind the token ids and the text of each prompt."""
        words = self._known_words.get(layers)
        if words is None:
            context, digest = self._context, bytes(range(KEY_BYTES))
            identity = context.describe(self._site, self._pool, tokens=digest, layers=list(layers))
            start, _, rest = context.meta(identity, "\0").decode().partition(digest.hex())
            middle, _, end = rest.rpartition("\0")
            words = self._known_words[layers] = start, middle, end
        return words

    def _single_out(
        self,
        group: int,
        prompt: int,
        *,
        found: int = 0,
        unfit: tuple[int, ...] = (),
        lacking: tuple[int, ...] | None = None,
    ) -> None:
        """Give a prompt a bundle of its own for one group."""
        number, asked, _tail = self._groups_asked[group]
        name = self._prompts.names[prompt]
        piece = self._pieces.get(name)
        if piece is None:
            n_tokens = self._prompts.lengths[prompt]
            piece = self._pieces[name] = Piece(self._piece_common, name, 0, n_tokens, b"", self._size, [prompt])
            self._of[prompt] = piece.bundles
        key, lacks = self._keys[group][prompt], asked if lacking is None else lacking
        piece.bundles.append(Bundle(piece, number, key, b"", lacks, found, unfit))
        self._states[group][prompt] = _ODD

    def _single_out_all(self) -> None:
        for group, state in enumerate(self._states):
            for prompt in (state != _ODD).nonzero()[0].tolist():
                self._single_out(group, prompt)


def _table(picked: Sequence[Values]) -> Tensor | None:
    """Return layers of a batch as `[n_prompts, n_layers, width]`; None where they differ in width or dtype."""
    layers = [each if isinstance(each, Tensor) else _stacked(each) for each in picked]
    first = layers[0]
    if first is None or any(each is None or each.shape != first.shape or each.dtype != first.dtype for each in layers):
        return None
    return first[:, None] if len(layers) == 1 else torch.stack([each for each in layers if each is not None], dim=1)


def _stacked(values: Sequence[Tensor]) -> Tensor | None:
    first = values[0]
    alike = all(each.shape == first.shape and each.dtype == first.dtype for each in values)
    return torch.stack(list(values)) if alike else None
