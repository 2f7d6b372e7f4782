"""The seam for people who read activations themselves: nnsight, their own hooks, a remote executor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from lmstash.errors import LmstashError


class ExtractionError(LmstashError):
    """Some prompts could not be computed; what could be is saved."""


@runtime_checkable
class Extractor(Protocol):
    """Computes activations for `Activations(store, extractor=...)`.

    lmstash cannot look inside, so `fingerprint` is the whole identity of who computed: it must change whenever the
    values could (weights, revision, dtype, where values are read). It is read at each call, and again before values are
    kept: what was computed meanwhile under another one is not kept.

    Optional attributes, read when there: `name` (str, for people), `max_retries` and `retry_seconds` (for batches that
    fail: 3, from 2 seconds up; a TypeError and such in the first batch is raised at once), `n_layers` (int, for
    negative layers and "all"), `max_tokens` (int, longer prompts are refused), `causal` (bool; True promises that the
    value of a token depends on nothing after it, not even on how long the prompt is: raw values are then shared between
    prompts with one prefix).
    """

    @property
    def fingerprint(self) -> bytes | str | Any:
        """Who computes: bytes, a string, or a `lmstash.fingerprint(model)`."""
        ...

    def extract(
        self, batch: Sequence[Sequence[int]], layers: Sequence[int], site: str
    ) -> Sequence[Tensor | Sequence[Tensor]]:
        """Compute one batch.

        Args:
            batch: Token ids of each prompt, at most `batch_size` of them.
            layers: Which layers, in order; `[0]` for sites without layers.
            site: One of `lmstash.caches.activations.SITES`.

        Returns:
            For each layer the values of every prompt: a list of `[n_tokens, hidden]` tensors, or one tensor
            `[n_prompts, longest, hidden]` padded on the right. The next batch may use their memory again.
        """
        ...
