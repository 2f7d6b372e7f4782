"""What expressions in code may give, told without running anything: constants, variables, and what lies in them."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Mapping
from inspect import getattr_static
from types import CodeType, FunctionType, MemberDescriptorType, ModuleType
from typing import Any

from lmstash.identity.expressions import (
    ATTRIBUTE,
    CALL,
    CONST,
    EITHER,
    ITEM,
    NAME,
    OPERATION,
    STORED,
    Node,
    expressions,
)

UNKNOWN: Any = type("Unknown", (), {"__repr__": lambda _: "UNKNOWN"})()
"""Stands for what cannot be told."""
_DEEPEST = 12
_MOST = 16
_SIGNS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}


class Scope:
    """Where the names of one function stand for something. Looks anew at each question."""

    def __init__(self, function: FunctionType, arguments: Mapping[str, Any]) -> None:
        """Take a function, and what is known of the arguments that it is called with."""
        self._code, self._globals, self._arguments = function.__code__, function.__globals__, arguments
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
            return [value for each in node.parts for value in self.values(each, code, depth)]
        if node.kind == ATTRIBUTE and len(node.parts) == 1:
            return [attribute(each, node.name) for each in self.values(node.parts[0], code, depth)]
        if node.kind in (ITEM, OPERATION) and len(node.parts) == 2:
            pairs = self._products([self.values(each, code, depth) for each in node.parts])
            return [_entry(*each) if node.kind == ITEM else _operated(node.value, *each) for each in pairs]
        if node.kind == CALL and not node.value:
            return self._called(node, code, depth)
        return [UNKNOWN]

    def _called(self, node: Node, code: CodeType, depth: int) -> list[Any]:
        """Return what a call gives that changes nothing and runs nobody's code."""
        function, *given = node.parts
        arguments = self._products([self.values(each, code, depth) for each in given])
        if function.kind == NAME and function.name in ("float", "int") and function.name not in self._globals:
            return [_number(function.name, *each) if len(each) == 1 else UNKNOWN for each in arguments]
        if function.kind != ATTRIBUTE or not function.parts:
            return [UNKNOWN]
        held = self.values(function.parts[0], code, depth)
        if function.name == "getenv" and held == [os]:
            held = [os.environ]
        elif function.name != "get":
            return [UNKNOWN]
        return [_entry(one, *each) if 1 <= len(each) <= 2 else UNKNOWN for one in held for each in arguments]

    def _products(self, parts: list[list[Any]]) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = [()]
        for each in parts:
            found = [(*before, value) for before in found for value in each][:_MOST]
        return found

    def _variable(self, node: Node, code: CodeType, depth: int) -> list[Any]:
        name = node.name
        if node.is_local or name in code.co_cellvars:
            given = [each for each in expressions(code) if each.kind == STORED and each.value == name and each.parts]
            found = [value for each in given for value in self.values(each.parts[0], code, depth)]
            if name not in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]:
                return found
            own = code == self._code  # code that says the same may be another object
            return [*found, self._arguments.get(name, UNKNOWN) if own else UNKNOWN]
        if name in code.co_freevars:
            try:
                return [self._cells[name].cell_contents]
            except (KeyError, ValueError):  # a variable of the function around it, or none yet
                return [self._arguments[name]] if name in self._arguments else [UNKNOWN]
        return [self._globals.get(name, UNKNOWN)]


def attribute(value: Any, name: str) -> Any:
    """Return what lies in an object, class or module under a name; `UNKNOWN` where code would have to say it."""
    if value is UNKNOWN:
        return UNKNOWN
    if isinstance(value, ModuleType):
        return vars(value).get(name, UNKNOWN)
    found = getattr_static(value, name, UNKNOWN)
    if isinstance(found, MemberDescriptorType) and not isinstance(value, type):  # of `__slots__`, or written in C
        try:
            return found.__get__(value, type(value))
        except AttributeError:
            return UNKNOWN
    return UNKNOWN if hasattr(type(found), "__get__") else found


def _entry(held: Any, key: Any, default: Any = UNKNOWN) -> Any:
    if (type(held) is dict or held is os.environ) and isinstance(key, str | int):
        return held.get(key, default)
    if type(held) in (list, tuple) and type(key) is int and -len(held) <= key < len(held):
        return held[key]
    return UNKNOWN


def _operated(sign: str, left: Any, right: Any) -> Any:
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
