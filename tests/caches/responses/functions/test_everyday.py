"""Dates, numbers, namespaces and containers of Python's own are arguments and globals like any other."""

from __future__ import annotations

import logging

import pytest

from lmstash.caches.responses import Responses
from lmstash.stash import Stash

from ..conftest import made_program

IMPORTS = """
import argparse, asyncio, collections, datetime, decimal, fractions, operator, re
import string, threading, types, uuid, zoneinfo
from datetime import timedelta, timezone
"""
VALUES = [
    (
        "argparse.Namespace(a=1, b=types.SimpleNamespace(c=[1]))",
        "argparse.Namespace(a=1, b=types.SimpleNamespace(c=[2]))",
    ),
    ("types.SimpleNamespace(a=types.SimpleNamespace(b=1))", "types.SimpleNamespace(a=types.SimpleNamespace(b=2))"),
    ("datetime.date(2020, 1, 1)", "datetime.date(2020, 1, 2)", "datetime.datetime(2020, 1, 1)"),
    ("datetime.time(1, tzinfo=timezone.utc)", "datetime.time(1)"),
    (
        *("datetime.datetime(2020, 1, 1)", "datetime.datetime(2020, 1, 1, tzinfo=timezone.utc)"),
        "datetime.datetime(2020, 1, 1, tzinfo=zoneinfo.ZoneInfo('UTC'))",
        "datetime.datetime(2020, 1, 1, tzinfo=timezone(timedelta(0), 'Z'))",
    ),
    ("timedelta(1)", "timedelta(0, 1)"),
    ("decimal.Decimal('1.0')", "decimal.Decimal('1.00')", "fractions.Fraction(1)", "1"),
    ("uuid.UUID(int=1)", "uuid.UUID(int=2)"),
    ("collections.Counter('ab')", "collections.Counter('ba')", "{'a': 1, 'b': 1}", "collections.OrderedDict(a=1, b=1)"),
    (
        "collections.defaultdict(list, a=[1])",
        "collections.defaultdict(set, a=[1])",
        "collections.defaultdict(None, a=[1])",
    ),
    ("collections.deque([1])", "collections.deque([1], 2)", "[1]"),
    ("range(3)", "range(0, 3, 2)", "1j", "complex(0, -1)"),
    ("re.compile('a')", "re.compile('a', re.I)", "re.compile(b'a')"),
    ("string.Template('$a 1')", "string.Template('$a 2')"),
    ("operator.itemgetter(1)", "operator.itemgetter(1, 2)", "operator.attrgetter('a')"),
]


@pytest.mark.parametrize("values", VALUES, ids=lambda values: values[0])
@pytest.mark.parametrize("where", ["an argument", "a global"])
def test_each_is_told_from_others_and_known_again(
    responses: Responses, stash: Stash, values: tuple[str, ...], where: str
) -> None:
    show = "def show(v): return repr(getattr(v, 'template', v)) + type(v).__name__\n"
    for value in values:
        for _ in range(2):
            source = (
                "def ask(x): return show(x)" if where == "an argument" else f"V = {value}\ndef ask(x): return show(V)"
            )
            program = made_program(IMPORTS + show + source)
            given = eval(value, program)
            assert responses.cached(program["ask"])(given if where == "an argument" else "x") == program["show"](given)
    assert (stash.stats.hits, dict(stash.stats.misses)) == (len(values), {"absent": len(values)})


def test_subclasses_and_what_bears_more_are_not_read(responses: Responses, stash: Stash) -> None:
    program = made_program(
        IMPORTS + "class N(argparse.Namespace): pass\nclass Z(datetime.tzinfo): pass\n"
        "c = collections.Counter('a')\nc.more = 1\ndef ask(x): return 'x'"
    )
    ask = responses.cached(program["ask"])
    for value in ("N(a=1)", "c", "datetime.datetime(2020, 1, 1, tzinfo=Z())"):
        assert ask(eval(value, program)) == "x"
    assert dict(stash.stats.misses) == {"unsupported": 3}


@pytest.mark.parametrize(
    "made",
    [
        *("threading.Semaphore(2)", "threading.BoundedSemaphore(2)", "threading.Condition()", "threading.Barrier(2)"),
        *("asyncio.Lock()", "asyncio.Semaphore(2)", "asyncio.BoundedSemaphore(2)", "asyncio.Condition()"),
    ],
)
def test_what_only_makes_others_wait_says_nothing(responses: Responses, stash: Stash, made: str) -> None:
    for _ in range(2):
        assert responses.cached(made_program(IMPORTS + f"L = {made}\ndef ask(x): return L and x")["ask"])("x") == "x"
    assert (stash.stats.hits, dict(stash.stats.misses)) == (1, {"absent": 1})


def test_a_template_that_is_refused_is_not_called_harmless(
    responses: Responses, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("jinja2")
    source = "import jinja2\nclass Own(jinja2.Template): pass\nT = Own('a')\ndef ask(x): return T.render()"
    program = made_program(source)
    with caplog.at_level(logging.WARNING):
        responses.cached(program["ask"])("x")
    assert "whose base class jinja2.environment.Template may hold more," in caplog.text
    assert "name there only what changes no answer" in caplog.text
