"""What a model makes when it is first needed: a client behind an attribute that was None, a `cached_property`.

What its own code makes within a call that answers follows from what counts already: that code, other attributes,
globals, variables of the environment and files. So it counts as what was there before, None or nothing, as long as it
is what was made then. Three things are looked after:

* It must not come of the question that happened to be the first (see `stores`), nor take note of questions: then the
  answers of another run would be others. What its own code changes in it counts, but for what is only added to.
* What a program puts there, or changes in it, between two calls counts by what it then is.
* Once anything else has changed, of which it may have come, it counts by what it is. (Where nothing was made, since all
  that was asked was kept, it is made then, and follows from what there is then.)
* What changes between two looks within calls, or cannot be looked into, counts by what it is, too.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import threading
from collections.abc import Callable, Mapping
from functools import cached_property
from types import FunctionType
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from lmstash.adapters.lm_eval.under_way import Call, Calls
from lmstash.adapters.lm_eval.who.code_of import LmDescriber, code_of_model, described
from lmstash.adapters.lm_eval.who.own_names import Followed
from lmstash.identity.code.bytecode import names_in, parts_of
from lmstash.identity.code.only_added import is_addable, used_in
from lmstash.identity.code.owners import defined_in
from lmstash.identity.content.object_parts import attributes_of
from lmstash.identity.dataflow.stores import Stores, changed_in_place, loaded_in, stores_in, takes_nothing_more
from lmstash.identity.encoding import Component, encode
from lmstash.identity.fingerprint import Fingerprint

_CONSTRUCTORS = frozenset({"__init__", "__new__", "__post_init__"})
_ANYTHING = frozenset({"setattr", "putenv", "__dict__"})
"""By which code changes what it does not name."""
_CHANCE = frozenset(
    {
        *("random", "randint", "randrange", "rand", "randn", "sample", "choice", "choices", "shuffle", "permutation"),
        *("default_rng", "RandomState", "urandom", "secrets", "token_hex", "uuid4"),
    }
)


class _Made(NamedTuple):
    value: Any
    digest: str
    was_none: bool
    """Else there was nothing of the name."""
    since: Fingerprint
    """Who answered when it was made."""


class MadeInCalls:
    """Knows which attributes of an `LM` were made while it answered. Threads may share it."""

    def __init__(self, lm: Any) -> None:
        """Begin with none."""
        self._lm = lm
        self._lock = threading.RLock()
        self._made: dict[str, _Made] = {}
        self._stale: set[str] = set()
        """Those that were made before something else changed."""
        self._calls = Calls()

    def begin(self, call: Call) -> None:
        """A call begins, in which the model makes what is not there; once it is over, that is somebody else's."""
        with self._lock:
            with contextlib.suppress(Exception):  # whatever other people's classes do when they are looked at
                call.may_make = _may_be_made(self._lm)
            self._calls.begin(call)

    def told(self, look: Callable[[], Fingerprint]) -> Fingerprint:
        """Return what `look` says who answers, by `before`; once more, where something was made under another one."""
        with self._lock:
            found = look()
            stale = {name for name, each in [*self._made.items()] if each.since != found} - self._stale
            if stale and self._calls.now is None:
                self._stale |= stale
                found = look()
            return found

    def before(self) -> dict[str, Any]:
        """Return the model's attributes as they count: what was made in calls as before. Costs some ms for each."""
        with self._lock:
            held = attributes_of(self._lm)
            self._look(held)
            for name, made in [*self._made.items()]:
                if name in self._stale:
                    held[name] = ["made", made.digest]
                elif made.was_none:
                    held[name] = None
                else:
                    held.pop(name, None)
            return held

    def _look(self, held: Mapping[str, Any]) -> None:
        call = self._calls.now
        for name, made in [*self._made.items()]:  # copies: a signal handler may look, too
            now = held.get(name)
            is_kept = now is made.value or (now is not None and call is not None)  # it may be made again
            if is_kept and self._told(name, now) == made.digest:
                self._made[name] = made._replace(value=now)
            else:
                self._made.pop(name, None)
                self._stale.discard(name)
        if call is None:
            return
        for name in [each for each in [*call.may_make] if held.get(each) is not None]:
            was_none = call.may_make.pop(name, None)
            digest = self._told(name, held[name])
            if digest is not None and was_none is not None:
                self._made[name] = _Made(held[name], digest, was_none, call.model)

    def _told(self, name: str, value: Any) -> str | None:
        """Return a digest of what was made; None where it may come of the question, or nobody can tell."""
        try:
            code = code_of_model(self._lm, pinned=True)
            describer = _OfMade(code)
            told = described({name: value}, frozenset(), code, describer=describer)
            follows = _Following(code)
            if not follows.whole(name, is_property=_is_own_property(self._lm, name)):
                return None
            if not describer.skipped <= follows.only_added or not all(map(follows.field, describer.fields)):
                return None
            return hashlib.sha256(encode(told)).hexdigest()
        except Exception:  # whatever other people's objects do when they are looked at
            return None


_shared: WeakValueDictionary[int, MadeInCalls] = WeakValueDictionary()
"""By the model's `id`, which is its own for as long as this lives."""


def made_in_calls(lm: Any) -> MadeInCalls:
    """Return what knows of a model's attributes: that of another cache of this process, if there is one."""
    found = _shared.get(id(lm))
    if found is None:
        found = _shared[id(lm)] = MadeInCalls(lm)
    return found


def _is_own_property(lm: Any, name: str) -> bool:
    found = inspect.getattr_static(type(lm), name, None)
    return isinstance(found, cached_property) and defined_in(found.func).partition(".")[0] != "lm_eval"


def _may_be_made(lm: Any) -> dict[str, bool]:
    """Return the attributes that methods of its own or properties make, and whether they are None or not there."""
    held, code = attributes_of(lm), Followed("lm_eval")
    code.note_class(type(lm))
    names = {name for each in code.functions for name in stores_in(each.__code__).made}
    found = {name: True for name in names if name in held and held[name] is None}
    found |= {name: False for name in names - held.keys() if inspect.getattr_static(type(lm), name, lm) is None}
    made = {name for kind in type(lm).__mro__ for name, each in vars(kind).items() if isinstance(each, cached_property)}
    return found | {name: False for name in made - held.keys() if _is_own_property(lm, name)}


class _OfMade(LmDescriber):
    """Describes what was made, without what code only adds to; notes what objects of one's own hold."""

    def __init__(self, code: Followed) -> None:
        super().__init__(code, lenient=False)
        self._followed = code
        self.fields: set[str] = set()
        self.skipped: set[str] = set()

    def code(self, code: Any, path: str = "") -> Component:
        """Return a class or function by name, with all that it has closed over."""
        return super(LmDescriber, self).code(code, path)

    def _object(self, value: Any, kind: type, path: str) -> Component:
        is_own = all(each is object or self.is_yours(each) for each in kind.__mro__)
        if not is_own or kind.__setattr__ is not object.__setattr__:
            self.fields |= attributes_of(value).keys() if self.is_yours(kind) else set()
            return super()._object(value, kind, path)
        name, held = self.code(kind), attributes_of(value)
        added = _Following(self._followed).only_added
        skipped = {each for each in held.keys() & added if is_addable(held[each])}
        self.skipped |= skipped
        self.fields |= held.keys() - skipped
        told = [[each, self.value(held[each], f"{path}.{each}")] for each in sorted(held.keys() - skipped)]
        return ["own", name, told]


class _Following:
    """What code of somebody's own does with attributes, as far as it is read."""

    def __init__(self, code: Followed) -> None:
        self._code = code
        self._named: list[tuple[str, Stores]] = [
            (each.__code__.co_name, stores_in(each.__code__)) for each in code.functions
        ]
        used = [(each.__code__.co_name, used_in(each.__code__)) for each in code.functions]
        self._added = {name for of, each in used if of not in _CONSTRUCTORS for name in each.added_attributes}
        read = {name for _, each in used for name in each.read_attributes}
        self.only_added = {each for each in self._added - read if not code.asks_by_text(each)}

    def whole(self, name: str, *, is_property: bool) -> bool:
        """Whether what is made under a name follows from what counts, and nothing is gone by whether it is there."""
        if self._code.reaches(name) or name in self._added or name in _stored_by_harness(self._code.lm):
            return False
        makers = {of for of, stores in self._named if name in stores.made}
        of_question = {each for _, stores in self._named for each in stores.by_question}
        for each in self._code.functions:  # it may go by what was noted of the question in between
            if each.__code__.co_name in (makers or {name}) and not of_question.isdisjoint(names_in(each.__code__)):
                return False
        if len(makers) > 1 or self._goes_by_more(name, makers or {name}):  # which of several, the question may decide
            return False
        if is_property:
            return not makers
        for _, stores in self._named:
            guards = {by for each, by in stores.guards if each == name}
            if name in stores.tested or not guards <= makers | {""} or (name in stores.taken and not guards):
                return False
        return bool(makers) and self.field(name)

    def _goes_by_more(self, name: str, makers: set[str]) -> bool:
        """Whether something may be made of what was changed in place for a question, or by chance."""
        code = [each.__code__ for each in self._code.functions]
        changes = [changed_in_place(each) for each in code if not takes_nothing_more(each)]
        changed = {chain[0] for each in changes for chain in each if name not in chain}
        if not changed.isdisjoint(_ANYTHING):
            return True
        making = [each for each in code if takes_nothing_more(each) or each.co_name in makers | _CONSTRUCTORS]
        loaded = set[str]().union(*map(loaded_in, making))
        return not loaded.isdisjoint(changed | _CHANCE)

    def field(self, name: str) -> bool:
        """Whether all that is put into attributes of a name follows from what counts."""
        return name not in self._added and all(name not in stores.by_question for _, stores in self._named)


def _stored_by_harness(lm: Any) -> set[str]:
    """Return the attributes that the harness's own classes change."""
    kinds = [each for each in type(lm).__mro__ if each.__module__.partition(".")[0] == "lm_eval"]
    members = [member for each in kinds for member in list(vars(each).items())]
    parts = (part for member in members for part in parts_of(*member) if isinstance(part, FunctionType))
    return {name for each in parts for name in stores_in(each.__code__).touched}
