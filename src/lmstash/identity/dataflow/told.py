"""What is told of expressions in code, and of the call that it runs in."""

from __future__ import annotations

from types import CodeType, FunctionType
from typing import Any, NamedTuple

from lmstash.identity.dataflow.expressions import Node
from lmstash.identity.dataflow.lying_in import UNKNOWN

WHOLE = 1 << 30


class Known(NamedTuple):
    """What was told of something."""

    values: list[Any]
    hangs: bool
    depth: int = 0
    of: Any = None
    """What it was told of, which is alive for as long."""


class Nothing:
    """Stands for a call of which nothing is known.

    Attributes:
        hangs: Whether what was told may be another thing the next time: it hangs on objects, the environment or
            arguments.
        hangs_on: Of what is being told already, what was asked for meanwhile, by the place of the first of these; what
            was told then is not all of it.
        known: What was told of expressions, by the function and the node.
    """

    def __init__(self) -> None:
        """Nothing was told yet."""
        self.hangs, self.hangs_on = False, WHOLE
        self.known: dict[Any, Known] = {}

    def keeps(self, function: FunctionType) -> bool:
        """Return whether an expression of a function gives the same for as long as the call lasts."""
        return False

    def argument(self, function: FunctionType, name: str) -> list[Any]:
        """Return what an argument of a function may be."""
        return [UNKNOWN]

    def returned(self, caller: FunctionType, code: CodeType, node: Node) -> list[Any]:
        """Return what a call of functions of your own may give; nothing where it is of others."""
        return []

    def asked(self, value: Any, name: str) -> list[Any]:
        """Return what a property of your own may give; nothing where it is of others."""
        return []

    def set_in(self, cls: type) -> list[dict[str, Any]]:
        """Return what the objects of a class of your own may bear when they are made."""
        return []

    def loaded(self, endings: tuple[str, ...]) -> list[Any]:
        """Return what the files of settings may hold that code loads, of those that end so."""
        return []
