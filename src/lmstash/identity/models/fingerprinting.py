"""The fingerprint of a torch model: its weights' bytes, configuration, code and numerics, whatever it is called.

The same weights in two folders share a fingerprint; a model whose weights, configuration, code, attention
implementation, adapters or numerics differ does not. Names, paths and devices are recorded, not counted, unless code
that nobody here knows may read them off the configuration.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmstash.errors import UnsupportedModelError
from lmstash.identity.encoding import Component
from lmstash.identity.fingerprint import Fingerprint
from lmstash.identity.keys import Key

if TYPE_CHECKING:
    import torch

    from lmstash.identity.memory.probe import Probe
    from lmstash.identity.models.structure import Structure

__all__ = ["Fingerprint", "Reading", "fingerprint_model", "read_model"]


def fingerprint_model(
    model: torch.nn.Module, *, variant: str | None = None, strict_numerics: bool = False
) -> Fingerprint:
    """Return who `model` is now.

    Args:
        model: Any torch module that runs a forward pass; a transformers model as a rule.
        variant: A name that the owner gives to what lmstash cannot compare (hooks of others, instance-level `forward`,
            compiled modules). It becomes part of the fingerprint: change it whenever the unseen part changes.
        strict_numerics: Count torch's version and the device, too, as they change the last bits.

    Reads every weight: about 0.4 s per GB. Threads may call it at once; nothing may change the model meanwhile.

    Raises:
        UnsupportedModelError: The model cannot be cached safely as it is; the message says what to do.
    """
    return read_model(model, variant=variant, strict_numerics=strict_numerics, known={}).fingerprint


@dataclass(frozen=True, slots=True)
class Reading:
    """One reading of a model: its fingerprint, and what tells later whether it still holds."""

    fingerprint: Fingerprint
    structure: Structure
    probe: Probe
    known: Mapping[bytes, str]
    """SHA-256 by the short digests of the tensors."""


def read_model(
    model: torch.nn.Module, *, variant: str | None, strict_numerics: bool, known: Mapping[bytes, str]
) -> Reading:
    """As `fingerprint_model`, taking the SHA-256 of tensors that are `known` from there."""
    try:
        import torch
    except ImportError:
        raise UnsupportedModelError(
            f"a {type(model).__qualname__} is not a torch module, and torch is absent"
        ) from None
    from lmstash.identity.memory import probe
    from lmstash.identity.models import structure
    from lmstash.identity.models.remembered import outdated

    if not isinstance(model, torch.nn.Module):
        raise UnsupportedModelError(
            f"expected a torch module, got {type(model).__module__}.{type(model).__qualname__}. "
            "Give the model itself, not a pipeline, path or name."
        )
    try:
        found = structure.read(model, variant=variant, strict_numerics=strict_numerics)
    except RecursionError:
        raise UnsupportedModelError(structure.TOO_DEEP) from None
    dense = dict(structure.named(found.tensors))
    digests, kept, watched = probe.content_digests(dense, known)
    tensors: dict[Component, Component] = {
        name: [str(each.dtype), list(each.shape), digests[name]] for name, each in dense.items()
    }
    for name, each in found.tensors.items():
        if name not in tensors:  # taken apart
            tensors[name] = [f"{type(each).__module__}.{type(each).__qualname__}", str(each.dtype), list(each.shape)]
    components: dict[str, Component] = {"what": "torch model", **found.components, "tensors": tensors}
    mark = outdated(model, found.memos, found.code, components)
    if mark is not None:
        components["memos"] = mark
    return Reading(Fingerprint(Key(components), _recorded(model, found)), found, watched, kept)


def _recorded(model: torch.nn.Module, found: Structure) -> dict[str, Component]:
    from lmstash.identity.models.numerics import environment
    from lmstash.identity.models.reached import config_of

    name = getattr(config_of(model), "_name_or_path", None)
    parameters = {id(each): each for each in model.parameters()}.values()
    dtypes = sorted({str(each.dtype).removeprefix("torch.") for each in parameters})
    return {
        "name": name if isinstance(name, str) and name else type(model).__qualname__,
        "class": f"{type(model).__module__}.{type(model).__qualname__}",
        "parameters": sum(each.numel() for each in parameters),
        "parameter_bytes": sum(each.nbytes for each in parameters),
        "dtypes": list(dtypes),
        "python": platform.python_version(),
        "machine": platform.machine(),
        **{str(key): value for key, value in environment(found.tensors.values()).items()},
    }
