"""The bytes of tensors: reading them in place, and their digests.

Several threads read at once (hashlib and xxhash release the GIL). Only tensors that really own strided memory are read;
others (wrappers, sharded, sparse, meta) are taken apart or refused.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from lmstash.errors import UnsupportedModelError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

_COPY_BYTES = 64 * 2**20  # of a tensor that must be copied to be read
_STAGE_BYTES = 8 * 2**20  # on their way from a device: pinned memory, of which each thread takes that much
_MAX_THREADS = 8


def dense_parts(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the plain strided tensors that `tensor` consists of; itself for nearly every model.

    Raises:
        UnsupportedModelError: It has no memory of its own to read (meta, sharded, sparse, freed).
    """
    import torch

    if tensor.device.type == "meta":
        raise UnsupportedModelError(
            f"{name} is on the meta device: its weights are not loaded, so there is nothing to fingerprint. "
            "Load the model with weights (no init_empty_weights, no offloading) before caching."
        )
    if tensor.is_nested:
        raise UnsupportedModelError(f"{name} is a nested tensor, which lmstash cannot read. Pad it, or take it apart.")
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is not None:
        for inner in flatten()[0]:
            yield from dense_parts(f"{name}.{inner}", getattr(tensor, inner))
        return
    if isinstance(tensor, torch.nn.UninitializedParameter | torch.nn.UninitializedBuffer):
        raise UnsupportedModelError(f"{name} is not initialised yet. Run the model once before caching.")
    if tensor.layout != torch.strided:
        raise UnsupportedModelError(f"{name} has layout {tensor.layout}, which lmstash cannot read. Make it dense.")
    if tensor.is_quantized:
        raise UnsupportedModelError(
            f"{name} is of a quantised dtype ({tensor.dtype}), which lmstash cannot read. Use the model as it was "
            "before it was quantised, or a kind of quantisation that keeps plain tensors (bitsandbytes, torchao)."
        )
    try:
        held = tensor.untyped_storage().nbytes()
    except (RuntimeError, NotImplementedError):
        raise UnsupportedModelError(f"{name} is a {type(tensor).__qualname__} without memory of its own.") from None
    if tensor.numel() and held < (tensor.storage_offset() + reach(tensor)) * tensor.element_size():
        raise UnsupportedModelError(f"the memory of {name} has been freed (a sharded model?). Gather it first.")
    # A view of the memory itself, under a name that tells how it is meant: a resolved copy would never change again.
    if tensor.is_conj():
        name, tensor = f"{name}<conjugate>", tensor.conj()
    if tensor.is_neg():
        name, tensor = f"{name}<negative>", tensor._neg_view()
    yield name, tensor.detach()


def reach(tensor: torch.Tensor) -> int:
    """Return how many elements lie in memory from the first element of a tensor to its last."""
    return 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))


def byte_pieces(tensor: torch.Tensor, piece_bytes: int) -> Iterator[memoryview]:
    """Yield the bytes of a dense tensor in logical order, on the CPU, without a copy where memory allows.

    The memory is valid until the next piece is asked for.
    """
    import torch

    if tensor.numel() == 0:
        return
    if tensor.device.type == "cpu" and tensor.is_contiguous():
        nbytes = tensor.numel() * tensor.element_size()
        whole = memoryview(_byte_array(nbytes).from_address(tensor.data_ptr())).cast("B")
        for start in range(0, nbytes, piece_bytes):
            yield whole[start : start + piece_bytes]
        return
    if tensor.device.type == "cpu" or not tensor.is_contiguous():
        tensor = tensor.contiguous()
        if tensor.device.type == "cpu":
            yield from byte_pieces(tensor, piece_bytes)
            return
    flat = tensor.reshape(-1).view(torch.uint8)
    step = min(piece_bytes, _STAGE_BYTES, flat.numel())
    stage = _stage(step, pinned=tensor.device.type == "cuda")
    held = memoryview(_byte_array(step).from_address(stage.data_ptr())).cast("B")
    for start in range(0, flat.numel(), step):
        part = flat[start : start + step]
        stage[: part.numel()].copy_(part)
        yield held[: part.numel()]


def _stage(nbytes: int, *, pinned: bool) -> torch.Tensor:
    """Return memory on the CPU; pinned, a GPU fills it thirty times as fast."""
    import torch

    if pinned:
        with contextlib.suppress(RuntimeError):  # the system may allow no more
            return torch.empty(nbytes, dtype=torch.uint8, device="cpu", pin_memory=True)
    return torch.empty(nbytes, dtype=torch.uint8, device="cpu")


@lru_cache(maxsize=4096)
def _byte_array(nbytes: int) -> Any:
    return ctypes.c_ubyte * nbytes


def content_digest(tensor: torch.Tensor) -> str:
    """Return the SHA-256 of a dense tensor's bytes, hexadecimal. Costs about 0.7 s per GB and thread."""
    state = hashlib.sha256()
    for piece in byte_pieces(tensor, _COPY_BYTES):
        state.update(piece)
    return state.hexdigest()


def parallel(calls: Sequence[Callable[[], T]], *, at_least: int = 8) -> list[T]:
    """Call each of `calls`, on several threads when there are `at_least` so many, and return the results in order."""
    if len(calls) < at_least:
        return [call() for call in calls]
    out: list[T] = [None] * len(calls)  # type: ignore[list-item] # every place is filled below
    todo = deque(enumerate(calls))

    def work(_: int) -> None:
        while True:
            try:
                place, call = todo.popleft()
            except IndexError:
                return
            out[place] = call()

    n_threads = _n_threads()
    with ThreadPoolExecutor(n_threads) as pool:
        try:
            done = pool.map(work, range(n_threads))
        except RuntimeError:  # the interpreter is ending, where values held back are saved: no thread starts any more
            work(0)
            return out
        list(done)
    return out


def _n_threads() -> int:
    """Return how many threads may read at once: as many as there are cores for this process, from 2 to 8."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_MAX_THREADS, max(2, usable))
