"""A model that is not loaded: enough to name what is kept of it, and to say from an entry what else there must be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from lmstash.caches.activations.batching import BATCH_TOKENS
from lmstash.caches.activations.contents import TOKENS
from lmstash.caches.activations.context import EXACT, VALUE, Context
from lmstash.caches.activations.pooling import Pool
from lmstash.caches.activations.prompts import Prompts
from lmstash.caches.activations.raw import RawShelf
from lmstash.caches.activations.source import Values
from lmstash.codecs.header import Layout
from lmstash.codecs.tensors import decode_header
from lmstash.errors import FormatError
from lmstash.identity.chain import BLOCK_TOKENS
from lmstash.store.base import EntryInfo, Store


class UnloadedSource:
    """Stands in a `Context` for a model that is not loaded: nothing can be computed with it."""

    max_tokens: int | None = None
    vocabulary: int | None = None
    batch_tokens = BATCH_TOKENS
    remote = False
    max_retries = 0
    retry_seconds = 0.0
    dtype = torch.float32

    def __init__(
        self,
        name: str,
        *,
        causal: bool,
        layers: Sequence[int],
        widths: Mapping[str, int | None],
        padded_tokens: int | None,
    ) -> None:
        """Take what is remembered of the model; `widths` are values per token by site."""
        self.name = name
        self._causal = causal
        self._layers = layers
        self._widths = widths
        self._padded_tokens = padded_tokens

    def width(self, site: str) -> int | None:
        """As remembered."""
        return self._widths.get(site)

    def layers(self, site: str) -> Sequence[int]:
        """Layers of which something may be kept."""
        return self._layers

    def causal(self) -> bool:
        """As remembered."""
        return self._causal

    def padded_tokens(self, site: str) -> int | None:
        """As remembered."""
        return self._padded_tokens

    def runs_alone(self, site: str) -> bool:
        """Nothing runs."""
        return False

    def compute(self, batch: Prompts, layers: Sequence[int], site: str, pool: Pool) -> list[Values]:
        """There is no model: nothing is computed."""
        return []


def parts_of(entry: EntryInfo) -> dict[str, Any]:
    """Return what an entry's key is made of, as kept beside it."""
    described = entry.meta.get("id")
    parts = described.get("components") if isinstance(described, dict) else None
    return parts if isinstance(parts, dict) else {}


def is_whole(entry: EntryInfo) -> bool:
    """Whether an entry of raw values is known to be over the whole of the prompt that it was computed for.

    One of 64 tokens from the first on may be but the first block of it.
    """
    start = parts_of(entry).get("start")
    return start is None or (start == 0 and entry.n_tokens != BLOCK_TOKENS)


def known_tokens(store: Store, pieces: Iterable[EntryInfo]) -> bytes | None:
    """Return the token ids of a prompt, as bytes, that these entries of raw values of one model were computed for.

    None where some are not kept (in a private stash; or a longer prompt had computed them before), where the entries
    are not over the same tokens, and where the last of them is a full block, so that more tokens may follow.
    """
    by_start: dict[int, EntryInfo] = {}
    for piece in pieces:
        parts = parts_of(piece)
        other = by_start.setdefault(int(parts.get("start", 0)), piece)
        if parts.get("tokens") != parts_of(other).get("tokens"):
            return None
    ordered = [by_start[start] for start in sorted(by_start)]
    out = b""
    values = store.peek_many([piece.key for piece in ordered])
    for start, piece, value in zip(sorted(by_start), ordered, values, strict=True):
        layout = None if value is None else _layout(value)
        spec = None if layout is None else layout.tensors.get(TOKENS)
        if value is None or spec is None or len(out) != 4 * start or spec.nbytes != 4 * piece.n_tokens:
            return None
        out += bytes(value[spec.offset : spec.offset + spec.nbytes])
    return None if not ordered or ordered[-1].n_tokens == BLOCK_TOKENS else out


def raw_layers(
    store: Store, model: bytes, piece: EntryInfo, layers: Sequence[int], tokens: bytes, *, salt: bytes | str | None
) -> list[int]:
    """Return which of some layers are kept of every token of a prompt, at the site and in the dtype of one entry of it.

    Asked by the keys of its entries, as a look-up does. Costs some 100 us, and reading what holds several layers.

    Args:
        store: Where.
        model: Digest of who computed `piece`.
        piece: An entry of raw values of that prompt.
        layers: Which may be kept.
        tokens: The token ids of the prompt, as bytes.
        salt: Under which it was kept.
    """
    parts = parts_of(piece)
    value = store.peek_many([piece.key])[0]
    layout = None if value is None else _layout(value)
    if layout is None or VALUE not in layout.tensors:
        return []
    site, storage = str(parts.get("site")), parts.get("storage")
    found: set[int] = set()
    # Whether the model is causal, and whether it said how wide it is before it ran, is in the keys alone.
    for causal in (True, False):
        for width in (layout.tensors[VALUE].shape[-1], None):
            told = {"layers": layers, "widths": {site: width}, "padded_tokens": parts.get("padded_tokens")}
            source = UnloadedSource("", causal=causal, **told)
            dtype = None if storage in (None, EXACT) else str(storage)
            context = Context(store, source, model, dtype, salt, False, None)
            shelf = RawShelf(context, Prompts([tokens]), layers, site, None)
            shelf.look()
            lacking = set(shelf.missing(0))
            found.update(layer for position, layer in enumerate(layers) if position not in lacking)
    return sorted(found)


def _layout(value: memoryview) -> Layout | None:
    try:
        return decode_header(value)
    except FormatError:
        return None
