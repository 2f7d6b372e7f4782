"""What expressions in code give, told without running anything: constants, globals, and what lies in them by name."""

from __future__ import annotations

from inspect import getattr_static
from types import CodeType, FunctionType, MemberDescriptorType, ModuleType
from typing import Any

from lmstash.identity.expressions import ATTRIBUTE, CALL, CONST, ITEM, NAME, STORED, Node, expressions

UNKNOWN: Any = type("Unknown", (), {"__repr__": lambda _: "UNKNOWN"})()
"""Stands for what cannot be told."""
_DEEPEST = 12


class Scope:
    """Where the names of one function stand for something. Looks anew at each question."""

    def __init__(self, function: FunctionType, me: Any = UNKNOWN) -> None:
        """Take a function, and what a method is called of."""
        self.function = function
        code = function.__code__
        self._me = {code.co_varnames[0]: me} if me is not UNKNOWN and code.co_argcount else {}

    def value(self, node: Node, code: CodeType, depth: int = _DEEPEST) -> Any:
        """Return what an expression in the function's code, or in code within it, gives; or `UNKNOWN`."""
        if node.kind == CONST:
            return node.value
        if depth <= 0:
            return UNKNOWN
        if node.kind == NAME:
            return self._variable(node, code, depth)
        if node.kind == ATTRIBUTE and len(node.parts) == 1:
            return attribute(self.value(node.parts[0], code, depth - 1), node.name)
        if node.kind == ITEM:
            held, key = (self.value(each, code, depth - 1) for each in node.parts)
            return _entry(held, key)
        if node.kind == CALL and node.parts[0].kind == ATTRIBUTE and node.parts[0].value == "get":
            held, *given = (self.value(each, code, depth - 1) for each in (node.parts[0].parts[0], *node.parts[1:]))
            found = _entry(held, given[0]) if given else UNKNOWN
            return given[1] if found is UNKNOWN and type(held) is dict and len(given) == 2 else found
        return UNKNOWN

    def _variable(self, node: Node, code: CodeType, depth: int) -> Any:
        name, own = node.name, self.function.__code__
        if code == own and name in self._me:  # code that says the same may be another object
            return self._me[name]
        if node.is_local or name in code.co_cellvars:
            given = [each for each in expressions(code) if each.kind == STORED and each.value == name]
            is_argument = name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
            if is_argument or len(given) != 1 or not given[0].parts:
                return UNKNOWN
            return self.value(given[0].parts[0], code, depth - 1)
        if name in code.co_freevars:
            cells = dict(zip(own.co_freevars, self.function.__closure__ or (), strict=False))
            try:
                return cells[name].cell_contents
            except (KeyError, ValueError):  # a variable of the function around it, or none yet
                return UNKNOWN
        return self.function.__globals__.get(name, UNKNOWN)


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


def _entry(held: Any, key: Any) -> Any:
    if type(held) is dict and isinstance(key, str | int):
        return held.get(key, UNKNOWN)
    if type(held) in (list, tuple) and type(key) is int and -len(held) <= key < len(held):
        return held[key]
    return UNKNOWN
