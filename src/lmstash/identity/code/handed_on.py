"""Which names code hands on, so that other code reads from what they stand for: `render(config)`, `[en, de]`.

Of what code only asks for attributes (`config.MODEL`) it says itself which. Told by the instruction behind each place
where a name is loaded; what is not recognised is taken to be handed on.
"""

from __future__ import annotations

import dis
import functools
import sys
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

from lmstash.identity.code.bytecode import imports_in, names_in, texts_in
from lmstash.identity.code.words import ANY_NAME

_ASKS = frozenset({"LOAD_ATTR", "LOAD_METHOD", "STORE_ATTR", "DELETE_ATTR"})
_IDLE = frozenset({"CACHE", "EXTENDED_ARG", "NOP", "RESUME"})
_CALLS = frozenset({"CALL", "PRECALL"})
_NO_NAMES = frozenset({"LOAD_CONST", "LOAD_CLOSURE"})
_MOST_BEHIND = 4
"""How far behind an import the variable is that it is kept in."""


def modules_named(function: FunctionType, is_own: Callable[[str], bool]) -> Iterator[tuple[str, ModuleType, bool]]:
    """Yield the modules of your own that a function names or imports, by which name, and whether it hands them on.

    Modules within modules among them (`pkg.settings`); each may come more than once.

    Args:
        function: Whose code is read.
        is_own: Says by its name whether a module is your own.
    """
    code, table = function.__code__, function.__globals__
    handed, names = handed_on(code), {*names_in(code)}
    found: list[tuple[str, Any, bool]] = [(each, table.get(each), each in handed) for each in sorted(names)]
    imported = imports_in(code, table.get("__package__"))
    found += [(each, sys.modules.get(each), hands_on_imports(code)) for each in sorted({*imported})]
    if "modules" in names:  # `sys.modules[__name__]`
        said = [each for each in texts_in(code) if isinstance(each, str)]
        said += [str(table.get("__name__"))] if "__name__" in names else []
        found += [(each, sys.modules.get(each), True) for each in said]
    seen = set[int]()
    while found:
        name, module, is_handed = found.pop()
        if not isinstance(module, ModuleType) or not is_own(module.__name__):
            continue
        yield name, module, is_handed
        if id(module) not in seen:
            seen.add(id(module))
            found += [(each, vars(module)[each], each in handed) for each in names & vars(module).keys()]


@functools.lru_cache(maxsize=4096)
def handed_on(code: CodeType) -> frozenset[str]:
    """Return the names of variables, globals and attributes that code, or code within it, does not only ask of."""
    steps = _steps(code)
    found = set[str]()
    for at, each in enumerate(steps):
        if not each.opname.startswith("LOAD_") or each.opname in _NO_NAMES:
            continue
        names = [*(each.argval if isinstance(each.argval, tuple) else [each.argval])]
        if steps[at + 1].opname in _ASKS:
            names.pop()  # of several, the last lies on top
        found.update(name for name in names if isinstance(name, str))
    return frozenset(found).union(*map(handed_on, _within(code)))


@functools.lru_cache(maxsize=4096)
def hands_on_imports(code: CodeType) -> bool:
    """Return whether code, or code within it, hands on what it imports itself."""
    steps, handed = _steps(code), handed_on(code)
    for at, each in enumerate(steps):
        if each.opname in ("IMPORT_NAME", "IMPORT_FROM"):
            behind = steps[at + 1 : at + 1 + _MOST_BEHIND]
            kept_in = next((step.argval for step in behind if step.opname.startswith("STORE_")), None)
            if kept_in is None or kept_in in handed or each.argval in handed:
                return True
    return any(map(hands_on_imports, _within(code)))


@functools.lru_cache(maxsize=4096)
def asks_by_any_name(code: CodeType) -> bool:
    """Return whether code, or code within it, may ask for an attribute by a name that no text in it is."""
    steps = _steps(code)
    for at, each in enumerate(steps):
        named = each.argval in ANY_NAME if isinstance(each.argval, str) and each.opname.startswith("LOAD_") else False
        if named and each.opname != "LOAD_CONST" and not (each.argval == "getattr" and _says_which(steps[at + 1 :])):
            return True
    return any(map(asks_by_any_name, _within(code)))


def _says_which(behind: list[dis.Instruction]) -> bool:
    """Whether behind `getattr` come an object, without conditions in it, and a text."""
    depth = 0
    for at, each in enumerate(behind):
        if depth == 1 and each.opname.startswith("LOAD_CONST") and isinstance(each.argval, str):
            calls = [(step.opname in _CALLS, step.arg) for step in behind[at + 1 : at + 3]]
            if (True, 2) in calls[:1] or ((True, 3) in calls[1:] and _is_value(behind[at + 1])):
                return True
        if each.opcode in dis.hasjrel or each.opcode in dis.hasjabs:
            return False
        depth += dis.stack_effect(each.opcode, each.arg if each.opcode >= dis.HAVE_ARGUMENT else None)
        if depth < 1:
            return False
    return False


def _is_value(step: dis.Instruction) -> bool:
    return step.opname.startswith("LOAD_") or (step.opname.startswith("BUILD_") and not step.arg)


def _steps(code: CodeType) -> list[dis.Instruction]:
    return [each for each in dis.get_instructions(code) if each.opname not in _IDLE]


def _within(code: CodeType) -> Iterator[CodeType]:
    return (each for each in code.co_consts if isinstance(each, CodeType))
