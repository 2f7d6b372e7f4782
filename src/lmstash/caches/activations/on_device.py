"""What is particular to computing on an accelerator: the ways there and back, and telling when it is full."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

PINNED_BYTES = 512 * 2**20
"""Most memory to pin for the values of one batch; torch keeps it for the next."""

_NO_MEMORY = ("ALLOC_FAILED", "out of memory", "NOT_INITIALIZED", "insufficient memory")
"""How CUDA and its libraries say so when it is not torch that asked for memory."""
_WHO = ("CUDA", "cuDNN", "CUBLAS", "HIP")


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host on `device`. A GPU gets it without the host waiting for what runs there."""
    if device.type != "cuda":
        return tensor.to(device)
    try:
        pinned = tensor.pin_memory()
    except RuntimeError:  # the system may allow no more
        return tensor.to(device)
    return pinned.to(device, non_blocking=True)


def to_host(values: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
    """Start to bring tensors to the CPU; what is returned waits for them and returns them.

    From a GPU they come by way of pinned memory, all in flight at once: thirty times as fast as one by one into plain
    memory. Pinned memory that the system refuses, or more than `PINNED_BYTES`, is done without.
    """
    pinned = all(each.device.type == "cuda" for each in values)
    if not pinned or sum(each.nbytes for each in values) > PINNED_BYTES:
        here = [each.cpu() for each in values]
        return lambda: here
    try:
        here = [torch.empty(each.shape, dtype=each.dtype, device="cpu", pin_memory=True) for each in values]
    except RuntimeError:
        here = [each.cpu() for each in values]
        return lambda: here
    for target, value in zip(here, values, strict=True):
        target.copy_(value, non_blocking=True)
    events = [torch.cuda.current_stream(device).record_event() for device in {each.device for each in values}]

    def wait() -> list[Tensor]:
        for event in events:
            event.synchronize()
        return here

    return wait


def says_no_memory(error: RuntimeError) -> bool:
    """Return whether an error of the device's libraries means that it is full, so that a smaller batch may go."""
    words = str(error)
    return any(each in words for each in _WHO) and any(each in words for each in _NO_MEMORY)
