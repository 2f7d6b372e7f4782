"""What a call changes of what it goes by: an answer that came with that is not kept, since a hit would not do it."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from lmstash.caches.responses import Responses
from lmstash.stash import Stash

from ..conftest import made_program

CHANGED = {
    "a conversation": (
        "class C:\n def __init__(self): self.turns = []\n def ask(self, x):\n  self.turns.append(x)\n"
        "  return ' '.join(self.turns)\nc = C()\nask = C.ask\ndef call(x): return ask(c, x)",
        "self.turns",
    ),
    "a conversation with a client that nobody can read": (
        "import socket\nclass C:\n def __init__(self): self.turns, self.client = [], None\n def ask(self, x):\n"
        "  if self.client is None: self.client = socket.socket()\n  self.turns.append(x)\n"
        "  return ' '.join(self.turns)\nc = C()\nask = C.ask\ndef call(x): return ask(c, x)",
        "self.turns",
    ),
    "what it answered last": (
        "class C:\n def __init__(self): self.last = None\n def ask(self, x):\n  x = f'{self.last} {x}'\n"
        "  self.last = x\n  return x\nc = C()\nask = C.ask\ndef call(x): return ask(c, x)",
        "self.last",
    ),
    "a list that is handed over": (
        "turns = []\ndef ask(given, x):\n given.append(x)\n return ' '.join(given)\ndef call(x): return ask(turns, x)",
        "given",
    ),
    "a dict within a list": (
        "turns = [{}]\ndef ask(given, x):\n given[0][x] = len(given[0])\n return str(given)\n"
        "def call(x): return ask(turns, x)",
        "given",
    ),
    "a global": (
        "LAST = {}\ndef ask(x):\n LAST[x] = len(LAST)\n return str(LAST)\ndef call(x): return ask(x)",
        "LAST",
    ),
    "a global that another one reads": (
        "N = 0\ndef ask(x):\n global N\n N += 1\n return show(x)\ndef show(x): return x * N\n"
        "def call(x): return ask(x)",
        "N",
    ),
    "an object in the place of another": (
        "class S:\n def __init__(self, t): self.t = t\ns = S('')\n"
        "def ask(x):\n global s\n s = S(s.t + x)\n return s.t\ndef call(x): return ask(x)",
        "s",
    ),
    "objects in a global list": (
        "class T:\n def __init__(self, x): self.x = x\nTURNS = []\n"
        "def ask(x):\n TURNS.append(T(x))\n return ' '.join(each.x for each in TURNS)\ndef call(x): return ask(x)",
        "TURNS",
    ),
    "an object where there was none": (
        "class T:\n def __init__(self, x): self.x = x\n"
        "class C:\n def __init__(self): self.last = None\n def ask(self, x):\n"
        "  x = f'{self.last and self.last.x} {x}'\n  self.last = T(x)\n  return x\n"
        "c = C()\nask = C.ask\ndef call(x): return ask(c, x)",
        "self.last",
    ),
    "a sample that is filled in": (
        "class O:\n def __init__(self, x): self.x = x\n"
        "class S:\n def __init__(self): self.n, self.out = 0, None\n"
        "def ask(s):\n s.out = O(s.n)\n return str(s.n)\n"
        "def call(x):\n s = S()\n return ask(s) + str(s.out and s.out.x)",
        "s.out",
    ),
    "what is made at first use and added to": (
        "class M:\n def __init__(self): self.said = []\n"
        "class C:\n def __init__(self): self.m = None\n def ask(self, x):\n"
        "  if self.m is None: self.m = M()\n  self.m.said.append(x)\n  return ' '.join(self.m.said)\n"
        "c = C()\nask = C.ask\ndef call(x): return ask(c, x)",
        "self.m",
    ),
    "a conversation that calls itself": (
        "class C:\n def __init__(self): self.turns = []\n def ask(self, x):\n  self.turns.append(x)\n"
        "  return self.ask('z') if x == 'a' else ' '.join(self.turns)\nc = C()\nask = C.ask\n"
        "def call(x):\n C.ask = ask\n return c.ask(x)",
        "self.turns",
    ),
    "a default": ("def ask(x, seen=[]):\n seen.append(x)\n return ' '.join(seen)\ndef call(x): return ask(x)", "seen"),
}


@pytest.mark.parametrize("how", CHANGED)
def test_a_program_goes_on_with_the_state_that_it_has_without_a_cache(
    responses: Responses, stash: Stash, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    source, name = CHANGED[how]
    plain = [*map(made_program(source)["call"], "aab")]
    for _ in range(2):
        program = made_program(source)
        program["ask"] = responses.cached(program["ask"])
        with caplog.at_level(logging.WARNING):
            assert [*map(program["call"], "aab")] == plain
    assert stash.stats.hits == 0
    assert stash.stats.drops["input_changed"] + stash.stats.misses["unsupported"] >= 4
    (told,) = [each.getMessage() for each in caplog.records if "is not kept" in each.getMessage()]
    assert f"`{name}`" in told
    is_argument = name in ("given", "seen")
    assert ("change a copy" in told) == is_argument  # what is named harmless would not count at all
    assert (f"harmless=['{name}']" in told) != is_argument


MADE = {
    "a client that nobody can read where there was none": (
        "import socket\nclass C:\n def __init__(self): self.s = None\n def ask(self, x):\n"
        "  if self.s is None: self.s = socket.socket()\n  return x\nask = C.ask\ndef call(x): return ask(C(), x)"
    ),
    "a client where there was none": (
        "class S:\n def say(self, x): return x\n"
        "class C:\n def __init__(self): self.s = None\n def ask(self, x):\n  if self.s is None: self.s = S()\n"
        "  return self.s.say(x)\nask = C.ask\ndef call(x): return ask(C(), x)"
    ),
    "a text of a file where there was none": (
        "class C:\n def __init__(self): self.p = None\n def ask(self, x):\n"
        "  if self.p is None: self.p = str(len(__name__))\n  return self.p + x\n"
        "ask = C.ask\ndef call(x): return ask(C(), x)"
    ),
    "a global text where there was none": (
        "p = None\ndef prompt():\n global p\n if p is None: p = 'p'\n return p\n"
        "def ask(x): return prompt() + x\ndef call(x): return ask(x)"
    ),
    "a property": (
        "import functools\nclass C:\n @functools.cached_property\n def p(self): return 'p'\n"
        " def ask(self, x): return self.p + x\nask = C.ask\ndef call(x): return ask(C(), x)"
    ),
    "a global where there was none": (
        "class S:\n def say(self, x): return x\ns = None\n"
        "def ask(x):\n global s\n if s is None: s = S()\n return s.say(x)\ndef call(x): return ask(x)"
    ),
    "a copy of a list": (
        "def ask(given, x):\n given = [*given, x]\n return ' '.join(given)\ndef call(x): return ask([], x)"
    ),
    "a count": ("N = 0\ndef ask(x):\n global N\n N += 1\n return x\ndef call(x): return ask(x)"),
    "what is remembered": (
        "import functools\n@functools.lru_cache\ndef of(x): return x\n"
        "def ask(x): return of(x)\ndef call(x): return ask(x)"
    ),
    "places in a queue": (
        "import asyncio, threading\nclass C:\n def __init__(self):\n"
        "  self.s, self.t, self.lock = asyncio.Semaphore(2), threading.Semaphore(2), threading.Lock()\n"
        " def ask(self, x):\n  self.t.acquire()\n  self.lock.acquire()\n  return x\nask = C.ask\n"
        "def call(x): return ask(C(), x)"
    ),
}


@pytest.mark.parametrize("how", MADE)
def test_what_is_made_at_first_use_does_not_keep_an_answer_from_being_kept(
    responses: Responses, stash: Stash, how: str
) -> None:
    for _ in range(2):
        program = made_program(MADE[how])
        program["ask"] = responses.cached(program["ask"])
        said = program["call"]("x")
        assert said == made_program(MADE[how])["call"]("x")
    assert stash.stats.hits == 1


def test_an_edit_of_a_file_while_it_is_read_is_not_kept_under_the_old_text(
    responses: Responses, stash: Stash, tmp_path: Path
) -> None:
    file = tmp_path / "p.txt"
    file.write_text("old")
    source = (
        f"import pathlib\nfirst = [1]\ndef edit(path): path.write_text('new')\n"
        f"def ask(x):\n if first: edit(pathlib.Path({str(file)!r}))\n return open({str(file)!r}).read()"
    )
    program = made_program(source)
    ask = responses.cached(harmless=["first"])(program["ask"])
    assert ask("x") == "new"
    program["first"].clear()
    file.write_text("old")
    assert ask("x") == "old"
    assert stash.stats.hits == 0


def test_a_call_that_is_awaited_is_kept_only_if_it_changed_nothing(responses: Responses, stash: Stash) -> None:
    program = made_program("turns = []\nasync def ask(given, x):\n given.append(x)\n return ' '.join(given)")
    ask: Any = responses.cached(program["ask"])

    async def talk() -> list[str]:
        given: list[str] = []
        return [await ask(given, x) for x in "ab"]

    assert asyncio.run(talk()) == asyncio.run(talk()) == ["a", "a b"]
    assert stash.stats.hits == 0


def test_what_is_harmless_may_change(responses: Responses, stash: Stash) -> None:
    program = made_program("def ask(given, x):\n given.append(x)\n return x")
    ask = responses.cached(harmless=["given"])(program["ask"])
    assert [ask([], "a"), ask([1], "a")] == ["a", "a"]
    assert stash.stats.hits == 1


def test_calls_side_by_side_are_kept_since_nobody_knows_which_changed_what(responses: Responses, stash: Stash) -> None:
    source = (
        "import asyncio\nclass C:\n def __init__(self): self.found = []\n async def ask(self, x):\n"
        "  await asyncio.sleep(0.01)\n  return x\n async def note(self, x): self.found.append(await self.ask(x))\n"
        " def report(self): return sorted(self.found)"
    )

    async def run() -> Any:
        program = made_program(source)
        program["C"].ask = responses.cached(program["C"].ask)
        c = program["C"]()
        await asyncio.gather(*map(c.note, "abcd"))
        return c.report()

    assert asyncio.run(run()) == [*"abcd"]
    assert not stash.stats.drops


def test_a_file_that_an_argument_names_and_the_call_writes_is_state(
    responses: Responses, stash: Stash, tmp_path: Path
) -> None:
    source = (
        "def ask(path, x):\n with open(path) as file: text = file.read() + x\n"
        " with open(path, 'w') as file: file.write(text)\n return text"
    )
    for _ in range(2):
        (tmp_path / "memory.txt").write_text("")
        ask = responses.cached(made_program(source)["ask"])
        assert [ask(str(tmp_path / "memory.txt"), x) for x in "ab"] == ["a", "ab"]
    assert stash.stats.hits == 0


def test_what_leads_to_objects_without_end_is_refused_once(
    responses: Responses, caplog: pytest.LogCaptureFixture
) -> None:
    program = made_program(
        "class N:\n def __init__(self, n): self.n = n\nn = None\nfor _ in range(3000): n = N(n)\n"
        "def ask(x): return x + str(n)[:0]"
    )
    ask = responses.cached(program["ask"])
    assert [ask("a"), ask("a")] == ["a", "a"]
    assert len(caplog.records) == 1
