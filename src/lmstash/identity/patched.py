"""What others have put into torch: `torch.nn.functional.silu = mine`, `torch.nn.Linear.forward = mine`.

torch's own code counts by its name alone, so whatever lies in its place counts by its code. Functions of torch that are
put in each other's places are noticed after a process has looked at its first model, not before.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodDescriptorType, ModuleType, WrapperDescriptorType
from typing import TYPE_CHECKING, Any

from lmstash.identity.code import BY_NAME, defined_in, functions_of, owner_of
from lmstash.identity.encoding import Component

if TYPE_CHECKING:
    from lmstash.identity.code import CodeGraph

_MODULES = ("torch", "torch.nn.functional", "torch.linalg", "torch.special", "torch.fft")
_HARMLESS = frozenset({"torch.nn.modules.module.Module.smart_apply"})
"""Transformers puts it there anew with each model that it makes, and initialises weights by it."""
_OWN = BY_NAME | {"typing_extensions"}
_NATIVE = (BuiltinFunctionType, MethodDescriptorType, WrapperDescriptorType, ModuleType, type)
_MEMBERS = (staticmethod, classmethod, property)
_first: dict[str, Any] = {}
"""What of torch's lay in each place when it was first seen."""


def patched(model: Any, code: CodeGraph) -> dict[Component, Component]:
    """Return what lies in torch's modules and classes and is not torch's; reads it into `code`, which watches the rest.

    Args:
        model: Its modules' classes are looked at, and `torch.Tensor`.
        code: Collects the code. Costs 3 ms.
    """
    found: dict[Component, Component] = {}

    def look(place: str, table: Mapping[str, Any]) -> None:
        for name, value in list(table.items()):
            where = f"{place}.{name}"
            if where in _HARMLESS or not (callable(value) or isinstance(value, _MEMBERS)):
                continue
            foreign = list(_foreign(value))
            if foreign:
                found[where] = [code.add(each if isinstance(each, FunctionType) else type(each)) for each in foreign]
                if not isinstance(foreign[0], FunctionType):
                    code.objects[where] = foreign[0]
            elif value is not _first.setdefault(where, value):
                found[where] = f"{getattr(value, '__module__', None)}.{getattr(value, '__qualname__', None)}"

    for name in _MODULES:
        table = vars(sys.modules[name]) if name in sys.modules else {}
        code.watch_names(table, [each for each, value in list(table.items()) if callable(value)])
        look(name, table)
    classes = {base: None for module in model.modules() for base in type(module).__mro__}
    for cls in (*classes, sys.modules["torch"].Tensor):
        if owner_of(cls.__module__) == "torch":
            place = f"{cls.__module__}.{cls.__qualname__}"
            if place == "torch.nn.modules.module.Module":  # behind it is nothing that a new name could hide
                names = [name for name in vars(cls) if f"{place}.{name}" not in _HARMLESS]
                code.watch_names(vars(cls), [*names, "__getattribute__"])
            else:
                code.watch_class(cls)
            look(place, vars(cls))
    return found


def _foreign(value: Any) -> Iterator[Any]:
    """Yield the functions behind a value that are not torch's, or the value where it is somebody's other object."""
    if isinstance(value, (FunctionType, *_MEMBERS)):
        yield from (each for each in functions_of(value) if owner_of(defined_in(each)) not in _OWN)
    elif isinstance(value, partial) or not (
        isinstance(value, _NATIVE) or owner_of(type(value).__module__) in _OWN or owner_of(defined_in(value)) in _OWN
    ):
        yield value
