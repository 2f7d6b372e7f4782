"""Objects of somebody's own classes count by their attributes and by what their classes' code does."""

from __future__ import annotations

import logging
import time
from typing import Any

import pytest

from lmstash.caches.responses import Responses
from lmstash.stash import Stash

from ..conftest import made_program

CLIENT = "class C:\n def __init__(self, n): self.n = n\n def say(self, x): return self.n + x\n"
KINDS = {
    "one made by hand": (CLIENT, "C('1')", "c.say(x)"),
    "its class's code": (CLIENT.replace("self.n + x", "'1' + x"), "C('a')", "c.say(x)"),
    "what lies in its class": ("class C:\n n = '1'\n", "C()", "c.n"),
    "one within another": (CLIENT + "class D:\n def __init__(self): self.c = C('1')\n", "D()", "c.c.n"),
    "in a list and a dict": (CLIENT, "{'a': [C('1')]}", "c['a'][0].n"),
    "one with slots": (
        "class B:\n __slots__ = ('n', '__m')\n def __init__(self, m): self.__m = m\nclass C(B):\n __slots__ = 'o'\n",
        "C('1')",
        "c._B__m",
    ),
    "one with slots and a dict": ("class B:\n __slots__ = 'n'\nclass C(B): pass\nc = C()\nc.n = '1'\n", "c", "c.n"),
    "one of an abstract class": (
        "import abc\nclass B(abc.ABC):\n @abc.abstractmethod\n def f(self): ...\nclass C(B):\n"
        " def __init__(self, n): self.n = n\n def f(self): return self.n\n",
        "C('1')",
        "c.f()",
    ),
    "one of a generic class": (
        "T = typing.TypeVar('T')\nclass C(typing.Generic[T]):\n def __init__(self, n): self.n = n\n",
        "C[int]('1')",
        "c.n",
    ),
    "what it is generic in": (
        "T = typing.TypeVar('T')\nclass C(typing.Generic[T]): pass\n",
        "C[Literal['1']]()",
        "str(c.__orig_class__)",
    ),
    "one of a protocol": (
        "class P(typing.Protocol):\n n: str\nclass C(P):\n def __init__(self, n): self.n = n\n",
        "C('1')",
        "c.n",
    ),
    "a mapping": (
        "import collections.abc\nclass C(collections.abc.Mapping):\n def __init__(self, d): self.d = d\n"
        " def __getitem__(self, key): return self.d[key]\n def __iter__(self): return iter(self.d)\n"
        " def __len__(self): return len(self.d)\n",
        "C({'a': '1'})",
        "c['a']",
    ),
    "a wrapper": (
        "class Counts:\n def __init__(self, f):\n  functools.update_wrapper(self, f)\n  self.f = f\n"
        " def __call__(self, x): return self.f(x)\n@Counts\ndef c(x): return '1' + x\n",
        "c",
        "c(x)",
    ),
    "a descriptor": (
        "class D:\n def __init__(self, n): self.n = n\n def __get__(self, *a): return self.n\nclass C:\n d = D('1')\n",
        "C()",
        "c.d",
    ),
    "a dataclass with more": (
        "@dataclasses.dataclass\nclass C:\n a: int = 0\nc = C()\nc.n = '1'\n",
        "c",
        "c.n",
    ),
    "a dataclass that remembers": (
        "@dataclasses.dataclass\nclass C:\n a: str\n @functools.cached_property\n def n(self): return self.a\n"
        "c = C('1')\nc.n\n",
        "c",
        "c.n",
    ),
    "what a dataclass remembers": (
        "@dataclasses.dataclass\nclass C:\n a: str\n @functools.cached_property\n def n(self): return self.a\n"
        "c = C('1')\nc.n\nc.a = 'b'\n",
        "c",
        "c.n",
    ),
    "a parent and its child": (
        "class C:\n def __init__(self, n, up=None):\n  self.n, self.up, self.under = n, up, []\n"
        "  if up: up.under.append(self)\nc = C('1')\nC('a', c)\n",
        "c",
        "c.under[0].up.n",
    ),
    "one in a registry of its class": (
        CLIENT + "C.all = [C('1')]\n",
        "C('a')",
        "c.all[0].n",
    ),
    "what it works by": (
        "import logging, threading, re\nclass C:\n def __init__(self, n):\n  self.lock = threading.Lock()\n"
        "  self.log = logging.getLogger('c')\n  self.mark = object()\n  self.by = re.compile(n)\n",
        "C('1')",
        "c.by.pattern",
    ),
    "a callback": (CLIENT, "C(lambda x: '1' + x)", "c.n(x)"),
    "a method of its own": (CLIENT + "c = C('1')\nc.f = c.say\n", "c", "c.f(x)"),
    "an attribute by a name that is made": (CLIENT, "C('1')", "getattr(c, x.replace('x', 'n'))"),
    "a property": (
        "class C:\n def __init__(self, n): self._n = n\n @property\n def n(self): return self._n\n",
        "C('1')",
        "c.n",
    ),
}
PLACES = {
    "a global": "c = {made}\ndef ask(x): return {say}\ndef call(): return ask('x')\n",
    "an argument": "def ask(c, x='x'): return {say}\ndef call(): return ask({made})\n",
    "self": "class J:\n def __init__(self, c): self.c = c\n def ask(self, x='x'):\n  c = self.c\n  return {say}\n"
    "ask = J.ask\ndef call(): return ask(J({made}))\n",
    "a default": "def ask(x='x', c={made}): return {say}\ndef call(): return ask()\n",
    "a closure": "def make(c):\n def ask(x): return {say}\n return ask\nask = make({made})\n"
    "def call(): return ask('x')\n",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("about", KINDS)
def test_an_object_of_ones_own_counts_by_what_it_holds(
    responses: Responses, stash: Stash, about: str, place: str
) -> None:
    source, made, say = KINDS[about]
    text = source + PLACES[place].replace("{made}", made).replace("{say}", say)
    for n in "121":
        program = made_program(text.replace("1", n))
        expected = program["call"]()
        assert n in expected
        program["ask"] = responses.cached(program["ask"])
        assert [program["call"](), program["call"]()] == [expected] * 2
    assert dict(stash.stats.misses) == {"absent": 2}


@pytest.mark.parametrize("change", ["c.n = '2'", "c.__class__ = D", "C.say = D.say", "c.more = 1", "del c.n"])
def test_a_change_in_place_counts_at_once(responses: Responses, stash: Stash, change: str) -> None:
    source = CLIENT + "class D(C):\n n = 'd'\n def say(self, x): return 'D' + x\nC.n = 'c'\nc = C('1')\n"
    program = made_program(source + "def ask(x): return c.say(x)\ndef of(c): return c.say('x')")
    plain = program["ask"]
    ask, of = responses.cached(program["ask"]), responses.cached(program["of"])
    assert [ask("x"), of(program["c"])] == ["1x", "1x"]
    exec(change, program)
    assert [ask("x"), of(program["c"])] == [plain("x")] * 2
    assert dict(stash.stats.misses) == {"absent": 4}


def test_equal_objects_are_one(responses: Responses, stash: Stash) -> None:
    program = made_program(CLIENT + "def ask(c): return c.n")
    ask = responses.cached(program["ask"])
    for _ in range(3):
        assert ask(program["C"](["1"])) == ["1"]
    assert stash.stats.hits == 2


def test_which_member_of_a_set_another_attribute_is_counts(responses: Responses, stash: Stash) -> None:
    source = (
        "AT = {}\nclass C:\n def __init__(self, n): self.n = n\n def __hash__(self): return AT[self.n]\n"
        "class D:\n def __init__(self, first):\n  AT.update(a=first == 'b', b=first == 'a')\n  a, b = C('a'), C('b')\n"
        "  self.all, self.first = {a, b}, a if first == 'a' else b\ndef ask(d): return d.first.n\n"
    )
    program = made_program(source)
    ask = responses.cached(harmless=["AT"])(program["ask"])
    for first in "abab":
        assert ask(program["D"](first)) == first


def test_none_of_its_code_runs(responses: Responses, stash: Stash) -> None:
    program = made_program(
        "RUN = []\nclass C:\n def __getattr__(self, name): RUN.append(name)\n"
        " def __getattribute__(self, name):\n  RUN.append(name)\n  return object.__getattribute__(self, name)\n"
        " @property\n def p(self): RUN.append('p')\n @property\n def __class__(self): RUN.append('class')\n"
        " def __eq__(self, other): RUN.append('eq')\n def __hash__(self): RUN.append('hash')\n"
        " def __bool__(self): RUN.append('bool')\n def __len__(self): RUN.append('len')\n"
        "c = C()\nobject.__setattr__(c, 'n', 1)\ndef ask(x): return [x is c, c is None]\n"
    )
    ask = responses.cached(harmless=["RUN"])(program["ask"])
    assert [ask(program["c"]) for _ in range(2)] == [[True, False]] * 2
    assert {*program["RUN"]} <= {"__class__", "class", "__module__"}  # which `isinstance` looks up
    assert stash.stats.hits == 1


NOT_READ = {
    "an iterator": (CLIENT + "c = C(iter('a'))\n", "`c.n`: an object of builtins.str_ascii_iterator has no content"),
    "deeper": (CLIENT + "c = C(C([iter(())]))\n", "`c.n.n`: an object of builtins.tuple_iterator has no content"),
    "of a list": ("class C(list): pass\nc = C()\n", "whose base class builtins.list may hold more,"),
    "of a library": (
        "import string\nclass C(string.Formatter): pass\nc = C()\n",
        "whose base class string.Formatter may hold more,",
    ),
    "a dataclass of a library's": (
        "import string\n@dataclasses.dataclass\nclass C(string.Formatter):\n a: int = 0\nc = C()\nc.b = 1\n",
        "whose base class string.Formatter may hold more,",
    ),
    "a dict that is a property": (
        "class C:\n @property\n def __dict__(self): return {}\nc = C()\n",
        "an object of program.C has no content",
    ),
    "source text": (
        "def c(): pass\ndef ask(x): return inspect.getsource(c)[:0]\n",
        "its code names `getsource`: what that reads of code, its comments and layout, is not looked at",
    ),
}


@pytest.mark.parametrize("about", NOT_READ)
def test_what_cannot_be_told_is_named_with_what_to_do(
    responses: Responses, stash: Stash, caplog: pytest.LogCaptureFixture, about: str
) -> None:
    source, said = NOT_READ[about]
    program = made_program("def ask(x): return x if c else x\n" + source)
    with caplog.at_level(logging.WARNING):
        try:
            responses.cached(program["ask"])("x")
        except OSError:  # no file has this source
            assert about == "source text"
    assert stash.stats.misses["unsupported"] == 1
    assert said in caplog.text
    assert "lmstash.identity" not in caplog.text
    assert "Make it a dataclass" not in caplog.text


def test_what_is_read_of_source_may_be_harmless(responses: Responses, stash: Stash) -> None:
    ask = made_program("def f(): pass\ndef ask(x):\n try: return inspect.getsource(f)\n except OSError: return x")[
        "ask"
    ]
    kept = responses.cached(harmless=["getsource"])(ask)
    assert [kept("x"), kept("x")] == ["x", "x"]
    assert stash.stats.hits == 1


COUNTING = (
    "class C:\n def __init__(self, n):\n  self.n, self.calls = n, 0\n def ask(self, x):\n  self.calls += 1\n"
    "  if self.calls > 99: raise TimeoutError\n"
)


@pytest.mark.parametrize("where", ["an argument", "a global", "within another"])
def test_a_counter_in_an_object_is_told_by_its_name(
    responses: Responses, stash: Stash, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    source = COUNTING + "  return self.n + x\nc = C('1')\nclass D:\n def __init__(self): self.c = C('1')\nd = D()\n"
    asks, named = {
        "an argument": ("ask = C.ask\ndef call(): return ask(c, 'x')", "self.calls"),
        "a global": ("def ask(x): return c.ask(x)\ndef call(): return ask('x')", "c.calls"),
        "within another": ("def ask(x): return d.c.ask(x)\ndef call(): return ask('x')", "d.c.calls"),
    }[where]
    for harmless in ([], [named]):
        program = made_program(source + asks)
        program["ask"] = responses.cached(harmless=harmless)(program["ask"])
        with caplog.at_level(logging.WARNING):
            assert [program["call"]() for _ in range(3)] == ["1x"] * 3
    assert stash.stats.hits >= 2
    told = [each.getMessage() for each in caplog.records if "changes while it computes" in each.getMessage()]
    assert len(told) == 1
    assert f"lmstash: `{named}`, which" in told[0]
    assert f"harmless=['{named}']" in told[0]


ADDED = {
    "a count": ("self.k = 0", "self.k += 1"),
    "tokens": ("self.k = {'in': 0}", "self.k['in'] += len(x)"),
    "a list": ("self.k = []", "self.k.append(x)"),
}
READ = {
    "by a method": "c.say(x) + str(c.k)",
    "by another function": "c.say(x) + show(c)",
    "by its name in a text": "c.say(x) + str(getattr(c, 'k'))",
    "by a name that is made": "c.say(x) + str(getattr(c, 'K'.lower()))",
    "with all others": "c.say(x) + str(vars(c))",
    "by a template": "c.say(x) + '{c.k}'.format(c=c)",
    "by a pattern": "c.say(x) + matched(c)",
}
ADDING = (
    "class C:\n def __init__(self, n):\n  self.n = n\n  BEGIN\n def say(self, x):\n  ADD\n  return self.n + x\n"
    "def show(c): return str(c.k)\ndef matched(c):\n match c:\n  case C(k=k): return str(k)\n"
)


def adding(about: str, rest: str) -> dict[str, Any]:
    return made_program(ADDING.replace("BEGIN", ADDED[about][0]).replace("ADD", ADDED[about][1]) + rest)


@pytest.mark.parametrize("where", ["a global", "an argument"])
@pytest.mark.parametrize("about", ADDED)
def test_what_its_code_only_adds_to_in_an_object_does_not_count(
    responses: Responses, stash: Stash, caplog: pytest.LogCaptureFixture, about: str, where: str
) -> None:
    source = "c = C('1')\ndef ask(x, c=None): return c.say(x)" if where == "an argument" else ""
    source = source or "c = C('1')\ndef ask(x, _): return c.say(x)"
    for _ in range(2):
        program = adding(about, source)
        ask = responses.cached(program["ask"])
        for x in "abc":
            assert ask(x, program["c"] if where == "an argument" else 0) == f"1{x}"
    assert (stash.stats.hits, dict(stash.stats.misses)) == (3, {"absent": 3})
    assert not caplog.records


@pytest.mark.parametrize("read", READ)
@pytest.mark.parametrize("about", ADDED)
def test_what_any_code_reads_of_it_counts(responses: Responses, about: str, read: str) -> None:
    source = f"c = C('1')\ndef ask(x): return {READ[read]}\ndef of(c, x): return {READ[read]}"
    plain, kept = adding(about, source), adding(about, source)
    ask, of = responses.cached(kept["ask"]), responses.cached(kept["of"])
    for _ in range(3):
        assert ask("x") == plain["ask"]("x")
        assert of(kept["c"], "x") == plain["of"](plain["c"], "x")


def test_what_a_dataclass_counts_is_a_field_that_a_library_may_read(responses: Responses) -> None:
    source = (
        "@dataclasses.dataclass(repr=False, eq=False)\nclass C:\n k: int = 0\n def add(self): self.k += 1\n"
        "c = C()\ndef ask(x):\n c.add()\n return str(dataclasses.asdict(c))"
    )
    plain, ask = made_program(source)["ask"], responses.cached(made_program(source)["ask"])
    assert [ask("x") for _ in range(3)] == [plain("x") for _ in range(3)]


def test_many_classes_whose_code_names_all_of_their_objects_are_read_once(responses: Responses, stash: Stash) -> None:
    source = "".join(
        f"class C{n}:\n def __init__(self): self.n = {n}\n def f(self): return [each.n for each in ALL]\n"
        for n in range(40)
    )
    source += f"ALL = [{', '.join(f'C{n}()' for n in range(40))}]\ndef ask(x): return ALL[int(x)].f()"
    program = made_program(source)
    ask = responses.cached(program["ask"])
    began = time.perf_counter()
    assert [ask(x)[3] for x in "0101"] == [3] * 4
    assert time.perf_counter() - began < 5
    program["ALL"][5].n = 7
    assert ask("0")[5] == 7
    assert stash.stats.hits == 2


def test_a_chain_of_objects_that_share_others_is_read_once(responses: Responses, stash: Stash) -> None:
    program = made_program(CLIENT + "c = C('1')\nfor _ in range(30): c = C([c, c])\ndef ask(x): return [c and x]")
    ask: Any = responses.cached(program["ask"])
    assert [ask("x"), ask("x")] == [["x"], ["x"]]
    assert stash.stats.hits == 1
