"""One vector per prompt out of one per token. Padding never takes part, not even when it is NaN."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lmstash.caches.places import POOLS
from lmstash.errors import InvalidArgumentError

Pool = str | int | None
"""How tokens become one vector: "last", "first", "mean", "max", an index (negative from the end); None keeps all."""


def check_pool(pool: object) -> Pool:
    """Return `pool` in its canonical form (index -1 is "last", 0 is "first"), so that equal poolings share entries.

    Raises:
        InvalidArgumentError: If it is no pooling.
    """
    if pool is None or (isinstance(pool, str) and pool in POOLS):
        return pool
    if isinstance(pool, int) and not isinstance(pool, bool):
        return {-1: "last", 0: "first"}.get(pool, pool)
    raise InvalidArgumentError(f"pool={pool!r}: use {', '.join(map(repr, POOLS))}, a token index, or None for raw.")


def check_token_index(pool: Pool, lengths: Sequence[int]) -> None:
    """Raise unless the token index `pool` lies within every prompt of `lengths` tokens.

    Raises:
        InvalidArgumentError: Naming the first prompt that is too short.
    """
    if not isinstance(pool, int):
        return
    needed = pool + 1 if pool >= 0 else -pool
    for index, length in enumerate(lengths):
        if length < needed:
            raise InvalidArgumentError(
                f"pool={pool}: prompt {index} has only {length} tokens. Leave it out, or pool='last'."
            )


def token_of_all(pool: str | int, lengths: Sequence[int]) -> int | None:
    """Return the place that `pool` takes in every prompt of `lengths` tokens; None unless it is one place for all."""
    if pool == "first" or (isinstance(pool, int) and pool >= 0):
        return 0 if pool == "first" else int(pool)
    if (pool == "last" or isinstance(pool, int)) and len(set(lengths)) == 1:
        return lengths[0] + (-1 if pool == "last" else int(pool))
    return None


def pool_tokens(hidden: Tensor, lengths: Tensor, pool: str | int) -> Tensor:
    """Pool right-padded values over the real tokens of each prompt.

    Means are accumulated in float32 (in float64 for float64) and cast back. NaN and inf of real tokens pass through.

    Args:
        hidden: `[n_prompts, n_tokens, hidden]`.
        lengths: `[n_prompts]` int64 on the same device: real tokens of each row.
        pool: A canonical pooling (see `check_pool`) that fits every prompt.

    Returns:
        `[n_prompts, hidden]`, a copy, dtype of `hidden`.
    """
    if pool == "last" and hidden.device.type == "cpu" and len(hidden) and bool((lengths == lengths[0]).all()):
        return hidden[:, int(lengths[0]) - 1].clone()  # in a quarter of the time; a GPU would have to be waited for
    rows = torch.arange(len(hidden), device=hidden.device)
    if pool == "last":
        return hidden[rows, lengths - 1]
    if pool == "first":
        return hidden[:, 0].clone()
    if isinstance(pool, int):
        return hidden[rows, lengths + pool if pool < 0 else torch.full_like(lengths, pool)]
    real = (torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None])[:, :, None]
    if pool == "mean":
        wide = hidden if hidden.dtype == torch.float64 else hidden.float()
        return (torch.where(real, wide, 0.0).sum(dim=1) / lengths[:, None]).to(hidden.dtype)
    return torch.where(real, hidden, float("-inf")).amax(dim=1)


def pack_tokens(hidden: Tensor, places: Tensor) -> Tensor:
    """Return the real tokens of padded values as a copy `[n_real, hidden]`; waits for no device.

    Args:
        hidden: `[n_prompts, n_tokens, hidden]`.
        places: `[n_real]` int64 on the same device: where real tokens lie in `[n_prompts * n_tokens]`.
    """
    return hidden.flatten(0, 1).index_select(0, places)
