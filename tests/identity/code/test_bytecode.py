"""What is read of code and of plain values again and again is encoded once, and is what it would be anew."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import CodeType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmstash.identity.code import bytecode
from lmstash.identity.code.bytecode import code_component, encoded
from lmstash.identity.encoding import encode

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=3)
VALUES = SCALARS | st.tuples(SCALARS) | st.lists(SCALARS, max_size=2) | st.dictionaries(st.integers(0, 3), SCALARS)


def plainly(code: CodeType) -> bytes:
    """As the format says it, without a memory."""
    consts = [Within(each) if isinstance(each, CodeType) else bytecode.plain_component(each) for each in code.co_consts]
    names = [*code.co_names, "|", *code.co_varnames, "|", *code.co_freevars, "|", *code.co_cellvars]
    counts = [code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags]
    parts = [encode(code.co_code), joined(consts), encode(names), encode(counts), encode(code.co_exceptiontable)]
    return b"[" + len(parts).to_bytes(8, "big") + b"".join(parts)


class Within:
    def __init__(self, code: CodeType) -> None:
        self.data = plainly(code)


def joined(consts: Sequence[object]) -> bytes:
    parts = [each.data if isinstance(each, Within) else encode(each) for each in consts]
    return b"[" + len(parts).to_bytes(8, "big") + b"".join(parts)


def outer(a: int, *, b: float = 1.5) -> object:
    def inner(c: int) -> object:
        return lambda: (a, b, c, "text", 3)

    try:
        return inner(a)
    except ValueError:
        return None


def test_code_counts_by_all_of_it_however_often_it_is_asked_for() -> None:
    expected = plainly(outer.__code__)
    assert encode(code_component(outer.__code__)) == expected
    assert encode(code_component(outer.__code__)) == expected
    bytecode._components.clear()
    assert encode(code_component(outer.__code__)) == expected
    assert encode(["code", code_component(outer.__code__)])[-len(expected) :] == expected


def test_other_code_is_told_apart_where_it_lies_in_the_same_place() -> None:
    seen = set[bytes]()
    for number in range(300):
        space: dict[str, object] = {}
        exec(f"def f(): return {number}", space)  # the last one's memory is free
        seen.add(encode(code_component(space["f"].__code__)))  # pyright: ignore[reportAttributeAccessIssue]
    assert len(seen) == 300


def test_code_whose_constants_may_change_is_read_each_time() -> None:
    table = [1, 2]
    inner = compile("x", "f", "exec").replace(co_consts=((table,), None))
    for code in (inner, compile("y", "f", "exec").replace(co_consts=(inner,))):
        before = encode(code_component(code))
        table.append(3)
        assert encode(code_component(code)) != before


def test_a_table_that_another_thread_changes_meanwhile_gives_its_encoding_to_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table, told = [0, *range(80)], bytecode.snapshot

    def changed_after(value: object) -> bytes | None:
        found = told(value)
        table[0] = 1  # by another thread, just after this one looked
        return found

    monkeypatch.setattr(bytecode, "snapshot", changed_after)
    encoded(table)
    monkeypatch.undo()
    assert encoded([0, *range(80)]) == encode([0, *range(80)])
    assert encoded([1, *range(80)]) == encode([1, *range(80)])


def test_no_more_code_is_held_than_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bytecode, "_MOST_KNOWN", 10)
    for number in range(50):
        assert encode(code_component(compile(f"x = {number}", "f", "exec")))
        assert len(bytecode._components) <= 10


@given(st.lists(VALUES, max_size=8), st.sampled_from([list, tuple, dict]))
def test_a_large_table_is_encoded_as_any_other(some: list[object], kind: type) -> None:
    many = [*some, *range(70)]
    value = dict(enumerate(many)) if kind is dict else kind(many)
    for _ in range(2):
        assert encoded(value) == encode(value)


def test_tables_that_only_compare_equal_are_told_apart() -> None:
    rest = list(range(2, 80))
    kinds = [[True, *rest], [1, *rest], [1.0, *rest], (1, *rest), [-0.0, *rest], [0.0, *rest], [math.nan, *rest]]
    assert len({encoded(each) for each in kinds}) == len(kinds)
    table = {str(each): each for each in rest}
    before = encoded(table)
    table["2"] = 3
    assert encoded(table) != before
    table["2"] = 2
    assert encoded(table) == before
    assert encoded(dict(reversed(table.items()))) == before, "the order of a dict's items does not count"


def test_what_no_key_can_hold_is_none_in_a_large_table_too() -> None:
    assert encoded([*range(80), object()]) is None
    assert encoded([*range(80), [object()]]) is None
    assert encoded({"a": {*range(3)}, **{str(each): each for each in range(80)}}) is None


def test_no_more_tables_are_held_than_a_bound() -> None:
    for number in range(200):
        assert encoded([number, *range(80)]) == encode([number, *range(80)])
        assert len(bytecode._tables) <= bytecode._MOST_TABLES
