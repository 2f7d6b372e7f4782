"""Bytecode put together again says what stands in the source."""

from __future__ import annotations

import dis
from typing import Any

import pytest

from lmstash.identity.dataflow.expressions import (
    ATTRIBUTE,
    CALL,
    CONST,
    ITEM,
    NAME,
    OPERATION,
    STORED,
    TEXT,
    Node,
    code_within,
    expressions,
)

SAME = [
    "f(a, 'b', c=1, d=g)",
    "a.b.c(d).e",
    "a + b / 'c' % d",
    "a[b]['c']",
    "f'{a}/b/{c}.txt'",
    "open(join('a', f'{b}.c'), mode='w').write(d)",
    "a.f(g(h(b), c.d), e=a.b())",
    "f(*a)",
    "a = b",
    "a.b = c / 'd'",
    "a = b = f(c)",
    "a += b.c",
]
"""Expressions, or assignments, that come back as they were written."""


def written(node: Node) -> str:
    parts = [written(each) for each in node.parts]
    if node.kind == CONST:
        return repr(node.value)
    if node.kind == NAME:
        return node.name
    if node.kind == ATTRIBUTE:
        return f"{parts[0]}.{node.value}"
    if node.kind == CALL:
        n_named = len(node.value)
        named = [f"{name}={each}" for name, each in zip(node.value, parts[len(parts) - n_named :], strict=True)]
        return f"{parts[0]}({', '.join([*parts[1 : len(parts) - n_named], *named])})"
    if node.kind == OPERATION:
        return f"{parts[0]} {node.value} {parts[1]}"
    if node.kind == ITEM:
        return f"{parts[0]}[{parts[1]}]"
    if node.kind == TEXT:
        pieces = [str(each.value) if each.kind == CONST else written(each) for each in node.parts]
        within = any(each.kind == TEXT for each in node.users)
        return f"{{{pieces[0]}}}" if within else f"f'{''.join(pieces)}'"
    if node.kind == STORED:
        return f"{node.value} = {parts[0]}"
    return f"other({', '.join(parts)})"


ALSO = {
    "f(*a)": {"f(other(other(), a))", "f(other(a))"},
    "a = b = f(c)": {"a = f(c)", "b = f(c)"},
    "a.b = c / 'd'": {"b = c / 'd'"},
    "a += b.c": {"a = a += b.c"},
}
"""Those that come back in another way, or one of several."""


@pytest.mark.parametrize("source", SAME)
def test_an_expression_comes_back(source: str) -> None:
    made: dict[str, Any] = {}
    is_statement = " = " in source or " += " in source
    exec(f"def code(a, b, c, d, e=0):\n {'' if is_statement else 'return '}{source}", made)
    found = {written(each) for each in expressions(made["code"].__code__)}
    assert found & ALSO.get(source, {source})


def test_what_code_decides_is_either() -> None:
    def code(a: Any, b: Any) -> Any:
        c = "x" if a else b
        return c, a and b, [each for each in b if each]

    kinds = [[part.value for part in node.parts] for node in expressions(code.__code__) if node.kind == "either"]
    assert ["x", "b"] in kinds


def test_everything_that_python_can_write_is_read_without_a_fault() -> None:
    """What is not understood is unknown; nothing is lost that is loaded."""
    import argparse
    import asyncio.base_events
    import json.decoder
    import tarfile

    for module in (argparse, asyncio.base_events, json.decoder, tarfile):
        functions = [each for cls in vars(module).values() if isinstance(cls, type) for each in vars(cls).values()]
        for function in [*vars(module).values(), *functions]:
            for code in code_within(function.__code__) if hasattr(function, "__code__") else ():
                names = {node.name for node in expressions(code) if node.kind in (NAME, ATTRIBUTE)}
                loaded = {
                    each.argval
                    for each in dis.get_instructions(code)
                    if each.opname in ("LOAD_GLOBAL", "LOAD_ATTR", "LOAD_METHOD", "LOAD_DEREF", "LOAD_NAME")
                }
                assert loaded <= names
