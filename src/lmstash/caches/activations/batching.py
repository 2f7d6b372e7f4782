"""Which prompts run together: like lengths side by side, within a budget of padded tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmstash.errors import InvalidArgumentError

BATCH_TOKENS = 4096
"""Padded tokens in one batch when the user names no batch size."""
ACCELERATOR_BATCH_TOKENS = 32768
"""The same on an accelerator."""
BATCH_PROMPTS = 256
"""Most prompts in one such batch."""


def check_batch_size(batch_size: object) -> int | None:
    """Return `batch_size`, or raise unless it is None or a positive number of prompts."""
    if batch_size is None or (isinstance(batch_size, int) and not isinstance(batch_size, bool) and batch_size > 0):
        return batch_size
    raise InvalidArgumentError(f"batch_size={batch_size!r}: pass a number of prompts, 1 or more, or None.")


def plan_batches(
    lengths: Sequence[int],
    batch_size: int | None,
    batch_tokens: int = BATCH_TOKENS,
    padded_tokens: int | None = None,
) -> list[list[int]]:
    """Group prompts for forward passes, longest first, so that running out of memory shows at once.

    Args:
        lengths: Tokens of each prompt.
        batch_size: Prompts in a batch; None takes as many as fit `batch_tokens` with padding (at least one).
        batch_tokens: The budget for that, in tokens.
        padded_tokens: Prompts longer than this run beside others of just their length only; None pads any.

    Returns:
        Indices into `lengths`; each exactly once.
    """
    order: list[int] = np.argsort(-np.array(lengths, np.int64), kind="stable").tolist()
    batches: list[list[int]] = []
    room = longest = 0
    for index in order:
        apart = padded_tokens is not None and longest > padded_tokens and lengths[index] != longest
        if room == 0 or apart:
            longest = lengths[index]
            room = batch_size or min(BATCH_PROMPTS, max(1, batch_tokens // max(1, longest)))
            batches.append([])
        batches[-1].append(index)
        room -= 1
    return batches
