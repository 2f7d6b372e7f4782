"""Counters and logs: what a model changes about itself while it answers, without answering otherwise.

Numbers that go up from 0, and containers that were empty. Whatever else changes may be why the next answer is another
one.
"""

from __future__ import annotations

import contextlib
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable, Mapping
from copy import copy
from types import FunctionType, ModuleType
from typing import Any

_KINDS = (int, float, list, dict, set, Counter, defaultdict)
_HISTORIES = (*_KINDS, str, bytes, tuple, frozenset, OrderedDict, deque)


def countable(named: Mapping[str, Any]) -> dict[str, Any]:
    """Return copies (one level deep) of the values that may turn out to be counters, logs, or what answers hang on."""
    return {name: copy(value) for name, value in named.items() if type(value) in _HISTORIES}


def is_history(value: Any) -> bool:
    """Whether a value is of a kind that may turn out to be what answers hang on: a number, a text, a container."""
    return type(value) in _HISTORIES


def grew(before: Any, now: Any) -> bool:
    """Whether `now` is `before` counted up or added to, from nothing: a number from 0, a container that was empty.

    What was something before may be a setting: a seed that is counted up, options that are completed.
    """
    if type(before) is not type(now) or type(before) not in _KINDS or before:
        return False
    return now > 0 if isinstance(now, int | float) else bool(now)


def same(value: Any, other: Any) -> bool:
    """Whether a copy of a value is what the value is now."""
    try:
        return value is other or (type(value) is type(other) and bool(value == other))
    except Exception:  # arrays within
        return False


def globals_of(kind: type, functions: Iterable[FunctionType]) -> dict[str, Any]:
    """Return the globals that a class's own methods and other functions name, and what these have closed over.

    As `identity.code` calls them: `module.function:name`.
    """
    named: dict[str, Any] = {}
    methods = (each for base in kind.__mro__ for each in list(vars(base).values()) if isinstance(each, FunctionType))
    for function in (*methods, *functions):
        code, table = function.__code__, function.__globals__
        place = f"{table.get('__name__')}.{code.co_qualname}"
        names = set(code.co_names)
        held = {name: table[name] for name in names & table.keys()}
        for module in [each for each in held.values() if isinstance(each, ModuleType)]:
            held = {name: vars(module)[name] for name in names & vars(module).keys()} | held
        named |= {f"{place}:{name}": value for name, value in held.items()}
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=False):
            with contextlib.suppress(ValueError):  # an empty cell
                named[f"{place}:{name}"] = cell.cell_contents
    return named


def values_of_classes(kind: type) -> dict[str, Any]:
    """Return what lies in a class and its base classes: `module.class.name`."""
    return {
        f"{base.__module__}.{base.__qualname__}.{name}": value
        for base in kind.__mro__
        for name, value in list(vars(base).items())
    }


def bare(name: str) -> str:
    """Return what code calls a changed part by: the attribute, the global, the variable; empty where it has no name."""
    last = name.rpartition(":")[2].rstrip("'").rpartition(".")[2]
    return last if last.isidentifier() else ""
