"""Models that set themselves up at their first pass: layers of quantizers, accelerate's hooks, modules of one's own.

Such a model goes by another name after that pass than before it, so that what a process computes first would never be
kept. Two tiny passes bring it to rest before it is looked at.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from lmstash.caches.activations.model_source import ModelSource
from lmstash.caches.activations.passes import Mark, State, is_own, strangers_seen
from lmstash.errors import UnsupportedModelError
from lmstash.events import logger
from lmstash.identity.describe import IMMUTABLE
from lmstash.identity.models.structure import TORCH_OWN

_Container = list[Any] | dict[Any, Any]

_run: WeakValueDictionary[int, nn.Module] = WeakValueDictionary()
"""Models that were run for this, by their `id`."""


def settle(source: ModelSource, *, variant: str | None) -> None:
    """Let a model set itself up, once in a process, if it may be of those that do. Does not raise.

    Nothing runs for models whose modules are all torch's and transformers' own, with hooks that may be anybody's,
    beside other processes that a pass may wait for, or where there is no fingerprint to be had anyway; else two passes
    of two tokens and one. What a module of another class assigns anew in each, or puts into a list or dict of its own,
    as wrappers that remember their outputs do, is put back.

    Args:
        source: Of the model.
        variant: As for its fingerprint.
    """
    model = source.model
    if _run.get(id(model)) is model or not _may_set_up(model):
        return
    _run[id(model)] = model
    others: list[None] = []
    try:
        if not source.is_plain() or _is_of_many() or not _is_supported(model, variant):
            return
        with strangers_seen(source.base, lambda: others.append(None)):
            before, held = State(model, lambda kind: not is_own(kind)), _containers(model)
            source.run_briefly(2)
            first = {_place(each): each for each in before.marks()}
            contents = [each.copy() for each, _ in held]
            source.run_briefly(1)
            if others:
                return
            for each in before.marks():
                last = first.get(_place(each))
                if last is not None and not _alike(last, each):
                    each.undo()
            for (each, then), between in zip(held, contents, strict=True):
                if _ids(each) != _ids(between):
                    _refill(each, then)
    except Exception as error:
        logger.debug("%s: it could not be run before it is first looked at: %r", source.name, error)


def _may_set_up(model: nn.Module) -> bool:
    kinds = {type(each) for each in model.modules()}
    foreign = any(kind.__module__.partition(".")[0] not in ("torch", "transformers") for kind in kinds)
    return foreign or any(hasattr(each, "_hf_hook") for each in model.modules())


def _is_of_many() -> bool:
    """Whether a pass may need other processes, which may not be here."""
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _is_supported(model: nn.Module, variant: str | None) -> bool:
    """Whether the model can be named as it is: in training, say, a pass might change what nobody wants changed."""
    from lmstash.identity.models.structure import read

    try:
        read(model, variant=variant, strict_numerics=False)
    except UnsupportedModelError:
        return False
    return True


def _place(mark: Mark) -> tuple[object, ...]:
    return id(mark.holder), mark.name, mark.contents is None


def _alike(first: Mark, last: Mark) -> bool:
    """Whether both passes left the same, which then belongs to a model that is set up."""
    if first.contents is not None and last.contents is not None:
        return torch.equal(first.contents[1], last.contents[1])
    return _same(first.now, last.now)


def _containers(model: nn.Module) -> list[tuple[_Container, _Container]]:
    """Return the lists and dicts that modules of others' classes hold, each with a copy."""
    foreign = (each for each in model.modules() if not is_own(type(each)))
    own = ((name, value) for each in foreign for name, value in vars(each).items() if type(value) in (list, dict))
    return [(value, value.copy()) for name, value in own if name not in TORCH_OWN]


def _ids(held: _Container) -> list[int]:
    return [*map(id, held), *map(id, held.values() if isinstance(held, dict) else ())]


def _refill(held: _Container, contents: _Container) -> None:
    if isinstance(held, dict):
        held.clear()
        held.update(contents)
    else:
        held[:] = contents


def _same(first: Any, last: Any) -> bool:
    if isinstance(first, Tensor) and isinstance(last, Tensor):
        return first.dtype == last.dtype and torch.equal(first, last)
    if type(first) is type(last) and type(first) in IMMUTABLE:
        return repr(first) == repr(last)
    return first is last
