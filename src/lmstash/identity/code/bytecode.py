"""What code says for itself: its bytecode, the plain values in it, the names and modules that it asks for."""

from __future__ import annotations

import contextlib
import dis
import functools
from collections.abc import Iterator
from copy import deepcopy
from importlib.util import resolve_name
from types import BuiltinFunctionType, CodeType, FunctionType, GetSetDescriptorType, MemberDescriptorType
from typing import Any

from lmstash.errors import InvalidArgumentError
from lmstash.identity.encoding import Component, Encoded, encode, snapshot

_PLAIN = (type(None), bool, int, float, str, bytes)
_CONSTANTS = (complex, slice, range)
"""Other constants, which are what they print as."""
_WITHOUT_MEANING = (GetSetDescriptorType, MemberDescriptorType)
_NOISE = frozenset({"_abc_impl", "__dict__", "__weakref__", "__slots__"})
_NOT_GLOBALS = frozenset(
    {
        "LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR", "STORE_ATTR", "DELETE_ATTR", "IMPORT_NAME", "IMPORT_FROM",
        "STORE_GLOBAL", "DELETE_GLOBAL", "STORE_NAME", "DELETE_NAME",
    }
)  # fmt: skip
"""Instructions that have a name and read no global of it; one that is not known here is taken to."""


def names_in(code: CodeType) -> Iterator[str]:
    """Yield the names of globals and attributes that code asks for, and functions within it."""
    yield from code.co_names
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from names_in(each)


@functools.lru_cache(maxsize=4096)
def globals_in(code: CodeType) -> frozenset[str]:
    """Return the names that code, and functions within it, may look up as globals: not those of attributes."""
    named = (each for each in dis.get_instructions(code) if each.opcode in dis.hasname)
    inner = (globals_in(each) for each in code.co_consts if isinstance(each, CodeType))
    return frozenset(each.argval for each in named if each.opname not in _NOT_GLOBALS).union(*inner)


def texts_in(code: CodeType) -> Iterator[str | bytes]:
    """Yield the texts among the constants of code, and of functions within it."""
    todo = [*code.co_consts]
    while todo:
        each = todo.pop()
        if isinstance(each, CodeType):
            todo += each.co_consts
        elif isinstance(each, tuple | frozenset):
            todo += each
        elif isinstance(each, str | bytes):
            yield each


_IMPORTING = ("import_module", "__import__")


def imports_in(code: CodeType, package: str | None, *, by_call: bool = False) -> Iterator[str]:
    """Yield the full names of the modules that code imports when it runs, and of all that it takes from them.

    Args:
        code: Of a function.
        package: Where relative names begin.
        by_call: Whether to yield what `import_module` is handed as it stands there, too.
    """
    before: list[Any] = [None, None]
    for each in dis.get_instructions(code):
        if each.opname == "IMPORT_NAME":
            level = before[0] if isinstance(before[0], int) else 0
            try:
                module = resolve_name("." * level + str(each.argval), package)
            except ImportError:  # beyond the top: it will not run, either
                continue
            yield module
            yield from (f"{module}.{taken}" for taken in before[1] or ())
        elif by_call and before[1] in _IMPORTING and each.opname == "LOAD_CONST" and isinstance(each.argval, str):
            with contextlib.suppress(ImportError):
                yield resolve_name(each.argval, package)
            before = [None, None]
        elif each.opname not in ("EXTENDED_ARG", "PUSH_NULL"):
            before = [before[1], each.argval]
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from imports_in(inner, package, by_call=by_call)


def code_component(code: CodeType) -> Any:
    """Return all of a function's code that decides what it does: not where it was written.

    Costs nothing for code that was asked for lately: it never changes, and a look at somebody's classes asks for all.
    """
    known = _components.get(id(code))
    if known is not None:
        return known[1]
    told = Encoded(_component(code))
    if _is_fixed(code.co_consts):
        if len(_components) >= _MOST_KNOWN:
            _components.clear()
        _components[id(code)] = code, told
    return told


def _is_fixed(consts: tuple[Any, ...]) -> bool:
    """Whether nothing among constants can change: no compiler puts a list there, but tools that rewrite code may."""
    inner = (each.co_consts if isinstance(each, CodeType) else each for each in consts)
    return all(_is_fixed(each) if type(each) is tuple else not isinstance(each, list | dict | set) for each in inner)


_MOST_KNOWN = 8192
_components: dict[int, tuple[CodeType, Encoded]] = {}
"""Each with its code, whose id stays its own thereby. By id, since equal code may be of several files."""


def _component(code: CodeType) -> Component:
    if code.co_name == "__hash__" and code.co_filename.startswith("<attrs generated"):
        return ["attrs", list(code.co_names)]  # it holds a hash of texts, which is another one in each process
    consts = [code_component(each) if isinstance(each, CodeType) else plain_component(each) for each in code.co_consts]
    names = [*code.co_names, "|", *code.co_varnames, "|", *code.co_freevars, "|", *code.co_cellvars]
    counts = [code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags]
    return [code.co_code, consts, names, counts, code.co_exceptiontable]


def is_plain(value: Any) -> bool:
    """Whether a value is of a kind that keys hold, whatever is in it."""
    return isinstance(value, (*_PLAIN, tuple, list, dict, set, frozenset))


def plain_component(value: Any) -> Component:
    """Return `value` with what no key can hold replaced by the name of its type."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, tuple | list):
        return [type(value).__name__, *map(plain_component, value)]
    if isinstance(value, set | frozenset):
        parts = [plain_component(each) for each in value]
        return [type(value).__name__, *sorted(parts, key=encode)]
    if isinstance(value, dict):
        return {encode(plain_component(key)): plain_component(each) for key, each in value.items()}
    what = f"{type(value).__module__}.{type(value).__qualname__}"
    return ["type", what, repr(value)] if type(value) in _CONSTANTS else ["type", what]


def in_order(value: Any) -> Any:
    """Return a plain value with its dicts as lists of pairs, so that the order of their items tells in its encoding."""
    if type(value) is dict:
        return {"": [(in_order(key), in_order(each)) for key, each in value.items()]}
    if type(value) is list or type(value) is tuple:
        return type(value)(map(in_order, value))
    return value


def encoded(value: Any) -> bytes | None:
    """Return the encoding of a plain value, or None where it holds anything else."""
    if not is_plain(value):
        return None
    if isinstance(value, set | frozenset):
        return encode(plain_component(value)) if all(type(each) in _PLAIN for each in value) else None
    try:
        if type(value) in _CONTAINERS and len(value) >= _MANY and (told := snapshot(value)) is not None:
            return _tables.get(told) or _encoded_table(deepcopy(value))
        return encode(value)
    except InvalidArgumentError:
        return None


def _encoded_table(copied: Any) -> bytes:
    """Return the encoding of a large container, made once for what lies in it: libraries hold tables of numbers.

    Of a copy, which no other thread changes between what it is found by and what is found.
    """
    data, told = encode(copied), snapshot(copied)
    if told is not None:
        if len(_tables) >= _MOST_TABLES:
            _tables.clear()
        _tables[told] = data
    return data


_CONTAINERS = (tuple, list, dict)
_MANY = 64
_MOST_TABLES = 64
_tables: dict[bytes, bytes] = {}


def parts_of(name: str, member: Any) -> Iterator[Any]:
    """Yield what is behind a class member and counts: Python functions, and objects that are not plain values.

    Args:
        name: The member's.
        member: As it lies in the class.
    """
    if isinstance(member, staticmethod | classmethod):
        yield from parts_of(name, member.__func__)
    elif isinstance(member, property):
        for each in (member.fget, member.fset):
            yield from parts_of(name, each)
    elif isinstance(member, functools.cached_property):
        yield member.func
    elif isinstance(member, functools.partialmethod):
        yield functools.partial(member.func, *member.args, **member.keywords)
    elif isinstance(member, functools.singledispatchmethod):
        yield from member.dispatcher.registry.values()
    elif isinstance(member, FunctionType):
        yield member
    elif not isinstance(member, type) and hasattr(member, "__wrapped__"):
        if not isinstance(member, functools._lru_cache_wrapper):  # another wrapper may hold anything
            yield member
        yield from parts_of(name, member.__wrapped__)
    elif not (isinstance(member, _WITHOUT_MEANING) or name in _NOISE or encoded(member) is not None):
        is_word = name.startswith("__") and name.endswith("__")  # annotations and such
        if not is_word or isinstance(member, BuiltinFunctionType) or (callable(member) and name != "__signature__"):
            yield member
