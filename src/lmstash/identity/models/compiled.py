"""What `torch.compile` puts on a module: whose function that runs, and whose compiler made it anew.

What Dynamo compiles may round otherwise than what it was made of, and computes the same: what it makes of a token hangs
on the same tokens. That holds of torch's own compilers. One of somebody's own gets the operations of a pass, and may
give back others, as tools do that watch or steer what goes on inside.
"""

from __future__ import annotations

import sys
from types import CodeType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_DYNAMO = "torch._dynamo.eval_frame"
_REGISTRY = "torch._dynamo.backends.registry"
_BACKENDS = ("inductor", "eager", "aot_eager", "aot_eager_decomp_partition")
"""torch's own that go by a name; what others have registered is theirs."""
_INSIDE = "_torchdynamo_orig_backend"
_NESTED = 16
"""Wrappers around a backend that are looked into."""


def is_bound_to(value: Any, module: torch.nn.Module, function: Any) -> bool:
    """Return whether a value is a function of Python's, bound to a module: what the function's class would give."""
    return (
        type(value) is MethodType
        and value.__self__ is module
        and value.__func__ is function
        and type(function) is FunctionType
    )


def is_compiled(value: Any) -> bool:
    """Return whether a value is what `torch.compile` returns for a function."""
    return _held(value) is not None


def is_compiled_by_torch(value: Any, module: torch.nn.Module, function: Any) -> bool:
    """Return whether a value runs a function, bound to a module, as compiled by torch and nothing else.

    Args:
        value: What lies on the module.
        module: The module.
        function: What runs without it.
    """
    held = _held(value)
    return (
        held is not None
        and is_bound_to(held["fn"], module, function)
        and is_bound_to(vars(value).get("_torchdynamo_inline"), module, function)  # for what is compiled around it
        and _is_torch_s(held["callback"])
    )


def is_compiled_module(module: torch.nn.Module) -> bool:
    """Return whether a module runs what `torch.compile` returned."""
    return any(is_compiled(module.__dict__.get(name)) for name in ("forward", "_compiled_call_impl"))


def bears_hooks(module: torch.nn.Module) -> bool:
    """Return whether hooks of Python's can be put on a module: not where they would have to be compiled in wholly."""
    held = _held(module.__dict__.get("_compiled_call_impl"))
    return held is None or getattr(held.get("self"), "fullgraph", True) is False


def _held(value: Any) -> dict[str, Any] | None:
    """Return what Dynamo's wrapper of a function has closed over, which is what it runs; None for anything else."""
    context = getattr(sys.modules.get(_DYNAMO), "_TorchDynamoContext", None)
    if type(value) is not FunctionType or context is None:
        return None
    if value.__code__ not in [each for each in context.__call__.__code__.co_consts if type(each) is CodeType]:
        return None
    try:
        held = {
            name: cell.cell_contents
            for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        }
    except ValueError:  # an empty cell
        return None
    return held if held.keys() >= {"fn", "callback"} else None


def _is_torch_s(backend: Any) -> bool:
    """Whether a compiler is torch's own, with nothing of somebody's put into it, and takes a change for one."""
    torch = sys.modules["torch"]
    for _ in range(_NESTED):
        for name in ("_hooks", "hooks"):
            # One that leaves out guards may run what was compiled with a hook that has been taken off since.
            if getattr(getattr(backend, name, None), "guard_filter_fn", None) is not None:
                return False
        if not hasattr(backend, _INSIDE):
            break
        backend = getattr(backend, _INSIDE)
    kind = type(backend)
    if kind is getattr(torch, "_TorchCompileInductorWrapper", None):
        return not any(map(callable, backend.config.values()))  # passes of somebody's over the operations
    if kind is not getattr(torch, "_TorchCompileWrapper", None):
        return False
    known = getattr(sys.modules.get(_REGISTRY), "_COMPILER_FNS", {})
    own = any(backend.compiler_fn is known.get(name) for name in _BACKENDS)
    return own and not any(map(callable, (backend.kwargs.get("options") or {}).values()))
