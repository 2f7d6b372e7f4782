"""All that a model leads to and that may change: its modules, tensors, attributes, containers, settings, closures.

The walk follows what `structure.stamp` follows, and notes whether it met anything that can change where a comparison of
containers does not look: state in C code or `__slots__`, mappings that compute what they hold.
"""

from __future__ import annotations

import enum
import types
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from lmstash.identity.describe import IMMUTABLE, WITHOUT_MEANING

if TYPE_CHECKING:
    import torch

_MAX_CONTAINERS = 100_000
_CONTAINERS = (dict, OrderedDict, defaultdict, list, set, tuple, frozenset)
_CONSTANT = (str, bytes, int, float, enum.Enum, type, types.BuiltinFunctionType, types.ModuleType, *WITHOUT_MEANING)
"""What cannot change, or is not looked into by anybody: classes stand by their code."""
_PYTHON_CLASS_BYTES = 16
"""A class written in Python adds room for `__dict__` and `__weakref__` at most, beside its slots."""
_TORCH_CONTAINERS = frozenset(
    {
        "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_backward_pre_hooks", "_backward_hooks",
        "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
        "_forward_pre_hooks_with_kwargs", "_state_dict_hooks", "_state_dict_pre_hooks",
        "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
    }
)  # fmt: skip
"""Looked at in their own way, or about gradients and files only."""


class Reached:
    """What was met on a walk from a model. Nothing is kept alive but the model's own parts."""

    def __init__(self, model: torch.nn.Module, outside: Iterable[Any]) -> None:
        """Walk; about 5 ms for 400 modules.

        Args:
            model: Any torch module.
            outside: Other objects that its code leads to (`CodeGraph.objects`).
        """
        import torch
        from torch.nn.modules import module as torch_module

        self.dicts: list[dict[Any, Any]] = []
        """Whose values count."""
        self.keyed: list[dict[Any, Any]] = []
        """Of these, those whose keys count, too."""
        self.empty: list[dict[Any, Any]] = []
        self.lists: list[Any] = []
        """Lists and sets."""
        self.tensors: list[torch.Tensor] = []
        self.objects: list[Any] = []
        """Whose class and `__dict__` count: modules, tensors and others."""
        self.states: list[dict[str, Any]] = []
        """The `__dict__` of each."""
        self.cells: list[types.CellType] = []
        """Of functions that were met as values."""
        self.is_complete = True
        """Whether all was walked that containers lead to."""
        self.is_whole = "config" in vars(model) or not hasattr(model, "config")
        """Whether nothing was met that may change out of sight."""
        self._types = torch.nn.Module, torch.Tensor
        self._constant = (*_CONSTANT, torch.device, torch.dtype, torch.layout, torch.memory_format, torch.Size)
        self._found: list[Any] = list(outside)
        self._seen: set[int] = set()
        for hooks in (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks):
            self._dict(hooks)
            self._found += hooks.values()
        self._found += reversed(list(model.modules()))
        while self._found and self.is_complete:
            value = self._found.pop()
            if type(value) not in IMMUTABLE and id(value) not in self._seen:
                self._seen.add(id(value))
                self._take(value)
        self.dicts += self.keyed

    def _take(self, value: Any) -> None:
        module, tensor = self._types
        if isinstance(value, module):
            self._module(value)
        elif isinstance(value, tensor):
            self._tensor(value)
        elif isinstance(value, types.FunctionType):
            for cell in value.__closure__ or ():
                self.cells.append(cell)
                self._found.append(contents(cell))
        elif isinstance(value, types.MethodType):
            self._found += (value.__func__, value.__self__)
        elif not isinstance(value, self._constant):
            self._value(value)
        self.is_complete = len(self.keyed) + len(self.lists) <= _MAX_CONTAINERS

    def _module(self, module: torch.nn.Module) -> None:
        state = vars(module)
        self._object(module, state)
        self.dicts.append(state)
        for name in ("_parameters", "_buffers", "_modules"):
            (self.dicts if state[name] else self.empty).append(state[name])
            self._found += state[name].values()
        for hooks in (state["_forward_hooks"], state["_forward_pre_hooks"]):
            self._dict(hooks)
            self._found += hooks.values()
        self._seen |= {id(state[name]) for name in _TORCH_CONTAINERS & state.keys()}
        self._found += [each for each in state.values() if type(each) not in IMMUTABLE]

    def _tensor(self, tensor: torch.Tensor) -> None:
        self.tensors.append(tensor)
        state = vars(tensor)
        self._object(tensor, state)
        self._dict(state)
        self._found += state.values()

    def _value(self, value: Any) -> None:
        kind = type(value)
        if isinstance(value, dict):
            self.keyed.append(value)
            self._found += (*value, *value.values())
        elif isinstance(value, list | set):
            self.lists.append(value)
            self._found += value
        elif isinstance(value, tuple | frozenset):
            self._found += value
        elif isinstance(value, Mapping):
            self.is_whole = False
        state = getattr(value, "__dict__", None)
        if isinstance(state, dict):
            self._object(value, state)
            self.keyed.append(state)
            self._found += state.values()
        self.is_whole &= kind in _CONTAINERS or _is_looked_through(kind)

    def _object(self, value: Any, state: dict[str, Any]) -> None:
        self.objects.append(value)
        self.states.append(state)

    def _dict(self, held: dict[Any, Any]) -> None:
        (self.keyed if held else self.empty).append(held)


def contents(cell: types.CellType) -> Any:
    """Return what a closure's variable holds; the cell itself where that is nothing."""
    try:
        return cell.cell_contents
    except ValueError:
        return cell


def _is_looked_through(kind: type) -> bool:
    """Whether instances have no state but in their `__dict__`, and in the plain container that they may be."""
    is_container = issubclass(kind, _CONTAINERS)
    for base in kind.__mro__:
        if base is object or base in _CONTAINERS:
            continue
        own = vars(base)
        slots = own.get("__slots__", ())
        if (slots if isinstance(slots, str) else set(slots) - {"__dict__", "__weakref__"}) or not (
            base.__dictoffset__ or "__slots__" in own
        ):
            return False
        if is_container and ("__iter__" in own or "items" in own):
            return False
        assert base.__base__ is not None
        if base.__basicsize__ - base.__base__.__basicsize__ > _PYTHON_CLASS_BYTES:
            return False  # it is written in C
    return True
