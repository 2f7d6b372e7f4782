"""What expressions give is told without running anything."""

from __future__ import annotations

from types import FunctionType
from typing import Any

import pytest

from lmstash.identity.expressions import CALL, code_within, expressions
from lmstash.identity.values_in_code import UNKNOWN, Scope, attribute

START = """
import math
class Slots:
    __slots__ = ("a", "b")
    def __init__(self): self.a = 5
class Mine:
    A = 6
    def __init__(self): self.b = {"c": [7, 8]}
    @property
    def asked(self): raise AssertionError("nobody runs this")
    def __getattr__(self, name): raise AssertionError("nor this")
    def method(self): return told(self.b)
X, SLOTS, MINE, HELD = 3, Slots(), Mine(), {"c": 9, 1: 2}
def made(inner): return lambda: told(inner)
def told(value): return value
"""
KNOWN = {
    "told(1)": 1,
    "told(X)": 3,
    "told(MINE.A)": 6,
    "told(Mine.A)": 6,
    "told(MINE.b['c'][1])": 8,
    "told(SLOTS.a)": 5,
    "told(HELD['c'])": 9,
    "told(HELD[1])": 2,
    "told(HELD.get('c'))": 9,
    "told(HELD.get('d', 4))": 4,
    "told(math.pi)": 3.141592653589793,
}
UNTOLD = [
    *("told(asked)", "told(given)", "told(MINE.asked)", "told(MINE.nothing)", "told(SLOTS.b)", "told(HELD['d'])"),
    *("told(X + 1)", "told(X if X else 2)", "told(MINE.method)", "told(len(HELD))", "told(HELD['c'].real)", "told(Y)"),
]


def value(code: str, *, of: Any = UNKNOWN) -> Any:
    """Return what the first argument of `told` is in the code of a function."""
    table: dict[str, Any] = {}
    exec(START + code, table)
    function = table["ask"]
    return value_in(getattr(function, "__func__", function), of)


def value_in(function: FunctionType, of: Any = UNKNOWN) -> Any:
    for inner in code_within(function.__code__):
        for node in expressions(inner):
            if node.kind == CALL and node.parts[0].name == "told":
                return Scope(function, of).value(node.parts[1], inner)
    raise AssertionError("no call")


@pytest.mark.parametrize("said", KNOWN)
def test_known(said: str) -> None:
    assert value(f"def ask(given): return {said}") == KNOWN[said]


@pytest.mark.parametrize("said", UNTOLD)
def test_what_would_have_to_be_run_is_not_known(said: str) -> None:
    assert value(f"def ask(given): return {said}") is UNKNOWN


def test_variables() -> None:
    assert value("def ask():\n x = 4\n return told(x)") == 4
    assert value("def ask():\n x = 4\n x = 5\n return told(x)") is UNKNOWN
    assert value("def ask():\n x = x\n return told(x)") is UNKNOWN
    assert value("def ask(x=4): return told(x)") is UNKNOWN
    assert value("ask = made(5)") == 5
    assert value("def ask(X): return (lambda: told(X))()") is UNKNOWN
    assert value("def ask(): return (lambda: told(X))()") == 3


def test_what_a_method_is_called_of() -> None:
    table: dict[str, Any] = {}
    exec(START, table)
    assert value_in(table["Mine"].method, table["MINE"]) == {"c": [7, 8]}
    assert value_in(table["Mine"].method) is UNKNOWN


def test_nothing_is_run_for_an_attribute() -> None:
    table: dict[str, Any] = {}
    exec(START, table)
    assert attribute(table["MINE"], "asked") is UNKNOWN
    assert attribute(table["MINE"], "other") is UNKNOWN
    assert attribute(UNKNOWN, "other") is UNKNOWN
