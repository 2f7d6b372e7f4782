"""What calls give that run nobody's code: of classes that are made of fields, and of well-known functions."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterable
from types import CodeType, FunctionType
from typing import Any

from lmstash.identity.dataflow.dicts import Dicts
from lmstash.identity.dataflow.expressions import ATTRIBUTE, NAME, OTHER, STARRED, Node, expressions, given_in
from lmstash.identity.dataflow.lying_in import (
    CALCULATING,
    UNKNOWN,
    Factory,
    Made,
    Partly,
    asked,
    calculated,
    dict_of,
    entries_of,
    entry,
    fields_of,
    is_dict,
    items_of,
    looped,
    method,
    operated,
    products,
    rows_in,
    spaced,
)
from lmstash.identity.dataflow.settings_files import endings_of
from lmstash.identity.dataflow.told import Nothing
from lmstash.identity.dataflow.variables import code_made

_COPIES = frozenset({"copy", "model_dump", "dict", "_asdict", "to_dict"})
"""Methods that give what an object holds."""
_COPYING = frozenset({"vars", "asdict", "dict"})
"""Functions that do."""
_SAME = frozenset({"copy", "deepcopy", "replace"})
"""Functions that give an object that bears the same, but for what they are given by name."""
_SPACED = {"linspace": ("start", "stop", "num", "endpoint"), "arange": ("start", "stop", "step")}
"""Functions of numpy that give numbers, and what they take."""
_ONE_OF = frozenset({"next", "anext", "choice"})
"""Functions that give one of those that a container holds."""


class KnownCalls(Dicts):
    """Tells of calls by what their arguments may be.

    Attributes:
        call: What is known of the call that the code runs in.
        table: The globals of the code.
    """

    call: Nothing
    table: dict[str, Any]

    @abstractmethod
    def looked_into(self, values: list[Any]) -> list[Any]:
        """Return the same; notes whether what lies in one of them may be another thing the next time."""

    @abstractmethod
    def yielded(self, code: CodeType, depth: int) -> tuple[Any, ...]:
        """Return what a generator goes through."""

    @abstractmethod
    def given_by(self, function: FunctionType) -> Any:
        """Return what a function gives that takes nothing, or one of what it may."""

    def known_call(self, node: Node, code: CodeType, depth: int) -> list[Any]:
        """Return what a call gives that runs nobody's code; nothing where it is another one."""
        function, name = node.parts[0], node.parts[0].name
        if (inner := code_made(function)) is not None:  # a comprehension
            if "<genexpr>" in inner.co_name:
                return [self.yielded(inner, depth)]
            made = [each for each in expressions(inner) if each.kind == OTHER and str(each.value).startswith("BUILD_")]
            return self.values(made[0], inner, depth) if made and "comp>" in inner.co_name else []
        placed, named, spread, is_open = given_in(node)
        if is_open:
            stars = [each.parts[0] for each in node.parts[1:] if each.kind == OTHER and each.value == STARRED]
            held = [each for each in self.values(stars[0], code, depth) if type(each) in (list, tuple)]
            return [looped(name, tuple(each)) for each in held] if len(stars) == 1 else []
        if made := self._made(node, code, depth):
            return made
        if endings := endings_of(function, self.values(function, code, depth)):
            return self.call.loaded(endings)
        arguments = products(self.looked_into(self.values(each, code, depth)) for each in placed)
        if name == "dict" and function.kind == NAME and len(placed) <= 1:
            more = self.by_name(named, spread, code, depth)
            firsts = [dict_of(each[0]) if each else {} for each in arguments]
            return [operated("|", first, each) for first in firsts for each in more]
        if name in _SAME and len(placed) == 1 and function.kind in (NAME, ATTRIBUTE):
            more = self.by_name(named, spread, code, depth)
            return [_changed(value, each) for (value,) in arguments for each in more]
        if name in _COPYING and len(placed) == 1:
            return [_some_of(each, named) for (each,) in arguments]
        if name in _COPIES and not placed and function.kind == ATTRIBUTE and function.parts:
            return [_some_of(each, named) for each in self.looked_into(self.values(function.parts[0], code, depth))]
        if name in _SPACED and not spread:
            given = {**dict(zip(_SPACED[name], placed, strict=False)), **named}
            return [spaced(name, each) for each in self.by_name(given, [], code, depth)]
        if named or spread:
            return []
        if name in _ONE_OF and arguments != [()]:
            return [one for each in arguments for one in items_of(each[0])]
        if function.kind == NAME and name in CALCULATING and name not in self.table:
            return [calculated(name, each) for each in arguments]
        if function.kind == NAME and name == "getattr":
            return [asked(*each) if 2 <= len(each) <= 3 else UNKNOWN for each in arguments]
        found = [looped(name, each) for each in arguments]
        if function.kind != ATTRIBUTE or not function.parts or not all(each is UNKNOWN for each in found):
            return found
        return self._method(function, arguments, code, depth)

    def _method(self, function: Node, arguments: list[tuple[Any, ...]], code: CodeType, depth: int) -> list[Any]:
        """Return what a method gives that runs nobody's code."""
        name, held = function.name, self.looked_into(self.values(function.parts[0], code, depth))
        if arguments == [()]:
            return [one for each in held for one in (items_of(each) if name == "pop" else [method(name, each)])]
        if name == "to_dict" and arguments == [("records",)]:
            return [rows for each in held if (rows := rows_in(each)) is not None]
        if name == "getenv" and held[0] is os:
            held = self.looked_into([os.environ])
        elif name not in ("get", "pop"):
            return []
        return [entry(one, *each) if 1 <= len(each) <= 2 else UNKNOWN for one in held for each in arguments]

    def _made(self, node: Node, code: CodeType, depth: int) -> list[Any]:
        """Return the objects that a call makes, if it is one of a class."""
        found: list[Any] = []
        placed, named, spread, _ = given_in(node)
        for cls in self.values(node.parts[0], code, depth) if node.parts[0].kind in (NAME, ATTRIBUTE) else ():
            if not isinstance(cls, type):
                continue
            if fields := {name: self._default(each) for name, each in fields_of(cls)}:
                by_name = {**dict(zip(fields, placed, strict=False)), **named}
                for each in self.by_name(by_name, spread, code, depth):
                    known = dict.fromkeys(fields, UNKNOWN) if type(each) is Partly else fields
                    found.append(Made(cls, {**known, **each}))
            else:
                found += [Made(cls, each) for each in self.call.set_in(cls)]
        return found

    def _default(self, value: Any) -> Any:
        """Return what a field is that is not given: also what its factory makes."""
        if not isinstance(value, Factory):
            return value
        if isinstance(value.of, FunctionType):
            return self.given_by(value.of)
        if value.of in (dict, list):
            return value.of()
        is_made = isinstance(value.of, type) and any(fields_of(value.of))
        return Made(value.of, {name: self._default(each) for name, each in fields_of(value.of)}) if is_made else UNKNOWN


def _some_of(value: Any, options: Iterable[str]) -> Any:
    """Return what an object holds; only part of it where somebody says which part."""
    held = entries_of(value)
    return Partly(held) if options and is_dict(held) else held


def _changed(value: Any, others: dict[str, Any]) -> Any:
    """Return an object that bears the same but for some attributes."""
    held = entries_of(value)
    if not others or not is_dict(held):
        return value
    return {**held, **others} if is_dict(value) else Made(type(value), {**held, **others})
