"""All that a model leads to and that may change: its modules, tensors, attributes, containers, closures.

Contents are noted as they are walked, so that what is compared with them later is what was walked: an equal copy that
another thread puts in place meanwhile is not taken for it.
"""

from __future__ import annotations

import enum
import types
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from lmstash.identity.code.owners import is_of_lmstash
from lmstash.identity.describe import IMMUTABLE, WITHOUT_MEANING, bound_to
from lmstash.identity.models.hooks import global_hooks

if TYPE_CHECKING:
    import torch

_MAX_CONTAINERS = 100_000
_CONSTANT = (str, bytes, int, float, enum.Enum, type, types.ModuleType, *WITHOUT_MEANING)
"""What cannot change, or is not looked into by anybody: classes stand by their code."""
_EXACT = frozenset({list, set, tuple, frozenset, dict, type, types.FunctionType, types.MethodType})
"""Objects of these types cannot be given another class."""
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

        self.dicts: list[tuple[dict[Any, Any], list[Any], list[Any]]] = []
        """Each with its keys and its values."""
        self.empty: list[dict[Any, Any]] = []
        self.lists: list[tuple[Any, list[Any]]] = []
        """Lists and sets, each with its members."""
        self.cells: list[tuple[types.CellType, Any]] = []
        """Of functions that were met as values, each with what it holds."""
        self.tensors: list[torch.Tensor] = []
        self.objects: list[Any] = []
        """Whose class counts: modules, tensors and others."""
        self.hooks = global_hooks()
        self.is_complete = True
        """Whether all was walked that containers lead to."""
        self._types = torch.nn.Module, torch.Tensor
        self._constant = (*_CONSTANT, torch.device, torch.dtype, torch.layout, torch.memory_format, torch.Size)
        self._found: list[Any] = list(outside)
        self._seen: set[int] = set()
        for hooks in self.hooks:
            self._dict(hooks)
        self._found += reversed(list(model.modules()))
        while self._found and self.is_complete:
            value = self._found.pop()
            if type(value) not in IMMUTABLE and id(value) not in self._seen:
                self._seen.add(id(value))
                self._take(value)

    def _take(self, value: Any) -> None:
        module, tensor = self._types
        if type(value) not in _EXACT:
            self.objects.append(value)
        if isinstance(value, module):
            self._module(value)
        elif isinstance(value, tensor):
            self.tensors.append(value)
            self._dict(vars(value))
        elif isinstance(value, types.FunctionType):
            for cell in value.__closure__ or ():
                held = contents(cell)
                self.cells.append((cell, held))
                self._found.append(held)
        elif isinstance(value, types.MethodType):
            self._found += (value.__func__, value.__self__)
        elif isinstance(value, types.BuiltinFunctionType):
            self._found += [] if (owner := bound_to(value)) is None else [owner]
        elif not isinstance(value, self._constant) and not is_of_lmstash(value):  # whose counters move with each call
            self._value(value)
        self.is_complete = len(self.dicts) + len(self.lists) <= _MAX_CONTAINERS

    def _module(self, module: torch.nn.Module) -> None:
        state = vars(module)
        # What is about gradients and files only is not followed; the rest of these is looked at just below.
        self._seen |= {id(state[name]) for name in _TORCH_CONTAINERS & state.keys()}
        self._dict(state)
        for name in ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks"):
            self._dict(state[name])

    def _value(self, value: Any) -> None:
        if isinstance(value, dict):
            self._dict(value)
        elif isinstance(value, list | set):
            members = list(value)
            self.lists.append((value, members))
            self._found += members
        elif isinstance(value, tuple | frozenset):
            self._found += value
        state = getattr(value, "__dict__", None)
        if isinstance(state, dict):
            self._dict(state)

    def _dict(self, held: dict[Any, Any]) -> None:
        """Note what a dict holds, and follow it."""
        keys, values = list(dict.keys(held)), list(dict.values(held))
        if not keys:
            self.empty.append(held)
            return
        self.dicts.append((held, keys, values))
        self._found += [each for each in (*keys, *values) if type(each) not in IMMUTABLE]


def config_of(module: torch.nn.Module) -> Any:
    """Return the configuration of a model or a part of it; None where it has none, or does not give it."""
    try:
        return getattr(module, "config", None)
    except Exception:  # a property of somebody's
        return None


def contents(cell: types.CellType) -> Any:
    """Return what a closure's variable holds; the cell itself where that is nothing."""
    try:
        return cell.cell_contents
    except ValueError:
        return cell
