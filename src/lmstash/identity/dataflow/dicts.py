"""What the dicts may hold that code makes: displays, comprehensions, and what is put into them later."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from types import CodeType
from typing import Any

from lmstash.identity.dataflow.expressions import CONST, ENTRY, ITEM, MERGED, OTHER, Node, given_in
from lmstash.identity.dataflow.lying_in import Partly, dict_of, is_dict, operated, products
from lmstash.identity.dataflow.variables import entries_set, methods_called, stored

DEEPEST = 12
"""So far is gone from one expression to the next."""


class Dicts(ABC):
    """Tells of dicts by what their keys and values may be."""

    @abstractmethod
    def values(self, node: Node, code: CodeType, depth: int = DEEPEST) -> list[Any]:
        """Return what an expression may give."""

    def of_display(self, node: Node, code: CodeType, depth: int) -> list[Any]:
        """Return what a dict display or comprehension may give, with `UNKNOWN` where a value cannot be told."""
        more = [each for each in node.parts if each.kind == OTHER and each.value in (MERGED, ENTRY)]
        pairs = node.parts[: len(node.parts) - len(more)]
        parts = [self._entry(*pair, code, depth) for pair in zip(pairs[::2], pairs[1::2], strict=False)]
        for each in more:
            if each.value == ENTRY:
                parts.append(self._each_entry(each.parts[0], each.parts[1], code, depth))
            else:
                parts.append([held if is_dict(held) else Partly() for held in self.values(each.parts[0], code, depth)])
        return [functools.reduce(functools.partial(operated, "|"), each, {}) for each in products(parts)]

    def _entry(self, key: Node, value: Node, code: CodeType, depth: int) -> list[Any]:
        """Return what one entry may be, as dicts of one."""
        pairs = products([self.values(key, code, depth), self.values(value, code, depth)])
        return [{one: other} if isinstance(one, str | int) else Partly() for one, other in pairs]

    def _each_entry(self, key: Node, value: Node, code: CodeType, depth: int) -> list[Any]:
        """Return the entries that a comprehension makes: `{k: v for k, v in settings.items() if v is not None}`."""
        one, other = ([at for at in stored(code, each.name) if at.kind == ITEM] for each in (key, value))
        if len(one) == len(other) == 1:
            (pair, first), (same, second) = one[0].parts, other[0].parts
            if pair is same and (first.value, second.value) == (0, 1):
                found = [each for each in self.values(pair, code, depth) if type(each) is tuple and len(each) == 2]
                return [{name: each for name, each in found if isinstance(name, str | int)}]
        return self._entry(key, value, code, depth)

    def by_name(self, named: dict[str, Node], spread: list[Node], code: CodeType, depth: int = DEEPEST) -> list[Any]:
        """Return what a call gives by name, as dicts."""
        parts = [[{name: value} for value in self.values(each, code, depth)] for name, each in named.items()]
        parts += [[held if is_dict(held) else Partly() for held in self.values(each, code, depth)] for each in spread]
        return [functools.reduce(functools.partial(operated, "|"), each, {}) for each in products(parts)]

    def put_into(self, code: CodeType, name: str, depth: int) -> list[tuple[Any, Any]]:
        """Return what code may put into the dict that a variable holds: if nothing is there, and whatever is."""
        after = [
            [{key.value: value} for value in self.values(each, code, depth)]
            if key.kind == CONST
            else found
            if len(found := self._each_entry(key, each, code, depth)) == 1
            else [Partly()]
            for key, each in entries_set(code, name)
        ]
        before: list[list[Any]] = []
        for call in methods_called(code, name, "update", "setdefault"):
            placed, named, spread, is_open = given_in(call)
            if call.parts[0].name == "setdefault":
                before += [self._entry(placed[0], placed[1], code, depth)] if len(placed) == 2 else []
                continue
            after += [[dict_of(one) for one in self.values(each, code, depth)] for each in placed]
            after += [self.by_name(named, spread, code, depth), [Partly()] if is_open else [{}]]
        merged = functools.partial(functools.reduce, functools.partial(operated, "|"))
        return products([[merged(each, {}) for each in products(parts)] for parts in (before, after)])
