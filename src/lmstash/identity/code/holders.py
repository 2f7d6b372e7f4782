"""Objects that hold settings: what code asks them for, and which it hands to code that nobody reads.

Of `args` in `ask(args.model)` no field but `model` is asked for, so that a file that another one names, `args.out`,
is not read. Told by name over all code that was read, as all that is told from bytecode: two things of one name are
taken for one, and what is not understood is taken to hand on.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any, NamedTuple

from lmstash.identity.code.bytecode import names_in, texts_in
from lmstash.identity.dataflow.expressions import (
    ATTRIBUTE,
    CALL,
    CONST,
    ITEM,
    NAME,
    OTHER,
    STORED,
    Node,
    code_within,
    expressions,
)
from lmstash.identity.dataflow.stores import CONSTRUCTORS

_LOOKS = frozenset({"bool", "hasattr", "id", "isinstance", "len", "type"})
"""What reads nothing of what an object holds."""
_GIVES_ALL = frozenset(
    {
        *("items", "values", "copy", "pop", "popitem", "setdefault", "update", "_asdict", "_replace", "_get_kwargs"),
        *("popleft", "maps", "elements", "most_common", "new_child", "union", "difference", "intersection"),
        *("__dict__", "__getstate__", "__iter__", "__getitem__", "__repr__", "__str__", "__format__", "__eq__"),
        *("__ne__", "__reduce__", "__reduce_ex__", "__getattribute__"),
    }
)
"""By which an object gives more than what is named."""
_TABLES = frozenset({"globals", "locals", "vars", "eval", "exec"})
"""By which code has all that it names."""
_TESTS = ("POP_JUMP", "IS_OP", "STORE_ATTR")
_CLOSURES = frozenset({"MAKE_FUNCTION", "SET_FUNCTION_ATTRIBUTE"})
_OF_DATACLASSES, _OF_ATTRS = "__create_fn__.<locals>.", "<attrs generated"
"""How the full name begins of a dataclass's `__repr__`, which names each field, and the file's of one by attrs."""


def names_all_fields(code: CodeType) -> bool:
    """Whether code is what a package writes for each class, a dataclass's `__repr__` say, and goes by no field."""
    return code.co_qualname.startswith(_OF_DATACLASSES) or code.co_filename.startswith(_OF_ATTRS)


class _Given(NamedTuple):
    """An object that a function is called with."""

    name: str
    function: str
    """Of a global, or of a method of `self`."""
    is_method: bool
    argument: int | str


class _Uses(NamedTuple):
    handed: frozenset[str]
    asked: frozenset[str]
    called: frozenset[str]
    given: frozenset[_Given]
    also: frozenset[tuple[str, str]]
    """What goes by another name from then on."""


class Holders:
    """Collects what functions do with the objects that they name. Not for several threads at once."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._handed: set[str] = set()
        self._asked: set[str] = set()
        self._named: set[str] = set()
        self._calls: set[str] = set()
        self._also: defaultdict[str, set[str]] = defaultdict(set)
        self._methods: set[_Given] = set()
        self._called: list[tuple[str, CodeType, int | str]] = []
        self._read: dict[str, list[CodeType]] = defaultdict(list)
        self._known: dict[str, set[str]] = {}
        self._all_handed = False

    def see(self, function: FunctionType) -> None:
        """Take what a function of your own does."""
        code, table = function.__code__, function.__globals__
        self._read[code.co_name].append(code)
        self._all_handed |= not _TABLES.isdisjoint(names_in(code))
        self._known.clear()
        uses = _uses_in(code)
        self._handed |= uses.handed
        self._asked |= uses.asked
        self._calls |= uses.called
        self._named |= set() if code.co_name in CONSTRUCTORS else {*names_in(code)}
        for name, other in uses.also:
            self._also[name].add(other)
        for each in uses.given:
            if each.is_method:
                self._methods.add(each)
                continue
            called = [*_wrapped_in(table.get(each.function))]  # a wrapper is handed it, too
            self._called += [(each.name, one.__code__, each.argument) for one in called if one is not None]
            self._handed.update([each.name] if None in called else ())

    def hand_on(self, name: str) -> None:
        """Take it that what goes by a name is handed on."""
        self._handed.add(name)
        self._known.clear()

    def hand_on_all(self) -> None:
        """Take it that all is handed on."""
        self._all_handed = True
        self._known.clear()

    def asks(self, name: str) -> bool:
        """Return whether any code asks for an attribute or entry of this name."""
        return name in self._asked

    def names(self, name: str) -> bool:
        """Return whether any code but constructors names something so."""
        return name in self._named

    def calls(self, name: str) -> bool:
        """Return whether any code calls what goes by a name, by whatever other name."""
        return not self._calls.isdisjoint(names := self._names_of(name)) or "" in names

    def hands_on(self, name: str) -> bool:
        """Return whether code that was not read may be handed what goes by a name."""
        if self._all_handed:
            return True
        return not self._handed.isdisjoint(names := self._names_of(name)) or "" in names

    def _names_of(self, name: str) -> set[str]:
        """Return all names that what goes by one may go by; empty for one that nobody knows."""
        known = self._known.get(name)
        if known is None:
            known = self._known[name] = self._follow(name)
        return known

    def _follow(self, name: str) -> set[str]:
        also = defaultdict(set, {each: {*names} for each, names in self._also.items()})
        for given, code, argument in self._called:
            also[given].add(_parameter(code, argument) if code in self._read[code.co_name] else "")
        for each in self._methods:
            codes = self._read.get(each.function, [])
            also[each.name].update([_parameter(code, at) for code in codes for at in _places(code, each)] or [""])
        todo, seen = [name], set[str]()
        while todo:
            each = todo.pop()
            if each not in seen:
                seen.add(each)
                todo += also.get(each, ())
        return seen


def _wrapped_in(function: Any) -> Iterator[FunctionType | None]:
    """Yield a function, and those that it wraps; None for what is none."""
    seen = set[int]()
    while id(function) not in seen:
        seen.add(id(function))
        if isinstance(function, FunctionType):
            yield function
        elif not isinstance(function, functools._lru_cache_wrapper):
            yield None
            return
        function = vars(function).get("__wrapped__", function)


def _places(code: CodeType, given: _Given) -> list[int | str]:
    """Return which argument of a method it may be: that of an object takes one before it, unless it is a static one."""
    if isinstance(given.argument, str):
        return [given.argument]
    is_bound = code.co_varnames[:1] in (("self",), ("cls",)) and code.co_argcount > 0
    return [given.argument + 1] if is_bound else [given.argument, given.argument + 1]


def _parameter(code: CodeType, argument: int | str) -> str:
    """Return what a function calls an argument; empty where it goes into `*args` or `**kwargs`."""
    names = code.co_varnames[: code.co_argcount]
    if isinstance(argument, str):
        return argument if argument in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount] else ""
    return names[argument] if argument < len(names) else ""


@functools.lru_cache(maxsize=4096)
def _uses_in(code: CodeType) -> _Uses:
    handed, asked, called = set[str](), set[str](), set[str]()
    given, also = set[_Given](), set[tuple[str, str]]()
    for inner in code_within(code):
        asked.update(each for each in texts_in(inner) if isinstance(each, str))
        names: tuple[str, ...] = (*inner.co_names, *inner.co_varnames, *inner.co_freevars, *inner.co_cellvars)
        try:
            nodes = expressions(inner)
            uses = [each for node in nodes if (name := _name_of(node)) for each in _used(inner, node, name)]
        except Exception:  # bytecode of a kind that nobody has met
            asked.update(names)
            handed.update(names)
            called.update(names)
            continue
        asked.update(node.name for node in nodes if node.kind == ATTRIBUTE)
        called.update(filter(None, (_name_of(node.parts[0]) for node in nodes if node.kind == CALL)))
        for each in uses:
            if isinstance(each, str):
                handed.add(each)
            elif isinstance(each, _Given):
                given.add(each)
            else:
                also.add(each)
    return _Uses(frozenset(handed), frozenset(asked), frozenset(called), frozenset(given), frozenset(also))


def _name_of(node: Node) -> str:
    """Return what a value goes by: a variable, an attribute, an entry of a dict; empty for others."""
    if node.kind in (NAME, ATTRIBUTE):
        return node.name
    if node.kind == ITEM:
        return _text(node.parts[1])
    if node.kind == CALL and node.parts[0].name in ("get", "getattr"):
        place = 1 if node.parts[0].kind == NAME else 0
        return _text(node.arguments[place]) if len(node.arguments) > place else ""
    return ""


def _text(node: Node) -> str:
    return node.value if node.kind == CONST and isinstance(node.value, str) else ""


def _used(code: CodeType, node: Node, name: str) -> Iterator[str | _Given | tuple[str, str]]:
    """Yield the name if it is handed on, else whom it is given to, or what it goes by then."""
    for user in node.users:
        if user.kind == STORED:
            yield (name, str(user.value))
        elif user.kind == CALL and user.parts[0] is not node:
            yield from _given(code, node, user, name)
        elif not (user.kind == CALL or _only_asks(code, node, user)):
            yield name


def _only_asks(code: CodeType, node: Node, user: Node) -> bool:
    """Whether what is made of a value is only what it is asked for, or nothing."""
    if user.kind == ATTRIBUTE:
        gets = user.users if user.name == "get" else []
        return user.name not in _GIVES_ALL and all(each.kind == CALL and bool(_name_of(each)) for each in gets)
    if user.kind == ITEM:
        return user.parts[0] is node and bool(_text(user.parts[1]))
    if user.kind != OTHER:
        return False
    if user.value == "BUILD_TUPLE":  # code within it is read, too, where it goes by the same name
        within = node.name in (*code.co_cellvars, *code.co_freevars)
        return within and all(each.kind == OTHER and each.value in _CLOSURES for each in user.users)
    if user.value == "STORE_SUBSCR":
        return len(user.parts) == 3 and user.parts[1] is node
    return str(user.value).startswith(_TESTS)


def _given(code: CodeType, node: Node, call: Node, name: str) -> Iterator[str | _Given]:
    """Yield to which function of the program's own, as which argument, a value is given; its name for others."""
    function = call.parts[0]
    if call is not node and _name_of(call) and function.name == "getattr" and call.arguments[0] is node:
        return
    if function.kind == NAME and function.name in _LOOKS:
        return
    is_global = function.kind == NAME and not function.is_local and function.name not in code.co_freevars
    is_method = function.kind == ATTRIBUTE and function.parts[0].name == "self"
    if not (is_global or is_method):
        yield name
        return
    yield from (
        _Given(name, function.name, is_method, place) for place, each in enumerate(call.arguments) if each is node
    )
    named = zip(call.value, call.parts[len(call.parts) - len(call.value) :], strict=True)
    yield from (_Given(name, function.name, is_method, each) for each, value in named if value is node)
