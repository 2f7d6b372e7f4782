"""The bytes of tensors: reading them in place, and their digests.

SHA-256 says who a model is; xxh3 and, on a GPU, a weighted sum say whether it is still the same, many times a second.
Two threads read at once (hashlib and xxhash release the GIL). Only tensors that really own strided memory are read;
others (wrappers, sharded, sparse, meta) are taken apart or refused.
"""

from __future__ import annotations

import ctypes
import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, TypeVar

import xxhash

from lmstash.errors import UnsupportedModelError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

_COPY_BYTES = 64 * 2**20  # of a tensor that must be copied to be read
_PIECE_BYTES = 4 * 2**20  # of a tensor that is checked again and again
_THREADS = 2


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
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is not None:
        for inner in flatten()[0]:
            yield from dense_parts(f"{name}.{inner}", getattr(tensor, inner))
        return
    if isinstance(tensor, torch.nn.UninitializedParameter | torch.nn.UninitializedBuffer):
        raise UnsupportedModelError(f"{name} is not initialised yet. Run the model once before caching.")
    if tensor.layout != torch.strided or tensor.is_nested:
        raise UnsupportedModelError(f"{name} has layout {tensor.layout}, which lmstash cannot read. Make it dense.")
    if tensor.is_quantized:
        raise UnsupportedModelError(f"{name} is of a quantised dtype ({tensor.dtype}), which lmstash cannot read.")
    try:
        held = tensor.untyped_storage().nbytes()
    except (RuntimeError, NotImplementedError):
        raise UnsupportedModelError(f"{name} is a {type(tensor).__qualname__} without memory of its own.") from None
    reach = (
        tensor.storage_offset() + 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    )
    if tensor.numel() and held < reach * tensor.element_size():
        raise UnsupportedModelError(f"the memory of {name} has been freed (a sharded model?). Gather it first.")
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    yield name, tensor.detach()


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
    flat = tensor.reshape(-1)
    step = max(1, _COPY_BYTES // tensor.element_size())
    for start in range(0, flat.numel(), step):
        part = flat[start : start + step].to("cpu")
        yield from byte_pieces(part.view(torch.uint8), piece_bytes)


@lru_cache(maxsize=4096)
def _byte_array(nbytes: int) -> Any:
    return ctypes.c_ubyte * nbytes


def content_digest(tensor: torch.Tensor) -> str:
    """Return the SHA-256 of a dense tensor's bytes, hexadecimal. Costs about 0.7 s per GB and thread."""
    state = hashlib.sha256()
    for piece in byte_pieces(tensor, _COPY_BYTES):
        state.update(piece)
    return state.hexdigest()


def content_digests(
    tensors: Mapping[str, torch.Tensor], known: Mapping[bytes, str]
) -> tuple[dict[str, str], dict[bytes, str], Probe]:
    """Return each dense tensor's SHA-256 by name, the same by xxh3, and the probe that goes with these bytes.

    Args:
        tensors: Dense tensors, as `dense_parts` yields them.
        known: SHA-256 by xxh3 of tensors read before, so that what has not changed is not read twice.

    Raises:
        UnsupportedModelError: The weights changed while they were read, again and again.
    """
    for _ in range(3):
        probe = Probe(tensors)
        before = probe.whole()
        order = sorted(tensors, key=lambda name: -tensors[name].nbytes)
        owed: dict[bytes, torch.Tensor] = {}
        for name in order:
            if before[name] not in known:
                owed.setdefault(before[name], tensors[name])
        fresh = dict(zip(owed, _parallel([partial(content_digest, each) for each in owed.values()]), strict=True))
        if not fresh or probe.whole() == before:
            found = {key: known.get(key) or fresh[key] for key in before.values()}
            return {name: found[before[name]] for name in tensors}, found, probe
    raise UnsupportedModelError("the weights change while they are read. Stop training, or copy the model, then retry.")


class Probe:
    """Tells whether tensors still hold the bytes they held. Holds no lock: one thread at a time.

    The tensors are read in pieces of 4 MiB, by xxh3 on the CPU (17 GB/s), by two weighted sums in int64 where they
    lie on another device. Neither withstands an adversary; neither misses one changed element.

    Args:
        tensors: Dense tensors by name; they are kept alive, and must not be resized while they are read.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = dict(tensors)
        self.nbytes = sum(each.nbytes for each in self._tensors.values())
        self._pieces: list[Callable[[], bytes]] = []
        self._spans: dict[str, slice] = {}
        for name, tensor in self._tensors.items():
            start = len(self._pieces)
            self._pieces.extend(_piece_readers(tensor))
            self._spans[name] = slice(start, len(self._pieces))
        self._sums: list[bytes] = []

    def whole(self) -> dict[str, bytes]:
        """Read everything now; return one short digest per tensor, and keep the sums to compare with."""
        self._sums = _parallel(self._pieces)
        return {
            name: xxhash.xxh3_128_digest(
                b"".join(self._sums[self._spans[name]])
                + repr((tensor.dtype, tuple(tensor.shape), tensor.device.type)).encode()
            )
            for name, tensor in self._tensors.items()
        }

    def holds(self, budget_bytes: int | None = None) -> bool:
        """Return whether the bytes are those of the last `whole`; with a budget, of pieces drawn at random.

        Costs nbytes / 17 GB/s on the CPU, once warm.
        """
        order = list(range(len(self._pieces)))
        if budget_bytes is not None and self.nbytes > budget_bytes:
            order = random.sample(order, max(1, len(order) * budget_bytes // self.nbytes))
        return _parallel([self._pieces[each] for each in order]) == [self._sums[each] for each in order]


def _piece_readers(tensor: torch.Tensor) -> list[Callable[[], bytes]]:
    """Return functions that each digest one piece of a dense tensor as it is when they are called."""
    if tensor.numel() == 0:
        return []
    if tensor.device.type != "cpu":
        return [lambda: _device_sums(tensor)]
    if not tensor.is_contiguous():
        return [lambda: b"".join(map(xxhash.xxh3_128_digest, byte_pieces(tensor, _PIECE_BYTES)))]
    return [partial(xxhash.xxh3_128_digest, piece) for piece in byte_pieces(tensor, _PIECE_BYTES)]


def _device_sums(tensor: torch.Tensor) -> bytes:
    """Return two weighted sums, modulo 2**64, per 4 MiB of a tensor, computed on its own device."""
    import torch

    with torch.no_grad():
        flat = tensor.contiguous().reshape(-1).view(torch.uint8)
        words = flat.view(torch.int32) if flat.numel() % 4 == 0 and flat.data_ptr() % 4 == 0 else flat
        weights = _weights(str(tensor.device))
        sums: list[torch.Tensor] = []
        width = weights.shape[1]
        for start in range(0, words.numel(), 16 * width):
            rows = words[start : start + 16 * width].to(torch.int64)
            if rows.numel() % width:
                rows = torch.nn.functional.pad(rows, (0, -rows.numel() % width))
            rows = rows.reshape(-1, width)
            sums += [(rows * each).sum(1) for each in weights]
        return torch.cat(sums).cpu().numpy().tobytes()


@lru_cache(maxsize=16)
def _weights(device: str) -> torch.Tensor:
    """Return odd random numbers, int64 [2, 2**20]: odd, so that a change of one word always changes a sum."""
    import torch

    generator = torch.Generator().manual_seed(20)
    return (torch.randint(-(2**62), 2**62, (2, 2**20), generator=generator) * 2 + 1).to(device)


def _parallel(calls: Sequence[Callable[[], T]]) -> list[T]:
    """Call each of `calls`, on two threads when there are many, and return the results in order."""
    if len(calls) < 8:
        return [call() for call in calls]

    def run(part: Sequence[Callable[[], T]]) -> list[T]:
        return [call() for call in part]

    with ThreadPoolExecutor(_THREADS) as pool:
        parts = list(pool.map(run, [calls[each::_THREADS] for each in range(_THREADS)]))
    out: list[T] = [None] * len(calls)  # type: ignore[list-item] # every place is filled below
    for each, part in enumerate(parts):
        out[each::_THREADS] = part
    return out
