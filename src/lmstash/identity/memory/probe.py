"""Reading weights again and again: are they still what they were? And only once for what names them.

SHA-256 says who a model is; xxh3 on the CPU, and sums taken on the device elsewhere (see `device_sums`), say whether it
is still the same, many times a second.
"""

from __future__ import annotations

import ctypes
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import xxhash

from lmstash.errors import UnsupportedModelError
from lmstash.identity.memory.mappings import Range
from lmstash.identity.memory.weights import byte_pieces, content_digest, parallel, reach
from lmstash.identity.memory.written_pages import WrittenPages, whole_pages

if TYPE_CHECKING:
    import torch

    from lmstash.identity.memory.device_sums import DeviceSums

_PIECE_BYTES = 4 * 2**20
_WATCHED_BYTES = 512 * 2**10
"""Less memory in one piece is read: that takes hardly longer than asking."""
_TRIAL_SECONDS = 5.0
"""How long pages have been marked before they are relied on."""

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
    but misses no accident; those on a GPU at about its memory's speed where Triton works. Where the kernel says which
    pages of memory were written to (see `written_pages`), what was read and found the same is read again only after
    somebody wrote.

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
            from lmstash.identity.memory.device_sums import DeviceSums

            for names in by_device.values():
                self._devices.append((names, DeviceSums([self._tensors[name] for name in names])))
        self._sums: list[bytes] = []
        self._device_sums: dict[str, bytes] = {}
        self._here = [tensor for name, tensor in self._tensors.items() if name in self._spans and tensor.numel()]
        watched, self._edges = _pages_and_edges(map(_extent, self._here))
        self._edge_sums: list[int] | None = None
        """Of what lies beside watched pages, as it was at the last `whole`."""
        self._pages = WrittenPages(watched)
        self._marked_at: float | None = None
        """When pages were marked, by the monotonic clock, if all was as it should be when read after that."""
        self._watched = False
        """Whether pages hold what they should for as long as nobody writes to them."""

    @property
    def on_devices(self) -> bool:
        """Whether some tensors lie elsewhere than in the CPU's memory."""
        return bool(self._devices)

    def whole(self) -> dict[str, bytes]:
        """Read everything now; return one short digest per tensor, and keep the sums to compare with."""
        self._watched, self._marked_at = False, None
        self._device_sums = self._take()
        before = self._read_edges()
        self._sums = parallel(self._pieces)
        self._edge_sums = before if self._read_edges() == before else None
        out: dict[str, bytes] = {}
        for name, tensor in self._tensors.items():
            held = self._device_sums[name] if name in self._device_sums else b"".join(self._sums[self._spans[name]])
            form = tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.device.type
            out[name] = xxhash.xxh3_128_digest(held + repr(form).encode())
        return out

    def holds(self, budget_bytes: int | None = None, *, n_threads: int | None = None) -> bool:
        """Return whether the bytes are those of the last `whole`.

        With a budget, and more bytes than that on the CPU, pieces of these are drawn at random (none for a budget of
        0), unless it is known that some were written to. What lies on another device is always read wholly, and so are
        pages that the kernel watches. `n_threads=1` leaves the other cores alone. Costs nbytes / 17 GB/s on the CPU
        once warm, or nbytes / 500 GB/s where pages are watched and nobody wrote; on an H100 0.8 ms and
        nbytes / 2.6 TB/s where Triton works, nbytes / 60 GB/s where it does not.
        """
        if self._take() != self._device_sums:
            return False
        written = self._pages.written()
        if self._watched and written is False:
            if self._read_edges() == self._edge_sums:
                return True
            written = True
        since = None if written is not False else self._marked_at
        self._watched, self._marked_at = False, None
        if budget_bytes is not None and not written and self._host_bytes > budget_bytes:
            share = max(1, len(self._pieces) * budget_bytes // self._host_bytes) if budget_bytes else 0
            order = _draw.sample(range(len(self._pieces)), share)
            if not self._read(order, n_threads):
                return False
            self._marked_at = since
            return True
        return self._read_and_watch(since, n_threads)

    def _read_and_watch(self, since: float | None, n_threads: int | None) -> bool:
        """Return what `holds` does after reading everything, and have pages watched from then on where that can be.

        They are relied on after two readings, the second one some seconds after they were marked and never written to:
        a transfer into them that had begun before, past the page tables, has ended then.
        """
        now = time.monotonic()
        ripe = since is not None and now >= since + _TRIAL_SECONDS
        if ripe and not self._pages.holds_no_copies():
            self._pages.forget(patiently=True)
            since, ripe = None, False
        elif since is None and self._edge_sums is not None and not _may_be_pinned(self._here) and self._pages.mark():
            since = now  # marked before they are read: what is written from now on shows
        if not self._read(range(len(self._pieces)), n_threads) or self._edge_sums is None:
            return False
        if ripe and self._pages.written() is False and self._read_edges() == self._edge_sums:
            self._watched = True  # the last thing: nothing that interrupts this may leave it so
        self._marked_at = since
        return True

    def _read(self, order: Sequence[int], n_threads: int | None) -> bool:
        """Return whether some pieces hold what they held."""
        pieces = [self._pieces[each] for each in order]
        sums = [piece() for piece in pieces] if n_threads == 1 else parallel(pieces)
        return sums == [self._sums[each] for each in order]

    def _read_edges(self) -> list[int]:
        return list(map(xxhash.xxh3_64_intdigest, self._edges))

    def _take(self) -> dict[str, bytes]:
        return {name: held for names, sums in self._devices for name, held in zip(names, sums.take(), strict=True)}


def _extent(tensor: torch.Tensor) -> Range:
    """Return the memory that a tensor's elements lie in, and maybe others between them."""
    start = tensor.data_ptr()
    return start, start + reach(tensor) * tensor.element_size()


def _pages_and_edges(extents: Iterable[Range]) -> tuple[list[Range], list[memoryview]]:
    """Return the whole pages of some memory, and what of it lies on pages that it shares with other things."""
    joined: list[Range] = []
    for start, end in sorted(extents):
        if joined and start <= joined[-1][1]:  # tensors of one file lie side by side
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    watched: list[Range] = []
    edges: list[Range] = []
    for start, end in joined:
        first, last = whole_pages(start, end)
        if end - start < _WATCHED_BYTES:
            edges.append((start, end))
        else:
            watched.append((first, last))
            edges += (start, first), (last, end)
    memory = [(ctypes.c_ubyte * (end - start)).from_address(start) for start, end in edges if start < end]
    return watched, [memoryview(each).cast("B") for each in memory]


def _may_be_pinned(tensors: Iterable[torch.Tensor]) -> bool:
    """Return whether a device may write to the memory of a tensor: past the page tables, so that no page would show."""
    import torch

    devices = (torch.cuda, getattr(torch, "xpu", None))
    if any(each is not None and each.is_initialized() for each in devices):
        return any(each.is_pinned() for each in tensors)
    # Not whether one is available: to find out may begin to use it, which a fork does not survive.
    accelerator = getattr(torch, "accelerator", None)  # from torch 2.6 on
    kind = accelerator.current_accelerator() if accelerator is not None else None
    return accelerator is None or (kind is not None and kind.type not in ("cuda", "xpu"))


def _piece_readers(tensor: torch.Tensor) -> list[Callable[[], bytes]]:
    """Return functions that each digest one piece of a dense tensor on the CPU as it is when they are called."""
    if tensor.numel() == 0:
        return []
    if not tensor.is_contiguous():
        return [lambda: b"".join(map(xxhash.xxh3_128_digest, byte_pieces(tensor, _PIECE_BYTES)))]
    return [partial(xxhash.xxh3_128_digest, piece) for piece in byte_pieces(tensor, _PIECE_BYTES)]
