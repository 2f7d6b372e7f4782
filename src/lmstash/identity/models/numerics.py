"""The settings of a thread and its process that change how the same weights compute."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from functools import lru_cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from lmstash.errors import UnsupportedModelError
from lmstash.identity.encoding import Component

if TYPE_CHECKING:
    import torch

_ANYWHERE = {"fp32_precision": "none"}
_BY_DEVICE: dict[str, dict[str, str]] = {
    "cpu": {
        "mkldnn.fp32_precision": "none",
        "mkldnn.matmul.fp32_precision": "none",
        "mkldnn.conv.fp32_precision": "none",
        "mkldnn.rnn.fp32_precision": "none",
        "cuda.flash_sdp_enabled": "True",  # which chooses the kernel on the CPU, too
    },
    "cuda": {
        "cuda.matmul.allow_tf32": "False",
        "cuda.matmul.allow_fp16_reduced_precision_reduction": "True",
        "cuda.matmul.allow_bf16_reduced_precision_reduction": "True",
        "cuda.matmul.allow_fp16_accumulation": "False",
        "cuda.matmul.fp32_precision": "none",
        "cudnn.allow_tf32": "True",
        "cudnn.fp32_precision": "none",
        "cudnn.conv.fp32_precision": "tf32",
        "cudnn.rnn.fp32_precision": "tf32",
        "cuda.flash_sdp_enabled": "True",
        "cuda.mem_efficient_sdp_enabled": "True",
        "cuda.math_sdp_enabled": "True",
        "cuda.cudnn_sdp_enabled": "True",
        "cuda.fp16_bf16_reduction_math_sdp_allowed": "False",
    },
}
"""Below `torch.backends`, with what each is unless somebody changed it. The usual is left out of the key, so that
devices, and versions of torch that lack a setting, share."""


def numerics(devices: Iterable[str]) -> dict[str, object]:
    """Return the unusual settings of this thread and process that change how the same weights compute.

    Args:
        devices: The kinds of device that the weights lie on.
    """
    import torch

    found: dict[str, object] = {}
    if torch.get_default_dtype() != torch.float32:
        found["default_dtype"] = str(torch.get_default_dtype())
    with contextlib.suppress(RuntimeError):  # refused once the newer names below were used
        precision = torch.get_float32_matmul_precision()
        if precision != "highest":
            found["float32_matmul_precision"] = precision
    modes = [type(each).__qualname__ for each in active_modes()]
    if modes:
        found["modes"] = modes
    kinds = tuple(devices)
    for device in filter(autocasts, kinds):
        found[f"autocast {device}"] = str(torch.get_autocast_dtype(device))
    backends = torch.backends
    for name, usual, get in _settings(kinds):
        try:  # not `suppress`, which costs as much as the look
            value: Any = get(backends)
            value = str(value() if callable(value) else value)
        except (RuntimeError, AttributeError):  # refused likewise, or unknown to this torch
            continue
        if value == "ieee":  # what a setting is called once it was changed and set back
            value = "none"
        if value != usual:
            found[name] = value
    return found


def autocasts(device: str) -> bool:
    """Whether autocast is on in this thread for a kind of device."""
    import torch

    try:
        return torch.is_autocast_enabled(device)
    except RuntimeError:  # a kind of device that knows no autocast
        return False


@lru_cache(maxsize=64)
def _settings(kinds: tuple[str, ...]) -> list[tuple[str, str, Callable[[Any], Any]]]:
    """Return name, usual value, and what gets the value from `torch.backends`, for these kinds of device."""
    settings = dict(_ANYWHERE)
    for kind in kinds:
        settings |= _BY_DEVICE.get(kind, {})
    return [(name, usual, attrgetter(name)) for name, usual in settings.items()]


def active_modes() -> list[Any]:
    """Return what stands between the caller and torch's functions: `TorchFunctionMode` and the like."""
    import torch

    if not torch._C._len_torch_function_stack() and not torch._C._len_torch_dispatch_stack():
        return []
    from torch.overrides import _get_current_function_mode_stack
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

    found = [*_get_current_function_mode_stack(), *_get_current_dispatch_mode_stack()]
    return [each for each in found if type(each).__name__ != "DeviceContext"]


def refuse_modes() -> None:
    """Raise where a mode is active in this thread: it may do anything to whatever torch computes.

    Raises:
        UnsupportedModelError: So it is.
    """
    for mode in active_modes():
        raise UnsupportedModelError(
            f"a {type(mode).__qualname__} is active (a mode of torch's, which sees all that is computed and may change "
            "it), and lmstash cannot tell what it does. Ask outside of it, or name what it does: variant='...' (a new "
            "name whenever it changes)."
        )


def device_types(tensors: Iterable[torch.Tensor]) -> list[str]:
    """Return the kinds of device that the tensors lie on, sorted."""
    return sorted({each.device.type for each in tensors})


def environment(tensors: Iterable[torch.Tensor]) -> dict[Component, Component]:
    """Return torch's version and the devices by name."""
    import torch

    devices = {each.device for each in tensors}
    names = {torch.cuda.get_device_name(each) if each.type == "cuda" else each.type for each in devices}
    return {"torch": str(torch.__version__), "devices": sorted(names)}
