"""A model as it was seen at one look, and what tells a tensor from another one in its place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmstash.errors import UnsupportedModelError
from lmstash.identity.models.structure import stamp

if TYPE_CHECKING:
    import torch

    from lmstash.identity.fingerprint import Fingerprint
    from lmstash.identity.models.fingerprinting import Reading
    from lmstash.identity.models.watch import ModelWatch

WHOLE_BYTES = 2**30
"""Weights on the CPU up to this size are read wholly on every `refresh`, where the kernel does not watch them."""


class Sighting:
    """A model as `ModelWatch.look` saw it. Any thread may ask; the settings that count are those of who looked."""

    def __init__(
        self,
        watch: ModelWatch,
        model: torch.nn.Module,
        fingerprint: Fingerprint,
        reading: Reading | None,
        stamp: list[object],
        addresses: list[object],
    ) -> None:
        """Take what was seen; without a reading everything is vouched for."""
        self._watch = watch
        self._model = model
        self.fingerprint = fingerprint
        self._reading = reading
        self._stamp = stamp
        self._addresses = addresses

    def holds(self) -> bool:
        """Return whether the weights' bytes are those that the fingerprint names (read: up to 1 GiB of them).

        Works in this thread alone, at about 10 GB/s where the kernel does not watch them.
        """
        return self._reading is None or self._watch.holding(self._reading, WHOLE_BYTES)

    def unchanged(self) -> bool:
        """Return whether the model is still what was seen, reading everything. Call it before publishing."""
        if self._reading is None:
            return True
        code = self._reading.structure.code
        try:
            found, live = stamp(self._model, code)
        except UnsupportedModelError:
            return False
        found[-1] = self._stamp[-1]  # numerics, which are this thread's
        if found != self._stamp or not code.unchanged():
            return False
        if addresses_of(live) != self._addresses:  # pruned weights are made anew in each pass, and are what they were
            return self._watch.reads_as(self._reading, self.fingerprint)
        return self._watch.holding(self._reading, None)


def addresses_of(tensors: list[torch.Tensor]) -> list[object]:
    """Return what each tensor is and where its numbers lie."""
    out: list[object] = []
    for each in tensors:
        out += (id(each), type(each))
        try:
            out += (_address(each), each.shape, each.stride(), each.dtype, each.is_conj(), each.is_neg())
        except (RuntimeError, ValueError):  # a nested one, or one not initialised: refused when it is read
            out.append(None)
    return out


def _address(tensor: torch.Tensor) -> object:
    try:
        return tensor.data_ptr(), tensor.untyped_storage().nbytes()
    except (RuntimeError, NotImplementedError):  # a wrapper; its inner tensors are read by content
        return None


def versions_of(tensors: list[torch.Tensor]) -> list[object]:
    """Return how often each tensor was written to, as far as torch counts."""
    return [_version(each) for each in tensors]


def _version(tensor: torch.Tensor) -> int | None:
    try:
        return None if tensor.is_inference() else tensor._version
    except ValueError:  # not initialised
        return None
