"""What others have put into torch: `torch.nn.functional.silu = mine`, `torch.nn.Linear.forward = mine`.

torch's own code counts by its name alone, so whatever lies in its place counts by its code. Functions of torch that are
put in each other's places are known by their names; those that have the place's own name (an older form of it, say) are
noticed after a process has looked at its first model, not before. Kernels that `torch.library` replaces cannot be read.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodDescriptorType, MethodType, ModuleType, WrapperDescriptorType
from typing import TYPE_CHECKING, Any

from lmstash.errors import UnsupportedModelError
from lmstash.identity.code.owners import defined_in, is_of_its_file, owner_of
from lmstash.identity.encoding import Component

if TYPE_CHECKING:
    from lmstash.identity.code.digests import CodeGraph

_MODULES = ("torch", "torch.nn.functional", "torch.linalg", "torch.special", "torch.fft", "torch._C._nn")
_MODULE = "torch.nn.modules.module.Module"
_FUNCTIONAL = "F"
"""How torch's modules name `torch.nn.functional`."""
_HARMLESS = frozenset({f"{_MODULE}.{name}" for name in ("smart_apply", "__init__", "__setstate__")})
"""What makes modules: transformers replaces the first with each model, `torch.compile` the others when first used."""
_ALIASES = frozenset(
    {
        *("torch._sync", "torch.nn.functional.logsigmoid", "torch.nn.functional._jit_unused"),
        *("torch.Tensor.__rtruediv__", "torch.Tensor.__ipow__", "torch.Tensor.__torch_dispatch__"),
        *(f"{_MODULE}.forward", f"{_MODULE}.__call__"),
    }
)
"""Places whose functions have other names, as torch is made."""
_OWN_KERNELS = frozenset({"aten/_foreach_mm/CUDA", "aten/linalg_lu_solve.out/MPS"})
"""Kernels that torch itself makes in this way."""
_KEYS = frozenset(
    {
        *("CPU", "CUDA", "AutogradCPU", "AutogradCUDA", "Autograd", "MPS", "XPU"),
        *("CompositeImplicitAutograd", "CompositeExplicitAutograd"),
    }
)
"""What computes; torch puts others in the place of those that only say shapes or map over batches."""
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


def patched(model: Any, code: CodeGraph, *, lenient: bool = False) -> dict[Component, Component]:
    """Return what lies in torch's modules and classes and is not torch's; reads it into `code`, which watches the rest.

    Args:
        model: Its modules' classes are looked at, and `torch.Tensor`.
        code: Collects the code. Costs 3 ms.
        lenient: Whether somebody vouches for what cannot be read.

    Raises:
        UnsupportedModelError: A kernel was replaced.
    """
    code.watch(lambda: len(_all_kernels()))
    kernels = sorted(filter(_is_replaced, tuple(_all_kernels())))
    if kernels and not lenient:
        raise UnsupportedModelError(
            f"torch.library has replaced {', '.join(kernels)}, and what computes it now cannot be read. Name it: "
            "variant='...' (a new name whenever it changes)."
        )
    found: dict[Component, Component] = {"torch.library": [*kernels]} if kernels else {}

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
            elif value is not _first.setdefault(where, value) or not _goes_by(name, value, where):
                found[where] = f"{getattr(value, '__module__', None)}.{getattr(value, '__qualname__', None)}"

    for name in _MODULES:
        table = vars(sys.modules[name]) if name in sys.modules else {}
        code.watch_names(table, [each for each, value in list(table.items()) if callable(value)])
        look(name, table)
    functional = sys.modules["torch.nn.functional"]
    classes = {base: None for module in model.modules() for base in type(module).__mro__}
    for cls in (*classes, sys.modules["torch"].Tensor):
        if owner_of(cls.__module__) == "torch":
            place = f"{cls.__module__}.{cls.__qualname__}"
            code.watch_code([each for each in vars(cls).values() if isinstance(each, FunctionType)])
            home = vars(sys.modules[cls.__module__])
            code.watch_names(home, [_FUNCTIONAL])
            if home.get(_FUNCTIONAL, functional) is not functional:
                found[f"{cls.__module__}.{_FUNCTIONAL}"] = "replaced"
                code.objects[f"{cls.__module__}.{_FUNCTIONAL}"] = home[_FUNCTIONAL]
            if place == _MODULE:  # behind it is nothing that a new name could hide
                names = [name for name in vars(cls) if f"{place}.{name}" not in _HARMLESS]
                code.watch_names(vars(cls), [*names, "__getattribute__"])
            else:
                code.watch_class(cls)
            look(place, vars(cls))
    return found


def _all_kernels() -> Collection[str]:
    """Return `operator/kind of tensor` of all that `torch.library` was given to compute."""
    return getattr(sys.modules.get("torch.library"), "_impls", ())


def _is_replaced(kernel: str) -> bool:
    return kernel[:5] == "aten/" and kernel.rpartition("/")[2] in _KEYS and kernel not in _OWN_KERNELS


def _goes_by(name: str, value: Any, where: str) -> bool:
    """Whether a function of torch's has the name of its place, or another one since torch was made."""
    said = getattr(value, "__name__", name)
    if not isinstance(value, FunctionType | BuiltinFunctionType) or said == name or where in _ALIASES:
        return True
    # linalg.cross is linalg_cross, threshold is _threshold, __pow__ is pow.
    return said.rpartition("linalg_")[2].removeprefix("special_").removeprefix("fft_").strip("_") == name.strip("_")


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
        elif isinstance(value, FunctionType):
            yield from () if is_of_its_file(value) else (value,)
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
