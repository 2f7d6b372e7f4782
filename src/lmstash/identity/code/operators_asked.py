"""Which operators of torch's dispatcher code of yours may call: by name, by another name for their space, by text.

Code that holds a space (`mine = torch.ops.mine`) may call any operator in it.
"""

from __future__ import annotations

from collections.abc import Set
from types import CodeType
from typing import Any

from lmstash.identity.code.bytecode import names_in
from lmstash.identity.code.handed_on import handed_on, hands_on_imports
from lmstash.identity.code.operators import is_all_spaces, is_space, operators_named

_OPS = "ops"


class OperatorsAsked:
    """Collects the spaces of operators that code of yours holds."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._held: set[str] = set()
        self._holds_all = self._in_any_space = False

    @property
    def size(self) -> int:
        """Another number whenever more was seen."""
        return len(self._held) + self._holds_all + self._in_any_space

    def see(self, code: CodeType, words: Set[str]) -> None:
        """Note whether code keeps `torch.ops` or hands it on, so that a space is asked for elsewhere.

        Args:
            code: Of a function.
            words: What it asks for.
        """
        if _OPS in words and not self._in_any_space:
            by_text = _OPS not in names_in(code)
            self._in_any_space = by_text or _OPS in handed_on(code) or hands_on_imports(code)

    def see_global(self, value: Any, name: str, code: CodeType) -> bool:
        """Note what code has as a global; return whether it is a space, or all of them."""
        if not is_all_spaces(value):
            return self.see_value(value)
        self._holds_all = True
        self._in_any_space |= name in handed_on(code)
        return True

    def see_value(self, value: Any) -> bool:
        """Note what anything else holds; return whether it is a space, or all of them."""
        if is_space(value):
            self._held.add(value.name)
        elif is_all_spaces(value):
            self._holds_all = self._in_any_space = True
        else:
            return False
        return True

    def found(self, words: Set[str]) -> dict[str, Any]:
        """Return the operators with functions of somebody's that code may call, by name.

        Args:
            words: What all the code asks for.
        """
        words = words | {_OPS} if self._holds_all else words
        return operators_named(words, in_any_space=self._in_any_space, held=self._held)
