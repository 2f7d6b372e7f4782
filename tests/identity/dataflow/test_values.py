"""What expressions give is told without running anything."""

from __future__ import annotations

from types import FunctionType
from typing import Any

import pytest

from lmstash.identity.dataflow.expressions import CALL, code_within, expressions
from lmstash.identity.dataflow.lying_in import UNKNOWN, Partly, attribute
from lmstash.identity.dataflow.told import Nothing
from lmstash.identity.dataflow.values import Scope

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
    "told(X + 1)": 4,
    "told(float('0.5') * 2)": 1.0,
}
UNTOLD = [
    *("told(asked)", "told(given)", "told(MINE.asked)", "told(MINE.nothing)", "told(SLOTS.b)", "told(HELD['d'])"),
    *("told(X / 0)", "told(float('much'))", "told(MINE.method)", "told(len(HELD))", "told(HELD['c'].real)", "told(Y)"),
]


class Known(Nothing):
    of: Any = UNKNOWN

    def argument(self, function: FunctionType, name: str) -> list[Any]:
        return [self.of]


def values(code: str) -> list[Any]:
    """Return what the first argument of `told` may be in the code of a function."""
    table: dict[str, Any] = {}
    exec(START + code, table)
    function = table["ask"]
    return values_in(function)


def values_in(function: FunctionType, of: Any = UNKNOWN) -> list[Any]:
    known = Known()
    known.of = of
    calls = [(node, inner) for inner in code_within(function.__code__) for node in expressions(inner)]
    told = [(node, inner) for node, inner in calls if node.kind == CALL and node.parts[0].name == "told"]
    assert told
    found: list[Any] = []
    for node, inner in told:  # one of several is a call of its own for each in Python 3.12
        found += [each for each in Scope(function, known).values(node.parts[1], inner) if each not in found]
    return found


@pytest.mark.parametrize("said", KNOWN)
def test_known(said: str) -> None:
    assert values(f"def ask(given): return {said}") == [KNOWN[said]]


@pytest.mark.parametrize("said", UNTOLD)
def test_what_would_have_to_be_run_is_not_known(said: str) -> None:
    assert values(f"def ask(given): return {said}") == [UNKNOWN]


def test_variables() -> None:
    assert values("def ask():\n x = 4\n return told(x)") == [4]
    assert values("def ask():\n x = x\n return told(x)") == [UNKNOWN]
    assert values("def ask(x=4): return told(x)") == [UNKNOWN]
    assert values("ask = made(5)") == [5]
    assert values("def ask(X): return (lambda: told(X))()") == [UNKNOWN]
    assert values("def ask(): return (lambda: told(X))()") == [3]


def test_one_of_several() -> None:
    assert values("def ask():\n x = 4\n if X: x = 5\n return told(x)") == [4, 5]
    assert values("def ask(): return told(4 if X else 5)") == [4, 5]
    assert values("def ask(y): return told(4 if y else y)") == [4, UNKNOWN]


def test_what_a_function_is_called_with() -> None:
    table: dict[str, Any] = {}
    exec(START, table)
    assert values_in(table["Mine"].method, table["MINE"]) == [{"c": [7, 8]}]
    assert values_in(table["Mine"].method) == [UNKNOWN]


def test_an_argument_that_stands_for_none() -> None:
    table: dict[str, Any] = {}
    exec(START + "def ask(t=None):\n if t is None: t = X\n return told(t)", table)
    assert values_in(table["ask"], 0) == [0]
    assert values_in(table["ask"], None) == [3, None]
    exec(START + "def ask(t=None):\n if t is None: t = X\n if X: t = 8\n return told(t)", table)
    assert values_in(table["ask"], 0) == [3, 8, 0]


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEAT", "0.8")
    said = [
        "os.environ['HEAT']",
        "os.environ.get('HEAT')",
        "os.getenv('HEAT')",
        "os.getenv('COLD', os.environ['HEAT'])",
    ]
    for each in said:
        assert values(f"import os\ndef ask(): return told(float({each}))") == [0.8]
    assert values("import os\ndef ask(): return told(os.environ['COLD'])") == [UNKNOWN]


def test_nothing_is_run_for_an_attribute() -> None:
    table: dict[str, Any] = {}
    exec(START, table)
    assert attribute(table["MINE"], "asked") is UNKNOWN
    assert attribute(table["MINE"], "other") is UNKNOWN
    assert attribute(UNKNOWN, "other") is UNKNOWN


def test_dicts_behind_keywords() -> None:
    assert values("def ask(**k): return told({'a': 1, 'b': X, **HELD})") == [{"a": 1, "b": 3, "c": 9, 1: 2}]
    (held,) = values("def ask(**k): return told({'a': 1, 'b': X, **k})")
    assert held == {"a": 1, "b": 3}
    assert type(held) is Partly
    assert values("def ask(): return told({X: 4})") == [{3: 4}]


def test_comprehensions() -> None:
    assert values("def ask(): return told({k: v for k, v in HELD.items() if v})") == [{"c": 9, 1: 2}]
    assert values("def ask(): return told([each for each in (X,)])")[0] == (3,)


def test_what_is_unpacked() -> None:
    assert values("def ask():\n a, b = (X, 8)\n return told(a)") == [3]
    assert values("def ask():\n a, b = (X, 8)\n return told(b)") == [8]
    assert values("def ask():\n for i, (a, b) in enumerate([(X, 8)]): told(b)") == [8]


def test_what_functions_within_are_called_with() -> None:
    assert values("def ask():\n def one(a, b=5): return told(b)\n return one(1) + one(2, b=6) + one(3, 7)") == [5, 6, 7]
    assert values("def ask(): return map(lambda a: told(a), [X, 4])") == [3, 4]
    assert values("def ask():\n x = 4\n return (lambda: told(x))()") == [4]


def test_an_attribute_is_no_variable_of_that_name() -> None:
    assert values("def ask(x=1):\n MINE.x = 5\n return told(x)") == [UNKNOWN]


def test_of_what_is_calculated_the_parts_that_are_known() -> None:
    table: dict[str, Any] = {}
    exec(START + "def ask(i):\n t = 0.7 + 0.1 * i\n return told(0 if i else t)", table)
    calls = [each for each in expressions(table["ask"].__code__) if each.kind == CALL]
    found = [value for each in calls for value in Scope(table["ask"]).near(each.parts[1], table["ask"].__code__)]
    assert {0, 0.7, 0.1} <= {*found}
