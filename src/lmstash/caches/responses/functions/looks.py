"""The code that a call leads to, as it was when it was read, and how all that this names was at one look."""

from __future__ import annotations

import dataclasses
import os
import re
from types import FunctionType
from typing import Any

from lmstash.caches.responses.functions.package_settings import settings_of
from lmstash.identity.code.only_added import is_addable
from lmstash.identity.code.own_code import OwnCode
from lmstash.identity.code.owners import defined_in
from lmstash.identity.code.words import variables_under
from lmstash.identity.keys import Key


class Code:
    """The code of a function or class, as it was when it was read."""

    def __init__(self, code: Any, package: str, harmless: frozenset[str], given: bool) -> None:
        self.code, self.given = code, given
        self.graph = OwnCode(package, code, given=given)  # keeps it alive, so that its id stays its own
        self.units: dict[Any, Any] = {
            name: each for name, each in self.graph.components().items() if not _is_harmless(name, harmless)
        }
        self.settings: dict[Any, Any] = {}
        for module in self.graph.installed_modules():
            if module.__name__ not in harmless and (found := settings_of(module, harmless)):
                self.settings[module.__name__] = found
                self.graph.watch_names(vars(module), [*found])
        self.digest = Key({"code": self.units, "packages": self.graph.packages(), "settings": self.settings}).hex
        self._defaults = _places_of_defaults(code)
        self.objects = {
            place: value
            for place, value in self.graph.objects.items()
            if not _is_harmless(place, harmless) and self._defaults.get(place) not in harmless
        }

    def only_adds(self, name: str, value: Any) -> bool:
        """Return whether code of a class adds to what goes by a name in its objects, as one counts and collects."""
        return name in self.graph.adds and is_addable(value)

    def asks(self, name: str) -> bool:
        """Return whether the code may ask any object for an attribute of this name."""
        graph = self.graph
        return graph.any_name or name in graph.asks or name in graph.words or name in graph.told

    def name_of(self, place: str) -> str:
        """Return what a place in code goes by there: a variable, an attribute, an argument."""
        return self._defaults.get(place) or re.split("[:.]", place)[-1].rstrip("'").removesuffix(" is")


@dataclasses.dataclass
class Look:
    """How all was that a call leads to when it was looked at. Of one thread.

    Attributes:
        used: The code that was read, by what it goes by in the request.
        held: What the objects are made of that this names, by where they lie.
        n_first: How many of that code were read before these objects were.
    """

    used: dict[str, Code] = dataclasses.field(default_factory=dict)
    held: dict[tuple[str, str], Any] = dataclasses.field(default_factory=dict)
    n_first: int = 0
    files: dict[Any, Any] = dataclasses.field(default_factory=dict)
    """What the files hold that code names, by how it writes them."""
    known: dict[tuple[int, bool], str] = dataclasses.field(default_factory=dict)
    added: set[str] = dataclasses.field(default_factory=set)
    """Names of attributes of objects that were left out, since their classes only add to them."""
    written: set[str] = dataclasses.field(default_factory=set)
    """Names of fields whose files code only writes to."""
    parameters: frozenset[str] = frozenset()
    """Names by which the function that is called knows arguments; others may go by another one there."""
    first: dict[int, str] = dataclasses.field(default_factory=dict)
    """What objects went by where they were met first, by `id`."""
    again: set[tuple[str, str]] = dataclasses.field(default_factory=set)
    """What objects went by where they were met first, and later."""
    met: dict[Any, set[str]] = dataclasses.field(default_factory=dict)
    """What objects go by, by their classes, and classes themselves."""
    harmless: set[str] = dataclasses.field(default_factory=set)
    """Texts that stand where it is said that nothing changes an answer."""
    left: set[str] = dataclasses.field(default_factory=set)
    """Fields that name files, by their paths (`args.out`), for which no code asks, so that these do not count."""
    asked: frozenset[str] = frozenset()
    """Those of such that other code of the call asks for, so that they count."""
    texts: list[bytes] = dataclasses.field(default_factory=list)
    words: set[str] = dataclasses.field(default_factory=set)
    """Texts among the arguments and in fields of objects, which may name folders."""
    marks: dict[int, int] = dataclasses.field(default_factory=dict)
    own: dict[int, bool] = dataclasses.field(default_factory=dict)
    path: str = ""
    """What is being read goes by it: `self.client`."""
    is_whole: bool = False
    """Whether anybody may ask anything of it: it lies in a class, say, which has base classes."""
    lenient: bool = False
    """Whether what cannot be read stands by its class, since only what changed is asked for."""
    seen: dict[int, int] = dataclasses.field(default_factory=dict)
    """The objects that were met in what is being read."""

    def only_writes(self, name: str) -> bool:
        """Return whether all code that was read only writes to the file that goes by a name."""
        files = [each.graph.files for each in self.used.values()]
        goes = [each for each in files if each.goes_by(name)]
        return bool(goes) and all(each.only_written(name) for each in goes) and not any(each.any_name for each in files)

    def leaves(self, path: str) -> bool:
        """Return whether no code that was read asks for a field (`args.out`), or hands on what it lies in."""
        *holders, name = path.split(".")
        codes = self.used.values()
        if any(name in each.graph.told for each in codes):
            return False
        # Methods may hand on the object that they are called of.
        return all(each.graph.files.leaves(holder, name) for each in codes for holder in (*holders, "self"))

    def asked_after_all(self) -> set[str]:
        """Return those of the fields left out that count, now that all code is known."""
        files = [each.graph.files for each in self.used.values()]
        handed = {
            first
            for first, later in self.again
            if any(each.any_name or each.holders.hands_on(name) for each in files for name in later.split("."))
        }
        return {
            path for path in self.left if not self.leaves(path) or path.startswith(tuple(f"{at}." for at in handed))
        }

    def _unasked(self, code: Code) -> frozenset[str]:
        """Return what a class and its constructors give to its objects, and no code asks these for.

        They were there before, and say themselves what they hold. No constructor of theirs runs in a call.
        """
        files = [each.graph.files for each in self.used.values()]
        own, names = code.graph.files, code.graph.files.set_first
        if not (isinstance(code.code, type) and names):
            return frozenset()
        made_by = {"cls", "__class__", "type", *(base.__name__ for base in code.code.__mro__[:-1])}
        held_by = {"self", *(holder for path in self.met.get(code.code, ()) for holder in path.split("."))}
        for each in files:
            holders = each.holders
            if each.any_name or any(map(holders.names, made_by)):
                return frozenset()
            if any(holders.hands_on(name) or holders.calls(name) for name in held_by):
                return frozenset()
        asked = {name for name in names if own.holders.names(name) or any(each.holders.asks(name) for each in files)}
        asked = {name for name in asked if not self.only_writes(name)}
        return frozenset(names - asked.union(*[each.graph.told for each in self.used.values()]))

    @staticmethod
    def _variables_held(graphs: list[OwnCode]) -> list[str]:
        """Return what the variables of the environment hold that code may ask for."""
        reading = [graph for graph in graphs if graph.reads_environment]
        names = variables_under(set[str]().union(*[graph.words | graph.told for graph in reading])) if reading else ()
        return sorted({os.environ.get(str(each), "") for each in names})

    def files_now(self, harmless: frozenset[str]) -> dict[Any, Any]:
        """Return what the files hold now that code names, by how it writes them."""
        said: dict[Any, Any] = {}
        harmless = harmless | self.harmless
        graphs = [each.graph for each in self.used.values()]
        words, n_before = self.words.union(*[graph.files.folders for graph in graphs]), -1
        held = self._variables_held(graphs)
        while n_before != len(words):  # what one function calls a folder, another one may be handed
            n_before = len(words)
            for code, graph in zip(self.used.values(), graphs, strict=True):
                opened = [each for each in held if os.path.isfile(each)] if graph.reads_environment else []
                also = sorted(words.union(held if graph.reads_environment else ()))
                said |= graph.files.say(harmless, also, opened, self._unasked(code))
            words.update(*[graph.files.folders for graph in graphs])
        return said


def is_name(name: str) -> bool:
    """Whether a place goes by what code calls it, so that it may be said to be harmless."""
    return name.replace(".", "").isidentifier()


def parameters_of(fn: FunctionType) -> frozenset[str]:
    """Return what a function calls its arguments, but for those that it takes by stars; of a wrapper nobody knows."""
    code = fn.__code__
    names = () if "__wrapped__" in vars(fn) else code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return frozenset(names)


def _places_of_defaults(code: Any) -> dict[str, str]:
    """Return where objects lie that are the defaults of a function's arguments, and what these are called."""
    if not isinstance(code, FunctionType):
        return {}
    first = code.__code__.co_argcount - len(code.__defaults__ or ())
    names = code.__code__.co_varnames[first : code.__code__.co_argcount]
    held = [*enumerate(names), *((each, each) for each in code.__kwdefaults__ or ())]
    return {f"{defined_in(code)}.{code.__code__.co_qualname}({which})": name for which, name in held}


def _is_harmless(place: Any, harmless: frozenset[str]) -> bool:
    """Whether a place in the code (`module.function:variable`) is one of an object that changes no answer."""
    return ":" in str(place) and str(place).rpartition(":")[2] in harmless
