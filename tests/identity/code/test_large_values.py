"""Whether a large plain value was touched is told without reading all of it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lmstash.identity.code.large_values import LargeValue, PlainValues
from lmstash.identity.code.own_code import OwnCode

TOUCHED: list[Callable[[Any], object]] = [
    lambda rows: rows[1].__setitem__("q", "b"),
    lambda rows: rows[1].__setitem__("n", True),
    lambda rows: rows[1]["a"].__setitem__(0, "b"),
    lambda rows: rows[1]["a"].append("b"),
    lambda rows: rows[1]["t"][0].append("b"),
    lambda rows: rows[1].__setitem__("q", rows[1].pop("q")),
    lambda rows: rows.reverse(),
    lambda rows: rows.pop(),
    lambda rows: rows.__setitem__(1, {**rows[1]}),
]


def _rows(n_rows: int = 3) -> list[Any]:
    return [{"q": f"q{n}", "n": 1, "a": ["a", "b" * n], "t": ([n], 2)} for n in range(n_rows)]


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="this Python does not count changes of dicts")
def test_what_is_touched_is_told() -> None:
    for touch in TOUCHED:
        rows = _rows()
        held = LargeValue(rows)
        assert held.is_untouched()
        assert held.is_untouched()
        touch(rows)
        assert not held.is_untouched()


def test_only_python_s_own_values_are_signed() -> None:
    """Of what has a buffer `marshal` writes the bytes: an array of another dtype would be the same."""
    sign = PlainValues().sign
    for kind in (np.int32, np.float32):
        assert sign([np.zeros(2, kind)]) is None
        assert sign({"a": ({"b": [np.zeros(2, kind)]},)}) is None
    assert sign([bytearray(b"a")]) is None
    assert sign({bytes(2): 1, (3, frozenset({4})): [{5.0}, None, True, 1j, "a"]}) is not None
    assert sign([]) is not None
    rows: list[Any] = []
    rows.append(rows)
    assert sign(rows) is None
    assert len({sign(each) for each in ([1], [True], [1.0], ["1"], [b"1"], (1,), [[1]], {1: 1}, [-0.0], [0.0])}) == 10


def test_what_cannot_be_told_is_said_to_be_touched() -> None:
    assert not LargeValue([{"a": {1, 2}}]).is_untouched()
    assert not LargeValue([bytearray(b"a")]).is_untouched()


def test_code_that_names_a_large_value_is_another_once_that_changes() -> None:
    for touch in TOUCHED[:-1]:
        rows = _rows(2000)
        namespace: dict[str, Any] = {"__name__": "program", "ROWS": rows}
        exec("def ask(x): return ROWS[0]", namespace)
        code = OwnCode("program", namespace["ask"])
        before = code.components()
        assert code.unchanged()
        touch(rows)
        assert not code.unchanged()
        assert OwnCode("program", namespace["ask"]).components() != before
