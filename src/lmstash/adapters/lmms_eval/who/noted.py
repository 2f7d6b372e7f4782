"""Somebody's own code beside the harness's, and what it does with attributes and globals: reading them, or adding only.

What a model only adds to while it answers changes no answer; what it reads may be why the next answer is another one.
Told from bytecode, which is what runs. What is not understood is taken for reading.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

from lmstash.adapters.lm_eval.who.own_names import Followed
from lmstash.identity.code.only_added import used_in
from lmstash.identity.code.owners import defined_in, is_installed
from lmstash.identity.code.words import ANY_NAME
from lmstash.identity.encoding import Component


class Noted(Followed):
    """Collects code, and the functions of somebody's own among it."""

    def __init__(self, harness: str, *, pin_of: Callable[[str], Component] | None = None) -> None:
        """Begin with nothing; see `Followed`."""
        super().__init__(harness, pin_of=pin_of)
        self._functions_noted: dict[int, FunctionType] = {}

    def note(self, code: Any) -> None:
        """Take a function or class for somebody's own."""
        super().note(code)
        if isinstance(code, FunctionType) and not is_installed(defined_in(code)):
            self._functions_noted[id(code)] = code

    @property
    def own(self) -> list[FunctionType]:
        """The functions of somebody's own."""
        return list(self._functions_noted.values())

    def reads(self, name: str, *, of_object: bool) -> bool:
        """Whether somebody's own code does anything but add to what goes by a name.

        Args:
            name: Of an attribute or a global.
            of_object: Whether only attributes can go by it; globals may be reached through their module.
        """
        for function in self._functions_noted.values():
            used = used_in(function.__code__)
            if name in used.read_attributes or (name in used.read_variables and not of_object):
                return True
        return self._may_ask(name)

    def takes(self, name: str) -> bool:
        """Whether somebody's own code takes what goes by a name, if only to add to it."""
        used = [used_in(each.__code__) for each in self._functions_noted.values()]
        return any(name in each.read or name in each.added for each in used) or self._may_ask(name)

    def _may_ask(self, name: str) -> bool:
        """Whether code may reach an attribute without naming it."""
        return self._any_name or (name in self.words and not ANY_NAME.isdisjoint(self.names))


def name_of(function: FunctionType) -> str:
    """Return what `identity.code` calls a function."""
    return f"{function.__globals__.get('__name__')}.{function.__code__.co_qualname}"
