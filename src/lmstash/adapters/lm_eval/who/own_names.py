"""What somebody's own code asks for: attributes that the harness takes for harmless, variables of the environment."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import chain
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from lmstash.adapters.lm_eval.who.carriers import Carriers
from lmstash.caches.responses.requests.hiding import is_secret
from lmstash.identity.code.alone import functions_in
from lmstash.identity.code.asked_by_text import CodeByText
from lmstash.identity.code.bytecode import names_in, parts_of, texts_in
from lmstash.identity.code.closures import variables_of
from lmstash.identity.code.files import FilesInCode
from lmstash.identity.code.only_added import is_addable, used_in
from lmstash.identity.code.owners import defined_in, is_installed, owner_of, version_of
from lmstash.identity.code.uses import COUNTED, READ, WRITTEN, uses_of
from lmstash.identity.code.words import (
    ANY_NAME,
    ENVIRONMENT,
    is_environment,
    texts_within,
    variables_under,
    words_within,
)
from lmstash.identity.content.object_parts import attributes_of
from lmstash.identity.encoding import Component

SECRET_KINDS = (str, bytes, bool, type(None))
"""What a secret is, or whether there is one: other things that are named as secrets are something else."""
_GROWING = frozenset({int, float, list, dict, set, Counter, defaultdict, deque})
"""What is counted up, or added to."""
_BUILT_IN = frozenset({"builtins", "abc", "typing", "torch"})
_ANY_NAME = frozenset({"vars", "__dict__", "attrgetter", "__getattribute__"})
"""By which code reaches attributes that it does not name."""
_BY_TEXT = ANY_NAME | {"setattr", "delattr", "__setattr__", "eval", "exec"}
_RANKS = frozenset(
    {
        *("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR"),
        *("MASTER_PORT", "CUDA_VISIBLE_DEVICES"),
    }
)
"""Variables that say where it is run and beside how many others, whatever code goes by them."""


class Followed(CodeByText):
    """Collects code, and what somebody's own of it asks for by name. Not for several threads at once.

    Attributes:
        names: Of globals and attributes that it asks for.
        words: Texts in it that may be names, too: of attributes, and of variables of the environment.
        files: That texts in it name.
        lm: The model whose code it is, which says nothing new where an object leads back to it.
        unread: What could not be read, by place, and why.
    """

    def __init__(
        self,
        harness: str,
        *,
        pin_of: Callable[[str], Component] | None = None,
        carriers: Carriers | None = None,
    ) -> None:
        """Begin with nothing.

        Args:
            harness: The package whose code is nobody's own.
            pin_of: As `CodeGraph` takes it.
            carriers: Know code that is not followed: the version of its package stands for it.
        """
        super().__init__(pin_of=pin_of)
        self._carriers, self._n_put = carriers, 0
        self.unread: dict[str, Exception] = {}
        self._harness = harness
        self._noted: set[int] = set()
        self._any_name = False
        self._names_later: set[str] = set()
        """Those that it asks for once an object was made."""
        self.names: set[str] = set()
        self.words: set[str] = set()
        self._within_texts: set[str] = set()
        """Those of the words that stand within longer texts: templates ask for these, `"{lm.n}".format(lm=lm)`."""
        self.files = FilesInCode()
        self.lm: Any = None
        self._uses: dict[str, set[str]] = {READ: set(), COUNTED: set(), WRITTEN: set()}
        self._read_at_first: set[str] = set()

    def add(self, code: Any) -> str:
        """Read a class or function and what it leads to; return its qualified name."""
        module = defined_in(code)
        if module.partition(".")[0] not in (self._harness, "lmstash") and not is_installed(module):
            self.note(code)
        elif self._carriers is not None and id(code) not in self._seen and self._carriers.has(code):
            name = self._note(code, f"{module}.{code.__qualname__}", "carrier", version_of(owner_of(module)))
            self._add_put(self._carriers)
            return name
        return super().add(code)

    def look_into(self, packages: Iterable[str]) -> None:
        """Read what was put into packages that do not count, whether any code was met that leads there or not."""
        if self._carriers is not None:
            for each in packages:
                self._carriers.look_into(each)
            self._add_put(self._carriers)

    def _add_put(self, carriers: Carriers) -> None:
        """Read what was found in such packages and is not theirs."""
        while self._n_put < len(carriers.put):
            place, part = [*carriers.put.items()][self._n_put]
            self._n_put += 1
            kind = type(part)
            if kind is FunctionType or issubclass(kind, type):
                try:
                    self._units[f"put into {place}"] = self._units[self.add(part)]  # its own name may not count
                except Exception as error:  # of what stands in for a function
                    self.unread[f"put into {place}"] = error
            elif kind.__module__ == "unittest.mock":
                self.unread[f"put into {place}"] = TypeError(f"a {kind.__name__} may answer anything")
            elif kind is ModuleType:
                self._units[f"put into {place}"] = self.add_module(part)
            else:
                self.objects[f"put into {place}"] = part

    def note(self, code: Any) -> None:
        """Take a function or class for somebody's own, and what it asks for by name."""
        if id(code) in self._noted:
            return
        self._noted.add(id(code))
        self._alive.append(code)
        if isinstance(code, type):
            self._see_texts([*vars(code).values()])
            if not is_installed(code.__module__):
                self.files.see_values(vars(code))
        elif isinstance(code, FunctionType):
            named = {*names_in(code.__code__)}
            self.names |= named
            for name, use in uses_of(code.__code__):
                first = use == READ and code.__code__.co_name == "__init__"  # what comes of it is an attribute itself
                (self._read_at_first if first else self._uses[use]).add(name)
            if code.__code__.co_name != "__init__":  # which sets them
                self._any_name |= not _ANY_NAME.isdisjoint(named)
                self._names_later |= named
            else:  # of it, only functions within run later
                inner = (each for each in code.__code__.co_consts if isinstance(each, CodeType))
                self._names_later.update(*map(names_in, inner))
            held = {each: code.__globals__[each] for each in named & code.__globals__.keys()}
            held |= {name: value for name, _, value in variables_of(code)}
            said = [*texts_in(code.__code__), code.__defaults__, code.__kwdefaults__]
            self._see_texts([*said, *held.values()])
            if any(map(is_environment, held.values())):  # by another name, perhaps
                self.names.add("environ")
            if not is_installed(defined_in(code)):
                self.files.see(code)
                self.files.see_values(held)

    def _see_texts(self, said: list[Any]) -> None:
        self.words |= words_within(said)
        longer = [each for each in texts_within(said) if isinstance(each, bytes) or not each.isidentifier()]
        self._within_texts |= words_within(longer)

    def note_class(self, kind: type) -> None:
        """Note the functions of a class and its base classes that are neither the harness's nor built in."""
        for each in kind.__mro__:
            root = each.__module__.partition(".")[0]
            if root in _BUILT_IN:
                continue
            if root != self._harness and not is_installed(each.__module__):
                self.files.see_values(vars(each))
            for name, member in list(vars(each).items()):
                for part in parts_of(name, member):
                    if root != self._harness or defined_in(part).partition(".")[0] not in {self._harness, *_BUILT_IN}:
                        self.note(part)

    def note_held(self, held: Mapping[str, Any]) -> None:
        """Note the functions among a model's attributes."""
        for each in list(held.values()):
            function = each.__func__ if isinstance(each, MethodType) else each
            if isinstance(function, FunctionType) and defined_in(function).partition(".")[0] != self._harness:
                self.note(function)

    def asked(self, held: Collection[str]) -> set[str]:
        """Return what is asked for by name: all that is `held`, where code reaches what it does not name."""
        return self.names | self.words | ({*held} if self._any_name else set())

    def read_of(self, held: Collection[str]) -> set[str]:
        """Return those that it reads after the object was made, for all that can be told."""
        unnamed = {*held} if self._any_name else self.words & {*held}
        return (self._uses[READ] & {*held}) | (unnamed - self._uses[WRITTEN])

    def only_writes(self, name: str) -> bool:
        """Return whether all that it does with what goes by a name is to write to the file of that name."""
        return name in self._uses[WRITTEN] and name not in self._uses[READ] | self.words and not self._any_name

    @property
    def functions(self) -> list[FunctionType]:
        """Those that were noted."""
        return [each for each in self._alive if isinstance(each, FunctionType) and id(each) in self._noted]

    def reaches(self, name: str) -> bool:
        """Return whether it may ask for an attribute, or set it, without naming it but in a text."""
        return self._any_name or (name in self.words and not _BY_TEXT.isdisjoint(self._names_later))

    def asks_by_text(self, name: str) -> bool:
        """Return whether a text may have it ask for what goes by a name: a template, or a word beside `getattr`."""
        return name in self._within_texts or self.reaches(name)

    def counters(self, lm: Any) -> set[str]:
        """Return the numbers and containers of a model that all code only adds to: no answer can depend on them.

        The harness's own classes may add to them, too, and name something else by the same word.
        """
        held = attributes_of(lm)
        names = {name for name, value in held.items() if type(value) in _GROWING and not self.asks_by_text(name)}
        if not names or type(lm).__setattr__ is not object.__setattr__:
            return set()
        added = set[str]()
        for each in self.functions:
            used = used_in(each.__code__)
            attributes, adds = used.read_attributes, used.added_attributes
            added |= adds
            names -= attributes
        for kind in type(lm).__mro__ if names else ():
            if kind.__module__.partition(".")[0] == self._harness:
                for member in list(vars(kind).items()):
                    asked, adds = _asked_by(*member)
                    names -= asked
                    added |= adds
        return names & added

    def only_added(self) -> frozenset[str]:
        """Return what all code of somebody's own only adds to, by name: globals, variables closed over, of functions.

        No answer can depend on them. What else goes by the same word has to be of such a kind, too.
        """
        functions = [*self.functions, *chain.from_iterable(map(functions_in, self._alone.values()))]
        used = [used_in(each.__code__) for each in functions]
        added = set[str]().union(*[each.added for each in used])
        added = {each for each in added if not any(each in of.read for of in used) and not self.asks_by_text(each)}
        for function in functions if added else ():
            held = [(name, value) for name, _, value in variables_of(function)]
            for table in (function.__globals__, attributes_of(function)):
                held += [(name, table[name]) for name in added & table.keys()]
            added -= {name for name, value in held if not is_addable(value)}
        return frozenset(added)


def _asked_by(name: str, member: Any) -> tuple[set[str], set[str]]:
    """Return which attributes a member of a class may read, and which its code adds to."""
    asked, adds = {name}, set[str]()
    for part in parts_of(name, member):
        if isinstance(part, FunctionType):
            used = used_in(part.__code__)
            attributes, added = used.read_attributes, used.added_attributes
            asked |= attributes
            adds |= added
            if not ANY_NAME.isdisjoint(names_in(part.__code__)):
                asked |= {str(each) for each in texts_in(part.__code__)}
    return asked, adds


def variables(graphs: Iterable[Followed], held: Any = None) -> dict[Component, Component]:
    """Return digests of the variables of the environment that code may read, by name, as they are now.

    If somebody's own of it names the environment at all, these are all whose name is a word in it or in `held`, or
    begins or ends with one: see `variables_under`. What is named for a secret does not count.
    """
    graphs = [*graphs]
    if all(ENVIRONMENT.isdisjoint(each.names | each.words) for each in graphs):
        return {}
    words = words_within(held).union(*[each.words for each in graphs])
    return variables_under(words, lambda name: name in _RANKS or is_secret(name))


def harmless(names: Collection[str], named: Collection[str], held: Mapping[str, Any]) -> frozenset[str]:
    """Return those of some names that need not count: not what is held under one that one's own code asks for."""
    return frozenset(each for each in names if each not in named or held.get(each) is None)
