"""`extract_batch` as a source of activations: asked by text, answered by tokens, whatever way the host pads."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lmstash.caches.activations.batching import BATCH_TOKENS
from lmstash.caches.activations.model_source import ModelSource
from lmstash.caches.activations.pooling import Pool
from lmstash.caches.activations.prompts import Prompts
from lmstash.caches.activations.source import Values
from lmstash.errors import MismatchError

SITE = "block_out"
"""What lmprobe's layer i is: the output of block i."""
ROUTER = "router_logits"
"""What lmprobe's router layer i is."""


class ExtractBatchSource:
    """What `lmstash.caches.activations` needs of whoever computes, over one `extract_batch`.

    Args:
        extractor: Has `model_name` and `extract_batch(prompts, layer_indices, remote=)`.
        live: The torch model behind it, when token ids are known and raw values may be kept by token prefix.
        remote: Passed on; batches that fail are tried again.
        max_retries: How often.
        after_batch: Called when a batch is done, before its values are used.
    """

    max_tokens: int | None = None
    vocabulary: int | None = None
    batch_tokens = BATCH_TOKENS
    retry_seconds = 2.0

    def __init__(
        self,
        extractor: Any,
        live: ModelSource | None,
        *,
        remote: bool,
        max_retries: int,
        after_batch: Callable[[], None],
    ) -> None:
        self.name = str(extractor.model_name)
        self.remote = remote and max_retries > 0
        self.max_retries = max_retries
        self._extractor = extractor
        self._live = live
        self._passed_on = remote
        self._after_batch = after_batch
        self._texts: dict[bytes, str] = {}

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of an empty result."""
        return torch.float32 if self._live is None else self._live.dtype

    def width(self, site: str) -> int | None:
        """Values per token and layer, None when only a result tells."""
        return None if self._live is None else self._live.width(site)

    def layers(self, site: str) -> Sequence[int] | None:
        """Layers there are, None when not known."""
        return None if self._live is None else self._live.layers(site)

    def causal(self) -> bool:
        """Whether raw values may be kept by token prefix."""
        return self._live is not None and self._live.causal()

    def padded_tokens(self, site: str) -> int | None:
        """How long batches of prompts of different lengths may be; None for any length, and where nobody knows."""
        return None if self._live is None else self._live.padded_tokens(site)

    @property
    def draws_show(self) -> bool:
        """As `ModelSource.draws_show`; somebody else's extractor may draw for whatever else it does."""
        return self._live is not None and self._live.draws_show

    def runs_alone(self, site: str) -> bool:
        """Whether no prompt may have another one beside it."""
        return self._live is not None and self._live.runs_alone(site)

    def bind(self, prompts: Prompts) -> None:
        """Remember the text of each prompt: `compute` is given token ids."""
        self._texts = dict(zip(prompts.names, prompts.plain_texts(), strict=True))

    def compute(self, batch: Prompts, layers: Sequence[int], site: str, pool: Pool) -> list[Values]:
        """Run one batch (see `Source.compute`; `pool` is None here).

        Raises:
            MismatchError: The answer has another shape than asked, or other tokens than the tokenizer says.
        """
        texts = [self._texts[name] for name in batch.names]
        with torch.no_grad():
            rows = self._rows(texts, list(layers))
        self._after_batch()
        if self._live is not None:
            for n_tokens, row in zip(batch.lengths, rows, strict=True):
                if len(row) != n_tokens:
                    raise MismatchError(
                        f"{self.name}: extract_batch gave {len(row)} tokens for a prompt of {n_tokens}. Does the "
                        "extractor use another tokenizer than its `tokenizer`?"
                    )
        width = rows[0].shape[1] // len(layers)
        return [[row[:, at * width : (at + 1) * width] for row in rows] for at in range(len(layers))]

    def _rows(self, texts: Sequence[str], layers: list[int]) -> list[Tensor]:
        """Return each prompt's real tokens, `[n_tokens, n_layers * hidden]`, on the CPU."""
        rows, shifted = self._ask(texts, layers)
        by_length: defaultdict[int, list[int]] = defaultdict(list)
        for index in shifted:
            by_length[len(rows[index])].append(index)
        if len(texts) > 1:
            # Padded on the left: models that count positions from the first column computed something else. Prompts
            # of one length need no padding.
            for members in by_length.values():
                again, _ = self._ask([texts[index] for index in members], layers)
                for index, row in zip(members, again, strict=True):
                    rows[index] = row
        return rows

    def _ask(self, texts: Sequence[str], layers: list[int]) -> tuple[list[Tensor], list[int]]:
        """Return the real tokens of each prompt, and which prompts were padded on the left."""
        values, mask = self._extractor.extract_batch(list(texts), layers, remote=self._passed_on)
        values, real = values.detach(), mask.detach().to(values.device) != 0
        if (
            values.ndim != 3
            or real.shape != values.shape[:2]
            or len(values) != len(texts)
            or values.shape[2] % len(layers)
        ):
            raise MismatchError(
                f"{self.name}: extract_batch gave values of shape {tuple(values.shape)}, a mask of {tuple(mask.shape)} "
                f"for {len(texts)} prompts and {len(layers)} layers; expected [n_prompts, n_tokens, n_layers * hidden]."
            )
        shifted = [index for index, row in enumerate(real.cpu()) if row.any() and not row[0]]
        return [value[keep].cpu() for value, keep in zip(values, real, strict=True)], shifted


@contextmanager
def right_padding(tokenizer: Any) -> Iterator[None]:
    """Let `tokenizer` pad on the right for a while, as lmprobe's extractors pass no positions to the model."""
    side = getattr(tokenizer, "padding_side", None)
    if side in (None, "right"):
        yield
        return
    tokenizer.padding_side = "right"
    try:
        yield
    finally:
        tokenizer.padding_side = side


def text_prompts(texts: Sequence[str]) -> Prompts:
    """Return prompts whose tokenizer nobody knows: their code points stand for the token ids."""
    return Prompts([text.encode("utf-32-le", "surrogatepass") for text in texts], list(texts))
