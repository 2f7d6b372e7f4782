"""Telling whether tensors on an accelerator still hold the bytes they held, without moving them.

A tensor's bytes, as 32-bit words, are cut into chunks of `ROWS` by `LANES`. Each chunk gives two sums modulo 2**64: in
each lane the words are weighted by row and added up, then the lanes' high and low halves are weighted by lane and added
up. The weights are odd numbers drawn at random by each process, so that a change that does not know them, whatever it
is, goes unseen by both sums with a probability below 2**-62 (each of the four steps fails with at most 2**-32).

Triton computes them in one pass and one launch for all tensors; where it is absent (or cannot compile), torch does, in
several passes. The numbers are the same.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmstash.events import logger

ROWS = 64
LANES = 1024
CHUNK_WORDS = ROWS * LANES
"""256 KiB of words."""
_SLAB_CHUNKS = 64  # that torch computes at once: 16 MiB of words, 64 MiB of products
_WIDTH = ROWS + 2 * LANES


class DeviceSums:
    """The sums of some tensors on one device. Holds no lock: one thread at a time.

    The tensors are kept alive and must not be resized while they are read.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        """Plan the sums of `tensors`, dense, all on one device, none empty."""
        self._device = tensors[0].device
        self._tensors = list(tensors)
        self._joint: list[int] = []
        """The tensors that one launch can read: in one piece, and in whole words."""
        self._counts: list[int] = []
        """Their chunks."""
        self._views: list[Tensor] = []
        self._rows: list[tuple[int, int]] = []
        """Address and words of every chunk of theirs."""
        self._table: Tensor | None = None
        for place, tensor in enumerate(tensors if self._device.type == "cuda" else ()):
            words = _words(tensor)
            if words.dtype == torch.int32 and words.data_ptr() == tensor.data_ptr():
                starts = range(0, words.numel(), CHUNK_WORDS)
                self._joint.append(place)
                self._counts.append(len(starts))
                self._views.append(words)
                end = words.numel()
                self._rows += [(words.data_ptr() + 4 * start, min(CHUNK_WORDS, end - start)) for start in starts]

    def take(self) -> list[bytes]:
        """Return each tensor's sums as they are now, after all work in flight on the device.

        Waiting for the device, not for one stream, makes an edit launched on another stream before this call visible.
        """
        _wait(self._device)
        with torch.no_grad():
            found = self._launch()
            return [found[place] if place in found else _slabs(each) for place, each in enumerate(self._tensors)]

    def _launch(self) -> dict[int, bytes]:
        """Return the sums of the joint tensors, by place; nothing where Triton will not do."""
        if not self._rows or not _kernel_works(self._device):
            return {}
        try:
            if self._table is None:
                self._table = torch.tensor(self._rows, dtype=torch.int64, device="cpu").to(self._device)
            flat = _run_kernel(self._table, len(self._rows)).cpu().numpy()
        except torch.cuda.OutOfMemoryError:
            return {}
        out: dict[int, bytes] = {}
        start = 0
        for place, count in zip(self._joint, self._counts, strict=True):
            out[place] = flat[start : start + count].tobytes()
            start += count
        return out


def _slabs(tensor: Tensor) -> bytes:
    """Return the sums of one tensor, computed by torch; on the host where the device has no room for that."""
    out: list[Tensor] = []
    for part in _words(tensor).split(_SLAB_CHUNKS * CHUNK_WORDS):
        try:
            out.append(_reference(part))
        except torch.cuda.OutOfMemoryError:
            out.append(_reference(part.cpu()))
    return b"".join(each.cpu().numpy().tobytes() for each in out)


def _reference(words: Tensor) -> Tensor:
    """Return `[n_chunks, 2]` int64, the sums of `words` on their device: what the kernel must agree with."""
    weights = _weights(str(words.device))
    by_row, by_high, by_low = weights.split([ROWS, LANES, LANES], dim=1)
    return torch.cat([_chunk_sums(each, by_row, by_high, by_low) for each in _whole_chunks(words)])


def _whole_chunks(words: Tensor) -> Iterator[Tensor]:
    """Yield `[n_chunks, n_rows, LANES]`: the full chunks, then the last one, filled up with zeros."""
    full = words.numel() // CHUNK_WORDS
    if full:
        yield words[: full * CHUNK_WORDS].view(full, ROWS, LANES)
    rest = words[full * CHUNK_WORDS :]
    if rest.numel():
        yield torch.nn.functional.pad(rest, (0, -rest.numel() % LANES)).view(1, -1, LANES)


def _chunk_sums(chunks: Tensor, by_row: Tensor, by_high: Tensor, by_low: Tensor) -> Tensor:
    weighted = chunks[:, None] * by_row[:, : chunks.shape[1], None]
    lanes = weighted.sum(dim=2)
    return ((lanes >> 32) * by_high + (lanes & 0xFFFFFFFF) * by_low).sum(dim=2)


def _words(tensor: Tensor) -> Tensor:
    """Return the memory of a dense tensor as 32-bit words, or as bytes where it does not consist of such.

    A view in the order of the memory; where that has gaps or overlaps, a copy in logical order.
    """
    order = sorted(range(tensor.ndim), key=lambda axis: -tensor.stride(axis))
    turned = tensor.permute(order)
    flat = (turned if turned.is_contiguous() else tensor.contiguous()).reshape(-1).view(torch.uint8)
    whole = flat.numel() % 4 == 0 and flat.storage_offset() % 4 == 0 and flat.data_ptr() % 4 == 0
    return flat.view(torch.int32) if whole else flat


def _wait(device: torch.device) -> None:
    if device.type in ("cuda", "xpu"):
        getattr(torch, device.type).synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@lru_cache(maxsize=1)
def _drawn() -> Tensor:
    drawn = np.frombuffer(os.urandom(8 * 2 * _WIDTH), np.int64) | 1
    return torch.from_numpy(drawn.reshape(2, _WIDTH))


@lru_cache(maxsize=16)
def _weights(device: str) -> Tensor:
    """Return this process's odd random numbers, int64 `[2, ROWS + LANES + LANES]`: by row, by high and by low half."""
    return _drawn().to(device)


# --- Triton -------------------------------------------------------------------------------------------------------

_lock = threading.RLock()
_working: dict[str, bool] = {}
"""By device: whether the kernel compiled there, and agreed with torch."""


def _run_kernel(table: Tensor, n_chunks: int) -> Tensor:
    from lmstash.identity.memory.device_kernel import chunk_sums

    kernel: Any = chunk_sums
    out = torch.empty((n_chunks, 2), dtype=torch.int64, device=table.device)
    with torch.cuda.device(table.device):
        kernel[(n_chunks,)](table, out, _weights(str(table.device)), ROWS=ROWS, LANES=LANES, num_warps=4)
    return out


def _kernel_works(device: torch.device) -> bool:
    """Return whether the kernel can be used on `device`: tried once, against torch, on numbers of its own.

    The first time in a process costs a second or two, where Triton has not kept its compilation from an earlier one.
    """
    name = str(device)
    with _lock:
        if name not in _working:
            try:
                _working[name] = _agrees(device)
            except torch.cuda.OutOfMemoryError:
                return False
            except Exception as fault:  # no Triton, no C compiler, an unknown chip, a folder it may not write to
                logger.info("lmstash: weights on %s are checked without Triton: %s", name, fault)
                _working[name] = False
        return _working[name]


def _agrees(device: torch.device) -> bool:
    words = torch.from_numpy(np.frombuffer(os.urandom(4 * (2 * CHUNK_WORDS + LANES + 3)), np.int32).copy()).to(device)
    rows = [(words.data_ptr() + 4 * at, min(CHUNK_WORDS, len(words) - at)) for at in range(0, len(words), CHUNK_WORDS)]
    found = _run_kernel(torch.tensor(rows, dtype=torch.int64, device="cpu").to(device), len(rows))
    return torch.equal(found, _reference(words))
