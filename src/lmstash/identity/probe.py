"""Reading weights again and again: are they still what they were? And only once for what names them.

SHA-256 says who a model is; xxh3 on the CPU, and sums taken on the device elsewhere (see `device_sums`), say whether it
is still the same, many times a second.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import xxhash

from lmstash.errors import UnsupportedModelError
from lmstash.identity.weights import byte_pieces, content_digest, parallel

if TYPE_CHECKING:
    import torch

    from lmstash.identity.device_sums import DeviceSums

_PIECE_BYTES = 4 * 2**20

_draw = random.Random()


def content_digests(
    tensors: Mapping[str, torch.Tensor], known: Mapping[bytes, str]
) -> tuple[dict[str, str], dict[bytes, str], Probe]:
    """Return each dense tensor's SHA-256 by name, the same by short digest, and the probe that goes with these bytes.

    Args:
        tensors: Dense tensors, as `dense_parts` yields them.
        known: SHA-256 by short digest of tensors read before, so that what has not changed is not read twice.

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
        calls = [partial(content_digest, each) for each in owed.values()]
        fresh = dict(zip(owed, parallel(calls, at_least=2), strict=True))
        if not fresh or probe.whole() == before:
            found = {key: known.get(key) or fresh[key] for key in before.values()}
            return {name: found[before[name]] for name in tensors}, found, probe
    raise UnsupportedModelError("the weights change while they are read. Stop training, or copy the model, then retry.")


class Probe:
    """Tells whether tensors still hold the bytes they held. Holds no lock: one thread at a time.

    Those on the CPU are read in pieces of 4 MiB by xxh3 (17 GB/s on two cores), which does not withstand an adversary
    but misses no accident; those on a GPU at about its memory's speed where Triton works.

    Args:
        tensors: Dense tensors by name; they are kept alive, and must not be resized while they are read.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = dict(tensors)
        self._pieces: list[Callable[[], bytes]] = []
        self._spans: dict[str, slice] = {}
        self._host_bytes = 0
        by_device: dict[str, list[str]] = {}
        for name, tensor in self._tensors.items():
            if tensor.numel() and tensor.device.type != "cpu":
                by_device.setdefault(str(tensor.device), []).append(name)
                continue
            start = len(self._pieces)
            self._pieces.extend(_piece_readers(tensor))
            self._spans[name] = slice(start, len(self._pieces))
            self._host_bytes += tensor.nbytes
        self._devices: list[tuple[list[str], DeviceSums]] = []
        if by_device:
            from lmstash.identity.device_sums import DeviceSums

            for names in by_device.values():
                self._devices.append((names, DeviceSums([self._tensors[name] for name in names])))
        self._sums: list[bytes] = []
        self._device_sums: dict[str, bytes] = {}

    @property
    def on_devices(self) -> bool:
        """Whether some tensors lie elsewhere than in the CPU's memory."""
        return bool(self._devices)

    def whole(self) -> dict[str, bytes]:
        """Read everything now; return one short digest per tensor, and keep the sums to compare with."""
        self._device_sums = self._take()
        self._sums = parallel(self._pieces)
        out: dict[str, bytes] = {}
        for name, tensor in self._tensors.items():
            held = self._device_sums[name] if name in self._device_sums else b"".join(self._sums[self._spans[name]])
            form = tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.device.type
            out[name] = xxhash.xxh3_128_digest(held + repr(form).encode())
        return out

    def holds(self, budget_bytes: int | None = None, *, n_threads: int | None = None) -> bool:
        """Return whether the bytes are those of the last `whole`.

        With a budget, and more bytes than that on the CPU, pieces of these are drawn at random (none for a budget of
        0). What lies on another device is always read wholly. `n_threads=1` leaves the other cores alone. Costs
        nbytes / 17 GB/s on the CPU once warm; on an H100 0.8 ms and nbytes / 2.6 TB/s where Triton works, nbytes / 60
        GB/s where it does not.
        """
        if self._take() != self._device_sums:
            return False
        order = list(range(len(self._pieces)))
        if budget_bytes is not None and self._host_bytes > budget_bytes:
            share = max(1, len(order) * budget_bytes // self._host_bytes) if budget_bytes else 0
            order = _draw.sample(order, share)
        pieces = [self._pieces[each] for each in order]
        sums = [piece() for piece in pieces] if n_threads == 1 else parallel(pieces)
        return sums == [self._sums[each] for each in order]

    def _take(self) -> dict[str, bytes]:
        return {name: held for names, sums in self._devices for name, held in zip(names, sums.take(), strict=True)}


def _piece_readers(tensor: torch.Tensor) -> list[Callable[[], bytes]]:
    """Return functions that each digest one piece of a dense tensor on the CPU as it is when they are called."""
    if tensor.numel() == 0:
        return []
    if not tensor.is_contiguous():
        return [lambda: b"".join(map(xxhash.xxh3_128_digest, byte_pieces(tensor, _PIECE_BYTES)))]
    return [partial(xxhash.xxh3_128_digest, piece) for piece in byte_pieces(tensor, _PIECE_BYTES)]
