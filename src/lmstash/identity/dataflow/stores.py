"""What code puts into attributes and globals, and whether that may come of what it is asked. Told from bytecode.

A function that takes nothing but its object cannot know the question; one that takes more may still make something
where it finds `None`, of what is no argument of its own: `if self._client is None: self._client = Client(self.url)`.
What is not understood is taken to come of the question.
"""

from __future__ import annotations

import dis
import functools
import inspect
from collections.abc import Iterator
from types import CodeType
from typing import Any, NamedTuple

from lmstash.identity.dataflow.expressions import ATTRIBUTE, CALL, NAME, Node, code_within, expressions

_IDLE = frozenset({"CACHE", "EXTENDED_ARG", "NOP", "PRECALL", "TO_BOOL", "NOT_TAKEN", "PUSH_NULL"})
_LOADS = frozenset({"LOAD_ATTR", "LOAD_METHOD"})
CONSTRUCTORS = frozenset({"__init__", "__new__", "__post_init__"})
_NEVER = frozenset({"MAKE_FUNCTION", "YIELD_VALUE", "SEND", "LOAD_CLOSURE", "LOAD_CLASSDEREF", "LOAD_NAME"})
_SKIPS = ("IF_NOT_NONE", "IF_TRUE")
"""Ends the names of jumps over what is done where there is nothing."""
_COMPARE = frozenset({"IS_OP", "COMPARE_OP", "CONTAINS_OP", "UNARY_NOT"})
_CHANGING = frozenset(
    {
        *("append", "appendleft", "extend", "insert", "add", "update", "pop", "popleft", "popitem", "clear", "remove"),
        *("discard", "setdefault", "push", "put", "put_nowait", "set", "reset", "write", "__setitem__", "__delitem__"),
    }
)
"""Methods that change what they are called on."""
_TAKES_MORE = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS | inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


class Stores(NamedTuple):
    """Names of attributes and globals, as a function's code uses them; constructors but set them first."""

    made: frozenset[str]
    """It puts something into them."""
    by_question: frozenset[str]
    """Those of them for which that may come of what it is asked."""
    touched: frozenset[str]
    """It puts something into them, or takes it away."""
    tested: frozenset[str]
    """It may go by whether they are there."""
    taken: frozenset[str]
    """It takes them as they are, for something else to go by."""
    guards: frozenset[tuple[str, str]]
    """Where it finds them None, it calls this method of the object, or fills them in itself (then empty)."""


@functools.lru_cache(maxsize=4096)
def stores_in(code: CodeType, *, guarded: bool = False) -> Stores:
    """Return what a function's code puts into which attributes.

    Args:
        code: Of the function.
        guarded: Whether what is put where there is something may come of the question, whatever the function takes.
    """
    made, by_question, touched, tested, taken = (set[str]() for _ in range(5))
    guards = set[tuple[str, str]]()
    alone = takes_nothing_more(code) and not guarded
    steps = [each for each in dis.get_instructions(code) if each.opname not in _IDLE]
    for place, step in enumerate(steps if code.co_name not in CONSTRUCTORS else ()):
        name = str(step.argval)
        if step.opname in _LOADS and not _is_used(steps, place):
            if (filled := _filled_by(steps, place)) is not None:
                guards.add((name, filled))
            else:
                (tested if _is_tested(steps, place) else taken).add(name)
        elif step.opname == "STORE_GLOBAL":
            touched.add(name)
            made.add(name)
            if not _is_guarded(steps, place, ""):
                by_question.add(name)
        elif step.opname == "DELETE_ATTR":
            touched.add(name)
        elif step.opname == "STORE_ATTR":
            touched.add(name)
            before = steps[place - 2] if place > 1 else step
            if before.opname == "LOAD_CONST" and before.argval is None and _loads(steps[place - 1]):
                continue
            made.add(name)
            first = _first_of(code)
            is_own = first is not None and _loads(steps[place - 1])[-1:] == [first]
            if not is_own or not (alone or _is_guarded(steps, place, str(first))):
                by_question.add(name)
    if alone:  # what it fills in, it may ask for; nothing else can depend on it
        tested -= touched
        taken -= touched
    found: list[set[Any]] = [made, by_question, touched, tested, taken, guards]
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            for names, more in zip(found, stores_in(inner, guarded=guarded), strict=True):
                names |= more
    return Stores(*map(frozenset, found))


@functools.lru_cache(maxsize=4096)
def changed_in_place(code: CodeType) -> frozenset[tuple[str, ...]]:
    """Return what code changes without storing it, by what that goes by: `self.state["q"] = q`, `STACK.append(q)`.

    Names come with those of what they were asked of; `setattr` stands for whatever it changes.
    """
    found = set[tuple[str, ...]]()
    for inner in code_within(code):
        for node in expressions(inner):
            if node.kind not in (NAME, ATTRIBUTE):
                continue
            put = any(user.value in ("STORE_SUBSCR", "DELETE_SUBSCR") and user.parts[1] is node for user in node.users)
            called = any(
                user.kind == ATTRIBUTE and user.name in _CHANGING and any(each.kind == CALL for each in user.users)
                for user in node.users
            )
            if put or called or node.name in ("setattr", "putenv", "__dict__"):
                found.add(tuple(_chain(node)))
    return frozenset(found)


def _chain(node: Node) -> Iterator[str]:
    """Yield the name of a value, and those of what it was asked of."""
    while node.kind in (NAME, ATTRIBUTE):
        yield node.name
        if node.kind == NAME:
            return
        node = node.parts[0]


@functools.lru_cache(maxsize=4096)
def loaded_in(code: CodeType) -> frozenset[str]:
    """Return the names of variables and attributes that code loads."""
    nodes = (node for inner in code_within(code) for node in expressions(inner))
    return frozenset(node.name for node in nodes if node.kind in (NAME, ATTRIBUTE))


def _first_of(code: CodeType) -> str | None:
    return code.co_varnames[0] if code.co_argcount else None


def takes_nothing_more(code: CodeType) -> bool:
    """Return whether a function is given nothing but its object."""
    n_arguments = code.co_argcount + code.co_kwonlyargcount
    return n_arguments == 1 and not code.co_flags & _TAKES_MORE and {"__class__"}.issuperset(code.co_freevars)


def _loads(step: dis.Instruction) -> list[str]:
    """Return the local variables that an instruction loads, in order."""
    if not step.opname.startswith(("LOAD_FAST", "LOAD_DEREF")):
        return []
    return [*map(str, step.argval)] if isinstance(step.argval, tuple) else [str(step.argval)]


def _is_used(steps: list[dis.Instruction], place: int) -> bool:
    """Whether what is loaded is called, or an attribute of it is loaded at once: it would fail if it were None."""
    step = steps[place]
    is_called = step.opname == "LOAD_METHOD" or "NULL" in step.argrepr
    return is_called or (place + 1 < len(steps) and steps[place + 1].opname in _LOADS)


def _is_tested(steps: list[dis.Instruction], place: int) -> bool:
    """Whether code goes by what is loaded, or compares it."""
    after = steps[place + 1 : place + 3]
    return any(
        each.opcode in dis.hasjrel or each.opcode in dis.hasjabs or each.opname in _COMPARE
        for each in (after if after and after[0].opname == "LOAD_CONST" else after[:1])
    )


def _filled_by(steps: list[dis.Instruction], place: int) -> str | None:
    """Return what fills in an attribute where code asks whether it is there: a method, or (empty) the code itself."""
    if place + 3 >= len(steps) or not steps[place + 1].opname.endswith(_SKIPS):
        return None
    to, own = steps[place + 1].argval, _loads(steps[place - 1]) if place else []
    within = [each for each in steps[place + 2 :] if each.offset < to]
    if any(each.opname == "STORE_ATTR" and each.argval == steps[place].argval for each in within):
        return ""
    calls = len(within) > 1 and within[1].opname in _LOADS and own and _loads(within[0]) == own
    return str(within[1].argval) if calls else None


def _is_guarded(steps: list[dis.Instruction], place: int, first: str) -> bool:
    """Whether a store only runs where its attribute is None, and what is stored is made there, of no argument.

    That is, in one run of instructions since the attribute was asked for, by local variables that are set there. If
    `first` is empty, it is a global.
    """
    needed = set[str]()
    name = steps[place].argval
    for at in range(place, 1, -1):
        step = steps[at]
        if step.opcode in dis.hasjrel or step.opcode in dis.hasjabs:
            asked, of = steps[at - 1], steps[at - 2]
            is_guard = step.opname.endswith(_SKIPS) and step.argval > steps[place].offset
            is_attribute = asked.opname == "LOAD_ATTR" and _loads(of) == [first]
            is_guard = is_guard and asked.argval == name and (is_attribute if first else asked.opname == "LOAD_GLOBAL")
            return is_guard and not needed
        if step.is_jump_target or step.opname in _NEVER:
            return False
        if step.opname.startswith("STORE_FAST_LOAD_FAST"):
            stored, loaded = map(str, step.argval)
            needed = ({*needed, loaded} - {first}) - {stored}
        elif step.opname.startswith("STORE_FAST"):
            needed -= {*map(str, step.argval)} if isinstance(step.argval, tuple) else {str(step.argval)}
        needed |= {*_loads(step)} - {first}
    return False
