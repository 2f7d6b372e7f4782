"""Operators of torch's dispatcher that code calls: whose they are, and what computes them.

`torch.library.custom_op` keeps the function that it was given, which is read as any other. Of what `Library.impl` was
given nobody can ask for it again: such operators are refused, unless their package is known by its version. Operators
of C++ go by their names.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Set
from typing import Any

from lmstash.errors import UnsupportedModelError
from lmstash.identity.code.owners import KNOWN_PACKAGES
from lmstash.identity.code.words import ANY_NAME
from lmstash.identity.encoding import Component

_OF_TORCH = frozenset(
    {
        "_c10d_functional", "_c10d_functional_autograd", "_dtensor", "_inductor_test", "_native", "_quantized", "aten",
        "c10d", "c10d_functional", "debug_mode_ops", "debugprims", "export", "flex_lib", "fsdp", "inductor",
        "inductor_prims", "mkl", "mkldnn", "onednn", "onnx", "onnx_symbolic", "prim", "prims", "profiler", "quantized",
        "quantized_decomposed", "rngprims", "sparse", "streams", "symm_mem",
    }
)  # fmt: skip
"""Spaces of torch's own. What somebody puts into `aten` is seen elsewhere (`patched`)."""
_KNOWN = _OF_TORCH | (KNOWN_PACKAGES - frozenset(sys.stdlib_module_names))
"""Python's own modules have no operators: a space that is called like one (`code`, `signal`) is somebody's."""
_CLASSES = frozenset({"OpOverload", "OpOverloadPacket"})
_OF_SHAPES = frozenset({"Meta", "ADInplaceOrView"})
"""Kernels that compute no values. The second `custom_op` overrides itself."""


def operator_name(value: Any) -> str | None:
    """Return `space::name` of an operator, with its overload where it is one; None for other objects."""
    kind = type(value)
    if kind.__module__ != "torch._ops" or kind.__name__ not in _CLASSES:
        return None
    return str(getattr(value, "_qualified_op_name", None) or value.name())


def is_known(name: str) -> bool:
    """Return whether an operator's space is torch's or a known package's."""
    return name.partition("::")[0] in _KNOWN


def is_space(value: Any) -> bool:
    """Return whether a value is a space of operators that may be somebody's: `torch.ops.mine`, not `torch.ops.aten`."""
    kind = type(value)
    return kind.__module__ == "torch._ops" and kind.__name__ == "_OpNamespace" and not is_known(value.name)


def is_all_spaces(value: Any) -> bool:
    """Return whether a value is `torch.ops`."""
    kind = type(value)
    return kind.__module__ == "torch._ops" and kind.__name__ == "_Ops"


def made_of(name: str) -> Any:
    """Return what `torch.library.custom_op` has made of somebody's function under a name; None if it has not."""
    made = _kept().get(name)
    return _kept().get(_without_overload(name)) if made is None else made


def said_of(made: Any) -> list[Component]:
    """Return the name of what `custom_op` has made, which kernels of it are off, and what autocast hands it."""
    off, casts = getattr(made, "_disabled_kernel", ()), getattr(made, "_autocast_dtype", {})
    if not (off or casts):
        return [made._qualname]
    return [made._qualname, sorted(map(str, off)), sorted(f"{device} {dtype}" for device, dtype in casts.items())]


def is_unreadable(name: str) -> bool:
    """Return whether somebody's Python computes an operator that cannot be had again."""
    name = _without_overload(name)
    if is_known(name):
        return False
    kernels, made = _somebodys_kernels().get(name, set()), made_of(name)
    if made is None:
        return bool(kernels)
    return not kernels <= getattr(getattr(made, "_lib", None), "_op_impls", set()) or _is_overridden(made._qualname)


def refuse_unreadable(name: str, path: str) -> None:
    """Refuse an operator that somebody's Python computes and that cannot be had again.

    Raises:
        UnsupportedModelError: It is one.
    """
    if is_unreadable(name):
        raise UnsupportedModelError(
            f"{path}: what computes the operator {name} cannot be had back from torch.library.Library. Make it "
            "with torch.library.custom_op alone, or vouch for it: variant='...' (a new name whenever it changes)."
        )


def operators_named(words: Set[str], *, in_any_space: bool = False, held: Set[str] = frozenset()) -> dict[str, Any]:
    """Return the operators with functions of somebody's that code may call, by name.

    All of a space where it asks for attributes that it does not name, or for none that is an operator.

    Args:
        words: What the code asks for.
        in_any_space: Whether it may ask `torch.ops` for a space that no word is.
        held: Spaces that it reaches by other names.
    """
    if not (held or "ops" in words):
        return {}
    by_any_name, found = not ANY_NAME.isdisjoint(words), set[str]()
    for space, names in _by_space().items():
        named = {each for each in names if _without_overload(each).partition("::")[2] in words}
        if space in held or ("ops" in words and in_any_space and by_any_name and not is_known(space)):
            found |= names
        elif "ops" in words and space in words:
            found |= named if is_known(space) or (named and not by_any_name) else names
    return {each: _found_under(each) for each in sorted(found)}


def kernels_of(name: str) -> str:
    """Return what torch says of all that computes an operator, and which of it is overridden. Costs 6 us."""
    try:
        return str(sys.modules["torch"]._C._dispatch_dump(name))
    except RuntimeError:
        return ""


def look_at_registered() -> Callable[[], bool]:
    """Return what says later whether torch knows the same kernels and definitions as now. Costs 40 us."""
    kernels, made = frozenset(_kernels()), [*_kept().values()]  # which keeps them, so that none gets another's place
    return lambda: _kernels() == kernels and [*_kept().values()] == made


def _by_space() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name in (*_kept().keys(), *_somebodys_kernels()):
        found.setdefault(name.partition("::")[0], set()).add(name)
    return found


def _found_under(name: str) -> Any:
    """Return what was made of somebody's function, or the operator, or its space, where it is not defined yet."""
    if (made := made_of(name)) is not None:
        return made
    space, _, own = name.partition("::")
    held = getattr(sys.modules["torch"].ops, space)
    return getattr(held, own, held)


def _is_overridden(name: str) -> bool:
    """Return whether a kernel lies below another one of its kind, which computes instead."""
    lines = (line.partition(" (inactive)") for line in kernels_of(name).splitlines())
    return any(below and kind.partition("[")[0] not in _OF_SHAPES for kind, below, _ in lines)


def _kept() -> Any:
    return getattr(sys.modules.get("torch._library.custom_ops"), "OPDEFS", {})


def _kernels() -> Set[str]:
    """Return `space/name.overload/key` of all that `torch.library` was given to compute."""
    return getattr(sys.modules.get("torch.library"), "_impls", frozenset())


def _somebodys_kernels() -> dict[str, set[str]]:
    """Return what computes values in spaces that may be somebody's, by the operator's name without its overload."""
    found: dict[str, set[str]] = {}
    for each in tuple(_kernels()):
        space, _, rest = each.partition("/")
        if space not in _KNOWN and (parts := rest.partition("/"))[2] not in _OF_SHAPES:
            found.setdefault(_without_overload(f"{space}::{parts[0]}"), set()).add(each)
    return found


def _without_overload(name: str) -> str:
    space, _, own = name.partition("::")
    return f"{space}::{own.partition('.')[0]}"
