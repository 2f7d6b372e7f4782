"""What a function's code does with its own variables: its arguments, what it puts into them, what it returns."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from types import CodeType

from lmstash.identity.dataflow.expressions import (
    ATTRIBUTE,
    CALL,
    CONST,
    NAME,
    OTHER,
    RETURNED,
    STORED,
    Node,
    expressions,
)

_WRAPPING = frozenset({"ASYNC_GEN_WRAP", "CALL_INTRINSIC_1"})
"""What is done to what an asynchronous generator gives."""
_MAKING = frozenset({"MAKE_FUNCTION", "SET_FUNCTION_ATTRIBUTE"})


def parameters(code: CodeType) -> tuple[str, ...]:
    """Return what code calls its arguments, but for those that it takes by stars."""
    return code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]


def takes_all_by(code: CodeType) -> str | None:
    """Return what code calls the arguments that it takes by two stars."""
    if not code.co_flags & inspect.CO_VARKEYWORDS:
        return None
    return code.co_varnames[code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & inspect.CO_VARARGS)]


@functools.lru_cache(maxsize=4096)
def asks_for_none(code: CodeType, name: str) -> bool:
    """Return whether code asks if an argument is None."""
    asked = [each for each in expressions(code) if each.kind == NAME and each.value == name]
    return any("NONE" in str(user.value) for each in asked for user in each.users if user.kind == OTHER)


def returns(code: CodeType) -> list[Node]:
    """Return what code returns; nothing of generators and coroutines."""
    if yields_all(code) or code.co_flags & inspect.CO_COROUTINE:
        return []
    return [each for each in expressions(code) if any(_takes_result(user) for user in each.users)]


def _takes_result(user: Node) -> bool:
    return user.kind == OTHER and user.value == RETURNED


def yields_all(code: CodeType) -> bool:
    """Whether code is that of a generator."""
    return bool(code.co_flags & (inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR))


def yields(code: CodeType) -> Iterator[tuple[Node, bool]]:
    """Yield what a generator gives, and whether that is what goes through it (`yield from`) and not it itself."""
    for each in expressions(code):
        if each.kind == OTHER and each.value == "GET_YIELD_FROM_ITER":
            yield each.parts[0], True
        elif each.kind == OTHER and each.value == "YIELD_VALUE":
            given = each.parts[0]
            while given.kind == OTHER and given.value in _WRAPPING and given.parts:
                given = given.parts[0]
            if given.value != "SEND":  # what `yield from` gets
                yield given, False


def code_made(node: Node) -> CodeType | None:
    """Return the code of which a function is made."""
    while node.kind == OTHER and node.value in _MAKING and node.parts:
        node = node.parts[-1]
    return node.value if node.kind == CONST and isinstance(node.value, CodeType) else None


def stored(code: CodeType, name: str) -> list[Node]:
    """Return what code puts into a variable of its own, but not into an attribute of that name."""
    is_local = name not in code.co_cellvars + code.co_freevars
    stores = [each for each in expressions(code) if each.kind == STORED and each.value == name and each.parts]
    found = [each.parts[0] for each in stores if each.is_local == is_local]
    return [each for each in found if each.kind != NAME or each.value != name]  # what a comprehension gives back


def entries_set(code: CodeType, name: str) -> list[tuple[Node, Node]]:
    """Return what code puts under which keys into what a variable holds."""
    users = [user for each in expressions(code) if each.kind == NAME and each.value == name for user in each.users]
    stores = [each.parts for each in users if each.value == "STORE_SUBSCR" and len(each.parts) == 3]
    return [(key, value) for value, held, key in stores if held.name == name]


def methods_called(code: CodeType, name: str, *methods: str) -> list[Node]:
    """Return the calls of methods of what a variable holds."""
    users = [user for each in expressions(code) if each.kind == NAME and each.value == name for user in each.users]
    asked = [each for each in users if each.kind == ATTRIBUTE and each.value in methods]
    return [call for each in asked for call in each.users if call.kind == CALL and call.parts[0] is each]
