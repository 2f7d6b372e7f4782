"""Documents and functions that draw at random: what they make for a key is not what the model will be shown.

Seen are draws from the generators that programs share (`random`, numpy's, torch's on the CPU), not those from others,
clocks and the system. What seeds the shared ones itself draws the same each time.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Sequence
from typing import Any

from lmstash.adapters.lmms_eval.answering.asking import Reader, Unnameable

_WHY = "its document, or what a function of its task makes of it, is drawn at random"


def read_all(reader: Reader, instances: Sequence[Any], repeats: Sequence[int]) -> list[Any]:
    """Return what requests ask, and `Unnameable` for what is drawn; leaves the generators as they were.

    So whoever draws next draws what it would have drawn. Costs 0.2 ms for all together where nothing is drawn; else
    each is read once more, and those that change a generator twice.

    Args:
        reader: Reads one after the other.
        instances: See `Reader.read`.
        repeats: See `Reader.read`.
    """
    before = _state()
    pairs = [*zip(instances, repeats, strict=True)]
    found = [reader.read(*each) for each in pairs]
    seen = _seen(before)
    if _seen(_state()) == seen:
        return found
    for place, each in enumerate(pairs):
        _restore(before)
        after = _after(reader, *each)
        if after != seen and _after(reader, *each) != after:  # it does not seed, but goes on from where it is
            found[place] = Unnameable(_WHY)
    reader.forget()
    _restore(before)
    return found


def reading_draws(reader: Reader, instances: Sequence[Any]) -> bool:
    """Whether to read requests, as a model does that is shown them, moves the generators; leaves them as they are."""
    before = _state()
    _draw()  # what seeds them may have left them as it will leave them
    moved = _seen(_state())
    reader.forget()
    for each in instances:
        reader.read(each, 0)
    reader.forget()
    draws = _seen(_state()) != moved
    _restore(before)
    return draws


def _draw() -> None:
    random.random()
    with contextlib.suppress(Exception):
        sys.modules["numpy.random"].random()
    with contextlib.suppress(Exception):
        sys.modules["torch"].rand(1)


def _after(reader: Reader, instance: Any, repeat: int) -> Any:
    """Read a request, and return the generators' state after that."""
    reader.forget()
    reader.read(instance, repeat)
    return _seen(_state())


def _state() -> list[Any]:
    """Return the state of the generators that programs share, as far as they are loaded."""
    told: list[Any] = [random.getstate(), None, None]
    with contextlib.suppress(Exception):  # not loaded, or somebody's own
        told[1] = sys.modules["numpy.random"].get_state(legacy=False)
    with contextlib.suppress(Exception):
        told[2] = sys.modules["torch"].get_rng_state()
    return told


def _restore(state: list[Any]) -> None:
    python, of_numpy, of_torch = state
    random.setstate(python)
    with contextlib.suppress(Exception):
        if of_numpy is not None:
            sys.modules["numpy.random"].set_state(of_numpy)
    with contextlib.suppress(Exception):
        if of_torch is not None:
            sys.modules["torch"].set_rng_state(of_torch)


def _seen(state: Any) -> Any:
    """Return a state so that it can be compared."""
    if isinstance(state, dict):
        return {name: _seen(each) for name, each in state.items()}
    if isinstance(state, list):
        return [_seen(each) for each in state]
    as_array = getattr(state, "numpy", None)
    state = as_array() if callable(as_array) else state
    return state.tobytes() if hasattr(state, "tobytes") else state
