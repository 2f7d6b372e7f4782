"""Settings of a program (`args.limit`) count only where code asks for them, or may: what is handed on counts whole."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import pytest
from tests.caches.responses.conftest import made_program

from lmstash.caches.responses import Responses
from lmstash.stash import Stash

START = """
import argparse, functools, json, operator, types
args = argparse.Namespace(model="g", limit=%d, out="o.jsonl")
class Held:
    def __init__(self): self.args = args
    def hand(self): return json.dumps(vars(self.args))
HELD = Held()
def asks_model(a, q): return q + a.model
def asks_limit(a, q): return q + str(a.limit)
def given(): return args
"""
FREE = {
    "another one": "def ask(q): return q + args.model",
    "another one, handed": "def ask(q): return asks_model(args, q)",
    "another one by its name": "def ask(q): return q + getattr(args, 'model')",
    "another one by another name": "def ask(q):\n held = args\n return q + held.model",
    "another one in a closure": "def made(held):\n def ask(q): return q + held.model\n return ask\nask = made(args)",
    "another one within it": "def ask(q): return (lambda: q + args.model)()",
    "whether there is another one": "def ask(q): return q + args.model if hasattr(args, 'model') else q",
}
COUNTS = {
    "this one": "def ask(q): return q + str(args.limit)",
    "this one, handed": "def ask(q): return asks_limit(args, q)",
    "this one by its name": "def ask(q): return q + str(getattr(args, 'limit'))",
    "this one by a name that is made": "def ask(q, n='lim'): return q + str(getattr(args, n + 'it'))",
    "all": "def ask(q): return q + str(vars(args))",
    "its text": "def ask(q): return q + str(args)",
    "a text of it": "def ask(q): return f'{q} {args}'",
    "its dict": "def ask(q): return q + str(args.__dict__['limit'])",
    "by stars": "def ask(q): return other(**vars(args))\ndef other(model, limit, out): return str(limit)",
    "a library": "def ask(q): return HELD.hand()",
    "a partial": "other = functools.partial(asks_limit, args)\ndef ask(q): return other(q)",
    "a comparison": "def ask(q): return args == argparse.Namespace(model='g', limit=3, out='o.jsonl')",
    "a list": "ALL = [args]\ndef ask(q): return q + str(ALL[0].limit)",
    "another name": "also = args\ndef ask(q): return q + args.model + str(also.limit)",
    "what a function gives": "def ask(q): return q + json.dumps(vars(given()))",
    "a star": "ALL = [args]\ndef ask(q):\n held, *rest = ALL\n return repr(held)",
    "a star in a method": (
        "class T:\n def __init__(self): self.all = [args, 1]\n"
        " def go(self):\n  held, *rest = self.all\n  return f'{held}'\n"
        "T = T()\ndef ask(q): return T.go()"
    ),
    "a match of a list": "ALL = [args]\ndef ask(q):\n match ALL:\n  case [held, *rest]: return f'{held}'",
    "a match of a dict": "ALL = {'k': args}\ndef ask(q):\n match ALL:\n  case {'k': held}: return f'{held}'",
    "a special method": "def ask(q): return args.__str__()",
    "an expression": "def other(e): return str(eval(e))\ndef ask(q, e='args.limit'): return other(e) + args.model",
    "a special method in a global": "text = args.__str__\ndef ask(q): return text()",
    "a look-up in a global": "get = args.__getattribute__\nKEY = 'limit'\ndef ask(q): return str(get(KEY))",
    "a match": "def ask(q):\n match args:\n  case argparse.Namespace(limit=n): return str(n)",
    "a getter": "get = operator.attrgetter('limit')\ndef ask(q): return str(get(args))",
    "globals": "def ask(q): return str(globals()['args'].limit)",
    "another object": "def ask(q):\n held = types.SimpleNamespace(a=args)\n return str(held.a.limit)",
    "a thread": (
        "from concurrent.futures import ThreadPoolExecutor\ndef ask(q):\n"
        " with ThreadPoolExecutor(1) as pool: return pool.submit(asks_limit, args, q).result()"
    ),
    "a loop": "def ask(q):\n for held in (args,): return str(held.limit)",
    "arguments by star": "def other(*a): return str(a[0].limit)\ndef ask(q): return other(args)",
    "arguments by name": "def other(**k): return str(k['a'].limit)\ndef ask(q): return other(a=args)",
    "an object that is made there": (
        "class T:\n def __init__(self, held): self.held = held\n def go(self): return str(self.held.limit)\n"
        "def ask(q): return T(args).go()"
    ),
}


@pytest.mark.parametrize("how", [*FREE, *COUNTS])
def test_settings_of_a_program(stash: Stash, responses: Responses, how: str) -> None:
    hits = []
    for limit in (3, 9, 3):
        ask: Any = responses.cached(made_program(START % limit + (FREE | COUNTS)[how])["ask"])
        before = stash.stats.hits
        said = ask("q")
        assert said == ask.__wrapped__("q")
        hits.append(stash.stats.hits - before)
    assert hits == ([0, 1, 1] if how in FREE else [0, 0, 1])


def test_settings_that_are_an_argument(stash: Stash, responses: Responses) -> None:
    table = made_program("def ask(q, a): return q + a.model\ndef other(q, a): return q + str(a)")
    ask, other = responses.cached(table["ask"]), responses.cached(table["other"])
    three, nine = Namespace(model="m", limit=3, temperature=0.8), Namespace(model="m", limit=9, temperature=0)
    assert [ask("q", three), ask("q", nine)] == ["qm", "qm"]
    assert stash.stats.hits == 1
    assert other("q", nine) != other("q", Namespace(model="m", limit=4, temperature=0))
    assert ask("q", Namespace(model="n", limit=3)) == "qn"
    assert stash.stats.hits == 1
