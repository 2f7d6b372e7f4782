"""Code and values that are looked at by themselves, and not as far as they lead."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from types import CodeType, FunctionType, SimpleNamespace
from typing import Any

from lmstash.identity.code.bytecode import (
    code_component,
    encoded,
    in_order,
    names_in,
    parts_of,
    plain_component,
    texts_in,
)
from lmstash.identity.code.class_members import is_word
from lmstash.identity.code.words import words_within
from lmstash.identity.encoding import Component

_SETTINGS = frozenset({"argparse.Namespace", "numpy.ndarray", "torch.Tensor", "torch.nn.parameter.Parameter"})
_ASKING = frozenset({"getattr", "hasattr"})


def by_itself(code: FunctionType | type) -> Component:
    """Return the code of a function or class, without what it names."""
    if isinstance(code, FunctionType):
        return [code_component(code.__code__), plain_component([code.__defaults__, code.__kwdefaults__])]
    held: dict[Component, Component] = {"": [f"{each.__module__}.{each.__qualname__}" for each in code.__bases__]}
    held["", ""] = [name for name in vars(code) if not is_word(name)]
    for name, member in vars(code).items():
        functions = [by_itself(each) for each in parts_of(name, member) if isinstance(each, FunctionType)]
        if functions or (not name.startswith("__") and encoded(member) is not None):
            held[name] = functions or in_order([plain_component(member)])
    return held


def attributes_of(function: FunctionType) -> dict[str, Any]:
    """Return what somebody has set on a function: not what functools and torch leave there."""
    return {name: each for name, each in vars(function).items() if not str(name).startswith(("__", "_torch"))}


def functions_in(code: FunctionType | type) -> Iterator[FunctionType]:
    """Yield a function, or those that lie in a class."""
    if isinstance(code, FunctionType):
        yield code
        return
    for name, member in list(vars(code).items()):
        yield from (each for each in parts_of(name, member) if isinstance(each, FunctionType))


def words_asked(code: CodeType) -> set[str]:
    """Return what code may ask for of an object that it is given: its names, and texts where it asks by text."""
    names = {*names_in(code)}
    return names if _ASKING.isdisjoint(names) else names | words_within([*texts_in(code)])


def is_settings(value: Any) -> bool:
    """Whether a value is of a kind that holds settings and can be read: no client, lock or log."""
    kind = type(value)
    if kind is SimpleNamespace or f"{kind.__module__}.{kind.__qualname__}" in _SETTINGS:
        return True
    return dataclasses.is_dataclass(value) and not isinstance(value, type)
