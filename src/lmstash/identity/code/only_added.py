"""What code only adds to: counters of calls and tokens, lists of errors. It changes no answer, unless other code reads.

Told from bytecode, which is what runs. What is not understood is taken for reading.
"""

from __future__ import annotations

import collections
import dis
import functools
from types import CodeType
from typing import Any, NamedTuple

_ADDING = frozenset({"append", "appendleft", "extend", "extendleft", "insert", "add", "update"})
"""Methods of containers that add to them and return None."""
_ATTRIBUTES = frozenset({"LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR"})
_ADDABLE = (int, float, list, dict, set, collections.Counter, collections.defaultdict, collections.deque)


def is_addable(value: Any) -> bool:
    """Return whether a value is of a kind that code counts up or collects in, of exactly Python's own class."""
    return type(value) in _ADDABLE


class Used(NamedTuple):
    """Names of what code, and code within it, uses; what it somewhere adds to may be read elsewhere in it."""

    read_attributes: frozenset[str]
    read_variables: frozenset[str]
    """Globals, and variables from outside."""
    added_attributes: frozenset[str]
    added_variables: frozenset[str]

    @property
    def read(self) -> frozenset[str]:
        """All that is read."""
        return self.read_attributes | self.read_variables

    @property
    def added(self) -> frozenset[str]:
        """All that is added to."""
        return self.added_attributes | self.added_variables


@functools.lru_cache(maxsize=4096)
def used_in(code: CodeType) -> Used:
    """Return what code reads of attributes and variables from outside, and what it adds to."""
    found = set[str](), set[str](), set[str](), set[str]()
    steps = [each for each in dis.get_instructions(code) if each.opname not in ("CACHE", "EXTENDED_ARG", "NOP")]
    for place, each in enumerate(steps):
        is_attribute = each.opname in _ATTRIBUTES
        if is_attribute or each.opname == "IMPORT_FROM" or _names_variable(each):
            found[2 * _adds_only(steps, place) + (not is_attribute)].add(each.argval)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            for names, more in zip(found, used_in(inner), strict=True):
                names |= more
    return Used(*map(frozenset, found))


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
