"""What functions of yours remember (`functools.lru_cache`) of how all was before: a pass made of that is none of now.

Somebody edits a constant in a notebook and runs the model again. The edit moves the model's fingerprint; a function
that its layers call returns what it made of the old constant. What comes of that must not be kept under the name of
the model as it is now.

What a function remembers is of the time when it was last seen to remember nothing, or of any time since. That does not
matter while all that its results hang on is what it was then: its code, what this names, and the settings that count;
besides, unless it was handed plain values only, all of the model. Functions of installed packages are taken to be pure.

Not seen is what a function came to remember between two looks while something was edited that was put back before the
second, or set for that time (autocast), and an edit before the first look at a model that remembers something already.
"""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import FunctionType
from typing import Any

from lmstash.errors import UnsupportedModelError
from lmstash.events import logger
from lmstash.identity.code.memos import Memo, counts_of, is_handed_plain, may_be_handed
from lmstash.identity.code.owners import defined_in
from lmstash.identity.describe import Describer
from lmstash.identity.encoding import Component, encode
from lmstash.identity.models.code import ModelCode
from lmstash.identity.models.reached import config_of

_MIXED = b""
"""In the place of a digest: it may remember what is of several times."""
_SAID_BESIDE = frozenset({"variant", "environment"})
"""Components of a model that say nothing of what its parts are."""


@dataclass(slots=True)
class _Then:
    """How all was when a function was last seen to remember nothing, or else first."""

    world: bytes | None
    """Of its code, and what this hangs on; None where that is a part of a model."""
    models: dict[int, tuple[weakref.ref[Any], bytes]] = field(default_factory=dict)
    """Of the models that call it, by `id`."""


_known: weakref.WeakKeyDictionary[Memo[Any], _Then] = weakref.WeakKeyDictionary()
_told: weakref.WeakSet[Memo[Any]] = weakref.WeakSet()
"""Functions of which somebody was warned."""


def outdated(
    model: Any, memos: Iterable[Memo[Any]], code: ModelCode, components: Mapping[str, Component]
) -> str | None:
    """Return a name that no other reading has, if a function remembers what may be of before an edit; else None.

    With that in its key, a model is served nothing from before, and what it computes is found by nobody later. `code`
    counts as changed once such a function remembers something else, or nothing.

    Args:
        model: Whose reading this is.
        memos: The functions that it leads to.
        code: Its code, as it was read.
        components: Of its key.
    """
    yours = {id(each): each for each in memos if _is_yours(each, code)}.values()
    if not yours:
        return None
    whole = _digest({name: each for name, each in components.items() if name not in _SAID_BESIDE})
    parts = _parts_of(model, code)
    found = [each for each in yours if _is_outdated(each, _world(each, components), model, whole, parts)]
    for each in found:
        code.watch(partial(counts_of, each))
        if each not in _told:
            _told.add(each)
            logger.warning(
                "lmstash: %s.%s remembers results (functools.lru_cache) that may be of before something was edited, "
                "and the model computes with them still. Until it forgets them, what the model computes is not served "
                "later: call its cache_clear() after such an edit, before the model runs",
                defined_in(each),
                each.__qualname__,
            )
    return os.urandom(16).hex() if found else None


def _is_yours(memo: Memo[Any], code: ModelCode) -> bool:
    return code.is_yours(defined_in(getattr(memo.__wrapped__, "__func__", memo.__wrapped__)))


def _parts_of(model: Any, code: ModelCode) -> frozenset[int]:
    """Return by `id` what a function may be handed that another model has, too, or that is this model's."""
    of_modules = (part for each in model.modules() for part in (each, config_of(each)))
    return frozenset(map(id, (*of_modules, *model.parameters(), *model.buffers(), *code.objects.values())))


def _is_outdated(memo: Memo[Any], world: bytes | None, model: Any, whole: bytes, parts: frozenset[int]) -> bool:
    """Return whether a function remembers what may be of another time; notes how all is now where it does not.

    Args:
        memo: The function.
        world: Of its code, and what this hangs on, now.
        model: Which calls it.
        whole: Of the model, now.
        parts: Of the model, by `id`.
    """
    then, remembers = _known.get(memo), memo.cache_info().currsize > 0
    if then is None or not remembers:
        others = {} if then is None else dict(then.models)
        then = _known[memo] = _Then(world, {n: each for n, each in others.items() if each[0]() and each[1] != _MIXED})
        then.models[id(model)] = weakref.ref(model), whole
        return False
    if then.world == _MIXED:
        return True
    if world is not None and then.world != world:
        then.world = _MIXED
        return True
    if world is not None and is_handed_plain(memo):
        then.models[id(model)] = weakref.ref(model), whole
        return False
    seen, before = then.models.get(id(model), (None, b""))
    if seen is None or seen() is not model:  # another model, which may be an earlier one as it was edited meanwhile
        is_known = any(digest == whole for _, digest in [*then.models.values()])
        is_apart = world is not None and not may_be_handed(memo, parts)
        then.models[id(model)] = weakref.ref(model), whole if is_known or is_apart else _MIXED
    elif before != whole:
        then.models[id(model)] = seen, _MIXED
    return then.models[id(model)][1] == _MIXED


def _world(memo: Memo[Any], components: Mapping[str, Component]) -> bytes | None:
    """Return what tells apart all that results hang on beside arguments; None where that is a part of a model."""
    function = memo.__wrapped__
    if not isinstance(function, FunctionType):
        return None
    code = ModelCode()
    describer = Describer(code, lenient=True, whole_configs=True, of_model=True)
    told: dict[Component, Component] = {}
    try:
        code.add(function)
        while len(told) < len(code.objects):
            for place, value in [*code.objects.items()]:
                if place not in told:
                    with describer.ordered(True):
                        told[place] = describer.value(value, place)
    except (UnsupportedModelError, RecursionError):
        return None
    if describer.modules or describer.tensors:
        return None
    beside = code.environment(()), code.files(()), code.packages()
    return _digest([code.components(), told, *beside, components.get("numerics")])


def _digest(what: Any) -> bytes:
    return hashlib.sha256(encode(what)).digest()
