"""Dtype policy: values kept in a smaller dtype, and what does not fit kept in float32.

Rounding loses digits and flushes tiny values to zero, which the caller asked for. Turning a finite value into an
infinity is not rounding: such tensors (or rows of a batch) keep float32. NaN and infinities of the source stay.
Functions are pure; any thread may call them. They need torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmstash.errors import InvalidArgumentError

if TYPE_CHECKING:
    import torch

STORAGE_DTYPES = ("float16", "bfloat16", "float32")
"""What `storage_dtype` may be, besides None."""


def check_storage_dtype(storage_dtype: str | None) -> None:
    """Raise InvalidArgumentError unless `storage_dtype` is None or one of `STORAGE_DTYPES`."""
    if storage_dtype is not None and storage_dtype not in STORAGE_DTYPES:
        raise InvalidArgumentError(
            f"storage_dtype is None (exact) or one of {', '.join(STORAGE_DTYPES)}; got {storage_dtype!r}."
        )


def to_storage(tensor: torch.Tensor, storage_dtype: str | None) -> tuple[torch.Tensor, bool]:
    """Return `tensor` in the dtype it is to be kept in, and whether it overflowed.

    None keeps it as is, and so are integers, booleans and complex numbers. If a finite value would become infinite, the
    whole tensor comes back in float32 (in its own dtype if even that overflows) and the flag is True. No copy is made
    where nothing changes.

    Raises:
        InvalidArgumentError: `storage_dtype` is not one of `STORAGE_DTYPES`.
    """
    rounded, overflowed = rows_to_storage(tensor.unsqueeze(0), storage_dtype)
    return (widest(tensor), True) if overflowed else (rounded.squeeze(0), False)


def rows_to_storage(batch: torch.Tensor, storage_dtype: str | None) -> tuple[torch.Tensor, list[int]]:
    """Convert a batch `[n, ...]`; return it with the positions of the rows that overflow.

    The rows named hold infinities in the batch returned: keep `widest(batch[row])` for each of them instead. All others
    are ready to be kept. Costs one conversion and one pass over the batch; rows are looked at one by one only where
    something is not finite or too large.

    Raises:
        InvalidArgumentError: `storage_dtype` is not one of `STORAGE_DTYPES`.
    """
    import torch

    check_storage_dtype(storage_dtype)
    if storage_dtype is None or not batch.is_floating_point():
        return batch, []
    dtype = getattr(torch, storage_dtype)
    if batch.dtype == dtype:
        return batch, []
    # torch computes next to nothing in the float8 types; float32 holds all their values.
    batch = batch.detach() if batch.element_size() > 1 else batch.to(torch.float32)
    rounded = batch.to(dtype)
    if not batch.numel() or _fits(batch, torch.finfo(dtype).max):
        return rounded, []
    new = (torch.isinf(rounded) & torch.isfinite(batch)).reshape(len(batch), -1)
    return rounded, new.any(dim=1).nonzero().flatten().tolist()


def _fits(batch: torch.Tensor, limit: float) -> bool:
    """Whether all values are finite and within `limit` (one pass, far cheaper than looking for infinities)."""
    import torch

    low, high = torch.aminmax(batch)
    return -limit <= float(low) and float(high) <= limit


def widest(tensor: torch.Tensor) -> torch.Tensor:
    """Return an overflowing tensor as it is kept: in float32, or as it is if it is float64 and overflows that too."""
    import torch

    if tensor.dtype == torch.float32:
        return tensor
    wide = tensor.to(torch.float32)
    if tensor.dtype != torch.float64 or not bool((torch.isinf(wide) & torch.isfinite(tensor)).any()):
        return wide
    return tensor


def restore(tensor: torch.Tensor, dtype: str | torch.dtype | None) -> torch.Tensor:
    """Return a kept tensor in the dtype asked for (None: as kept). No copy is made where nothing changes.

    Integers, booleans and complex numbers stay as they are.

    Raises:
        InvalidArgumentError: `dtype` names no floating-point dtype of torch.
    """
    import torch

    if dtype is None:
        return tensor
    target: object = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(target, torch.dtype) or not target.is_floating_point:
        raise InvalidArgumentError(f"dtype is a floating-point dtype such as 'float32'; got {dtype!r}.")
    return tensor.to(target) if tensor.is_floating_point() else tensor
