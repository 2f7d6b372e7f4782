"""What expressions in code may give, told without running anything: constants, variables, and what lies in them."""

from __future__ import annotations

import dataclasses
import functools
import operator
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable
from inspect import getattr_static
from types import CodeType, FunctionType, GetSetDescriptorType, MemberDescriptorType, ModuleType
from typing import Any

from lmstash.identity.expressions import (
    ATTRIBUTE,
    CALL,
    CONST,
    EITHER,
    ITEM,
    NAME,
    OPERATION,
    OTHER,
    STARRED,
    STORED,
    Node,
    expressions,
)

UNKNOWN: Any = type("Unknown", (), {"__repr__": lambda _: "UNKNOWN"})()
"""Stands for what cannot be told."""
_PLAIN = (type(None), bool, int, float, str, bytes)
_DEEPEST = 12
_MOST = 16
_SIGNS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}
_COPIES = frozenset({"copy", "model_dump", "dict", "_asdict", "to_dict"})
"""Methods that give what an object holds."""
_COPYING = frozenset({"vars", "asdict", "dict", "copy", "deepcopy", "replace"})
"""Functions that do."""


class Partly(dict[Any, Any]):
    """What is known of a dict that may hold more."""


_DICTS = (dict, OrderedDict, Partly)


class Nothing:
    """Stands for a call of which nothing is known."""

    hangs = False
    """Whether what was told may be another thing the next time: it hangs on objects, the environment or arguments."""

    def argument(self, function: FunctionType, name: str) -> list[Any]:
        """Return what an argument of a function may be."""
        return [UNKNOWN]


class Scope:
    """Where the names of one function stand for something. Looks anew at each question."""

    def __init__(self, function: FunctionType, call: Nothing | None = None) -> None:
        """Take a function, and what is known of the call that it runs in."""
        self._function, self._call = function, call or Nothing()
        self._code, self._globals = function.__code__, function.__globals__
        self._cells = dict(zip(self._code.co_freevars, function.__closure__ or (), strict=False))

    def values(self, node: Node, code: CodeType, depth: int = _DEEPEST) -> list[Any]:
        """Return what an expression may give, `UNKNOWN` among it where that cannot be told.

        Args:
            node: Of the function's code, or of code within it.
            code: Where it stands.
            depth: How far to go from one expression to the next.
        """
        if node.kind == CONST:
            return [node.value]
        if depth <= 0:
            return [UNKNOWN]
        found: list[Any] = []
        for each in self._of(node, code, depth - 1):
            found += [] if any(each is other for other in found) else [each]
        return found[:_MOST] or [UNKNOWN]

    def _of(self, node: Node, code: CodeType, depth: int) -> list[Any]:
        if node.kind == NAME:
            return self._variable(node, code, depth)
        if node.kind == EITHER:
            for each in node.parts:
                if each.kind == NAME and (known := self._given(each.name, code)):
                    return known
            return [value for each in node.parts for value in self.values(each, code, depth)]
        if node.kind == ATTRIBUTE and len(node.parts) == 1:
            return [attribute(each, node.name) for each in self._looked_into(self.values(node.parts[0], code, depth))]
        if node.kind in (ITEM, OPERATION) and len(node.parts) == 2:
            pairs = _products(self._looked_into(self.values(each, code, depth)) for each in node.parts)
            return [_entry(*each) if node.kind == ITEM else _operated(node.value, *each) for each in pairs]
        if node.kind == CALL:
            return self._called(node, code, depth)
        if node.kind == OTHER and node.value in ("BUILD_MAP", "BUILD_CONST_KEY_MAP"):
            return self._dict(node, code, depth)
        if node.kind == OTHER and node.value in ("BUILD_TUPLE", "BUILD_LIST"):
            return [tuple(each) for each in _products(self.values(part, code, depth) for part in node.parts)]
        if node.kind == OTHER and node.value == "FOR_ITER" and node.parts:
            many = self._iterated(node.parts[0], code, depth)
            return [each for held in many for each in (held if type(held) in (list, tuple) else [UNKNOWN])]
        return [UNKNOWN]

    def _dict(self, node: Node, code: CodeType, depth: int) -> list[Any]:
        """Return what a dict display may give, with `UNKNOWN` where a value cannot be told."""
        made: dict[Any, Any] = {}
        if node.value == "BUILD_CONST_KEY_MAP":
            pairs, merged = list(zip(node.parts[-1].value, node.parts[:-1], strict=True)), []
        else:
            n_pairs = next((at for at, each in enumerate(node.parts[::2]) if each.kind != CONST), len(node.parts) // 2)
            pairs = [(node.parts[2 * at].value, node.parts[2 * at + 1]) for at in range(n_pairs)]
            merged = node.parts[2 * n_pairs :]
        found = [made]
        for key, each in pairs:
            found = [{**one, key: value} for one in found for value in self.values(each, code, depth)][:_MOST]
        for each in merged:
            more = self.values(each, code, depth)
            found = [_operated("|", one, held if _is_dict(held) else Partly()) for one in found for held in more][
                :_MOST
            ]
        return found

    def _called(self, node: Node, code: CodeType, depth: int) -> list[Any]:
        """Return what a call gives that changes nothing and runs nobody's code."""
        function, *given = node.parts
        name = function.name
        if given and any(each.kind == OTHER and each.value == STARRED for each in given):
            return [UNKNOWN]
        n_placed = len(given) - len(node.value)
        if name == "dict" and function.kind == NAME and node.value and n_placed <= 1:
            products = _products(self._looked_into(self.values(each, code, depth)) for each in given)
            named = [dict(zip(node.value, each[n_placed:], strict=True)) for each in products]
            pairs = zip(products, named, strict=True)
            return [_operated("|", _held(each[0]), one) if n_placed else one for each, one in pairs]
        if node.value:
            return [UNKNOWN]
        if name in _COPYING and len(given) == 1:
            return [_held(each) for each in self._looked_into(self.values(given[0], code, depth))]
        arguments = _products(self._looked_into(self.values(each, code, depth)) for each in given)
        if function.kind == NAME and name in ("float", "int") and name not in self._globals:
            return [_number(name, *each) if len(each) == 1 else UNKNOWN for each in arguments]
        if function.kind == NAME and name == "getattr":
            return [_asked(*each) if 2 <= len(each) <= 3 else UNKNOWN for each in arguments]
        if function.kind != ATTRIBUTE or not function.parts:
            return [UNKNOWN]
        held = self._looked_into(self.values(function.parts[0], code, depth))
        if name in _COPIES and not given:
            return [_held(each) for each in held]
        if name == "getenv" and held[0] is os:
            held = self._looked_into([os.environ])
        elif name != "get":
            return [UNKNOWN]
        return [_entry(one, *each) if 1 <= len(each) <= 2 else UNKNOWN for one in held for each in arguments]

    def _iterated(self, node: Node, code: CodeType, depth: int) -> list[Any]:
        """Return what a loop goes through; a comprehension is a function that is called with it."""
        if node.kind == NAME and node.value == ".0" and code != self._code:
            made = [user for each in expressions(self._code) if each.value == code for user in each.users]
            given = [call.parts[1] for each in made for call in each.users if call.kind == CALL and len(call.parts) > 1]
            return [value for each in given for value in self._iterated(each, self._code, depth)] or [UNKNOWN]
        return self.values(node.parts[0], code, depth) if node.value == "GET_ITER" and node.parts else [UNKNOWN]

    def _variable(self, node: Node, code: CodeType, depth: int) -> list[Any]:
        name = node.name
        if node.is_local or name in code.co_cellvars:
            if known := self._given(name, code):
                return known
            found = [value for each in _stored(code, name) for value in self.values(each, code, depth)]
            if name in parameters(code):
                found += self._argument(name) if code == self._code else [UNKNOWN]
            entries = [(key, value) for key, each in _set_in(code, name) for value in self.values(each, code, depth)]
            return [_operated("|", each, dict(entries)) if entries and _is_dict(each) else each for each in found]
        if name in code.co_freevars:
            try:
                return [self._cells[name].cell_contents]
            except (KeyError, ValueError):  # a variable of the function around it, or none yet
                return self._argument(name) if name in parameters(self._code) else [UNKNOWN]
        return [self._globals.get(name, UNKNOWN)]

    def _argument(self, name: str) -> list[Any]:
        return self._call.argument(self._function, name)

    def _looked_into(self, values: list[Any]) -> list[Any]:
        """Return the same; notes whether what lies in one of them may be another thing the next time."""
        self._call.hangs = self._call.hangs or any(map(_may_change, values))
        return values

    def _given(self, name: str, code: CodeType) -> list[Any]:
        """Return what an argument is that code asks whether it is None, if it is known not to be; else nothing."""
        if code != self._code or name not in parameters(code) or not _asks_for_none(code, name):
            return []
        if len(_stored(code, name)) > 1:  # not only where it was None
            return []
        given = self._argument(name)
        return [] if any(each is None or each is UNKNOWN for each in given) else given


def parameters(code: CodeType) -> tuple[str, ...]:
    """Return what code calls its arguments, but for those that it takes by stars."""
    return code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]


def attribute(value: Any, name: str) -> Any:
    """Return what lies in an object, class or module under a name; `UNKNOWN` where code would have to say it."""
    if value is UNKNOWN:
        return UNKNOWN
    if isinstance(value, ModuleType):
        return vars(value).get(name, UNKNOWN)
    if isinstance(value, tuple) and name in getattr(type(value), "_fields", ()):
        return tuple.__getitem__(value, type(value)._fields.index(name))  # pyright: ignore[reportAttributeAccessIssue]
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


@functools.lru_cache(maxsize=4096)
def _asks_for_none(code: CodeType, name: str) -> bool:
    asked = [each for each in expressions(code) if each.kind == NAME and each.value == name]
    return any("NONE" in str(user.value) for each in asked for user in each.users if user.kind == OTHER)


def _stored(code: CodeType, name: str) -> list[Node]:
    """Return what code puts into a variable of its own."""
    return [each.parts[0] for each in expressions(code) if each.kind == STORED and each.value == name and each.parts]


def _set_in(code: CodeType, name: str) -> list[tuple[Any, Node]]:
    """Return what code puts under constant keys into what a variable holds."""
    users = [user for each in expressions(code) if each.kind == NAME and each.value == name for user in each.users]
    stores = [each.parts for each in users if each.value == "STORE_SUBSCR" and len(each.parts) == 3]
    return [(key.value, value) for value, held, key in stores if key.kind == CONST and held.name == name]


def _products(parts: Iterable[list[Any]]) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = [()]
    for each in parts:
        found = [(*before, value) for before in found for value in each][:_MOST]
    return found


def _may_change(value: Any) -> bool:
    """Whether what lies in a value is not watched: plain values are, classes, modules and functions."""
    if type(value) in (dict, list, tuple):
        held = value.values() if type(value) is dict else value
        return any(type(each) not in _PLAIN and _may_change(each) for each in held)
    return (
        type(value) not in _PLAIN and not isinstance(value, type | ModuleType | FunctionType) and value is not UNKNOWN
    )


def _is_dict(value: Any) -> bool:
    return type(value) in _DICTS


def _held(value: Any) -> Any:
    """Return what an object holds, as a dict."""
    if _is_dict(value) or value is UNKNOWN:
        return value
    if isinstance(value, tuple) and hasattr(type(value), "_fields"):
        return {name: attribute(value, name) for name in type(value)._fields}  # pyright: ignore[reportAttributeAccessIssue]
    if dataclasses.is_dataclass(value):
        return {each.name: attribute(value, each.name) for each in dataclasses.fields(value)}
    return dict(held) if (held := attributes_lying_in(value)) else UNKNOWN


def _asked(value: Any, name: Any, default: Any = UNKNOWN) -> Any:
    found = attribute(value, name) if isinstance(name, str) else UNKNOWN
    return default if found is UNKNOWN else found


def _entry(held: Any, key: Any, default: Any = UNKNOWN) -> Any:
    if (_is_dict(held) or held is os.environ) and isinstance(key, str | int):
        return held.get(key, UNKNOWN if type(held) is Partly else default)
    if type(held) in (list, tuple) and type(key) is int and -len(held) <= key < len(held):
        return held[key]
    return UNKNOWN


def _operated(sign: str, left: Any, right: Any) -> Any:
    if sign == "|" and _is_dict(left) and _is_dict(right):
        return (Partly if Partly in (type(left), type(right)) else dict)({**left, **right})
    if sign not in _SIGNS or not {type(left), type(right)} <= {int, float}:
        return UNKNOWN
    try:
        return _SIGNS[sign](left, right)
    except ArithmeticError:
        return UNKNOWN


def _number(kind: str, value: Any) -> Any:
    if type(value) not in (int, float, str):
        return UNKNOWN
    try:
        return {"float": float, "int": int}[kind](value)
    except (ValueError, OverflowError):
        return UNKNOWN
