"""Whether a request is answered by chance, so that asking twice may give two answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SEEDS = ("seed", "random_seed")
NAMES = frozenset({"do_sample", "temperature", *_SEEDS})
"""The arguments that this is told by."""


def is_sampled(arguments: Mapping[str, Any], by_default: bool = False) -> bool:
    """Whether the arguments ask for sampling.

    Args:
        arguments: Of the request, and of its generation arguments.
        by_default: Whether the host samples when nothing is said.
    """
    if not arguments:
        return by_default
    if arguments.get("do_sample"):
        return True
    temperature = arguments.get("temperature")
    if temperature is not None:
        return not isinstance(temperature, (int, float)) or temperature != 0
    return by_default and "do_sample" not in arguments


def seed_of(arguments: Mapping[str, Any]) -> Any:
    """Return the seed that is asked for, or None."""
    for name in _SEEDS:
        seed = arguments.get(name)
        if seed is not None and seed != -1:  # -1: llama.cpp and others choose one
            return seed
    return None
