"""Who calls whom with what, among functions of your own, as far as it can be told without running anything."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from types import CodeType, FunctionType, MethodType
from typing import Any

from lmstash.identity.dataflow.expressions import (
    ATTRIBUTE,
    CALL,
    CONST,
    OTHER,
    Node,
    code_within,
    expressions,
    given_in,
)
from lmstash.identity.dataflow.lying_in import UNKNOWN, class_of
from lmstash.identity.dataflow.values import Scope
from lmstash.identity.dataflow.variables import parameters

_DEEPEST = 12
_VAR_KEYWORDS = 0x08


@dataclass
class Site:
    """One call of a function of your own.

    Attributes:
        caller: The function that calls.
        code: Its code, or code within it, in which the call stands.
        placed: The arguments that are given by their place, `self` not among them.
        named: Those that are given by name.
        fixed: Those that a partial gives.
        receiver: What a method is called of, where that is an expression.
        spread: What is given by two stars.
        is_open: Whether more may be given by place than can be told.
        is_map: Whether the arguments are what containers hold that are given: `map(ask, questions, temperatures)`.
        is_starmap: Whether they are what the members of one container hold: `starmap(ask, [(question, 0.8)])`.
    """

    caller: Any  # a function, which pyright would bind
    code: CodeType
    placed: list[Node] = field(default_factory=list)
    named: dict[str, Node] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)
    receiver: Node | None = None
    spread: list[Node] = field(default_factory=list)
    is_open: bool = False
    is_map: bool = False
    is_starmap: bool = False


class Calls:
    """The calls among some functions. Threads may share it.

    Args:
        functions: Of your own.
        looked: Those among them that call.
        first: The one that is called from elsewhere.
        objects: Says which objects a method may be called of, where no call says it.
        settings: Says which files of settings code names.
    """

    def __init__(
        self,
        functions: Iterable[FunctionType],
        looked: Iterable[FunctionType],
        first: FunctionType,
        objects: Callable[[FunctionType], list[Any]],
        settings: Callable[[], list[str]],
    ) -> None:
        self.first, self.objects, self.settings = first, objects, settings
        self._sites: dict[int, list[Site]] = {}
        self.classes: set[type] = set()
        """Those of which the code makes objects."""
        self._own: set[int] = set()
        self._by_name: dict[str, list[FunctionType]] = {}
        for each in functions:
            self._own.add(id(each))
            self._by_name.setdefault(called(each), []).append(each)
        for caller in looked:
            for code, node in calls_in(caller.__code__):
                self._add(caller, code, node)

    def targets(self, caller: FunctionType, code: CodeType, node: Node) -> list[FunctionType]:
        """Return the functions of your own that a call may lead to."""
        return [each for each, _ in self._called(Scope(caller), code, node.parts[0])]

    def _called(self, scope: Scope, code: CodeType, callee: Node) -> list[tuple[FunctionType, dict[str, Any]]]:
        found = [each for value in scope.values(callee, code) for each in self._behind(value)]
        if not found and _is_of_super(callee) and isinstance(scope.around, type):
            above = inherited(scope.around.__mro__[1:], callee.name)
            found = [(each, {}) for each in above if id(each) in self._own][:1]
        return found or [(each, {}) for each in self._by_name.get(callee.name, ())]

    def _add(self, caller: FunctionType, code: CodeType, node: Node) -> None:
        callee = node.parts[0]
        receiver = callee.parts[0] if callee.kind == ATTRIBUTE and callee.parts else None
        placed, named, spread, is_open = given_in(node)
        scope = Scope(caller)
        self.classes.update(each for each in scope.values(callee, code) if isinstance(each, type))
        for function, fixed in self._called(scope, code, callee):
            site = Site(caller, code, placed, named, fixed, receiver, spread, is_open)
            self._sites.setdefault(id(function), []).append(site)
        for key in ("target", "func"):  # of a thread
            for value in scope.values(named[key], code) if key in named else ():
                for function, fixed in self._behind(value):
                    given = _listed(named.get("args"))
                    more = [named["kwargs"]] if "kwargs" in named else []
                    site = Site(caller, code, given or [], {}, fixed, None, more, given is None)
                    self._sites.setdefault(id(function), []).append(site)
        for place, each in enumerate(placed):  # `submit(ask, q, 0.8)`
            for value in scope.values(each, code) if each.kind != CALL else ():
                for function, fixed in self._behind(value):
                    given, is_map = placed[place + 1 :], "map" in callee.name
                    if callee.name in ("apply", "apply_async"):
                        given = _listed(given[0] if given else None) or []
                    site = Site(
                        caller, code, given, named, fixed, None, spread, is_open, is_map, "starmap" in callee.name
                    )
                    self._sites.setdefault(id(function), []).append(site)

    def _behind(self, value: Any) -> list[tuple[FunctionType, dict[str, Any]]]:
        """Return the function of your own that a value calls, and what it gives that."""
        fixed: dict[str, Any] = {}
        for _ in range(_DEEPEST):
            if isinstance(value, functools.partial):
                names = parameters(value.func.__code__) if isinstance(value.func, FunctionType) else ()
                fixed = {**dict(zip(names, value.args, strict=False)), **value.keywords, **fixed}
                value = value.func
            elif isinstance(value, MethodType):
                value, me = value.__func__, value.__self__
                fixed |= dict.fromkeys(value.__code__.co_varnames[:1], me) if isinstance(value, FunctionType) else {}
            elif isinstance(value, type):
                value = next(inherited(value.__mro__, "__init__"), None)
            elif isinstance(value, FunctionType):
                return [(value, fixed)] if id(value) in self._own else []
            else:
                method = vars(class_of(value)).get("__call__")
                if not isinstance(method, FunctionType):
                    return []
                fixed[method.__code__.co_varnames[0]] = value
                value = method
        return []

    def is_own(self, function: FunctionType) -> bool:
        """Whether a function is one of your own."""
        return id(function) in self._own

    def of(self, function: FunctionType) -> list[Site]:
        """Return the calls of a function."""
        return self._sites.get(id(function), [])


def called(function: FunctionType) -> str:
    """Return by what name code calls a function, if by its own."""
    of = function.__qualname__.rpartition("<locals>.")[2].split(".")
    return of[-2] if len(of) > 1 and function.__name__ in ("__init__", "__new__") else function.__name__


def takes_self(function: FunctionType) -> bool:
    """Whether a function is a method."""
    return "." in function.__qualname__.rpartition("<locals>.")[2]


def takes_names(function: FunctionType, names: Iterable[str]) -> bool:
    """Whether a function has parameters of some names; else it may take them by stars."""
    known = parameters(function.__code__)
    return all(each in known for each in names) and not function.__code__.co_flags & _VAR_KEYWORDS


@functools.lru_cache(maxsize=4096)
def calls_in(code: CodeType) -> tuple[tuple[CodeType, Node], ...]:
    """Return the calls in code, and in which code within it each is."""
    try:
        found = [(inner, each) for inner in code_within(code) for each in expressions(inner)]
    except Exception:  # bytecode of a kind that nobody has met
        return ()
    return tuple((inner, each) for inner, each in found if each.kind == CALL)


def _is_of_super(callee: Node) -> bool:
    """Whether a method is asked of `super()`, which Python 3.12 has an instruction for."""
    if callee.kind != ATTRIBUTE or not callee.parts:
        return False
    of = callee.parts[0]
    return of.name == "super" or (of.kind == CALL and of.parts[0].name == "super")


def _listed(node: Node | None) -> list[Node] | None:
    """Return what a display of a tuple or list holds; nothing where there is none, None for others."""
    if node is None:
        return []
    if node.kind == CONST and type(node.value) is tuple:
        return [Node(CONST, each) for each in node.value]
    return [*node.parts] if node.kind == OTHER and node.value in ("BUILD_TUPLE", "BUILD_LIST") else None


def inherited(classes: Iterable[type], name: str) -> Iterator[FunctionType]:
    """Yield what classes define under a name, one after the other; of properties what they ask."""
    for each in classes:
        found = vars(each).get(name)
        found = getter_of(found) or found
        if isinstance(found, FunctionType):
            yield found


def getter_of(value: Any) -> Any:
    """Return the function that a property asks; None for what is no property."""
    if isinstance(value, property):
        return value.fget
    return value.func if isinstance(value, functools.cached_property) else None


def has(value: Any, method: FunctionType) -> bool:
    """Whether a method, or what a property asks, is one of an object's class."""
    if value is UNKNOWN or value is None:
        return False
    return any(each is method for each in inherited(class_of(value).__mro__, method.__name__))
