"""Whether the code of a call asks a model for sampling by what it says itself: `create(temperature=0.8, ...)`.

Told by arguments of calls and keys of dicts, and by dicts and objects that other code than one's own is handed whole,
of which the values can be told without running anything. Methods count if code asks anything for an attribute of their
name.
"""

from __future__ import annotations

import functools
import itertools
import numbers
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from lmstash.caches.responses.requests.sampling import HOTTEST, MAY_HOLD_ARGUMENTS, is_sampled, seed_of
from lmstash.identity.code.own_code import OwnCode
from lmstash.identity.dataflow.arguments import Arguments
from lmstash.identity.dataflow.calls import Calls, calls_in, has, inherited, takes_names, takes_self
from lmstash.identity.dataflow.expressions import (
    ATTRIBUTE,
    CALL,
    CONST,
    MERGED,
    NAME,
    OPERATION,
    OTHER,
    RETURNED,
    STARRED,
    STORED,
    Node,
    code_within,
    expressions,
    given_in,
)
from lmstash.identity.dataflow.lying_in import UNKNOWN, attribute, attributes_lying_in
from lmstash.identity.dataflow.settings_files import ENDINGS
from lmstash.identity.dataflow.values import Scope
from lmstash.identity.dataflow.variables import parameters

_NAMES = frozenset({"temperature", "do_sample", "doSample", "seed", "random_seed"})
"""Of those of requests; `n=3` may count anything in code."""
_SEEDS = frozenset({"seed", "random_seed"})
_CHANCE = ("rand", "time", "uuid", "secret", "token_", "now", "getrandbits", "choice", "integers")
"""In the names of what gives another seed at each call."""
_LOOKING = frozenset(
    {
        *("print", "repr", "str", "len", "format", "dumps", "dump", "info", "debug", "warning", "error", "exception"),
        *("log", "critical", "write", "hash", "id", "type", "isinstance", "issubclass", "sorted", "list", "set"),
        *("tuple", "vars", "asdict", "dict", "copy", "deepcopy", "replace", "getattr", "hasattr", "setattr", "iter"),
        *("enumerate", "zip", "append", "extend", "join", "bool", "sum", "min", "max", "any", "all", "pprint", "dir"),
    }
)
"""Functions that ask no model for anything."""
_SHOWING = frozenset(
    {
        *("print", "repr", "str", "len", "format", "info", "debug", "warning", "error", "exception", "log", "critical"),
        *("hash", "id", "type", "isinstance", "bool", "pprint"),
    }
)
"""Those among them that carry nothing on."""
_CODE = (FunctionType, BuiltinFunctionType, MethodType, ModuleType, type)
_SAYS_NOTHING = (str, bytes, int, float, list, tuple, set, *_CODE)
_MAKING = ("__init__", "__new__", "__post_init__", "__enter__", "__aenter__")
"""Methods that run where an object is made."""
_BODIES = frozenset({"data", "content", "body", "json", "input"})
"""What libraries of HTTP call the body of a request."""
_SENDING = frozenset({"post", "put", "request", "Request", "urlopen", "send", "invoke_model", "invoke"})
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
        self._harmless = harmless
        functions = {id(each): each for _, graph in graphs for each in graph.functions}
        looked, self._named = _looked_at(graphs, functions)
        self._roots = [graph.objects for _, graph in graphs]
        self._modules = {each.__module__ for each in functions.values()}
        self._files = [graph.files for _, graph in graphs]
        self._calls = Calls(functions.values(), looked.values(), first, self._objects_of, self._settings)
        said = [(each, one) for each in looked.values() for one in self._said_in(each)]
        taking = {key: each for key, each in functions.items() if key in looked or self._calls.of(each)}
        takes = [
            (each, names)
            for each in taking.values()
            if each is not first and (names := [*_NAMES.intersection(parameters(each.__code__))])
            if not all(_only_counted_with(each.__code__, name) for name in names)
        ]
        during = Arguments(self._calls, None)
        self._always: dict[str, Any] = {}
        self.found: dict[str, Any] = {}
        """By what answers were asked for by chance, the last time that they were."""
        self.by: FunctionType | None = None
        """In which function that was found."""
        self._said = [(each, one) for each, one in said if self._hangs(during, each, self._told(during, each, one))]
        self._taking = [
            (each, names) for each, names in takes if self._hangs(during, each, _taken(during, each, names))
        ]

    def _hangs(self, during: Arguments, function: FunctionType, told: Iterator[dict[str, Any]]) -> bool:
        """Whether what is told has to be looked at in each call; notes it if it asks for sampling in each."""
        during.hangs = False
        sampled = [found for each in told if (found := self._sampled(each))]
        if not during.hangs and sampled:
            self._always = self.found = sampled[0]
            self.by = function
        return during.hangs

    def _said_in(self, function: FunctionType) -> Iterator[_Said]:
        """Yield what a function says, but for what is handed whole and says nothing, whoever calls."""
        yield from _said_in(function.__code__)
        plain = Scope(function)
        for code, node in calls_in(function.__code__):
            for each in self._handed(function, code, node):
                values = plain.values(each, code)
                if any(value is UNKNOWN or next(_said_by(value), None) for value in values):
                    yield _Said(code, {_HANDED: each})

    def _handed(self, function: FunctionType, code: CodeType, node: Node) -> Iterator[Node]:
        """Yield what a call is handed whole that may ask a model; of your own functions each is read itself."""
        placed, named, spread, _ = given_in(node)
        yield from spread
        callee = node.parts[0]
        for value in Scope(function).values(callee, code):
            if isinstance(value, functools.partial):
                yield Node(CONST, value)
        if callee.name in _LOOKING and not (callee.name == "dumps" and _is_sent(node)):
            return
        own = self._calls.targets(function, code, node)
        if not own:
            yield from placed
        if not own or not all(takes_names(each, named) for each in own):
            yield from named.values()

    def now(self, named: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments by which the code asks for answers by chance, from no seed; empty where it does not.

        Args:
            named: What the call is given.
        """
        if self._always or not (self._said or self._taking):
            return self._always
        during = Arguments(self._calls, named)
        told = itertools.chain(
            ((function, each) for function, said in self._said for each in self._told(during, function, said)),
            ((function, each) for function, names in self._taking for each in _taken(during, function, names)),
        )
        for function, each in told:
            if found := self._sampled(each):
                self.found, self.by = found, function
                return found
        return {}

    @staticmethod
    def _told(during: Arguments, function: FunctionType, said: _Said) -> Iterator[dict[str, Any]]:
        """Yield what may be said of sampling."""
        scope = during.scope(function)
        if _HANDED in said.nodes:
            for each in scope.values(said.nodes[_HANDED], said.code):
                during.hangs = during.hangs or not (each is UNKNOWN or isinstance(each, (dict, *_SAYS_NOTHING)))
                yield from _said_by(each)
            return
        values = [_made_of(scope, name, node, said.code) for name, node in said.nodes.items()]
        for each in itertools.islice(itertools.product(*values), _MOST):
            yield dict(zip(said.nodes, each, strict=True))

    def _sampled(self, told: Mapping[str, Any]) -> dict[str, Any]:
        told = {name: _number(each) for name, each in told.items() if name not in self._harmless}
        known = {name: each for name, each in told.items() if each is not UNKNOWN and _may_be(each)}
        if seed_of(told) is not None or known.get("do_sample") is False:  # transformers is greedy then
            return {}
        return known if is_sampled(known) else {}

    def _settings(self) -> list[str]:
        return [path for each in self._files for path in each.named(ENDINGS)]

    def _objects_of(self, method: FunctionType) -> list[Any]:
        """Return the objects of somebody's own classes that code names, and those in them, that have a method."""
        found: dict[int, Any] = {}
        left = [inner for held in self._roots for each in held.values() for inner in _members(each)]
        for _ in range(_DEEP):
            own = [each for each in left if type(each).__module__ in self._modules and id(each) not in found]
            found |= {id(each): each for each in own}
            left = [
                inner
                for each in own
                for name, value in [*attributes_lying_in(each).items()]
                if name in self._named
                for inner in _members(value)
            ]
        return [each for each in found.values() if has(each, method)]


def _looked_at(
    graphs: Sequence[tuple[Any, OwnCode]], functions: Mapping[int, FunctionType]
) -> tuple[dict[int, FunctionType], set[str]]:
    """Return, by `id`, the functions that a call may lead to, and the names that their code asks for."""
    looked = {
        id(each): each
        for code, graph in graphs
        if isinstance(code, FunctionType)
        for each in graph.functions
        if each is code or not takes_self(each)
    }
    classes = [each for _, graph in graphs for each in graph.classes]
    left, named, called = [*looked.values()], {"__call__"}, set[str]()
    while left:  # what they call, and so on
        named.update(*[_names_in(each.__code__) for each in left])
        calls = [node for each in left for _, node in calls_in(each.__code__)]
        called.update(node.parts[0].name for node in calls)
        named.update(
            str(each.value) for node in calls if node.parts[0].name == "getattr" for each in node.arguments[1:2]
        )
        making = {
            id(each)
            for cls in classes
            if cls.__name__ in called
            for name in _MAKING
            for each in inherited(cls.__mro__, name)
        }
        left = [
            each
            for key, each in functions.items()
            if key not in looked and (key in making or (each.__name__ in named and each.__name__ not in _MAKING))
        ]
        looked |= {id(each): each for each in left}
    return looked, named


def _members(value: Any) -> list[Any]:
    if type(value) is dict:
        return [*itertools.islice(value.values(), _MOST)]
    return [*value[:_MOST]] if type(value) in (list, tuple) else [value]


def _taken(during: Arguments, function: FunctionType, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield what a function may be handed that is named for sampling."""
    values = [during.argument(function, name) for name in names]
    for each in itertools.islice(itertools.product(*values), _MOST):
        yield dict(zip(names, each, strict=True))


def _made_of(scope: Scope, name: str, node: Node, code: CodeType) -> list[Any]:
    """Return what an argument may be; of a seed that is another one each time, that there is none."""
    if name in _SEEDS:
        return [None] if _is_chance(node) else scope.values(node, code)
    return scope.near(node, code)


def _is_chance(node: Node) -> bool:
    """Whether an expression gives something else each time: a seed that is as good as none."""
    called = node.kind == CALL and any(word in node.parts[0].name.lower() for word in _CHANCE)
    return called or any(map(_is_chance, node.parts))


def _number(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    return float(value) if isinstance(value, numbers.Real) else UNKNOWN


def _may_be(value: Any) -> bool:
    """Whether a model could be asked for it: a temperature of 20 is the weather's."""
    return type(value) is bool or not isinstance(value, int | float) or 0 <= value <= HOTTEST


def _said_by(value: Any) -> Iterator[dict[str, Any]]:
    """Yield what a dict or object says of sampling that a call is handed, and dicts of generation arguments in it."""
    if isinstance(value, functools.partial):
        value = value.keywords
    if isinstance(value, dict):
        if found := {name: value[name] for name in _NAMES & value.keys()}:
            yield found
        for name in MAY_HOLD_ARGUMENTS & value.keys():
            yield from _said_by(value[name])
    elif value is not None and value is not UNKNOWN and not isinstance(value, _SAYS_NOTHING):
        found = {name: attribute(value, name) for name in _NAMES}
        if found := {name: each for name, each in found.items() if each is not UNKNOWN}:
            yield found


@functools.lru_cache(maxsize=4096)
def _only_counted_with(code: CodeType, name: str) -> bool:
    """Whether code only calculates with an argument, as what scales scores does."""
    try:
        asked = [each for each in expressions(code) if each.kind == NAME and each.value == name]
    except Exception:  # bytecode of a kind that nobody has met
        return False
    return all(user.kind == OPERATION for each in asked for user in each.users)


@functools.lru_cache(maxsize=4096)
def _names_in(code: CodeType) -> frozenset[str]:
    """Return the names of globals and attributes in code."""
    return frozenset(code.co_names).union(*[_names_in(each) for each in code.co_consts if isinstance(each, CodeType)])


@functools.lru_cache(maxsize=4096)
def _said_in(code: CodeType) -> tuple[_Said, ...]:
    """Return what each call, each dict and each entry that is set in code says of sampling."""
    found: list[_Said] = []
    try:
        for inner in code_within(code):
            for node in expressions(inner):
                if (later := _judged_later(node, inner)) is not None:
                    found += [_Said(inner, {_HANDED: each}) for each in later]
                    continue
                said = {name: each for name, each in _named(node, inner) if name in _NAMES}
                found += [_Said(inner, said)] if said else []
                if _is_display(node) and not any(map(_is_display, node.users)):
                    found.append(_Said(inner, {_HANDED: node}))
    except Exception:  # bytecode of a kind that nobody has met
        return ()
    return tuple(found)


def _is_variable(node: Node, code: CodeType) -> bool:
    return node.kind == NAME and node.is_local and node.value not in code.co_cellvars


def _judged_later(node: Node, code: CodeType) -> list[Node] | None:
    """Return where a dict is given back that lies in a variable and is only handed on; None for others.

    Where it is handed on, what was put into it since counts, too.
    """
    is_dict = _is_display(node) or (node.kind == CALL and node.parts[0].kind == NAME and node.parts[0].name == "dict")
    if not is_dict or not node.users or not all(each.kind == STORED and each.is_local for each in node.users):
        return None
    names = {each.value for each in node.users}
    meant = [each for each in expressions(code) if each.kind == NAME and each.value in names]
    if not names.isdisjoint(code.co_cellvars) or not all(
        _is_handed(each, user) for each in meant for user in each.users
    ):
        return None
    return [each for each in meant if any(user.value == RETURNED for user in each.users)]


def _is_handed(node: Node, user: Node) -> bool:
    """Whether what uses a dict hands it on whole, looks at it, or puts something into it."""
    if user.kind == CALL:
        return user.parts[0] is not node and (user.parts[0].name not in _LOOKING or user.parts[0].name in _SHOWING)
    if user.kind == ATTRIBUTE:
        return user.value in ("update", "setdefault") and all(each.kind == CALL for each in user.users)
    if user.value == "STORE_SUBSCR":
        return len(user.parts) == 3 and user.parts[1] is node
    return user.kind == OTHER and user.value in (STARRED, MERGED, RETURNED)


def _is_sent(node: Node) -> bool:
    """Whether a text is the body of a request."""
    calls = [each for each in node.users if each.kind == CALL]
    if any(_BODIES.intersection(each.value) or each.parts[0].name in _SENDING for each in calls):
        return True
    encoding = [each for each in node.users if each.name == "encode"]
    return any(_is_sent(call) for each in encoding for call in each.users if call.kind == CALL)


def _is_display(node: Node) -> bool:
    return node.kind == OTHER and node.value == "BUILD_MAP"


def _named(node: Node, code: CodeType) -> Iterator[tuple[Any, Node]]:
    """Yield the keywords of a call, what is set under a key or as an attribute, and what is given for each."""
    if node.kind == CALL:
        yield from zip(node.value, node.parts[len(node.parts) - len(node.value) :], strict=True)
        is_default = node.parts[0].name == "setdefault" and len(node.arguments) == 2
        if is_default and node.arguments[0].kind == CONST and not _is_variable(node.parts[0].parts[0], code):
            yield node.arguments[0].value, node.arguments[1]
    elif node.kind == CONST:
        stored = [each.parts for each in node.users if each.value == "STORE_SUBSCR" and each.parts[-1] is node]
        yield from ((node.value, each[0]) for each in stored)
    elif node.kind == STORED and not node.is_local and code.co_varnames[:1] != ("self",) and node.parts:
        yield node.name, node.parts[0]
