"""In what form a context's answer is kept, beside the exact rows that are hot: each with its error stated.

=========  =======================  ==================================================================================
`hidden`   the final hidden state   2,304 bytes a context for SmolLM2, 85 times smaller than the row. Log-probabilities
                                    are made of it anew by the model's head: equal but for the order of sums (2e-4 at
                                    most in float32; one unit in the last place of a bfloat16 model's logits)
`exact`    the row, float32         4 bytes a token of the vocabulary; bit for bit what was first computed
`uint16`   the row, 16 bits         2 bytes a token: 65,536 steps from the row's least value to its greatest, so that a
                                    value is off by at most half a step: 0.0004 where the values span 50
=========  =======================  ==================================================================================
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from lmstash.caches.logprobs.language_model import LanguageModel
from lmstash.errors import InvalidArgumentError

FORMS = ("hidden", "exact", "uint16")
_STEPS = 65535


class Form(Protocol):
    """Turns answers into bytes and back. `specs` are the tensors of one answer, as a safetensors header names them."""

    name: str
    specs: tuple[tuple[str, str, tuple[int, ...]], ...]
    n_bytes: int
    """Of one answer."""
    exact: bool
    """Whether rows come back bit for bit."""

    def encode(self, finals: Tensor, rows: Tensor) -> tuple[Tensor, list[int]]:
        """Return answers as bytes `[n, n_bytes]`, and those that this form cannot hold.

        Args:
            finals: Final states, as `LanguageModel.run` returned them.
            rows: The log-probabilities made of them, float32 on the CPU.
        """
        ...

    def rows(self, held: Tensor) -> Tensor:
        """Return log-probabilities `[n, vocabulary]`, float32 on the CPU, of bytes `[n, n_bytes]`."""
        ...


class HiddenForm:
    """Final hidden states."""

    name = "hidden"
    exact = False

    def __init__(self, model: LanguageModel, width: int, dtype: torch.dtype) -> None:
        """Keep states of `width` numbers of `dtype`, in that dtype."""
        self._model = model
        self._dtype = dtype
        self.n_bytes = width * dtype.itemsize
        self.specs = (("value", _CODES[dtype], (width,)),)

    def encode(self, finals: Tensor, rows: Tensor) -> tuple[Tensor, list[int]]:
        """As `Form.encode`; all can be held."""
        return finals.detach().cpu().contiguous().view(torch.uint8), []

    def rows(self, held: Tensor) -> Tensor:
        """As `Form.rows`. Costs the head."""
        return self._model.rows(held.view(self._dtype))


class ExactForm:
    """Rows as they are."""

    name = "exact"
    exact = True

    def __init__(self, vocabulary: int) -> None:
        """Keep rows of `vocabulary` numbers."""
        self.n_bytes = 4 * vocabulary
        self.specs = (("value", "F32", (vocabulary,)),)

    def encode(self, finals: Tensor, rows: Tensor) -> tuple[Tensor, list[int]]:
        """As `Form.encode`; all can be held, and nothing is copied."""
        return rows.contiguous().view(torch.uint8), []

    def rows(self, held: Tensor) -> Tensor:
        """As `Form.rows`; a view."""
        return held.view(torch.float32)


class CompactForm:
    """Rows in 16 bits: a step's number, with the row's least value and its span beside it."""

    name = "uint16"
    exact = False

    def __init__(self, vocabulary: int) -> None:
        """Keep rows of `vocabulary` numbers."""
        self._vocabulary = vocabulary
        self.n_bytes = 8 + 2 * vocabulary
        self.specs = (("range", "F32", (2,)), ("value", "U16", (vocabulary,)))

    def encode(self, finals: Tensor, rows: Tensor) -> tuple[Tensor, list[int]]:
        """As `Form.encode`; rows with an infinity or without a number cannot be held."""
        low, high = torch.aminmax(rows, dim=1)
        unfit = (~(torch.isfinite(low) & torch.isfinite(high))).nonzero().flatten().tolist()
        span = high - low
        step = torch.where(span > 0, span, 1.0) / _STEPS
        numbers = ((rows - low[:, None]) / step[:, None]).round_().clamp_(0, _STEPS)
        out = torch.empty((len(rows), self.n_bytes), dtype=torch.uint8, device="cpu")
        out[:, :8] = torch.stack([low, step], 1).view(torch.uint8)
        # int32 first: floats above 32,767 have no defined way into 16 bits
        out[:, 8:] = numbers.nan_to_num_(0).to(torch.int32).to(torch.uint16).view(torch.uint8)
        return out, unfit

    def rows(self, held: Tensor) -> Tensor:
        """As `Form.rows`."""
        # Cloned, since a single row counts as contiguous whatever its stride, and cannot be viewed as wider numbers.
        head = held[:, :8].clone(memory_format=torch.contiguous_format).view(torch.float32)
        numbers = held[:, 8:].clone(memory_format=torch.contiguous_format).view(torch.uint16)
        numbers = numbers.to(torch.int32).to(torch.float32)
        return numbers.mul_(head[:, 1:]).add_(head[:, :1])


_CODES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}


def check_form(name: str) -> str:
    """Return `name`, or raise InvalidArgumentError unless it is one of `FORMS`."""
    if name not in FORMS:
        raise InvalidArgumentError(f"keep={name!r}: use one of {', '.join(map(repr, FORMS))}.")
    return name


def form_named(name: str, model: LanguageModel, finals: Tensor, vocabulary: int) -> Form:
    """Return the form of that name for a model with such final states.

    A model whose head cannot be run alone has no hidden states to keep: its rows are kept exactly.
    """
    if name == "uint16":
        return CompactForm(vocabulary)
    if name == "exact" or model.head is None or finals.dtype not in _CODES:
        return ExactForm(vocabulary)
    return HiddenForm(model, finals.shape[1], finals.dtype)
