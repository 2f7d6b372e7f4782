"""What the arguments of functions of your own may be during one call, and what these give back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePath
from types import CodeType, FunctionType
from typing import Any

from lmstash.identity.dataflow.calls import Calls, Site, getter_of, has, inherited, takes_self
from lmstash.identity.dataflow.expressions import ATTRIBUTE, STORED, Node, expressions
from lmstash.identity.dataflow.lying_in import MOST, UNKNOWN, Made, Partly, class_of, entry, items_of, operated
from lmstash.identity.dataflow.settings_files import held_in
from lmstash.identity.dataflow.told import WHOLE, Known, Nothing
from lmstash.identity.dataflow.values import Scope
from lmstash.identity.dataflow.variables import parameters, takes_all_by

_DEEPEST = 12
_NUMBERS = (bool, int, float, str)
_MOST_ROUNDS, _MOST_LOOKS = 4, 2000


class Arguments(Nothing):
    """What arguments may be during one call. Each is looked for once."""

    def __init__(self, calls: Calls, named: Mapping[str, Any] | None) -> None:
        """Take the calls, and what the first function is called with."""
        super().__init__()
        self._calls, self._named = calls, named or {}
        self._open: dict[Any, int] = {}
        self._bound: dict[int, Any] = {}
        self._so_far: dict[Any, Known] = {}
        self._round = 0
        self._deep: list[Any] = []

    def keeps(self, function: FunctionType) -> bool:
        """Return whether an expression of a function gives the same for as long as the call lasts."""
        return id(function) not in self._bound

    def scope(self, function: FunctionType) -> Scope:
        """Return where the names of a function stand for something, whoever calls it."""
        return Scope(function, self)

    def argument(self, function: FunctionType, name: str) -> list[Any]:
        """Return what one argument of a function may be; `UNKNOWN` among it where that cannot be told."""
        if id(function) in self._bound and parameters(function.__code__)[:1] == (name,):
            return [self._bound[id(function)]]
        if function is self._calls.first:
            self.hangs = True
            if name == takes_all_by(function.__code__) and name not in self._named:
                return [
                    Partly({key: each for key, each in self._named.items() if key not in parameters(function.__code__)})
                ]
            return [self._named.get(name, UNKNOWN)]
        return self._once((id(function), name), lambda: self._found(function, name)) or [UNKNOWN]

    def returned(self, caller: FunctionType, code: CodeType, node: Node) -> list[Any]:
        """Return what a call of functions of your own may give; nothing where it is of others."""
        found: list[Any] = []
        targets = [each for each in self._calls.targets(caller, code, node) if each.__name__ != "__init__"]
        callee = node.parts[0]
        if len(targets) > 1 and callee.kind == ATTRIBUTE and len(callee.parts) == 1:
            receivers = self.scope(caller).values(callee.parts[0], code)
            targets = [each for each in targets if _may_be_of(receivers, each)]
        for each in targets:
            found += self._once(id(each), self.scope(each).returned) or [UNKNOWN]
        return found

    def asked(self, value: Any, name: str) -> list[Any]:
        """Return what a property of your own may give; nothing where it is of others."""
        found = (vars(each)[name] for each in class_of(value).__mro__ if name in vars(each))
        getter = getter_of(next(found, None))
        if not isinstance(getter, FunctionType) or not self._calls.is_own(getter) or id(getter) in self._bound:
            return []
        self.hangs = True
        return self._once((id(getter), id(value), "asked"), lambda: self._asked(getter, value), value)

    def _asked(self, getter: FunctionType, value: Any) -> list[Any]:
        self._bound[id(getter)] = value
        try:
            return self.scope(getter).returned()
        finally:
            del self._bound[id(getter)]

    def set_in(self, cls: type) -> list[dict[str, Any]]:
        """Return what the objects of a class of your own may bear when they are made, each alternative among them."""
        own = [each for each in inherited(cls.__mro__, "__init__") if self._calls.is_own(each)]
        if not own:
            return []
        held = self._once(cls, lambda: [self._set_by(own)])
        known: dict[str, list[Any]] = held[0] if held else {}
        most = min(MOST, max(map(len, known.values()), default=1))
        return [{name: each[min(at, len(each) - 1)] for name, each in known.items()} for at in range(most)]

    def loaded(self, endings: tuple[str, ...]) -> list[Any]:
        """Return what the files of settings may hold that code loads: those that it or the first call names."""
        self.hangs = True
        given = [str(each) for each in self._named.values() if isinstance(each, str | PurePath)]
        return [*held_in(dict.fromkeys([*self._calls.settings(), *given]), endings)][:MOST]

    def _set_by(self, functions: Iterable[FunctionType]) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        for function in functions:
            code, scope = function.__code__, self.scope(function)
            for node in expressions(code):
                if node.kind == STORED and not node.is_local and node.parts:
                    found.setdefault(node.name, []).extend(scope.values(node.parts[0], code))
        return found

    def _once(self, key: Any, find: Callable[[], list[Any]], of: Any = None) -> list[Any]:
        """Return what is found, looked for once; nothing while it is looked for.

        Who leads too far down is looked for first by itself, and then the first one once more.
        """
        if self._open:
            return self._look(key, find, of)
        todo, found = [(key, find, of)], list[Any]()
        for _ in range(_MOST_LOOKS):
            self._deep = []
            found, asked = self._look(*todo[-1]), {each[0] for each in todo}
            if deeper := [each for each in self._deep if each[0] not in asked]:
                todo += deeper
                continue
            if todo[-1][0] not in self.known:  # it leads back to itself from far
                self.known[todo[-1][0]] = Known(found, self.hangs, WHOLE, (todo[-1][2], 0))
            todo.pop()
            if not todo:
                return found
        return found

    def _look(self, key: Any, find: Callable[[], list[Any]], of: Any) -> list[Any]:
        """Return what is found; of what leads back to itself, what was found until then.

        The first of several that lead to each other is looked for again with what was found so far, a few times.
        """
        so_far, place = self.known.get(key) or self._so_far.get(key), len(self._open)
        if so_far is not None and (so_far.depth == WHOLE or key in self._open or so_far.of[1] == self._round):
            self.hangs = self.hangs or so_far.hangs
            self.hangs_on = min(self.hangs_on, self._open.get(key, so_far.depth))
            return so_far.values
        if key in self._open or place >= _DEEPEST:
            if key not in self._open:
                self._deep.append((key, find, of))
            self.hangs_on = min(self.hangs_on, self._open.get(key, -1))
            return []
        before = self.hangs, self.hangs_on
        self._open[key] = place
        found: list[Any] = []
        for n in range(_MOST_ROUNDS):
            self.hangs, self.hangs_on, n_before = False, WHOLE, len(found)
            found = find()
            self._so_far[key] = Known(found, self.hangs, self.hangs_on, (of, self._round))
            if self.hangs_on != place or (n > 0 and n_before == len(found)):
                break
            self._round += 1
        del self._open[key]
        if self.hangs_on >= place:  # and those that lead to this one alone
            self.hangs_on = WHOLE
            for other in [each for each, one in self._so_far.items() if one.depth >= place]:
                one = self._so_far.pop(other)
                if one.of[1] == self._round:
                    self.known[other] = one._replace(depth=WHOLE)
        if not place:
            self._so_far.clear()
            self._round += 1
        self.hangs, self.hangs_on = before[0] or self.hangs, min(before[1], self.hangs_on)
        return found

    def _found(self, function: FunctionType, name: str) -> list[Any]:
        names = parameters(function.__code__)
        if takes_self(function) and names[:1] == (name,):
            return self._receivers(function, name)
        found: dict[Any, Any] = {}
        sites = self._calls.of(function)
        if takes_self(function) and function.__name__ not in ("__init__", "__new__"):
            of = [each for each in sites if each.receiver is None or _may_be_of(self._received(each), function)]
            if sites and not of:
                return []
            sites = of
        for site in sites:
            for each in self._given(site, function, name):
                found.setdefault((type(each), each) if type(each) in _NUMBERS else id(each), each)
        return [*found.values()] or [default(function, name)]

    def _received(self, site: Site) -> list[Any]:
        assert site.receiver is not None
        return self.scope(site.caller).values(site.receiver, site.code)

    def _given(self, site: Site, function: FunctionType, name: str) -> list[Any]:
        """Return what one call gives for an argument."""
        scope, names = self.scope(site.caller), parameters(function.__code__)
        if name in site.named:
            return scope.values(site.named[name], site.code)
        if name in site.fixed:
            return [site.fixed[name]]
        if name == takes_all_by(function.__code__):
            more = scope.by_name(
                {key: each for key, each in site.named.items() if key not in names}, site.spread, site.code
            )
            fixed = {key: each for key, each in site.fixed.items() if key not in names}
            return [operated("|", fixed, each) for each in more]
        # What a partial gives comes first.
        place = names.index(name) - sum(each in site.fixed for each in names[: names.index(name)])
        place -= takes_self(function) and names[0] not in site.fixed
        if site.is_starmap and site.placed:
            many = scope.values(site.placed[0], site.code)
            return [entry(each, place) for held in many for each in items_of(held)]
        if name in names[: function.__code__.co_argcount] and place < len(site.placed):
            given = scope.values(site.placed[place], site.code)
            return [each for held in given for each in items_of(held)] if site.is_map else given
        otherwise = default(function, name)
        if not site.spread:
            return [UNKNOWN if site.is_open else otherwise]
        held = [each for node in site.spread for each in scope.values(node, site.code)]
        return [
            each.get(name, UNKNOWN if type(each) is Partly else otherwise) if isinstance(each, dict) else UNKNOWN
            for each in held
        ]

    def _receivers(self, method: FunctionType, name: str) -> list[Any]:
        """Return what a method is called of."""
        if method.__name__ in ("__init__", "__new__"):
            return [UNKNOWN]
        found: list[Any] = []
        for site in self._calls.of(method):
            if name in site.fixed:
                found.append(site.fixed[name])
            elif site.receiver is not None:
                found += self.scope(site.caller).values(site.receiver, site.code)
        known = {id(each): each for each in found if has(each, method)}
        self.hangs = True
        return [*known.values()] or [*self._calls.objects(method), *self._made(method)] or [UNKNOWN]

    def _made(self, method: FunctionType) -> list[Any]:
        """Return the objects that code makes that have a method."""
        made = [each for each in self._calls.classes if has(Made(each, {}), method)]
        return [Made(each, held) for each in made for held in self.set_in(each)]


def default(function: FunctionType, name: str) -> Any:
    """Return what an argument is that is not given; `UNKNOWN` if it must be."""
    code = function.__code__
    placed = dict(zip(code.co_varnames[: code.co_argcount][::-1], (function.__defaults__ or ())[::-1], strict=False))
    return (placed | (function.__kwdefaults__ or {})).get(name, UNKNOWN)


def _may_be_of(receivers: Iterable[Any], method: FunctionType) -> bool:
    """Whether a method may be called of one of some objects; of what is not known any may."""
    return any(
        each is UNKNOWN or next(inherited(class_of(each).__mro__, method.__name__), method) is method
        for each in receivers
    )
