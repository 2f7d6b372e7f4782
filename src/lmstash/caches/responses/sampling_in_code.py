"""Whether the code of a call asks a model for sampling by what it says itself: `create(temperature=0.8, ...)`.

Told by keywords of calls, by keys of dicts, and by dicts and objects that calls are handed, of which the values can be
told without running anything; and by defaults that no call says otherwise. Methods count if code asks anything for an
attribute of their name.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from lmstash.caches.responses.sampling import HOTTEST, MAY_HOLD_ARGUMENTS, is_sampled, seed_of
from lmstash.identity.expressions import (
    ATTRIBUTE,
    CALL,
    CONST,
    ITEM,
    NAME,
    OPERATION,
    OTHER,
    STARRED,
    Node,
    code_within,
    expressions,
)
from lmstash.identity.own_code import OwnCode
from lmstash.identity.values_in_code import UNKNOWN, Scope, attribute

_NAMES = frozenset({"temperature", "do_sample", "doSample", "seed", "random_seed"})
"""Of those of requests; `n=3` may count anything in code."""
_CODE = (FunctionType, BuiltinFunctionType, MethodType, ModuleType, type)
_SAYS_NOTHING = (str, bytes, int, float, list, tuple, set, *_CODE)
_DEEP = 4
_MOST = 32
_HANDED = ""
"""Stands for the name of what is handed to a call whole."""


@dataclass(frozen=True)
class _Said:
    """What one call or dict in code says of sampling."""

    code: CodeType
    nodes: Mapping[str, Node]


class SamplingInCode:
    """What the code of a call says of sampling. Looks anew at what objects hold each time; threads may share it."""

    def __init__(self, first: FunctionType, graphs: Sequence[tuple[Any, OwnCode]], harmless: frozenset[str]) -> None:
        """Read the code.

        Args:
            first: The function that is called.
            graphs: Functions and classes, and all the code that each leads to.
            harmless: Names of what changes no answer.
        """
        self._first, self._harmless = first, harmless
        functions = {id(each): each for _, graph in graphs for each in graph.functions}
        looked, self._named = _looked_at(graphs, functions)
        self._roots = [graph.objects for _, graph in graphs]
        self._modules = {each.__module__ for each in looked.values()}
        said, taken = _handed_on(functions, looked)
        self._said = [(each, one) for each, one in said if self._may_change(each, one) or self._counts(each, one)]
        self._defaults = dict[str, Any]()
        for key, each in looked.items():
            if each is not first:
                self._defaults |= _defaults_left(each, taken[key], said)

    def _may_change(self, function: FunctionType, said: _Said) -> bool:
        """Whether what is said may be another thing at each call: it hangs on arguments."""
        is_told = function is self._first or _is_method(function)
        return is_told and any(map(_has_variables, said.nodes.values()))

    @staticmethod
    def _counts(function: FunctionType, said: _Said) -> bool:
        values = [Scope(function, {}).values(node, said.code) for name, node in said.nodes.items() if name == _HANDED]
        return not values or any(next(_said_by(each), None) for each in values[0])

    def now(self, named: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments by which the code asks for answers by chance, from no seed; empty where it does not.

        Args:
            named: What the call is given.
            arguments: What that says of sampling.
        """
        objects = self._objects() if any(_is_method(each) for each, _ in self._said) else []
        for function, said in self._said:
            for known in [named] if function is self._first else _given_to(function, objects):
                scope = Scope(function, known)
                for told in _told(scope, said):
                    if sampled := _sampled({name: each for name, each in told.items() if name not in self._harmless}):
                        return sampled
        is_said = self._defaults.keys() & (arguments.keys() | self._harmless)
        return {} if is_said else self._defaults

    def _objects(self) -> list[Any]:
        """Return the objects of somebody's own classes that code names, and those that lie in them."""
        found: dict[int, Any] = {}
        left = [inner for held in self._roots for each in held.values() for inner in _members(each)]
        for _ in range(_DEEP):
            own = [each for each in left if type(each).__module__ in self._modules and id(each) not in found]
            found |= {id(each): each for each in own}
            left = [
                inner
                for each in own
                for name, value in [*getattr(each, "__dict__", {}).items()]
                if name in self._named
                for inner in _members(value)
            ]
        return [*found.values()]


def _looked_at(
    graphs: Sequence[tuple[Any, OwnCode]], functions: Mapping[int, FunctionType]
) -> tuple[dict[int, FunctionType], set[str]]:
    """Return, by `id`, the functions that a call may lead to, and the names that their code asks for."""
    looked = {
        id(each): each
        for code, graph in graphs
        if isinstance(code, FunctionType)
        for each in graph.functions
        if each is code or not _is_method(each)
    }
    left, named = [*looked.values()], {"__call__"}
    while left:  # what they call, and so on
        named.update(*[_names_in(each.__code__) for each in left])
        left = [each for key, each in functions.items() if key not in looked and each.__name__ in named]
        looked |= {id(each): each for each in left}
    return looked, named


def _handed_on(
    functions: Mapping[int, FunctionType], looked: Mapping[int, FunctionType]
) -> tuple[list[tuple[FunctionType, _Said]], dict[int, dict[str, str]]]:
    """Return what functions say, and by function which of its parameters say sampling, and as what."""
    said = [(each, one) for each in looked.values() for one in _said_in(each.__code__)]
    taken = {key: _taken_by(each) for key, each in functions.items()}
    n_before = -1
    while n_before != len(said):  # what one function is handed it may hand to another one
        n_before = len(said)
        known = {(id(each), id(node)) for each, one in said for name, node in one.nodes.items() if name != _HANDED}
        for each, one in said:
            variables = {node.name: name for name, node in one.nodes.items() if node.kind == NAME and node.is_local}
            taken[id(each)] |= {variable: name for variable, name in variables.items() if name != _HANDED}
        taking = [_Taking(each, taken[key]) for key, each in functions.items() if taken[key]]
        for each in looked.values():
            placed = _placed_in(each.__code__, taking)
            new = [one for one in placed if any((id(each), id(node)) not in known for node in one.nodes.values())]
            said += [(each, one) for one in new]
    return said, taken


def _is_method(function: FunctionType) -> bool:
    return "." in function.__qualname__.rpartition("<locals>.")[2]


def _members(value: Any) -> list[Any]:
    if type(value) is dict:
        return [*value.values()]
    return [*value] if type(value) in (list, tuple) else [value]


def _given_to(function: FunctionType, objects: Iterable[Any]) -> list[dict[str, Any]]:
    """Return what is known of the arguments of a function that others call: what a method may be called of."""
    name, code = function.__name__, function.__code__
    if not _is_method(function) or not code.co_argcount:
        return [{}]
    mine = [each for each in objects if any(vars(base).get(name) is function for base in type(each).__mro__)]
    return [{code.co_varnames[0]: each} for each in mine] or [{}]


def _has_variables(node: Node) -> bool:
    return (node.kind == NAME and node.is_local) or any(map(_has_variables, node.parts))


def _told(scope: Scope, said: _Said) -> Iterator[dict[str, Any]]:
    """Yield what may be said of sampling."""
    if _HANDED in said.nodes:
        for each in scope.values(said.nodes[_HANDED], said.code):
            yield from _said_by(each)
        return
    values = [_made_of(scope, node, said.code) for node in said.nodes.values()]
    for each in itertools.islice(itertools.product(*values), _MOST):
        yield dict(zip(said.nodes, each, strict=True))


def _made_of(scope: Scope, node: Node, code: CodeType) -> list[Any]:
    """Return what an expression may give; of a sum of which a part is not known, the other part: `0.7 + 0.1 * i`."""
    values = scope.values(node, code)
    if node.kind == OPERATION and values == [UNKNOWN]:
        return [value for each in node.parts for value in _made_of(scope, each, code)]
    return values


def _sampled(told: Mapping[str, Any]) -> dict[str, Any]:
    told = {name: each if isinstance(each, bool | int | float | None) else UNKNOWN for name, each in told.items()}
    known = {name: each for name, each in told.items() if each is not UNKNOWN and _may_be(each)}
    return known if seed_of(told) is None and is_sampled(known) else {}


def _may_be(value: Any) -> bool:
    """Whether a model could be asked for it: a temperature of 20 is the weather's."""
    return type(value) is bool or not isinstance(value, int | float) or 0 <= value <= HOTTEST


def _said_by(value: Any) -> Iterator[dict[str, Any]]:
    """Yield what a dict or object says of sampling that a call is handed, and dicts of generation arguments in it."""
    if isinstance(value, functools.partial):
        value = value.keywords
    if isinstance(value, Mapping):
        if type(value) is dict:
            if found := {name: value[name] for name in _NAMES & value.keys()}:
                yield found
            for name in MAY_HOLD_ARGUMENTS & value.keys():
                yield from _said_by(value[name])
    elif value is not None and value is not UNKNOWN and not isinstance(value, _SAYS_NOTHING):
        found = {name: attribute(value, name) for name in _NAMES}
        if found := {name: each for name, each in found.items() if each is not UNKNOWN}:
            yield found


class _Taking:
    """A function of your own that takes arguments that say sampling, and how it is called."""

    def __init__(self, function: FunctionType, names: Mapping[str, str]) -> None:
        """Take what its parameters are called, and by which names they say sampling."""
        code = function.__code__
        of = function.__qualname__.rpartition("<locals>.")[2].split(".")
        is_made = len(of) > 1 and function.__name__ in ("__init__", "__new__")
        self.called, self.names = of[-2] if is_made else function.__name__, names
        first = int(len(of) > 1)  # `self`
        places = enumerate(code.co_varnames[first : code.co_argcount])
        self.places = {place: names[name] for place, name in places if name in names}


def _taken_by(function: FunctionType) -> dict[str, str]:
    """Return which parameters of a function say sampling by their names."""
    code = function.__code__
    return {each: each for each in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount] if each in _NAMES}


def _placed_in(code: CodeType, taking: Iterable[_Taking]) -> Iterator[_Said]:
    """Yield what calls say of sampling to functions of your own by the place of an argument, or by its name there."""
    for inner, node in _calls_in(code) if taking else ():
        for each in taking:
            if node.parts[0].name == each.called:
                given = dict(zip(itertools.count(), node.arguments, strict=False))
                said = {name: given[place] for place, name in each.places.items() if place in given}
                said |= {each.names[name]: value for name, value in _named(node) if name in each.names}
                if said:
                    yield _Said(inner, said)


def _defaults_left(
    function: FunctionType, taken: Mapping[str, str], said: Iterable[tuple[FunctionType, _Said]]
) -> dict[str, Any]:
    """Return which defaults of a function ask for sampling, if no call says otherwise."""
    code = function.__code__
    names = code.co_varnames[: code.co_argcount]
    given = dict(zip(names[::-1], (function.__defaults__ or ())[::-1], strict=False)) | (function.__kwdefaults__ or {})
    found = _sampled({taken[name]: value for name, value in given.items() if name in taken})
    for each, one in said if found else ():
        for name in found.keys() & one.nodes.keys():
            if each is not function or taken.get(one.nodes[name].name) != name:  # else it hands on what it was given
                return {}
    return found


@functools.lru_cache(maxsize=4096)
def _names_in(code: CodeType) -> frozenset[str]:
    """Return the names of globals and attributes in code."""
    return frozenset(code.co_names).union(*[_names_in(each) for each in code.co_consts if isinstance(each, CodeType)])


@functools.lru_cache(maxsize=4096)
def _calls_in(code: CodeType) -> tuple[tuple[CodeType, Node], ...]:
    """Return the calls in code, and in which code within it each is."""
    try:
        found = [(inner, each) for inner in code_within(code) for each in expressions(inner)]
    except Exception:  # bytecode of a kind that nobody has met
        return ()
    return tuple((inner, each) for inner, each in found if each.kind == CALL)


@functools.lru_cache(maxsize=4096)
def _said_in(code: CodeType) -> tuple[_Said, ...]:
    """Return what each call and each dict in code says of sampling, and what calls are handed whole."""
    found: list[_Said] = []
    try:
        for inner in code_within(code):
            for node in expressions(inner):
                said = {name: each for name, each in _named(node) if name in _NAMES}
                found += [_Said(inner, said)] if said else []
                found += [_Said(inner, {_HANDED: each}) for each in _handed(node)]
    except Exception:  # bytecode of a kind that nobody has met
        return ()
    return tuple(found)


def _named(node: Node) -> Iterator[tuple[Any, Node]]:
    """Yield the keywords of a call, or the keys of a dict, and what is given under them."""
    if node.kind == CALL:
        yield from zip(node.value, node.parts[len(node.parts) - len(node.value) :], strict=True)
    elif node.kind == OTHER and node.value == "BUILD_MAP":
        yield from (
            (key.value, each) for key, each in zip(node.parts[::2], node.parts[1::2], strict=False) if key.kind == CONST
        )
    elif node.kind == OTHER and node.value == "BUILD_CONST_KEY_MAP":
        yield from zip(node.parts[-1].value, node.parts[:-1], strict=True)
    elif node.kind == CONST:
        stored = [each.parts for each in node.users if each.value == "STORE_SUBSCR" and each.parts[-1] is node]
        yield from ((node.value, each[0]) for each in stored)


def _handed(node: Node) -> Iterator[Node]:
    """Yield what a call or a dict is handed that may hold more than itself."""
    if node.kind != CALL and not (node.kind == OTHER and node.value == "BUILD_MAP"):
        return
    for each in node.parts:
        inner = each.parts[0] if each.kind == OTHER and each.value == STARRED else each
        if inner.kind in (NAME, ATTRIBUTE, ITEM):
            yield inner
