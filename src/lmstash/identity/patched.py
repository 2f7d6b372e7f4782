"""What others have put into torch: `torch.nn.functional.silu = mine`, `torch.nn.Linear.forward = mine`.

torch's own code counts by its name alone, so whatever lies in its place counts by its code. Functions of torch that are
put in each other's places are noticed after a process has looked at its first model, not before.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodDescriptorType, MethodType, ModuleType, WrapperDescriptorType
from typing import TYPE_CHECKING, Any

from lmstash.identity.code import defined_in, owner_of
from lmstash.identity.encoding import Component

if TYPE_CHECKING:
    from lmstash.identity.code import CodeGraph

_MODULES = ("torch", "torch.nn.functional", "torch.linalg", "torch.special", "torch.fft")
_HARMLESS = frozenset({"torch.nn.modules.module.Module.smart_apply"})
"""Transformers puts it there anew with each model that it makes, and initialises weights by it."""
_OWN = frozenset({"torch", "typing", "typing_extensions", "collections"})
"""torch imports words for annotations from the others."""
_NATIVE = (BuiltinFunctionType, MethodDescriptorType, WrapperDescriptorType)
_CODE = (*_NATIVE, FunctionType, type)
"""What is read as code; the rest is described by what it holds."""
_MEMBERS = (staticmethod, classmethod, property)
_MADE = frozenset({"ScriptFunction", "ScriptMethod", "CustomOpDef"})
"""torch's classes of what it makes of somebody's function."""
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
            foreign = list(_foreign(name, value))
            if foreign:
                found[where] = [code.add(each if isinstance(each, _CODE) else type(each)) for each in foreign]
                held = [each for each in foreign if not isinstance(each, _CODE)]
                code.objects.update({f"{where} {number}": each for number, each in enumerate(held)})
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


def _foreign(name: str, value: Any) -> Iterator[Any]:
    """Yield what is not torch's of what lies under a name: code, and other objects that decide what a call gives."""
    owner = owner_of(defined_in(value))
    if isinstance(value, _MEMBERS):
        inner = (value.fget, value.fset, value.fdel) if isinstance(value, property) else (value.__func__,)
        for each in inner:
            yield from () if each is None else _foreign(name, each)
    elif isinstance(value, MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, FunctionType | type):
        if owner not in _OWN and not (isinstance(value, type) and owner == "builtins"):
            yield value
    elif isinstance(value, _NATIVE):
        holder = getattr(value, "__self__", None)
        if getattr(value, "__module__", None) is not None:
            yield from () if owner in _OWN else (value,)
        elif not isinstance(holder, ModuleType | type | None):  # a method of an object
            yield from (value, holder)
    elif hasattr(value, "__wrapped__") and not isinstance(value, partial):
        yield from _foreign(name, value.__wrapped__)
    elif not _is_own(name, value):
        yield value


def _is_own(name: str, value: Any) -> bool:
    """Whether an object that is neither function nor class is torch's, or of those that only annotate."""
    kind = type(value)
    if owner_of(kind.__module__) in ("typing", "typing_extensions"):
        return True
    of_torch = owner_of(kind.__module__) == owner_of(defined_in(value)) == "torch" and kind.__name__ not in _MADE
    return of_torch and getattr(value, "__name__", name) == name
