"""A look at a model that costs a fraction of a millisecond: may it have changed since it was last read?

`ModelWatch.refresh` reads every weight, which is dear beside a hit of microseconds. A glance compares what is cheap to
compare and complete for all that leaves a trace in Python: attributes, containers, hooks, parameters put in other
places, version counters, settings of torch. Of the weights' bytes it reads all where they are few, else one word a
tensor, so that a change of a whole tensor through `.data` shows and one of a few elements may not.
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterable, Mapping
from itertools import chain
from operator import is_
from typing import TYPE_CHECKING, Any

import xxhash

from lmstash.identity.describe import IMMUTABLE
from lmstash.identity.memory.dict_stamps import Stamps
from lmstash.identity.memory.object_words import Kinds
from lmstash.identity.models.hooks import global_hooks
from lmstash.identity.models.numerics import device_types, numerics
from lmstash.identity.models.reached import Reached, contents

if TYPE_CHECKING:
    import torch

    from lmstash.identity.code.digests import CodeGraph

WHOLE_BYTES = 2**20
"""Weights on the CPU up to this size are read wholly."""
_random = random.Random()
"""Of our own: the program's stream of random numbers stays as it is."""


class Glance:
    """What a model looked like when this was made. Threads may share it; a look costs 0.1 ms for 400 modules.

    All of it is walked by C code, without a step of Python for each value, and dicts that were not touched (see
    `dict_stamps`) are not walked at all; where Python does not tell which were, a look takes about 0.6 ms.

    Values are compared by identity, plain ones by what they say. Not seen, but by `ModelWatch.refresh`: what
    objects keep where Python cannot look (C code, `__slots__`), another `__dict__` for an object, and a tensor's memory
    taken for another shape or type with the same strides, or conjugated. Nothing is kept alive but the model's own
    parts.

    Args:
        model: Any torch module.
        outside: Other objects that its code leads to (`CodeGraph.objects`).
        code: Its code, as it was read; looked at too.
    """

    def __init__(self, model: torch.nn.Module, outside: Mapping[str, Any], code: CodeGraph | None = None) -> None:
        import torch

        reached = Reached(model, outside.values())
        self._code = code
        self._complete = reached.is_complete
        self._hooks = reached.hooks
        self._kinds = Kinds(reached.objects, reached.empty)
        self._plain = _Contents([each for each in reached.dicts if type(each[0]) is dict])
        self._stamps = Stamps(self._plain.dicts)
        self._other = _Contents([each for each in reached.dicts if type(each[0]) is not dict])
        self._lists = [each for each, _ in reached.lists]
        self._lengths = [len(members) for _, members in reached.lists]
        self._members = [one for _, members in reached.lists for one in members]
        self._cells = [cell for cell, _ in reached.cells]
        self._variables = [held for _, held in reached.cells]
        self._tensors = reached.tensors
        self._devices = device_types(self._tensors)
        self._numerics = numerics(self._devices)
        self._data_ptr, self._stride = torch.Tensor.data_ptr, torch.Tensor.stride
        self._addresses = [self._address(each) for each in self._tensors]
        self._strides = [None if at is None else each.stride() for each, at in self._placed()]
        self._counted = [each for each in self._tensors if not each.is_inference()]
        self._versions = [each._version for each in self._counted]
        self._wholes: list[memoryview] = []
        self._words: list[memoryview] = []
        self.draw()

    def holds(self) -> bool:
        """Return whether nothing that a glance sees has changed. Does not raise."""
        try:
            return (
                self._complete
                and [each._version for each in self._counted] == self._versions
                and self._kinds.hold()
                and self._stamps.hold(self._plain.same)
                and self._other.same()
                and list(map(len, self._lists)) == self._lengths
                and _same(chain.from_iterable(self._lists), self._members)
                and all(map(is_, map(contents, self._cells), self._variables))
                and all(map(is_, global_hooks(), self._hooks))
                and list(map(self._data_ptr, self._tensors)) == self._addresses
                and list(map(self._stride, self._tensors)) == self._strides
                and self._read() == self._sums
                and numerics(self._devices) == self._numerics
                and (self._code is None or self._code.unchanged())
            )
        except Exception:  # two tensors compared for equality, a dict that grew under the walk, memory freed: changed
            return False

    def _placed(self) -> Iterable[tuple[torch.Tensor, int | None]]:
        return zip(self._tensors, self._addresses, strict=True)

    def _address(self, tensor: torch.Tensor) -> int | None:
        """Return where a tensor's memory is; None, which never holds, for a wrapper without any."""
        try:
            return self._data_ptr(tensor) or (None if tensor.numel() else 0)
        except (RuntimeError, NotImplementedError):
            return None

    def draw(self) -> None:
        """Take the memory of each tensor on the CPU: all of it where they are small, else a word at a place drawn.

        What it holds now is what `holds` looks for from now on.
        """
        self._wholes, self._words = [], []
        here = [each for each, at in self._placed() if at and _is_in_memory(each)]
        whole = sum(each.nbytes for each in here) <= WHOLE_BYTES
        for tensor in here:
            memory = memoryview((ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())).cast("B")
            if whole:
                self._wholes.append(memory)
                continue
            place = 8 * _random.randrange((len(memory) + 7) // 8)
            self._words.append(memory[place : place + 8])  # a change of a number may leave one of its bytes as it was
        self._sums = self._read()

    def _read(self) -> tuple[list[int], bytes]:
        """Read what was drawn. Only while addresses are as they were: the memory is the tensors'."""
        return list(map(xxhash.xxh3_64_intdigest, self._wholes)), b"".join(self._words)


class _Contents:
    """What dicts hold."""

    def __init__(self, held: list[tuple[dict[Any, Any], list[Any], list[Any]]]) -> None:
        self.dicts = [each for each, _, _ in held]
        self._lengths = [len(keys) for _, keys, _ in held]
        self._views = [dict.values(each) for each in self.dicts]
        self._keys = [one for _, keys, _ in held for one in keys]
        self._values = [one for _, _, values in held for one in values]

    def same(self) -> bool:
        """Return whether they hold the same, and no equal copies, whose own changes nobody would look at."""
        return (
            list(map(len, self._views)) == self._lengths
            and _same(chain.from_iterable(self._views), self._values)
            and _same(chain.from_iterable(map(dict.keys, self.dicts)), self._keys)
        )


def _same(values: Iterable[Any], known: list[Any]) -> bool:
    """Whether values are the same objects, or plain ones that are the same in every respect."""
    found = list(values)
    return len(found) == len(known) and (
        all(map(is_, found, known))
        or all(
            now is then or (type(now) is type(then) and type(now) in IMMUTABLE and repr(now) == repr(then))
            for now, then in zip(found, known, strict=True)  # by their words, since 0.0 == -0.0
        )
    )


def _is_in_memory(tensor: torch.Tensor) -> bool:
    """Whether all of a tensor lies side by side in this process's memory: a storage may have been cut since."""
    try:
        if tensor.device.type != "cpu" or not tensor.is_contiguous() or not tensor.nbytes:
            return False
        end = (tensor.storage_offset() + tensor.numel()) * tensor.itemsize
        return tensor.data_ptr() != 0 and end <= tensor.untyped_storage().nbytes()
    except (RuntimeError, NotImplementedError):  # a wrapper
        return False
