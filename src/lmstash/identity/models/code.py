"""The code that a model leads to, and what else such code may read: all of its configuration, the environment.

transformers' own models read neither the names and notes that lie in a configuration nor variables of the environment
that would change what they compute. What you have written, remote code, and layers of packages that nobody here knows
may. A variable counts where its name is a word in code of yours that names the environment, or lies beside such code:
in a global, a default, an attribute of a class or module. So does a file that such code names, unless it only writes to
it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial
from operator import attrgetter
from pathlib import PurePath
from types import FunctionType
from typing import Any

from lmstash.identity.code.asked_by_text import CodeByText
from lmstash.identity.code.bytecode import names_in, texts_in
from lmstash.identity.code.files import FilesInCode
from lmstash.identity.code.memos import Memo, memos_among
from lmstash.identity.code.owners import KNOWN_PACKAGES, defined_in, is_of_its_file, owner_of
from lmstash.identity.code.words import ANY_NAME, ENVIRONMENT, is_environment, variables_under, words_within
from lmstash.identity.encoding import Component

_ANY_NAME = ANY_NAME - {"getattr"}
"""`getattr` is everywhere, and the words that it may take are looked at."""


class ModelCode(CodeByText):
    """Collects the code reachable from a model. Not for several threads at once.

    Attributes:
        reads_all: Whether some of it may read any field of a configuration.
        asked: Words by which code of yours may ask for an attribute: names and texts in it and beside it.
        asks_for_any: Whether some of it asks for attributes that it does not name.
        memos: Functions that it names and that remember their results.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        super().__init__()
        self.reads_all = False
        self.asked: set[str] = set()
        self.asks_for_any = False
        self.memos: list[Memo[Any]] = []
        self._within_known = False
        self._reads_environment = False
        self._words: set[str] = set()
        self._files = FilesInCode()

    def files(self, beside: Iterable[tuple[str, Any]]) -> dict[Component, Component]:
        """Return what the files hold that code of yours names, by how it names them; watches them from now on.

        Args:
            beside: Attributes of the model's own modules, which may hold paths.
        """
        if not self._functions_of_yours:
            return {}
        for name, value in beside:
            if isinstance(value, str | PurePath | list | tuple | dict):
                self._files.see_value(name, value)
        self.watch(self._files.say)
        return self._files.say()

    def environment(self, beside: Iterable[Any]) -> dict[Component, Component]:
        """Return digests of the environment's variables that the code may read, by name; watches them from now on.

        Args:
            beside: Plain values of the model's own modules, which may hold names.
        """
        if not self._reads_environment:
            return {}
        look = partial(variables_under, frozenset(self._words | words_within([*beside])))
        self.watch(look)
        return look()

    def _add_bytecode(self, function: FunctionType, name: str) -> str:
        self._meet(defined_in(function))
        if not is_of_its_file(function):
            self.reads_all = True
        if self._is_own(defined_in(function)):
            code = function.__code__
            names = {*names_in(code)}
            held = (function.__globals__.get(each) for each in names)
            self._reads_environment |= not ENVIRONMENT.isdisjoint(names) or any(map(is_environment, held))
            words = words_within([*texts_in(code), function.__defaults__, function.__kwdefaults__])
            self.asked |= names | words
            self.asks_for_any |= not _ANY_NAME.isdisjoint(names)
            self._words |= words
            if self.is_yours(defined_in(function)):
                self._files.see(function)
        return super()._add_bytecode(function, name)

    def _add_class(self, cls: type) -> str:
        self._meet(cls.__module__)
        self.memos += memos_among([*vars(cls).values()])
        if self._is_own(cls.__module__):
            words = words_within([*vars(cls).values()])
            self.asked |= words
            self._words |= words
            if self.is_yours(cls.__module__):
                self._files.see_values(vars(cls))
        return super()._add_class(cls)

    def _follow(self, here: str, value: Any, name: str) -> None:
        self.memos += memos_among([value])
        if self._is_own(here):
            words = words_within(value)
            self.asked |= words
            self.asks_for_any |= isinstance(value, attrgetter)
            self._words |= words
            if isinstance(value, str | PurePath | list | tuple | dict) and self.is_yours(here):
                self._files.see_value(re.split("[:.]", name)[-1], value)
        outside = self._within_known
        self._within_known |= owner_of(here) in KNOWN_PACKAGES - {"transformers"}
        try:
            super()._follow(here, value, name)
        finally:
            self._within_known = outside

    def _meet(self, module: str) -> None:
        owner = owner_of(module)
        if owner.startswith("namedtuple_") or owner in KNOWN_PACKAGES:
            return
        if self._is_own(module) or not self._within_known:  # what known packages use is theirs
            self.reads_all = True
