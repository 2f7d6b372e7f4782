"""Operators of torch's dispatcher that code calls: whose they are, and what computes them.

`torch.library.custom_op` keeps the function that it was given, which is read as any other. Of what `Library.impl` was
given nobody can ask for it again: such operators are refused, unless their package is known by its version. Operators
of C++ go by their names.
"""

from __future__ import annotations

import sys
from typing import Any

from lmstash.identity.code.owners import KNOWN_PACKAGES

_OF_TORCH = frozenset(
    {
        "_c10d_functional", "_c10d_functional_autograd", "_dtensor", "_inductor_test", "_native", "_quantized", "aten",
        "c10d", "c10d_functional", "debug_mode_ops", "debugprims", "export", "flex_lib", "fsdp", "inductor",
        "inductor_prims", "mkl", "mkldnn", "onednn", "onnx", "onnx_symbolic", "prim", "prims", "profiler", "quantized",
        "quantized_decomposed", "rngprims", "sparse", "streams", "symm_mem",
    }
)  # fmt: skip
"""Spaces of torch's own. What somebody puts into `aten` is seen elsewhere (`patched`)."""
_CLASSES = frozenset({"OpOverload", "OpOverloadPacket"})


def operator_name(value: Any) -> str | None:
    """Return `space::name` of an operator, with its overload where it is one; None for other objects."""
    kind = type(value)
    if kind.__module__ != "torch._ops" or kind.__name__ not in _CLASSES:
        return None
    return str(getattr(value, "_qualified_op_name", None) or value.name())


def made_of(name: str) -> Any:
    """Return what `torch.library.custom_op` has made of somebody's function under a name; None if it has not."""
    return _definitions().get(_without_overload(name))


def is_unreadable(name: str) -> bool:
    """Return whether somebody's Python computes an operator that cannot be had again."""
    space, _, own = _without_overload(name).partition("::")
    if space in _OF_TORCH or space in KNOWN_PACKAGES or made_of(name) is not None:
        return False
    return any(_name_of(each) == f"{space}::{own}" for each in _kernels())


def operators_named(names: set[str]) -> list[tuple[str, Any]]:
    """Return the operators with functions of somebody's that code may call as `torch.ops.space.name`."""
    if "ops" not in names:
        return []
    found = {name: op for name, op in _definitions().items() if names.issuperset(name.split("::"))}
    for kernel in _kernels():
        name = _name_of(kernel)
        if name not in found and names.issuperset(name.split("::")) and is_unreadable(name):
            space, _, own = name.partition("::")
            found[name] = getattr(getattr(sys.modules["torch"].ops, space), own)
    return sorted(found.items(), key=lambda each: each[0])


def _definitions() -> dict[str, Any]:
    return dict(getattr(sys.modules.get("torch._library.custom_ops"), "OPDEFS", {}))


def _kernels() -> tuple[str, ...]:
    """Return `space/name.overload/key` of all that `torch.library` was given to compute."""
    return tuple(getattr(sys.modules.get("torch.library"), "_impls", ()))


def _name_of(kernel: str) -> str:
    space, _, rest = kernel.partition("/")
    return _without_overload(f"{space}::{rest.partition('/')[0]}")


def _without_overload(name: str) -> str:
    space, _, own = name.partition("::")
    return f"{space}::{own.partition('.')[0]}"
