"""What expressions in code may give, told without running anything: constants, variables, and what lies in them."""

from __future__ import annotations

from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

from lmstash.identity.dataflow.dicts import DEEPEST
from lmstash.identity.dataflow.expressions import (
    ATTRIBUTE,
    CALL,
    COMPARED,
    CONST,
    EITHER,
    ITEM,
    NAME,
    OPERATION,
    OTHER,
    STORED,
    Node,
    code_within,
    expressions,
    given_in,
)
from lmstash.identity.dataflow.known_calls import KnownCalls
from lmstash.identity.dataflow.lying_in import (
    CALCULATING,
    MOST,
    UNKNOWN,
    attribute,
    compared,
    entry,
    is_dict,
    items_of,
    may_change,
    operated,
    products,
)
from lmstash.identity.dataflow.told import WHOLE, Known, Nothing
from lmstash.identity.dataflow.variables import (
    asks_for_none,
    code_made,
    parameters,
    returns,
    stored,
    takes_all_by,
    yields,
    yields_all,
)

_DISPLAYS = frozenset({"BUILD_TUPLE", "BUILD_LIST", "BUILD_SET"})


class Scope(KnownCalls):
    """Where the names of one function stand for something. Looks anew at each question."""

    def __init__(self, function: FunctionType, call: Nothing | None = None) -> None:
        """Take a function, and what is known of the call that it runs in."""
        self._function, self.call = function, call or Nothing()
        self._code, self.table = function.__code__, function.__globals__
        self._cells = dict(zip(self._code.co_freevars, function.__closure__ or (), strict=False))

    @property
    def around(self) -> Any:
        """The class whose methods above it the function asks `super()` for; `UNKNOWN` where it does not ask."""
        try:
            return self._cells["__class__"].cell_contents
        except (KeyError, ValueError):
            return UNKNOWN

    def values(self, node: Node, code: CodeType, depth: int = DEEPEST) -> list[Any]:
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
        call, key = self.call, (id(self._function), id(node))
        known = call.known.get(key)
        if known is not None and known.depth >= depth:
            call.hangs = call.hangs or known.hangs
            return known.values
        before, call.hangs, call.hangs_on = (call.hangs, call.hangs_on), False, WHOLE
        found: list[Any] = []
        for each in self._of(node, code, depth - 1):
            if not any(each is other for other in found):
                found.append(each)
                if len(found) == MOST:
                    break
        found = found or [UNKNOWN]
        if call.hangs_on == WHOLE and call.keeps(self._function):
            call.known[key] = Known(found, call.hangs, depth, node)
        call.hangs, call.hangs_on = before[0] or call.hangs, min(before[1], call.hangs_on)
        return found

    def near(self, node: Node, code: CodeType, depth: int = 4) -> list[Any]:
        """Return what an expression may give; of what is calculated, the parts that can be told: `0.7 + 0.1 * i`."""
        values = self.values(node, code)
        if depth <= 0 or not any(each is UNKNOWN for each in values):
            return values
        within = node.parts if node.kind in (OPERATION, EITHER) else []
        if node.kind == CALL and node.parts[0].kind == NAME and node.parts[0].name in CALCULATING:
            within = node.parts[1:]
        elif node.kind == NAME and node.is_local:
            within = stored(code, node.name)
        return [*values, *(value for each in within for value in self.near(each, code, depth - 1))]

    def returned(self) -> list[Any]:
        """Return what the function may give; of a generator what it goes through."""
        if yields_all(self._code):
            return [self.yielded(self._code, DEEPEST)]
        nodes = returns(self._code)
        return [value for each in nodes for value in self.values(each, self._code)] or [UNKNOWN]

    def _of(self, node: Node, code: CodeType, depth: int) -> list[Any]:
        if node.kind == NAME:
            return self._variable(node, code, depth)
        if node.kind == EITHER:
            for each in node.parts:
                if each.kind == NAME and (known := self._given(each.name, code)):
                    return known
            return [value for each in node.parts for value in self.values(each, code, depth)]
        if node.kind == ATTRIBUTE and len(node.parts) == 1:
            held = self.looked_into(self.values(node.parts[0], code, depth))
            return [found for each in held for found in self._attribute(each, node.name)]
        if node.kind in (ITEM, OPERATION) and len(node.parts) == 2:
            pairs = products(self.looked_into(self.values(each, code, depth)) for each in node.parts)
            return [entry(*each) if node.kind == ITEM else operated(node.value, *each) for each in pairs]
        if node.kind == CALL:
            return self._called(node, code, depth)
        if node.kind == OTHER and str(node.value).startswith(COMPARED) and len(node.parts) == 2:
            pairs = products(self.looked_into(self.values(each, code, depth)) for each in node.parts)
            return [compared(node.value.removeprefix(COMPARED), *each) for each in pairs]
        if node.kind == OTHER and node.value == "BUILD_MAP":
            return self.of_display(node, code, depth)
        if node.kind == OTHER and node.value in _DISPLAYS:
            return [tuple(each) for each in products(self.values(part, code, depth) for part in node.parts)]
        if node.kind == OTHER and node.value == "UNPACK_EX":
            return [
                _rest(each, *(at.value for at in node.parts[1:])) for each in self.values(node.parts[0], code, depth)
            ]
        if node.kind == OTHER and node.value == "FOR_ITER" and node.parts:
            return [each for held in self._iterated(node.parts[0], code, depth) for each in items_of(held)]
        return [UNKNOWN]

    def given_by(self, function: FunctionType) -> Any:
        """Return what a function gives that takes nothing, or one of what it may."""
        return Scope(function, self.call).returned()[0]

    def _attribute(self, value: Any, name: str) -> list[Any]:
        found = attribute(value, name)
        return [found] if found is not UNKNOWN else self.call.asked(value, name) or [UNKNOWN]

    def yielded(self, code: CodeType, depth: int) -> tuple[Any, ...]:
        """Return what a generator goes through."""
        found = ((value, is_many) for each, is_many in yields(code) for value in self.values(each, code, depth))
        return tuple(one for value, is_many in found for one in (items_of(value) if is_many else [value]))

    # --- calls -------------------------------------------------------------------------------------------------------

    def _called(self, node: Node, code: CodeType, depth: int) -> list[Any]:
        """Return what a call gives: of functions of your own, of classes, and of others that run nobody's code."""
        found = self.known_call(node, code, depth)
        if found and not all(each is UNKNOWN for each in found):
            return found
        return self.call.returned(self._function, code, node) or [UNKNOWN]

    # --- names -------------------------------------------------------------------------------------------------------

    def _iterated(self, node: Node, code: CodeType, depth: int) -> list[Any]:
        """Return what a loop goes through; a comprehension is a function that is called with it."""
        if node.kind == NAME and node.value == ".0" and code != self._code:
            given = [
                (call.parts[1], outer)
                for made, outer in self._makings(code)
                for call in made.users
                if call.kind == CALL and len(call.parts) > 1
            ]
            return [value for each, outer in given for value in self._iterated(each, outer, depth)] or [UNKNOWN]
        return self.values(node.parts[0], code, depth) if node.value == "GET_ITER" and node.parts else [UNKNOWN]

    def _variable(self, node: Node, code: CodeType, depth: int) -> list[Any]:
        name = node.name
        if node.is_local or name in code.co_cellvars:
            if known := self._given(name, code):
                return known
            found = [value for each in stored(code, name) for value in self.values(each, code, depth)]
            if name in (*parameters(code), takes_all_by(code)):
                found += self._argument(name) if code == self._code else self._of_inner(code, name, depth)
            if not any(map(is_dict, found)):
                return found
            more = self.put_into(code, name, depth)
            return [
                operated("|", operated("|", before, each), after) if is_dict(each) and (before or after) else each
                for each in found
                for before, after in more
            ]
        if name in code.co_freevars:
            if name in self._cells:
                try:
                    return [self._cells[name].cell_contents]
                except ValueError:  # none yet
                    return [UNKNOWN]
            around = next((each for each in code_within(self._code) if name in each.co_cellvars), None)
            if around is None or around == code:
                return [UNKNOWN]
            return self._variable(Node(NAME, name, is_local=True), around, depth)
        return [self.table.get(name, UNKNOWN)]

    def _argument(self, name: str) -> list[Any]:
        return self.call.argument(self._function, name)

    def _makings(self, inner: CodeType) -> Iterator[tuple[Node, CodeType]]:
        """Yield where a function is made of code within the function, and in which code."""
        for outer in code_within(self._code):
            yield from ((each, outer) for each in expressions(outer) if code_made(each) is inner)

    def _of_inner(self, inner: CodeType, name: str, depth: int) -> list[Any]:
        """Return what an argument may be of a function within the function, by its default and its calls."""
        if name not in parameters(inner):
            return [UNKNOWN]
        place = parameters(inner).index(name)
        found: list[Any] = []
        for made, outer in self._makings(inner):
            defaults = [value for each in made.parts[:-1] for value in self.values(each, outer, depth)]
            for each in defaults:
                if type(each) is tuple:
                    names = inner.co_varnames[: inner.co_argcount][::-1]
                    found += [value for at, value in zip(names, each[::-1], strict=False) if at == name]
                elif is_dict(each) and name in each:
                    found.append(each[name])
            called = {str(each.value) for each in made.users if each.kind == STORED}
            meant = [(made, outer)] + [
                (each, code)
                for code in code_within(outer)
                for each in expressions(code)
                if each.kind == NAME and each.value in called
            ]
            for me, code in meant:
                for call in me.users:
                    if call.kind == CALL:
                        found += self._given_to(call, me, place, name, code, depth)
        return found or [UNKNOWN]

    def _given_to(self, call: Node, me: Node, place: int, name: str, code: CodeType, depth: int) -> list[Any]:
        """Return what a call gives for an argument of a function that it calls, or that it hands on to be called."""
        placed, named, _, _ = given_in(call)
        if call.parts[0] is not me:
            placed = placed[placed.index(me) + 1 :] if me in placed else []
        given = [named[name]] if name in named else placed[place : place + 1]
        values = [value for each in given for value in self.values(each, code, depth)]
        is_map = call.parts[0] is not me and "map" in call.parts[0].name
        return [one for each in values for one in items_of(each)] if is_map else values

    def looked_into(self, values: list[Any]) -> list[Any]:
        """Return the same; notes whether what lies in one of them may be another thing the next time."""
        self.call.hangs = self.call.hangs or any(map(may_change, values))
        return values

    def _given(self, name: str, code: CodeType) -> list[Any]:
        """Return what an argument is that code asks whether it is None, if it is known not to be; else nothing."""
        if code != self._code or name not in parameters(code) or not asks_for_none(code, name):
            return []
        if len(stored(code, name)) > 1:  # not only where it was None
            return []
        given = self._argument(name)
        return [] if any(each is None or each is UNKNOWN for each in given) else given


def _rest(held: Any, before: int, after: int) -> Any:
    """Return what is left of what is unpacked: `first, *rest = held`."""
    return [*held[before : len(held) - after]] if type(held) in (list, tuple) else UNKNOWN
