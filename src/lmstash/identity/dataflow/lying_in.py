"""What lies in values, told without running anybody's code: attributes, entries, what well-known functions give."""

from __future__ import annotations

import dataclasses
import enum
import itertools
import math
import operator
import os
import sys
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator
from inspect import getattr_static
from types import FunctionType, GetSetDescriptorType, MemberDescriptorType, ModuleType
from typing import Any

UNKNOWN: Any = type("Unknown", (), {"__repr__": lambda _: "UNKNOWN"})()
"""Stands for what cannot be told."""
PLAIN = (type(None), bool, int, float, str, bytes)
MOST = 16
_MANY = 64
_SIGNS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}
_COMPARING: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    ">": operator.gt,
}
CALCULATING: dict[str, Callable[..., Any]] = {
    "float": float,
    "int": int,
    "bool": bool,
    "abs": abs,
    "round": round,
    "max": max,
    "min": min,
}
"""Functions that make a number."""
_OF_TEXTS = {"strip": str.strip, "lower": str.lower}


class Partly(dict[Any, Any]):
    """What is known of a dict that may hold more."""


_DICTS = (dict, OrderedDict, defaultdict, Partly)


class Made:
    """Stands for an object that code makes.

    Attributes:
        of: Its class.
        held: What it bears; `UNKNOWN` where that cannot be told.
    """

    def __init__(self, of: type, held: dict[str, Any]) -> None:
        self.of, self.held = of, held


class Factory:
    """Stands for what makes the default of a field.

    Attributes:
        of: A function or class that takes nothing.
    """

    def __init__(self, of: Any) -> None:
        self.of = of


def class_of(value: Any) -> type:
    """Return the class of an object, also of one that is only made in code."""
    return value.of if isinstance(value, Made) else type(value)


def attribute(value: Any, name: str) -> Any:
    """Return what lies in an object, class or module under a name; `UNKNOWN` where code would have to say it."""
    if value is UNKNOWN:
        return UNKNOWN
    if isinstance(value, Made):
        return value.held[name] if name in value.held else attribute(value.of, name)
    if isinstance(value, ModuleType):
        return vars(value).get(name, UNKNOWN)
    if isinstance(value, tuple) and name in getattr(type(value), "_fields", ()):
        return tuple.__getitem__(value, type(value)._fields.index(name))  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(value, enum.Enum) and name in ("value", "name"):
        return attributes_lying_in(value).get(f"_{name}_", UNKNOWN)
    found = getattr_static(value, name, UNKNOWN)
    if isinstance(found, MemberDescriptorType) and not isinstance(value, type):  # of `__slots__`, or written in C
        try:
            return found.__get__(value, type(value))
        except AttributeError:
            return UNKNOWN
    return UNKNOWN if hasattr(type(found), "__get__") else found


def attributes_lying_in(value: Any) -> dict[str, Any]:
    """Return the `__dict__` of an object, without running any of its code."""
    for base in type(value).__mro__:
        descriptor = vars(base).get("__dict__")
        if isinstance(descriptor, GetSetDescriptorType):
            held = descriptor.__get__(value)
            return held if type(held) is dict else {}
    return {}


def may_change(value: Any) -> bool:
    """Whether what lies in a value is not watched: plain values are, classes, modules and functions."""
    if type(value) in (dict, list, tuple):
        held = value.values() if type(value) is dict else value
        return any(type(each) not in PLAIN and may_change(each) for each in held)
    watched = (type, ModuleType, FunctionType, Made)
    return type(value) not in PLAIN and not isinstance(value, watched) and value is not UNKNOWN


def is_dict(value: Any) -> bool:
    """Whether a value is a dict that runs nobody's code."""
    return type(value) in _DICTS


def entries_of(value: Any) -> Any:
    """Return what an object holds, as a dict."""
    if is_dict(value) or value is UNKNOWN:
        return value
    if isinstance(value, Made):
        return value.held
    if isinstance(value, tuple) and hasattr(type(value), "_fields"):
        return {name: attribute(value, name) for name in type(value)._fields}  # pyright: ignore[reportAttributeAccessIssue]
    if dataclasses.is_dataclass(value):
        return {each.name: attribute(value, each.name) for each in dataclasses.fields(value)}
    return dict(held) if (held := attributes_lying_in(value)) else UNKNOWN


def dict_of(value: Any) -> Any:
    """Return what `dict` makes of a value: of what an object holds, or of pairs."""
    if type(value) not in (list, tuple):
        return entries_of(value)
    pairs = [each for each in value[:_MANY] if type(each) in (list, tuple) and len(each) == 2]
    known = {key: each for key, each in pairs if isinstance(key, str | int)}
    return known if len(known) == len(value) else Partly(known)


def asked(value: Any, name: Any, default: Any = UNKNOWN) -> Any:
    """Return what `getattr` gives."""
    found = attribute(value, name) if isinstance(name, str) else UNKNOWN
    return default if found is UNKNOWN else found


def entry(held: Any, key: Any, default: Any = UNKNOWN) -> Any:
    """Return what lies in a container under a key."""
    if (is_dict(held) or held is os.environ) and isinstance(key, str | int):
        return held.get(key, UNKNOWN if type(held) is Partly else default)
    if type(key) is int and _is_array(held):
        return held[key].item() if -len(held) <= key < len(held) else UNKNOWN
    if _is_table(held):
        column = held[key].head(_MANY) if isinstance(key, str) and key in held.columns else None
        return [*column] if column is not None and column.ndim == 1 else UNKNOWN
    if type(held) in (list, tuple) and type(key) is int and -len(held) <= key < len(held):
        return held[key]
    return UNKNOWN


def items_of(held: Any) -> list[Any]:
    """Return what a loop over a value goes through, the first of it."""
    if is_dict(held) or type(held) in (list, tuple, set, frozenset):
        return [*itertools.islice(held, _MANY)]
    return [*array] if (array := numbers_in(held)) is not None else [UNKNOWN]


def numbers_in(held: Any) -> list[Any] | None:
    """Return the numbers in an array of numpy's or a column of pandas', the first of them; None for other values."""
    pandas = sys.modules.get("pandas")
    if pandas is not None and type(held) is pandas.Series:
        held = held.head(_MANY).to_numpy()
    return held[:_MANY].tolist() if _is_array(held) else None


def _is_array(held: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and type(held) is numpy.ndarray and held.ndim == 1 and held.dtype.kind in "biuf"


def rows_in(held: Any) -> list[dict[Any, Any]] | None:
    """Return the rows of a table of pandas', the first of them; None for other values."""
    return held.head(_MANY).to_dict("records") if _is_table(held) else None


def _is_table(held: Any) -> bool:
    pandas = sys.modules.get("pandas")
    return pandas is not None and type(held) is pandas.DataFrame


def spaced(name: str, given: dict[str, Any]) -> Any:
    """Return the first numbers that numpy's `linspace` or `arange` gives; `UNKNOWN` where they are given otherwise."""
    if any(type(each) not in (bool, int, float) or not math.isfinite(each) for each in given.values()):
        return UNKNOWN
    if name == "arange" and "stop" not in given:
        given = {"stop": given.get("start", UNKNOWN)}
    start, stop = given.get("start", 0), given.get("stop", UNKNOWN)
    if stop is UNKNOWN:
        return UNKNOWN
    if name == "arange":
        step = given.get("step", 1)
        number = math.ceil((stop - start) / step) if step else 0
    else:
        number = int(given.get("num", 50))
        step = (stop - start) / max(1, number - bool(given.get("endpoint", True)))
    return tuple(start + at * step for at in range(min(max(0, number), _MANY)))


def operated(sign: str, left: Any, right: Any) -> Any:
    """Return what an operation gives."""
    sign = sign.rstrip("=")
    if sign == "|" and (is_dict(left) or is_dict(right)):
        one, other = (each if is_dict(each) else Partly() for each in (left, right))
        return (Partly if Partly in (type(one), type(other)) else dict)({**one, **other})
    if sign not in _SIGNS or not {type(left), type(right)} <= {int, float}:
        return UNKNOWN
    try:
        return _SIGNS[sign](left, right)
    except ArithmeticError:
        return UNKNOWN


def compared(sign: str, left: Any, right: Any) -> Any:
    """Return what a comparison of numbers or texts gives."""
    for name, compare in _COMPARING.items():
        if sign in (name, f"bool({name})") and (type(left) is type(right) or {type(left), type(right)} <= {int, float}):
            return compare(left, right) if type(left) in (int, float, str) else UNKNOWN
    return UNKNOWN


def calculated(name: str, given: tuple[Any, ...]) -> Any:
    """Return what a function gives that makes a number."""
    listed = given[0] if len(given) == 1 and type(given[0]) in (list, tuple) else given
    if not given or any(type(each) not in (bool, int, float, str) for each in listed):
        return UNKNOWN
    try:
        return CALCULATING[name](*given)
    except (ValueError, TypeError, ArithmeticError):
        return UNKNOWN


def looped(name: str, given: tuple[Any, ...]) -> Any:
    """Return what a function gives that goes through containers, as a tuple; `UNKNOWN` for other functions."""
    if name == "range":
        return tuple(range(*given)[:_MANY]) if 1 <= len(given) <= 3 and _are_whole(given) else UNKNOWN
    known = [None if (items := items_of(each)) == [UNKNOWN] else items for each in given]
    if not any(known):
        return UNKNOWN
    if name == "product":
        return tuple(itertools.islice(itertools.product(*(each or [UNKNOWN] for each in known)), _MANY))
    if name == "zip":
        longest = max(map(len, filter(None, known)))
        return tuple(zip(*(each or [UNKNOWN] * longest for each in known), strict=False))
    if name == "enumerate":
        return tuple(enumerate(known[0] or ()))
    if name in ("list", "tuple", "sorted", "reversed", "iter", "set", "cycle", "chain"):
        return tuple(each for some in known for each in some or [UNKNOWN])
    return UNKNOWN


def _are_whole(values: tuple[Any, ...]) -> bool:
    return all(type(each) is int for each in values) and values[2:] != (0,)


def method(name: str, held: Any) -> Any:
    """Return what a method of a dict or text gives that takes nothing."""
    if name in ("itertuples", "iterrows") and (rows := rows_in(held)) is not None:
        return tuple(Made(object, row) if name == "itertuples" else (at, row) for at, row in enumerate(rows))
    if name == "tolist" and (array := numbers_in(held)) is not None:
        return array
    if is_dict(held) and name in ("items", "values", "keys"):
        pairs = itertools.islice(held.items(), _MANY)
        return tuple(pair if name == "items" else pair[name == "values"] for pair in pairs)
    return _OF_TEXTS[name](held) if type(held) is str and name in _OF_TEXTS else UNKNOWN


def products(parts: Iterable[list[Any]]) -> list[tuple[Any, ...]]:
    """Return what one of each may be beside each other, the first of it."""
    found: list[tuple[Any, ...]] = [()]
    for each in parts:
        found = [(*before, value) for before in found for value in each][:MOST]
    return found


def fields_of(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield the fields that a class made of fields takes, in order, and their defaults."""
    if dataclasses.is_dataclass(cls):
        for each in dataclasses.fields(cls):
            if each.init:
                made = each.default_factory
                default = UNKNOWN if made is dataclasses.MISSING else Factory(made)
                yield each.name, default if each.default is dataclasses.MISSING else each.default
    elif isinstance(names := vars(cls).get("_fields"), tuple):
        defaults = vars(cls).get("_field_defaults", {})
        yield from ((name, defaults.get(name, UNKNOWN)) for name in names)
    elif type(known := vars(cls).get("__pydantic_fields__")) is dict:
        for name, each in known.items():
            default, made = attribute(each, "default"), attribute(each, "default_factory")
            is_missing = default is UNKNOWN or type(default).__name__ == "PydanticUndefinedType"
            otherwise = UNKNOWN if made in (None, UNKNOWN) else Factory(made)
            yield name, otherwise if is_missing else default
