"""What functions are called with is told by the calls, without running any."""

from __future__ import annotations

from types import FunctionType
from typing import Any

import pytest

from lmstash.identity.dataflow.arguments import Arguments
from lmstash.identity.dataflow.calls import Calls
from lmstash.identity.dataflow.lying_in import UNKNOWN, Made

START = """
import functools
class M:
    def __init__(self, n=1): self.n = n
    def method(self, x=0): pass
    def __call__(self, x): pass
ONE, TWO = M(1), M(2)
BY = {"a": ONE}
def told(x, y=5, *, z=6): pass
partly = functools.partial(told, y=7)
def hand(x): told(x)
"""
OF_TOLD = {
    "told(1)": ([1], [5], [6]),
    "told(1, 2, z=3)": ([1], [2], [3]),
    "told(y=2, x=1)": ([1], [2], [6]),
    "told(q)": (["q"], [5], [6]),
    "told(*q)": ([UNKNOWN], [UNKNOWN], [UNKNOWN]),
    "told(*(1, 2))": ([1], [2], [6]),
    "told(1, **{'z': 3})": ([1], [5], [3]),
    "told(1, **q)": ([1], [UNKNOWN], [UNKNOWN]),
    "partly(1)": ([1], [7], [6]),
    "partly(1, y=8)": ([1], [8, 7], [6]),
    "hand(3)": ([3], [5], [6]),
    "told(1); told(2, 3)": ([1, 2], [5, 3], [6, 6]),
    "pool.submit(told, 1, z=2)": ([1], [5], [2]),
    "pool.map(told, q)": ([UNKNOWN], [5], [6]),
    "pool.map(told, [1, 2], (3, 4))": ([1, 2], [3, 4], [6]),
    "pass": ([UNKNOWN], [5], [6]),
}


def calls(body: str) -> tuple[dict[str, Any], Calls, list[FunctionType]]:
    table: dict[str, Any] = {}
    exec(f"{START}def ask(q):\n {body}", table)
    methods = [each for each in vars(table["M"]).values() if isinstance(each, FunctionType)]
    functions = [table["told"], table["hand"], table["ask"], *methods]
    looked = [each for each in functions if each is not table["hand"] or "hand(" in body]
    return table, Calls(functions, looked, table["ask"], lambda _: [], list), functions


@pytest.mark.parametrize("body", OF_TOLD)
def test_arguments(body: str) -> None:
    table, known, _ = calls(body)
    found = [Arguments(known, {"q": "q"}).argument(table["told"], name) for name in "xyz"]
    for each, wanted in zip(found, OF_TOLD[body], strict=True):
        assert set(each) <= set(wanted), body
        assert each[0] == wanted[0]


@pytest.mark.parametrize(
    ("body", "of"),
    [("ONE.method()", "ONE"), ("BY['a'].method(1)", "ONE"), ("m = TWO\n m.method()", "TWO"), ("TWO(1)", "TWO")],
)
def test_what_a_method_is_called_of(body: str, of: str) -> None:
    table, known, _ = calls(body)
    method = table["M"].__call__ if "TWO(" in body else table["M"].method
    assert Arguments(known, {"q": "q"}).argument(method, "self") == [table[of]]


def test_constructors() -> None:
    table, known, _ = calls("M(4).method()")
    assert Arguments(known, {"q": "q"}).argument(table["M"].__init__, "n") == [4]
    (made,) = Arguments(known, {"q": "q"}).argument(table["M"].method, "self")
    assert isinstance(made, Made)
    assert (made.of, made.held) == (table["M"], {"n": 4})
    table, known, _ = calls("M()")
    assert Arguments(known, {"q": "q"}).argument(table["M"].__init__, "n") == [1]


def test_functions_that_call_each_other_come_to_an_end() -> None:
    table: dict[str, Any] = {}
    exec("def a(x): b(x)\ndef b(x): a(x)\ndef ask(q): a(q)", table)
    functions = [table["a"], table["b"], table["ask"]]
    known = Calls(functions, functions, table["ask"], lambda _: [], list)
    assert "q" in Arguments(known, {"q": "q"}).argument(table["a"], "x")
