"""Objects that a cached function is handed, or names, count by all that it sees of them."""

from __future__ import annotations

from typing import Any

import pytest

from lmstash.caches.responses import Responses
from lmstash.stash import Stash

from .conftest import made_program


def answered(responses: Responses, source: str, expressions: list[str]) -> list[Any]:
    """Return what a program's function answers to each value, twice, as it would say itself."""
    program = made_program(source)
    direct = program["ask"]
    ask = responses.cached(direct)
    said: list[Any] = []
    for expression in expressions:
        for _ in range(2):
            value = eval(expression, program)
            said.append(ask(value))
            assert said[-1] == direct(eval(expression, program)), expression
    return said


PYDANTIC = (
    "import pydantic\nclass A(pydantic.BaseModel):\n n: str = '1'\n stop: str | None = None\n"
    " @functools.cached_property\n def said(self): return self.n\ndef stale():\n a = A(n='1')\n a.said\n a.n = '2'\n"
    " return a\n"
)
APART = {
    "which fields of a pydantic model were given": (
        PYDANTIC + "def ask(x): return str(x.model_dump(exclude_unset=True))",
        ["A()", "A(n='1')", "A(n='1', stop=None)"],
    ),
    "of one within others": (
        PYDANTIC + "def ask(x): return str([each.model_dump(exclude_unset=True) for each in x['a']])",
        ["{'a': [A()]}", "{'a': [A(n='1')]}"],
    ),
    "what a pydantic model remembers": (PYDANTIC + "def ask(x): return x.said", ["A(n='2')", "stale()"]),
}


@pytest.mark.parametrize("about", APART)
def test_objects_that_look_alike_are_told_apart(responses: Responses, stash: Stash, about: str) -> None:
    source, expressions = APART[about]
    answered(responses, source, expressions)
    assert (stash.stats.hits, dict(stash.stats.misses)) == (len(expressions), {"absent": len(expressions)})


def test_which_fields_of_a_global_were_given_counts(responses: Responses) -> None:
    program = made_program(PYDANTIC + "a = A()\ndef ask(x): return str(a.model_dump(exclude_unset=True))")
    ask = responses.cached(program["ask"])
    assert ask("x") == "{}"
    program["a"].n = "1"
    assert ask("x") == "{'n': '1'}"
