"""Raw values of an extractor that shows neither model nor tokenizer: one entry per prompt text and layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from lmstash.adapters.lmprobe.result import PaddedResult
from lmstash.adapters.lmprobe.source import SITE
from lmstash.caches.activations.context import KIND, VALUE, Context, described
from lmstash.caches.activations.prompts import Prompts
from lmstash.caches.activations.source import Values
from lmstash.codecs.tensors import decode_tensors
from lmstash.errors import FormatError
from lmstash.identity.keys import KeyFamily
from lmstash.identity.tokens import digest_token_bytes
from lmstash.store.base import Entry, Write

_TEXT = "text_digest"
_FETCH_BYTES = 8 * 2**20


class TextShelf:
    """Where the values of some prompts are kept, and which of them are. Used by one thread, for one call.

    `n_tokens[i]` says how many tokens prompt i has, once that is known. Layers of one prompt that disagree on it were
    not computed alike: when a batch shows that, all layers of the prompt are missing again.
    """

    def __init__(
        self,
        context: Context,
        prompts: Prompts,
        layers: Sequence[int],
        result: PaddedResult | None,
        n_tokens: Sequence[int | None],
    ) -> None:
        """Name the entries; `prompts` are those of `text_prompts`, distinct."""
        self.n_tokens = list(n_tokens)
        self._prompts = prompts
        self._layers = layers
        self._result = result
        self._width: int | None = None
        self._digests = [digest_token_bytes(name) for name in prompts.names]
        self._missing = [set(range(len(layers))) for _ in prompts]
        self._unfit: set[bytes] = set()
        self.rename(context)

    def rename(self, context: Context) -> None:
        """Go on under another identity; what was found stays found."""
        self._context = context
        family = KeyFamily(
            {"kind": KIND, "site": SITE, "pool": None, "storage": context.storage, "model": context.model}
            | {"salt": context.salt, "by": "text"},
            ("text", "layer"),
        )
        self._keys = [[family.digest(text, layer) for layer in self._layers] for text in self._digests]

    def absent(self) -> list[int]:
        """Return the prompts of which something must be computed."""
        return [prompt for prompt, positions in enumerate(self._missing) if positions]

    def missing(self, prompt: int) -> tuple[int, ...]:
        """Return the positions of the layers that must be computed for one prompt."""
        return tuple(sorted(self._missing[prompt]))

    def missing_of(self, prompts: Sequence[int]) -> list[tuple[int, ...]]:
        """As `missing`, for some prompts."""
        return [self.missing(prompt) for prompt in prompts]

    def look(self) -> None:
        """Ask which entries are there, without reading them."""
        there = iter(self._context.store.contains_many([key for keys in self._keys for key in keys]))
        for prompt, keys in enumerate(self._keys):
            for position in range(len(keys)):
                if next(there):
                    self._missing[prompt].discard(position)

    def refresh(self) -> None:
        """Count every entry as not looked for."""
        self._context.refreshed([key for keys in self._keys for key in keys])

    def keys(self) -> list[bytes]:
        """Return the key of everything that might be kept."""
        return [key for keys in self._keys for key in keys]

    def load(self) -> None:
        """Read what is there into the result."""
        chunk: list[tuple[int, int]] = []
        nbytes = 0
        for prompt, tokens in enumerate(self.n_tokens):
            chunk.extend((prompt, position) for position in range(len(self._layers)))
            nbytes += len(self._layers) * (tokens or 64) * 4 * (self._width or 4096)
            if nbytes >= _FETCH_BYTES:
                self._fetch(chunk)
                chunk, nbytes = [], 0
        self._fetch(chunk)

    def keep(
        self, members: Sequence[int], positions: Sequence[int], values: Sequence[Values], seconds: float
    ) -> tuple[list[Write], list[Write]]:
        """Take what one batch computed (see `RawShelf.keep`)."""
        fresh: list[Write] = []
        again: list[Write] = []
        share = seconds / max(1, len(members) * len(positions))
        for column, member in enumerate(members):
            n_tokens = len(values[0][column])
            if self.n_tokens[member] not in (None, n_tokens):
                self._start_over(member)
            self.n_tokens[member] = n_tokens
            about = self._context.about(self._prompts.text(member))
            for position, layer_values in zip(positions, values, strict=True):
                computed = layer_values[column]
                kept, handed = self._context.rounded(computed)
                self._missing[member].discard(position)
                if self._result is not None:
                    self._result.place(member, position, 0, handed)
                key = self._keys[member][position]
                write = self._write(member, position, kept, computed, share, about)
                (again if key in self._unfit else fresh).append(write)
        return fresh, again

    def _start_over(self, prompt: int) -> None:
        """Drop what was found for one prompt: it came with another number of tokens, so it was not computed alike."""
        self._missing[prompt] = set(range(len(self._layers)))
        self._unfit.update(self._keys[prompt])
        if self._result is not None:
            self._result.forget(prompt)

    def _fetch(self, chunk: Sequence[tuple[int, int]]) -> None:
        keys = [self._keys[prompt][position] for prompt, position in chunk]
        for (prompt, position), key, entry in zip(chunk, keys, self._context.store.fetch_many(keys), strict=True):
            if entry is None:
                continue
            value = self._fitting(prompt, entry)
            if value is None:
                self._unfit.add(key)
                self._context.unfit(key)
                continue
            self.n_tokens[prompt] = len(value)
            self._missing[prompt].discard(position)
            if self._result is not None:
                self._result.place(prompt, position, 0, value)

    def _fitting(self, prompt: int, entry: Entry) -> Tensor | None:
        """Return an entry's value in the dtype it was computed in; None when it is not what was asked for."""
        found = described(entry)
        if found is None or len(found[0]) != 2 or self.n_tokens[prompt] not in (None, found[0][0]):
            return None
        (_, width), dtype = found
        try:
            tensors = decode_tensors(entry.value, framework="torch")
        except FormatError:
            return None
        named = tensors.get(_TEXT)
        if named is None or named.numpy().tobytes() != self._digests[prompt] or self._width not in (None, width):
            return None
        self._width = width
        return tensors[VALUE].to(dtype)

    def _write(self, member: int, position: int, kept: Tensor, computed: Tensor, share: float, about: str) -> Write:
        digest = self._digests[member]
        return self._context.write(
            self._keys[member][position],
            {VALUE: kept, _TEXT: np.frombuffer(digest, dtype=np.uint8)},
            computed.dtype,
            about,
            self._context.describe(SITE, None, by="text", text=digest, layer=self._layers[position]),
            seconds=share,
            n_tokens=len(computed),
        )
