"""What code only adds to changes no answer; what it reads counts, and is told where it changes at each call."""

from __future__ import annotations

import logging
import sys
import types

import pytest

from lmstash.caches.responses import Responses
from lmstash.stash import Stash

from .conftest import made_program

ADDED = {
    "a number": "N = 0\ndef ask(x):\n global N\n N += 1\n return x",
    "a number in a dict": "USAGE = {'tokens': 0}\ndef ask(x):\n USAGE['tokens'] += len(x)\n return x",
    "a dict that goes by the name of somebody's attribute": "import types\nusage = {'tokens': 0}\n"
    "def ask(x):\n answer = types.SimpleNamespace(usage=len(x))\n usage['tokens'] += answer.usage\n return x",
    "a list": "ERRORS = []\ndef ask(x):\n ERRORS.append(x)\n return x",
    "a counter": "import collections\nC = collections.Counter()\ndef ask(x):\n C['calls'] += 1\n return x",
    "an attribute of a class": "class C:\n n = 0\n def say(self, x):\n  C.n += 1\n  return x\n"
    "def ask(x): return C().say(x)",
    "a variable of a decorator": "def timed(f):\n calls = []\n def g(x):\n  calls.append(x)\n  return f(x)\n return g\n"
    "@timed\ndef ask(x): return x",
}
READ = {
    "a number": "N = 0\ndef ask(x):\n global N\n N += 1\n return str(N)",
    "a number, by another function": "N = 0\ndef say(): return str(N)\ndef ask(x):\n global N\n N += 1\n return say()",
    "a history": "H = []\ndef ask(x):\n H.append(x)\n return ' '.join(H)",
    "a history in an object": "import types\nH = []\nS = types.SimpleNamespace(h=H)\ndef ask(x):\n H.append(x)\n"
    " return ' '.join(S.h)",
    "a count in an object": "@dataclasses.dataclass\nclass U:\n n: int = 0\n def add(self): self.n += 1\nUSAGE = U()\n"
    "def ask(x):\n USAGE.add()\n return str(USAGE.n)",
    "an attribute of a class": "class C:\n n = 0\ndef ask(x):\n C.n += 1\n return str(C.n)",
    "a field's default": "@dataclasses.dataclass\nclass C:\n n: int = 0\n def add(self): self.n += 1\ndef ask(x):\n"
    " C.n += 1\n return str(C())",
    "by a name in a text": "N = 0\ndef ask(x):\n global N\n N += 1\n return '{N}'.format(**globals())",
    "by any name": "class C:\n n = 0\ndef ask(x):\n C.n += 1\n return str(getattr(C, x.lower()[:0] + 'n'))",
    "a variable of a decorator": "def timed(f):\n calls = []\n def g(x):\n  calls.append(x)\n"
    "  return f(x) + str(len(calls))\n return g"
    "\n@timed\ndef ask(x): return x",
}


@pytest.mark.parametrize("about", ADDED)
def test_what_code_only_adds_to_does_not_count(responses: Responses, stash: Stash, about: str) -> None:
    for _ in range(2):
        ask = responses.cached(made_program(ADDED[about])["ask"])
        for x in "abc":
            assert ask(x) == x
    assert (stash.stats.hits, dict(stash.stats.misses)) == (3, {"absent": 3})


@pytest.mark.parametrize("about", READ)
def test_what_code_adds_to_and_reads_counts_and_is_told(
    responses: Responses, stash: Stash, caplog: pytest.LogCaptureFixture, about: str
) -> None:
    plain, kept = (made_program(READ[about])["ask"] for _ in range(2))
    ask = responses.cached(kept)
    with caplog.at_level(logging.WARNING):
        assert [ask("x") for _ in range(3)] == [plain("x") for _ in range(3)]
    assert stash.stats.hits == 0
    told = [each.getMessage() for each in caplog.records if "changes while it computes" in each.getMessage()]
    assert len(told) == 1


def test_a_total_in_a_module_does_not_count(
    responses: Responses, stash: Stash, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("lmstash_test_total")
    exec("TOTAL = 0\ndef add(n):\n global TOTAL\n TOTAL += n", vars(module))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    program = made_program("import lmstash_test_total as total\ndef ask(x):\n total.add(3)\n return x")
    ask = responses.cached(program["ask"])
    for x in "abab":
        assert ask(x) == x
    assert stash.stats.hits == 2


def test_what_is_said_to_be_harmless_in_a_class_does_not_count(responses: Responses, stash: Stash) -> None:
    program = made_program("class C:\n n = 0\ndef ask(x):\n C.n += 1\n return str(C.n)")
    ask = responses.cached(harmless=["n"])(program["ask"])
    assert ask("x") == ask("x") == "1"
    assert stash.stats.hits == 1


def test_an_attribute_of_a_module_that_is_read_counts(
    responses: Responses, stash: Stash, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "counted_here", types.ModuleType("counted_here"))
    source = "import counted_here as c\nc.n = 0\ndef ask(x):\n c.n += 1\n return str(c.n)"
    ask = responses.cached(made_program(source)["ask"])
    assert [ask("x") for _ in range(3)] == ["1", "2", "3"]
