"""Counters and logs: what a model changes about itself while it answers, without answering otherwise.

Numbers that go up from 0, and containers that were empty. Whatever else changes may be why the next answer is another
one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from copy import copy
from types import FunctionType
from typing import Any

_KINDS = (int, float, list, dict, set, Counter, defaultdict)


def countable(named: Mapping[str, Any]) -> dict[str, Any]:
    """Return copies (one level deep) of the values that may turn out to be counters or logs."""
    return {name: copy(value) for name, value in named.items() if type(value) in _KINDS}


def grew(before: Any, now: Any) -> bool:
    """Whether `now` is `before` counted up or added to, from nothing: a number from 0, a container that was empty.

    What was something before may be a setting: a seed that is counted up, options that are completed.
    """
    if type(before) is not type(now) or isinstance(before, bool) or before:
        return False
    return now > 0 if isinstance(now, int | float) else bool(now)


def globals_of(kind: type) -> dict[str, Any]:
    """Return the globals that a class's own methods name, as `identity.code` calls them: `module.function:name`."""
    named: dict[str, Any] = {}
    for base in kind.__mro__:
        for member in vars(base).values():
            if isinstance(member, FunctionType):
                module = member.__globals__.get("__name__")
                for name in set(member.__code__.co_names) & member.__globals__.keys():
                    named[f"{module}.{member.__code__.co_qualname}:{name}"] = member.__globals__[name]
    return named
