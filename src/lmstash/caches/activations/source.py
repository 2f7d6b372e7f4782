"""Who computes: a transformers model read by hooks, or an extractor the user brings. One shape for both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lmstash.caches.activations.batching import BATCH_TOKENS
from lmstash.caches.activations.extractor import Extractor
from lmstash.caches.activations.pooling import Pool, pool_tokens, token_of_all
from lmstash.caches.activations.prompts import Prompts
from lmstash.errors import InvalidArgumentError, MismatchError

_MAX_RETRIES = 3
_RETRY_SECONDS = 2.0


Values = Sequence[Tensor] | Tensor
"""What one layer gave: for each prompt `[hidden]` (or all of them as one tensor), or `[n_tokens, hidden]`."""


class Source(Protocol):
    """What the cache needs of whoever computes."""

    name: str
    """For people."""
    max_tokens: int | None
    """Longest prompt, in tokens; None when there is no limit."""
    vocabulary: int | None
    """Ids from here on do not exist; None when not known."""
    remote: bool
    """Whether a failed batch may be tried again, and leaves the others alone."""
    max_retries: int
    retry_seconds: float
    """First wait before trying again; doubles each time."""

    def width(self, site: str) -> int | None:
        """Values per token at `site`, None when only a result tells."""
        ...

    @property
    def batch_tokens(self) -> int:
        """Padded tokens in a batch when the user names no batch size."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of an empty result."""
        ...

    def layers(self, site: str) -> Sequence[int] | None:
        """Layers that have `site`, None when not known."""
        ...

    def causal(self) -> bool:
        """Whether the value of a token depends on nothing after it, not even on the length of the prompt."""
        ...

    def padded_tokens(self, site: str) -> int | None:
        """How long batches of prompts of different lengths may be, in tokens: 0 for never, None for any length."""
        ...

    def runs_alone(self, site: str) -> bool:
        """Whether no prompt may have another one beside it."""
        ...

    def compute(self, batch: Prompts, layers: Sequence[int], site: str, pool: Pool) -> list[Values]:
        """Run one batch.

        Args:
            batch: The prompts.
            layers: Layers to read, ascending.
            site: Where.
            pool: How to pool; None keeps every token.

        Returns:
            For each layer and prompt, on the CPU: `[hidden]`, or `[n_tokens, hidden]` when `pool` is None. Pooled ones
            may lie in memory that an extractor uses again for its next batch.
        """
        ...


def resolve_layers(layers: object, site: str, known: Sequence[int] | None) -> list[int]:
    """Turn what a user says into layer numbers.

    Args:
        layers: An int, a list of ints (negative from the end), or "all".
        site: For messages.
        known: The layers there are; None when not known, and then only plain numbers will do.

    Raises:
        InvalidArgumentError: For a layer that is not there, naming those that are.
    """
    if isinstance(layers, str):
        if layers != "all":
            raise InvalidArgumentError(f"layers={layers!r}: pass an int, a list of ints, or 'all'.")
        if known is None:
            raise InvalidArgumentError("layers='all' needs an extractor with n_layers; name the layers instead.")
        return list(known)
    numbers = list(layers) if isinstance(layers, Sequence | range | np.ndarray) else [layers]
    if not numbers:
        raise InvalidArgumentError("layers is empty: name at least one layer, or 'all'.")
    out: list[int] = []
    for each in numbers:
        if isinstance(each, bool) or not isinstance(each, int | np.integer):
            raise InvalidArgumentError(f"layers holds {each!r}: pass an int, a list of ints, or 'all'.")
        number = int(each)
        if known is None:
            if number < 0:
                raise InvalidArgumentError(f"layer {number} counts from the end: the extractor must say n_layers.")
        else:
            count = known[-1] + 1 if known else 0
            number = number + count if number < 0 else number
            if number not in known:
                raise InvalidArgumentError(f"layer {each} has no {site!r} here; the layers that do: {_spans(known)}.")
        out.append(number)
    return out


class ExtractorSource:
    """A user's extractor as a `Source`: its answers are checked, split by prompt and pooled here."""

    remote = True
    vocabulary: int | None = None
    batch_tokens = BATCH_TOKENS
    dtype = torch.float32

    def __init__(self, extractor: Extractor) -> None:
        """Wrap `extractor`.

        Raises:
            InvalidArgumentError: It lacks `fingerprint` or `extract`.
        """
        if not isinstance(extractor, Extractor):
            raise InvalidArgumentError(
                f"{type(extractor).__name__} is no extractor: it needs a `fingerprint` (bytes or str) and "
                "`extract(batch, layers, site)`."
            )
        self.extractor = extractor
        self.name: str = getattr(extractor, "name", type(extractor).__name__)
        self.max_tokens: int | None = getattr(extractor, "max_tokens", None)
        self.max_retries: int = getattr(extractor, "max_retries", _MAX_RETRIES)
        self.retry_seconds: float = getattr(extractor, "retry_seconds", _RETRY_SECONDS)

    def width(self, site: str) -> int | None:
        """Not known before a result is seen."""
        return None

    def layers(self, site: str) -> Sequence[int] | None:
        """Return `range(n_layers)` when the extractor says how many there are."""
        n_layers = getattr(self.extractor, "n_layers", None)
        return None if n_layers is None else range(n_layers)

    def causal(self) -> bool:
        """Return what the extractor promises; no by default."""
        return bool(getattr(self.extractor, "causal", False))

    def padded_tokens(self, site: str) -> int | None:
        """Return None: how an extractor puts prompts side by side is its own affair."""
        return None

    def runs_alone(self, site: str) -> bool:
        """Return False, for the same reason."""
        return False

    def compute(self, batch: Prompts, layers: Sequence[int], site: str, pool: Pool) -> list[Values]:
        """Call the extractor; raises MismatchError when its answer has another shape than asked."""
        lengths = batch.lengths
        answer = self.extractor.extract(batch.lists(), list(layers), site)
        if len(answer) != len(layers):
            raise MismatchError(f"{self.name}: extract() returned {len(answer)} layers for {len(layers)} asked.")
        if len(layers) == 1 or _holds_all(answer):
            return [self._read(each, lengths, pool) for each in answer]
        # Each layer may be read to where the one before it lies.
        return [own_copy(self._read(each, lengths, pool)) for each in answer]

    def _read(self, values: Any, lengths: Sequence[int], pool: Pool) -> Values:
        """Return one layer's values, pooled or token by token; only the latter are copies."""
        if len(values) != len(lengths):
            raise MismatchError(f"{self.name}: extract() returned {len(values)} prompts for {len(lengths)} asked.")
        if isinstance(values, Tensor):
            if values.ndim != 3 or values.shape[1] < max(lengths):
                self._refuse(values.shape[1:], max(lengths))
            values = _plain(values)
            if pool is not None:
                token = token_of_all(pool, lengths)
                if token is not None:
                    return values[:, token]
                return pool_tokens(values, torch.from_numpy(np.array(lengths)), pool)
            values = [row[:length] for row, length in zip(values, lengths, strict=True)]
        lasting = _holds_all(values)
        rows = [_plain(torch.as_tensor(row)) if lasting else _plain(torch.as_tensor(row)).clone() for row in values]
        for row, length in zip(rows, lengths, strict=True):
            if row.ndim != 2 or len(row) != length:
                self._refuse(row.shape, length)
        return [row.clone() if pool is None else _pool_one(row, pool) for row in rows]

    def _refuse(self, shape: Sequence[int], length: int) -> None:
        raise MismatchError(
            f"{self.name}: extract() returned shape {tuple(shape)} for a prompt of {length} tokens; "
            "it must be [n_tokens, hidden], or padded on the right."
        )


def own_copy(values: Values) -> Values:
    """Return one layer's values in memory of their own."""
    return values.clone() if isinstance(values, Tensor) else [row.clone() for row in values]


def _holds_all(answer: Any) -> bool:
    """Whether all of an answer is there at once, not made as it is asked for: then reading it changes nothing of it."""
    return type(answer) in (list, tuple, np.ndarray, Tensor)


def _plain(values: Tensor) -> Tensor:
    """Return values as memory on the CPU says them."""
    return values.detach().cpu().resolve_conj().resolve_neg()


def _pool_one(row: Tensor, pool: str | int) -> Tensor:
    """Return one prompt's values `[n_tokens, hidden]` pooled; what is one token's is a view."""
    token = token_of_all(pool, [len(row)])
    if token is not None:
        return row[token]
    return pool_tokens(row[None], torch.tensor([len(row)], device="cpu"), pool)[0]


def _spans(numbers: Sequence[int]) -> str:
    if len(numbers) > 2 and list(numbers) == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]} (or negative, from the end)"
    return ", ".join(map(str, numbers)) or "none"
