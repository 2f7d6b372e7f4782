"""A look at a model that costs a fraction of a millisecond: may it have changed since it was last read?

`ModelWatch.refresh` reads every weight, which is dear beside a hit of microseconds. A glance compares what is cheap to
compare and complete for all that leaves a trace in Python: attributes, containers, hooks, parameters put in other
places, version counters, settings of torch. Of the weights' bytes it reads all where they are few, else one word a
tensor, so that a change of a whole tensor through `.data` shows and one of a few elements may not.
"""

from __future__ import annotations

import ctypes
import gc
import random
from collections.abc import Mapping
from itertools import chain
from operator import is_
from typing import TYPE_CHECKING, Any

import xxhash

from lmstash.identity.describe import IMMUTABLE
from lmstash.identity.numerics import device_types, numerics

if TYPE_CHECKING:
    import torch

    from lmstash.identity.code import CodeGraph

WHOLE_BYTES = 2**20
"""Weights on the CPU up to this size are read wholly."""
_MAX_CONTAINERS = 100_000
_random = random.Random()
"""Of our own: the program's stream of random numbers stays as it is."""


class Glance:
    """What a model looked like when this was made. Threads may share it; a look costs 0.15 ms for 400 modules.

    All of it is walked by C code, without a step of Python for each value; what dicts hold is had from
    `gc.get_referents`, in half the time that their views take, wherever that is seen to return all of it.

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
        self._types = list(map(type, self._modules))
        self._code = code
        dicts: list[dict[Any, Any]] = []
        self._empty: list[Any] = []
        """Hooks, where there are none."""
        self._keyed: list[dict[Any, Any]] = []
        """Of the dicts those whose keys count, too."""
        self._lists: list[Any] = []
        """Lists and sets."""
        self._tensors: list[torch.Tensor] = []
        seen: set[int] = set()
        found: list[Any] = list(outside.values())
        for hooks in (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks):
            (self._keyed if hooks else self._empty).append(hooks)
        for module in self._modules:
            state = module.__dict__
            dicts += (state, *filter(None, (state["_parameters"], state["_buffers"], state["_modules"])))
            self._empty += [state[name] for name in ("_parameters", "_buffers", "_modules") if not state[name]]
            for hooks in (state["_forward_hooks"], state["_forward_pre_hooks"]):
                (self._keyed if hooks else self._empty).append(hooks)
            for tensors in (state["_parameters"], state["_buffers"]):
                self._tensors += [each for each in tensors.values() if each is not None]
            found += [each for each in state.values() if type(each) not in IMMUTABLE]
            seen |= {id(state[name]) for name in _TORCH_CONTAINERS & state.keys()}
        dicts += [vars(each) for each in self._tensors if vars(each)]
        self._complete = self._collect(found, seen)
        dicts += self._keyed
        self._shown = tuple(each for each in dicts if _shows_values(each))
        self._referents = gc.get_referents(*self._shown)
        self._views = [each.values() for each in dicts if not _shows_values(each)]
        self._values = list(chain.from_iterable(self._views))
        self._keys = list(chain.from_iterable(self._keyed))
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
                and not any(self._empty)
                and list(map(type, self._modules)) == self._types
                and gc.get_referents(*self._shown) == self._referents
                and list(chain.from_iterable(self._views)) == self._values
                and list(chain.from_iterable(self._keyed)) == self._keys
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


_TORCH_CONTAINERS = frozenset(
    {
        "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_backward_pre_hooks", "_backward_hooks",
        "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
        "_forward_pre_hooks_with_kwargs", "_state_dict_hooks", "_state_dict_pre_hooks",
        "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
    }
)  # fmt: skip
"""Looked at in their own way, or about gradients and files only."""


def _shows_values(values: dict[Any, Any]) -> bool:
    """Return whether `gc.get_referents` returns a dict's values, and nothing else.

    Not if its keys are no strings, or (from Python 3.13 on) if its values lie in the object whose attributes they are.
    """
    shown = gc.get_referents(values)
    return len(shown) == len(values) and all(map(is_, shown, values.values()))
