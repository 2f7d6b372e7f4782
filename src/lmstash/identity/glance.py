"""A look at a model that costs a fraction of a millisecond: may it have changed since it was last read?

`ModelWatch.refresh` reads every weight, which is dear beside a hit of microseconds. A glance compares what is cheap to
compare and complete for all that leaves a trace in Python: attributes, containers, hooks, parameters put in other
places, version counters, settings of torch. Of the weights' bytes it reads all where they are few, else one word a
tensor, so that a change of a whole tensor through `.data` shows and one of a few elements may not.
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

import xxhash

from lmstash.identity.describe import IMMUTABLE
from lmstash.identity.dict_stamps import Stamps
from lmstash.identity.numerics import device_types, numerics
from lmstash.identity.object_words import Kinds

if TYPE_CHECKING:
    import torch

    from lmstash.identity.code import CodeGraph

WHOLE_BYTES = 2**20
"""Weights on the CPU up to this size are read wholly."""
_MAX_CONTAINERS = 100_000
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
        from torch.nn.modules import module as torch_module

        self._modules = list(model.modules())
        self._code = code
        dicts: list[dict[Any, Any]] = []
        empty: list[Any] = []  # hooks, where there are none
        self._keyed: list[dict[Any, Any]] = []
        """Of the dicts those whose keys count, too."""
        self._lists: list[Any] = []
        """Lists and sets."""
        self._tensors: list[torch.Tensor] = []
        seen: set[int] = set()
        found: list[Any] = list(outside.values())
        for hooks in (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks):
            (self._keyed if hooks else empty).append(hooks)
        for module in self._modules:
            state = module.__dict__
            dicts += (state, *filter(None, (state["_parameters"], state["_buffers"], state["_modules"])))
            empty += [state[name] for name in ("_parameters", "_buffers", "_modules") if not state[name]]
            for hooks in (state["_forward_hooks"], state["_forward_pre_hooks"]):
                (self._keyed if hooks else empty).append(hooks)
            for tensors in (state["_parameters"], state["_buffers"]):
                self._tensors += [each for each in tensors.values() if each is not None]
            found += [each for each in state.values() if type(each) not in IMMUTABLE]
            seen |= {id(state[name]) for name in _TORCH_CONTAINERS & state.keys()}
        dicts += [vars(each) for each in self._tensors if vars(each)]
        self._kinds = Kinds(self._modules, empty)
        self._complete = self._collect(found, seen)
        dicts += self._keyed
        self._plain = _Contents([each for each in dicts if type(each) is dict], self._keyed)
        self._stamps = Stamps(self._plain.dicts)
        self._same = self._plain.unreplaced if self._stamps.kept else self._plain.same
        self._other = _Contents([each for each in dicts if type(each) is not dict], self._keyed)
        self._members = list(chain.from_iterable(self._lists))
        self._lengths = list(map(len, self._lists))
        self._devices = device_types(self._tensors)
        self._numerics = numerics(self._devices)
        self._data_ptr = torch.Tensor.data_ptr
        self._addresses = [self._address(each) for each in self._tensors]
        self._counted = [each for each in self._tensors if not each.is_inference()]
        self._versions = [each._version for each in self._counted]
        self._wholes: list[memoryview] = []
        self._words: list[memoryview] = []
        self._draw()
        self._sums = self._read()

    def holds(self) -> bool:
        """Return whether nothing that a glance sees has changed. Does not raise."""
        try:
            return (
                self._complete
                and [each._version for each in self._counted] == self._versions
                and self._kinds.hold()
                and self._stamps.hold(self._same)
                and self._other.same()
                and list(chain.from_iterable(self._lists)) == self._members
                and list(map(len, self._lists)) == self._lengths
                and list(map(self._data_ptr, self._tensors)) == self._addresses
                and self._read() == self._sums
                and numerics(self._devices) == self._numerics
                and (self._code is None or self._code.unchanged())
            )
        except Exception:  # two tensors compared for equality, a dict that grew under the walk, memory freed: changed
            return False

    def _collect(self, found: list[Any], seen: set[int]) -> bool:
        """Note every plain container that is reachable from `found`; returns whether these are all."""
        import torch

        while found:
            value = found.pop()
            if id(value) in seen or isinstance(value, type) or type(value) in IMMUTABLE:
                continue
            seen.add(id(value))
            if isinstance(value, torch.Tensor):
                self._tensors.append(value)
                continue
            if isinstance(value, torch.nn.Module):
                continue
            if isinstance(value, dict):
                self._keyed.append(value)
                found.extend(value.values())
            elif isinstance(value, list | set | tuple | frozenset):
                if not isinstance(value, tuple | frozenset):
                    self._lists.append(value)
                found.extend(value)
            state = getattr(value, "__dict__", None)
            if isinstance(state, dict) and not callable(value):
                self._keyed.append(state)
                found.extend(state.values())
            if len(self._keyed) + len(self._lists) > _MAX_CONTAINERS:
                return False
        return True

    def _address(self, tensor: torch.Tensor) -> int | None:
        """Return where a tensor's memory is; None, which never holds, for a wrapper without any."""
        try:
            return self._data_ptr(tensor)
        except (RuntimeError, NotImplementedError):
            return None

    def _draw(self) -> None:
        """Take the memory of each tensor on the CPU: all of it where they are small, else a word at a place drawn."""
        here = [each for each in self._tensors if each.device.type == "cpu" and each.is_contiguous() and each.nbytes]
        whole = sum(each.nbytes for each in here) <= WHOLE_BYTES
        for tensor in here:
            memory = memoryview((ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())).cast("B")
            if whole:
                self._wholes.append(memory)
                continue
            place = 8 * _random.randrange((len(memory) + 7) // 8)
            self._words.append(memory[place : place + 8])  # a change of a number may leave one of its bytes as it was

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
        values = chain.from_iterable(self._views)
        return self.same() and all(
            now is then or type(now) in IMMUTABLE for now, then in zip(values, self._values, strict=True)
        )


_TORCH_CONTAINERS = frozenset(
    {
        "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_backward_pre_hooks", "_backward_hooks",
        "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
        "_forward_pre_hooks_with_kwargs", "_state_dict_hooks", "_state_dict_pre_hooks",
        "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
    }
)  # fmt: skip
"""Looked at in their own way, or about gradients and files only."""
