"""Somebody's own code beside the harness's, and what it does with attributes and globals: reading them, or adding only.

What a model only adds to while it answers changes no answer; what it reads may be why the next answer is another one.
Told from bytecode, which is what runs. What is not understood is taken for reading.
"""

from __future__ import annotations

import dis
import functools
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

from lmstash.adapters.lm_eval.own_names import Followed
from lmstash.identity.encoding import Component
from lmstash.identity.owners import defined_in, is_installed
from lmstash.identity.words import ANY_NAME

_ADDING = frozenset({"append", "appendleft", "extend", "extendleft", "insert", "add", "update"})
"""Methods of containers that add to them and return None."""
_ATTRIBUTES = frozenset({"LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR"})


class Noted(Followed):
    """Collects code, and the functions of somebody's own among it."""

    def __init__(self, harness: str, *, pin_of: Callable[[str], Component] | None = None) -> None:
        """Begin with nothing; see `Followed`."""
        super().__init__(harness, pin_of=pin_of)
        self._functions_noted: dict[int, FunctionType] = {}

    def note(self, code: Any) -> None:
        """Take a function or class for somebody's own."""
        super().note(code)
        if isinstance(code, FunctionType) and not is_installed(defined_in(code)):
            self._functions_noted[id(code)] = code

    @property
    def own(self) -> list[FunctionType]:
        """The functions of somebody's own."""
        return list(self._functions_noted.values())

    def reads(self, name: str, *, of_object: bool) -> bool:
        """Whether somebody's own code does anything but add to what goes by a name.

        Args:
            name: Of an attribute or a global.
            of_object: Whether only attributes can go by it; globals may be reached through their module.
        """
        for function in self._functions_noted.values():
            attributes, others = _read_in(function.__code__)
            if name in attributes or (name in others and not of_object):
                return True
        return self._may_ask(name)

    def takes(self, name: str) -> bool:
        """Whether somebody's own code takes what goes by a name, if only to add to it."""
        return any(name in _loaded(each.__code__) for each in self._functions_noted.values()) or self._may_ask(name)

    def _may_ask(self, name: str) -> bool:
        """Whether code may reach an attribute without naming it."""
        return self._any_name or (name in self.words and not ANY_NAME.isdisjoint(self.names))


def name_of(function: FunctionType) -> str:
    """Return what `identity.code` calls a function."""
    return f"{function.__globals__.get('__name__')}.{function.__code__.co_qualname}"


@functools.lru_cache(maxsize=4096)
def _loaded(code: CodeType) -> frozenset[str]:
    """Return the names of attributes, globals and outer variables that code takes."""
    kinds = (*_ATTRIBUTES, "IMPORT_FROM")
    named = (each for each in dis.get_instructions(code) if each.opname in kinds or _names_variable(each))
    inner = [_loaded(each) for each in code.co_consts if isinstance(each, CodeType)]
    return frozenset(each.argval for each in named).union(*inner)


@functools.lru_cache(maxsize=4096)
def _read_in(code: CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """Return the names of attributes, and of globals and outer variables, that code uses other than to add to them."""
    attributes, others = set[str](), set[str]()
    steps = [each for each in dis.get_instructions(code) if each.opname not in ("CACHE", "EXTENDED_ARG", "NOP")]
    for place, each in enumerate(steps):
        named = each.opname in _ATTRIBUTES or each.opname == "IMPORT_FROM" or _names_variable(each)
        if named and not _adds_only(steps, place):
            (attributes if each.opname in _ATTRIBUTES else others).add(each.argval)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            more = _read_in(inner)
            attributes |= more[0]
            others |= more[1]
    return frozenset(attributes), frozenset(others)


def _names_variable(step: dis.Instruction) -> bool:
    """Whether an instruction takes a global or an outer variable by name."""
    if not step.opname.startswith("LOAD_") or not isinstance(step.argval, str):
        return False
    return step.opcode in dis.hasname or (step.opcode in dis.hasfree and step.opname != "LOAD_CLOSURE")


def _adds_only(steps: list[dis.Instruction], place: int) -> bool:
    """Whether what an instruction takes is only added to: `x += 1`, `x.append(1)`, `x[k] = 1`, `x[k] += 1`.

    Followed on the stack, from where it lies on top (0), to whatever consumes it: it itself, one of its elements, and
    what came of adding to either, which is to be put back.
    """
    name = steps[place].argval
    if steps[place].opname in ("LOAD_METHOD", "LOAD_SUPER_ATTR", "IMPORT_FROM") or "NULL" in steps[place].argrepr:
        return False  # it is called, or put somewhere
    held, top = {0: "it"}, 0
    for step in steps[place + 1 :]:
        operation, number = step.opname, step.arg or 0
        if operation == "POP_TOP":
            held.pop(top, None)
            top -= 1
        elif operation == "COPY":
            if top + 1 - number in held:
                held[top + 1] = held[top + 1 - number]
            top += 1
        elif operation == "SWAP":
            other = top + 1 - number
            a, b = held.pop(top, ""), held.pop(other, "")
            held.update({at: what for at, what in ((top, b), (other, a)) if what})
        elif operation in ("LOAD_ATTR", "LOAD_METHOD") and top in held:
            if held.pop(top) not in ("it", "element") or step.argval not in _ADDING:
                return False
            top += dis.stack_effect(step.opcode, number)
        elif operation == "BINARY_SUBSCR" or (operation == "BINARY_OP" and step.argrepr == "[]"):
            if not _take(held, top, {top - 1: ("it", "element")}, "element"):
                return False
            top -= 1
        elif operation == "BINARY_OP" and step.argrepr.endswith("="):
            if not _take(held, top, {top - 1: ("it", "element")}, "sum"):
                return False
            top -= 1
        elif operation == "STORE_SUBSCR":
            if not _take(held, top, {top - 2: ("sum",), top - 1: ("it", "element")}, None):
                return False
            top -= 3
        elif operation == "STORE_ATTR" or (operation in ("STORE_GLOBAL", "STORE_DEREF", "STORE_NAME") and top in held):
            depth = int(operation == "STORE_ATTR")
            if step.argval != name and held.keys() & {top, top - 1}:
                return False
            if not _take(held, top, {top - depth: ("sum",)}, None):
                return False
            top -= 1 + depth
        else:
            if step.opcode in dis.hasjrel or step.opcode in dis.hasjabs:
                return False
            top += dis.stack_effect(step.opcode, step.arg if step.opcode >= dis.HAVE_ARGUMENT else None)
            if top <= max(held):  # it may have been taken
                return False
        if not held:
            return True
    return False


def _take(held: dict[int, str], top: int, allowed: dict[int, tuple[str, ...]], made: str | None) -> bool:
    """Take the operands of an operation, down to the lowest that may be held; returns whether all are as allowed."""
    lowest = min(allowed)
    for at in range(lowest, top + 1):
        what = held.pop(at, None)
        if what is not None:
            if what not in allowed.get(at, ()):
                return False
            if made is not None:
                held[lowest] = made
    return True
