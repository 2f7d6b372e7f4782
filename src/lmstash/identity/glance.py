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
from operator import attrgetter, is_
from typing import TYPE_CHECKING, Any

import xxhash

from lmstash.identity.describe import IMMUTABLE
from lmstash.identity.dict_stamps import Stamps
from lmstash.identity.numerics import device_types, numerics
from lmstash.identity.object_words import Kinds
from lmstash.identity.reached import Reached, contents

if TYPE_CHECKING:
    import torch

    from lmstash.identity.code import CodeGraph

WHOLE_BYTES = 2**20
"""Weights on the CPU up to this size are read wholly."""
_random = random.Random()
"""Of our own: the program's stream of random numbers stays as it is."""


class Glance:
    """What a model looked like when this was made. Threads may share it; a look costs 0.1 ms for 400 modules.

    All of it is walked by C code, without a step of Python for each value, and dicts that were not touched (see
    `dict_stamps`) are not walked at all; where Python does not tell which were, a look takes about 0.4 ms.

    Values are compared by identity first and by `==` where that fails: objects that keep their state where Python
    cannot look (C code, `__slots__`) are only seen by `ModelWatch.refresh`. Nothing is kept alive but the model's own
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
        self._kinds = Kinds(reached.objects, reached.empty)
        self._plain = _Contents([each for each in reached.dicts if type(each) is dict], reached.keyed)
        self._stamps = Stamps(self._plain.dicts)
        self._same = self._plain.unreplaced if self._stamps.kept else self._plain.same
        self._other = _Contents([each for each in reached.dicts if type(each) is not dict], reached.keyed)
        self._lists = reached.lists
        self._members = list(chain.from_iterable(self._lists))
        self._lengths = list(map(len, self._lists))
        self._cells = reached.cells
        self._variables = list(map(contents, self._cells))
        self._objects, self._states = reached.objects, reached.states
        self._tensors = reached.tensors
        self._devices = device_types(self._tensors)
        self._numerics = numerics(self._devices)
        self._data_ptr = torch.Tensor.data_ptr
        self._addresses = [self._address(each) for each in self._tensors]
        self._counted = [each for each in self._tensors if not each.is_inference()]
        self.known_versions = self.versions()
        """What `holds` compares `versions` with."""
        self.is_whole = reached.is_complete and reached.is_whole and None not in self._addresses
        """Whether `stands` sees all that `structure.stamp` does."""
        self._forms = list(map(_form, self._tensors)) if self.is_whole else []
        self._wholes: list[memoryview] = []
        self._words: list[memoryview] = []
        self.draw()

    def holds(self) -> bool:
        """Return whether nothing that a glance sees has changed. Does not raise."""
        try:
            return self.versions() == self.known_versions and self._stands() and self._read() == self._sums
        except Exception:  # two tensors compared for equality, a dict that grew under the walk, memory freed: changed
            return False

    def stands(self) -> bool:
        """Return whether all but the bytes of the tensors, and the counters of their changes, is as it was.

        Looks at everything, which takes about three times as long as `holds`; false unless `is_whole`. Does not raise.
        """
        try:
            return (
                self.is_whole
                and self._stands()
                and (self._stamps.kept or self._plain.unreplaced())
                and self._other.unreplaced()
                and _unreplaced(chain.from_iterable(self._lists), self._members)
                and all(map(is_, map(contents, self._cells), self._variables))
                and all(map(is_, map(_STATE, self._objects), self._states))
                and list(map(_form, self._tensors)) == self._forms
            )
        except Exception:
            return False

    def versions(self) -> list[int]:
        """Return the counters by which torch counts changes of tensors in place."""
        return [each._version for each in self._counted]

    def _stands(self) -> bool:
        return (
            self._complete
            and self._kinds.hold()
            and self._stamps.hold(self._same)
            and self._other.same()
            and list(chain.from_iterable(self._lists)) == self._members
            and list(map(len, self._lists)) == self._lengths
            and list(map(self._data_ptr, self._tensors)) == self._addresses
            and numerics(self._devices) == self._numerics
            and (self._code is None or self._code.unchanged())
        )

    def _address(self, tensor: torch.Tensor) -> int | None:
        """Return where a tensor's memory is; None, which never holds, for a wrapper without any."""
        try:
            return self._data_ptr(tensor)
        except (RuntimeError, NotImplementedError):
            return None

    def draw(self) -> None:
        """Take the memory of each tensor on the CPU: all of it where they are small, else a word at a place drawn.

        What it holds now is what `holds` looks for from now on.
        """
        self._wholes, self._words = [], []
        here = [each for each in self._tensors if each.device.type == "cpu" and each.is_contiguous() and each.nbytes]
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
    """What dicts hold: the values of all, and the keys of some."""

    def __init__(self, dicts: list[dict[Any, Any]], keyed: list[dict[Any, Any]]) -> None:
        wanted = set(map(id, keyed))
        self.dicts = dicts
        self._keyed = [each for each in dicts if id(each) in wanted]
        self._views = [each.values() for each in dicts]
        self._values = list(chain.from_iterable(self._views))
        self._keys = list(chain.from_iterable(self._keyed))

    def same(self) -> bool:
        """Return whether they hold the same. Raises what comparing values raises."""
        return (
            list(chain.from_iterable(self._views)) == self._values
            and list(chain.from_iterable(self._keyed)) == self._keys
        )

    def unreplaced(self) -> bool:
        """As `same`, and what can change by itself is no equal copy, whose own changes nobody would look at."""
        return (
            self.same()
            and _unreplaced(chain.from_iterable(self._views), self._values)
            and _unreplaced(chain.from_iterable(self._keyed), self._keys)
        )


def _unreplaced(values: Iterable[Any], known: list[Any]) -> bool:
    """Whether values are the same objects, or plain ones that are the same in every respect."""
    return all(
        now is then or (type(now) is type(then) and type(now) in IMMUTABLE and repr(now) == repr(then))  # 0.0 and -0.0
        for now, then in zip(values, known, strict=True)
    )


def _form(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.untyped_storage().nbytes()


_STATE = attrgetter("__dict__")
