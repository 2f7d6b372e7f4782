"""Bundles: entries that hold several layers of one piece (a prompt's pooled vector, or a stretch of its tokens).

An entry for each layer would cost more to find than to copy. So consecutive layers form groups of `group_size`, a pure
function of the piece's length and the width, and an entry holds the layers of its group that one call computed. What a
later call adds goes to the group's next free slot: nothing kept is rewritten. A look-up asks slot 0 of all groups at
once, slot 1 of those that were found but lack a layer, and so on; the first slot that holds a layer wins.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmstash.caches.activations.contents import LAYERS, Contents, Reader
from lmstash.caches.activations.context import VALUE, Context
from lmstash.caches.activations.pieces import DOMAIN, Bundle, Piece, bundle_key, pack_place
from lmstash.caches.activations.pooling import Pool
from lmstash.caches.activations.prompts import Prompts
from lmstash.caches.activations.results import bits_of
from lmstash.caches.activations.source import Values
from lmstash.identity.encoding import Component
from lmstash.store.base import KEY_BYTES, Write
from lmstash.store.sheets import Apart, Found, Sheet, fetch_sheets

_FEW = 4
"""Entries under this are checked one by one: array operations would cost more."""

Kept = tuple[Sequence[Write | Sheet], list[Write]]
"""What is to be written: what is new, and what replaces something unusable."""
Row = tuple[Tensor, torch.dtype]
"""What is kept of one layer, and the dtype it was computed in."""


class BundleShelf:
    """Where the values of some prompts are kept, and which of them are. Used by one thread, for one call.

    A base: those who derive from it name the pieces (`_add`), and place and cut values.
    """

    def __init__(
        self,
        context: Context,
        prompts: Prompts,
        layers: Sequence[int],
        site: str,
        pool: Pool,
        width: int | None,
    ) -> None:
        """Take what all pieces share; `layers` are distinct, in the order of the result."""
        self._context = context
        self._prompts = prompts
        self._layers = layers
        self._site = site
        self._pool: Pool = pool
        self._of: dict[int, list[Bundle]] = {}
        """The bundles of each prompt; where there are ten thousand prompts, few have any."""
        self._pieces: dict[bytes, Piece] = {}
        self._reader = Reader(2 if pool is not None else 3, width)
        self._groups_of: dict[int, list[tuple[int, tuple[int, ...], bytes]]] = {}
        self._matches: dict[tuple[bytes, tuple[int, ...]], _Match] = {}
        self._refreshing = False
        self._apart = False
        """Whether memory that a value was read into may be handed out."""

    def absent(self) -> list[int]:
        """Return the prompts of which something must be computed."""
        lacking = (prompt for prompt, bundles in self._of.items() for bundle in bundles if bundle.lacking)
        return sorted(set(lacking))

    def missing(self, prompt: int) -> tuple[int, ...]:
        """Return the positions of the layers that must be computed for one prompt."""
        return tuple(sorted({position for bundle in self._of.get(prompt, ()) for position in bundle.lacking}))

    def missing_of(self, prompts: Sequence[int]) -> list[tuple[int, ...]]:
        """As `missing`, for some prompts."""
        return [self.missing(prompt) for prompt in prompts]

    def look(self) -> None:
        """Ask what is there. Entries that may hold several layers are read to see which, others only asked for."""
        alone = [bundle for bundle in self._bundles() if bundle.piece.size == 1]
        there = self._context.store.contains_many([bundle.key for bundle in alone])
        for bundle, found in zip(alone, there, strict=True):
            if found:
                bundle.found, bundle.lacking = 1, ()
        self._read([bundle for bundle in self._bundles() if bundle.piece.size > 1])

    def refresh(self) -> None:
        """Count every entry as not looked for; what is computed replaces what is kept."""
        self._refreshing = True
        self._context.refreshed([bundle.key for bundle in self._bundles()])

    def load(self) -> None:
        """Read what is there into the result."""
        self._read(list(self._bundles()))

    def keys(self) -> list[bytes]:
        """Return the key of everything that might be kept, also of layers that go with those asked for.

        Slots behind one that was evicted are named too. Costs 1 us per key.
        """
        out: list[bytes] = []
        for bundle in self._bundles():
            out.extend(bundle_key(bundle.piece, bundle.number, slot) for slot in range(bundle.piece.size))
        slot, more = 1, list(self._bundles())
        while more:
            keys = [bundle_key(bundle.piece, bundle.number, bundle.piece.size - 1 + slot) for bundle in more]
            there = self._context.store.contains_many(keys)
            out.extend(key for key, found in zip(keys, there, strict=True) if found)
            more = [bundle for bundle, found in zip(more, there, strict=True) if found]
            slot += 1
        return out

    def keep(self, members: Sequence[int], positions: Sequence[int], values: Sequence[Values], seconds: float) -> Kept:
        """Take what one batch computed.

        Args:
            members: The prompts of the batch.
            positions: The layer positions computed.
            values: For each of them and each member, `[width]` or `[n_tokens, width]`.
            seconds: What the batch cost.

        Returns:
            Entries that are new, and entries that replace unusable ones.
        """
        fresh: list[Write | Sheet] = []
        again: list[Write] = []
        row_of = {position: row for row, position in enumerate(positions)}
        share = seconds / max(1, sum(self._prompts.lengths[member] for member in members) * len(positions))
        kept_before = self._held(members) if self._refreshing else {}
        for column, member in enumerate(members):
            about = self._context.about(self._prompts.text(member))
            for bundle in self._of.get(member, ()):
                rows: dict[int, Row] = {}
                for position in bundle.lacking:
                    row = row_of.get(position)
                    if row is not None:
                        computed = self._cut(values[row][column], bundle.piece)
                        kept, handed = self._context.rounded(computed)
                        rows[self._layers[position]] = kept, computed.dtype
                        self._place(bundle.piece, slice(position, position + 1), bits_of(handed)[None], handed.dtype)
                if not rows:
                    continue
                bundle.lacking = tuple(position for position in bundle.lacking if position not in row_of)
                if self._refreshing:
                    again.extend(self._replace(bundle, {**kept_before.get(id(bundle), {}), **rows}, about, share))
                    continue
                for part in _parts(rows):
                    if bundle.unfit:
                        slot, target = bundle.unfit[0], again
                        bundle.unfit = bundle.unfit[1:]
                    else:
                        slot, target = bundle.found, fresh
                        bundle.found += 1
                    target.append(self._write(bundle, slot, part, about, share))
        return fresh, again

    def _place(
        self,
        piece: Piece,
        positions: slice | list[int],
        bits: np.ndarray,
        dtype: torch.dtype,
        owned: bool = False,
    ) -> None:
        """Copy values of some layers to every prompt of the piece; `owned` memory may be handed out instead."""
        raise AssertionError(f"{type(self).__name__} does not say where values go")

    def _cut(self, value: Tensor, piece: Piece) -> Tensor:
        """Return the part of a prompt's value that is over `piece`."""
        return value

    def _beside(self, piece: Piece) -> tuple[dict[str, Any], dict[str, Component]]:
        """Return tensors that say what a piece is over, and the components that name it."""
        return {}, {"tokens": piece.name}

    def _common(self, by: str) -> bytes:
        """Return the digest of all that names an entry but the piece, the group and the slot."""
        return self._context.common(self._site, self._pool, by=by)

    def _add(self, piece: Piece, before: Piece | None = None) -> None:
        """Name the entries of a new piece; `before` is the one it extends."""
        self._pieces[piece.name] = piece
        size = piece.size
        groups = self._groups_of.get(size)
        if groups is None:
            groups = self._groups_of[size] = self._groups(size)
        head = DOMAIN + piece.common + piece.name
        sha256 = hashlib.sha256
        parent = b""
        for index, (number, positions, tail) in enumerate(groups):
            if before is not None:
                same = before.size == size
                parent = before.bundles[index].key if same else bundle_key(before, number * size // before.size, 0)
            piece.bundles.append(Bundle(piece, number, sha256(head + tail).digest(), parent, positions))

    def _groups(self, size: int) -> list[tuple[int, tuple[int, ...], bytes]]:
        """Return number, positions by rising layer, and end of the key of each group that is asked for."""
        groups: defaultdict[int, list[int]] = defaultdict(list)
        for position in sorted(range(len(self._layers)), key=lambda each: self._layers[each]):
            groups[self._layers[position] // size].append(position)
        return [(number, tuple(positions), pack_place(size, number, 0)) for number, positions in groups.items()]

    def _bundles(self) -> Iterator[Bundle]:
        for piece in self._pieces.values():
            yield from piece.bundles

    def _read(self, bundles: list[Bundle], slot: int = 0) -> None:
        """Take from the slots of some groups, from `slot` on, what is lacking."""
        while bundles:
            keys = [bundle_key(each.piece, each.number, slot) if slot else each.key for each in bundles]
            names = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES)
            more: list[Bundle] = []
            slot += 1
            for found in fetch_sheets(self._context.store, keys, apart=self._apart):
                members = [bundles[place] for place in found.places.tolist()]
                values, owned = found.values, self._apart and (len(members) == 1 or isinstance(found, Apart))
                for rows, contents in self._checked(found, members, keys, names):
                    if contents is None:
                        for row in rows.tolist():
                            members[row].found = slot
                            members[row].unfit += (slot - 1,)
                            self._context.unfit(keys[found.places[row]])
                        more += [members[row] for row in rows.tolist() if members[row].lacking]
                        continue
                    held, computed = contents.held(values[rows[0]]), contents.computed
                    bits = contents.each_bits(values, rows)
                    match = _NO_MATCH
                    for bundle, one in zip([members[row] for row in rows.tolist()], bits, strict=True):
                        bundle.found = slot
                        if bundle.lacking is not match.of:  # most lack the same
                            match = self._matching(held, bundle.lacking)
                        if match.rows:
                            chosen = one if match.whole else one[match.rows]
                            self._place(bundle.piece, match.positions, chosen, computed, owned)
                            bundle.lacking = match.lacking
                        if bundle.lacking:
                            more.append(bundle)
            bundles = more

    def _checked(
        self, found: Found | Apart, members: list[Bundle], keys: list[bytes], names: np.ndarray
    ) -> Iterator[tuple[np.ndarray, Contents | None]]:
        """Yield rows of a sheet and where things lie in them; None for those that are not what was asked for."""
        if len(members) < _FEW:
            for row, (bundle, place) in enumerate(zip(members, found.places.tolist(), strict=True)):
                value, tokens = found.values[row].data, bundle.piece.tokens
                contents = self._reader.read(
                    value, found.parent(row), key=keys[place], parent=bundle.parent, tokens=tokens
                )
                yield np.array([row]), contents
            return
        parents, tokens = [each.parent for each in members], [each.piece.tokens for each in members]
        yield from self._reader.partitions(found, names[found.places], parents, tokens)

    def _matching(self, held: bytes, lacking: tuple[int, ...]) -> _Match:
        """Return which of the layers `held` by an entry, as bytes, are lacking."""
        match = self._matches.get((held, lacking))
        if match is None:
            match = self._matches[held, lacking] = self._match(held, lacking)
        return match

    def _match(self, held: bytes, lacking: tuple[int, ...]) -> _Match:
        layers = np.frombuffer(held, np.uint32).tolist()
        row_of = {layer: row for row, layer in enumerate(layers)}
        there = [position for position in lacking if self._layers[position] in row_of]
        rows = [row_of[self._layers[position]] for position in there]
        left = tuple(position for position in lacking if self._layers[position] not in row_of)
        together = there == list(range(there[0], there[0] + len(there))) if there else False
        places: slice | list[int] = slice(there[0], there[-1] + 1) if together else there
        return _Match(lacking, rows, rows == list(range(len(layers))), places, left)

    def _held(self, members: Sequence[int]) -> dict[int, dict[int, Row]]:
        """Return what is kept of the groups of some prompts that are about to be replaced, by bundle and layer."""
        out: dict[int, dict[int, Row]] = {}
        bundles = {id(each): each for member in members for each in self._of.get(member, ()) if each.lacking}
        # A group of one layer has nothing else to lose.
        asked = [bundle for bundle in bundles.values() if bundle.piece.size > 1]
        slot = 0
        while asked:
            more: list[Bundle] = []
            keys = [bundle_key(bundle.piece, bundle.number, slot) for bundle in asked]
            slot += 1
            for bundle, key, entry in zip(asked, keys, self._context.store.fetch_many(keys), strict=True):
                if entry is None:
                    continue
                bundle.found = slot
                more.append(bundle)
                contents = self._reader.read(
                    entry.value, entry.parent, key=key, parent=bundle.parent, tokens=bundle.piece.tokens
                )
                if contents is None:
                    continue
                layers = np.frombuffer(entry.value[contents.layers], np.uint32).tolist()
                rows = out.setdefault(id(bundle), {})
                for layer, value in zip(layers, contents.stored_values(entry.value), strict=True):
                    rows.setdefault(layer, (value, contents.computed))
            asked = more
        return out

    def _replace(self, bundle: Bundle, rows: dict[int, Row], about: str, share: float) -> list[Write]:
        """Describe entries that replace all slots of a group; slots that are not needed any more are emptied."""
        parts = list(_parts(rows))
        value, dtype = next(iter(rows.values()))
        parts += [([], value[None][:0], dtype)] * (bundle.found - len(parts))
        bundle.found = len(parts)
        return [self._write(bundle, slot, part, about, share) for slot, part in enumerate(parts)]

    def _write(self, bundle: Bundle, slot: int, part: _Part, about: str, share: float) -> Write:
        layers, value, computed = part
        piece = bundle.piece
        tensors, named = self._beside(piece)
        return self._context.write(
            bundle_key(piece, bundle.number, slot),
            {**tensors, LAYERS: np.array(layers, dtype=np.uint32), VALUE: value},
            computed,
            about,
            self._context.describe(self._site, self._pool, **named, layers=layers),
            seconds=share * piece.n_tokens * len(layers),
            n_tokens=piece.n_tokens,
            parent=bundle.parent,
        )


_Part = tuple[list[int], Tensor, torch.dtype]
"""Layers, their values stacked, and the dtype they were computed in: what one entry holds."""


@dataclass(frozen=True, slots=True)
class _Match:
    """Which rows of an entry are wanted, where they go, and what is lacking then."""

    of: tuple[int, ...] | None
    """What was lacking."""
    rows: list[int]
    whole: bool
    """Whether `rows` are all there are, in order."""
    positions: slice | list[int]
    lacking: tuple[int, ...]


_NO_MATCH = _Match(None, [], False, [], ())


def _parts(rows: Mapping[int, Row]) -> Iterator[_Part]:
    """Divide layers into entries: those of one dtype, kept and computed, go together."""
    parts: defaultdict[tuple[torch.dtype, torch.dtype], list[int]] = defaultdict(list)
    for layer in sorted(rows):
        value, computed = rows[layer]
        parts[value.dtype, computed].append(layer)
    for (_, computed), layers in parts.items():
        values = [rows[layer][0] for layer in layers]
        yield layers, values[0][None] if len(values) == 1 else torch.stack(values), computed
