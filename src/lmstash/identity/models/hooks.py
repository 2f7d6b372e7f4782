"""Hooks on a model and what else stands in its passes: whose it is, and whether it may change what is computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

from lmstash.identity.models.compiled import is_bound_to, is_compiled, is_compiled_by_torch

if TYPE_CHECKING:
    import torch

_HARMLESS = frozenset({"transformers.utils.output_capturing"})  # these record outputs and return None
_NEEDS_GRADIENTS = "make_inputs_require_grad"
"""Begins the names of hooks of transformers and peft that say of an output that it needs gradients."""
_CALLS = frozenset({"_call_impl", "_compiled_call_impl", "_wrapped_call_impl"})
"""What runs `forward`, where it lies on an instance: `module.compile()` puts the second there."""


def global_hooks() -> tuple[dict[int, Any], dict[int, Any]]:
    """Return torch's hooks of all modules' forward passes, as they are called now."""
    from torch.nn.modules import module

    return module._global_forward_hooks, module._global_forward_pre_hooks


def own_hooks(module: torch.nn.Module) -> list[dict[int, Any]]:
    """Return the module's dicts of hooks that can change what its forward pass computes."""
    return [module._forward_hooks, module._forward_pre_hooks]


def foreign_hooks(groups: Iterable[dict[int, Any]]) -> list[Any]:
    """Return the hooks that count: neither lmstash's own nor known to be harmless."""
    return [
        hook
        for hooks in groups
        for hook in list(hooks.values())
        if not (getattr(hook, "_lmstash", False) is True or _is_harmless(hook))  # a mock has any attribute
    ]


def words_of(hooks: Iterable[Any]) -> Iterator[str]:
    """Yield what to call the hooks that cannot be compared: not those of torch's own, which are read."""
    for hook in hooks:
        if not str(getattr(type(hook), "__module__", "")).startswith("torch.nn.utils."):  # weight_norm and such
            yield f"a forward hook ({getattr(hook, '__qualname__', type(hook).__qualname__)})"


def placed_on(module: torch.nn.Module, *, vouched: bool) -> Iterator[str]:
    """Yield what somebody has put on a module itself in place of what its class runs.

    Args:
        module: A module.
        vouched: Whether all this goes by its owner's name for it, and is let be; else most of it is read.
    """
    placed = module.__dict__.get("forward")
    if has_own_forward(module):
        if not vouched:
            yield "its own `forward` (set on the instance, as accelerate and torch.compile do)"
        elif not (_only_moves(module) or is_compiled_by_torch(placed, module, _class_s("forward", type(module)))):
            yield f"its own `forward`{_how(placed)}"
    if vouched:
        yield from around_forward(module)


def around_forward(module: torch.nn.Module) -> Iterator[str]:
    """Yield what somebody has put on a module itself in place of what runs its `forward`; read where none vouches."""
    for name in sorted(_CALLS & module.__dict__.keys()):
        placed = module.__dict__[name]
        if placed is None and name == "_compiled_call_impl":  # as its class says
            continue
        runs = _class_s("_call_impl" if name == "_compiled_call_impl" else name, type(module))
        if not (is_its_own(module, name, placed) or is_compiled_by_torch(placed, module, runs)):
            yield f"its own `{name}`{_how(placed)}"


def has_own_forward(module: torch.nn.Module) -> bool:
    """Return whether a `forward` lies on a module itself, and it is not the one that it would run without."""
    return "forward" in module.__dict__ and not is_its_own(module, "forward", module.__dict__["forward"])


def is_its_own(module: torch.nn.Module, name: str, value: Any) -> bool:
    """Return whether an attribute is a method of the module's own class by its own name: as if it was not there.

    `mlp.forward = theirs` leaves one where `theirs` is what `mlp.forward` was before somebody replaced it.
    """
    return type(value) is MethodType and is_bound_to(value, module, _class_s(name, type(module)))


def _how(placed: Any) -> str:
    if not is_compiled(placed):
        return " (set on the instance)"
    return " (compiled; what torch.compile makes of the class's own is known, by its own backends and plain options)"


def _class_s(name: str, cls: type) -> Any:
    """Return what lies in a class, or in one that it is made from, under a name, as it lies there."""
    return next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), None)


def _only_moves(module: torch.nn.Module) -> bool:
    """Whether a `forward` is accelerate's around the class's own: it moves things between devices, and casts them."""
    if getattr(module.__dict__.get("_old_forward"), "__func__", None) is not type(module).forward:
        return False
    return _is_accelerate_s(getattr(module.forward, "func", None)) and _is_accelerate_s(
        getattr(module, "_hf_hook", None)
    )


def _is_accelerate_s(placed: Any) -> bool:
    """Whether a function or hook is accelerate's own, with all hooks in it, and nothing put into any of them."""
    kind = placed if isinstance(placed, FunctionType) else type(placed)
    if kind.__module__ != "accelerate.hooks" or any(map(callable, vars(placed).values())):
        return False
    return all(map(_is_accelerate_s, getattr(placed, "hooks", ())))


def _is_harmless(hook: Any) -> bool:
    module = str(getattr(hook, "__globals__", {}).get("__name__"))
    if module.partition(".")[0] in ("transformers", "peft"):
        return module in _HARMLESS or hook.__name__.startswith(_NEEDS_GRADIENTS)
    return False
