"""Models of somebody's own: what their code goes by counts, wherever it lies and whenever it changes."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from lmms_standins import Echo, Task, evaluate, questions

from lmstash.adapters.lmms_eval import ResponseCache
from lmstash.caches import between_runs


class Asked(Echo):
    """Has each question answered by `one`; its code adds to nothing that it reads."""

    def answer(self, request: Any) -> Any:
        return str(self.one(request.args[0]))

    def one(self, question: str) -> Any:
        raise NotImplementedError


@pytest.fixture
def place(tmp_path: Path) -> str:
    return str(tmp_path / "answers")


CLIENT = "self.client = type('Client', (), {'__module__': 'openai.client'})()"
ELSEWHERE = pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "elsewhere"])
"""Whether a model is known by its attributes, or by its name, too, since it holds a client."""


def program(body: str, before: str = "", begins: str = "pass") -> dict[str, Any]:
    """Return the globals of a program with a model class `Own`, whose `one` has this body."""
    for name in ("a_program", "m_of_lmms"):
        sys.modules.setdefault(name, ModuleType(name))
    made: dict[str, Any] = {"__name__": "a_program", "Asked": Asked}
    code = f"{before}\nclass Own(Asked):\n def __init__(self):\n  super().__init__()\n  {begins}\n"
    exec(f"{code} def one(self, question):\n  {body}", made)
    return made


def ask(place: str, made: dict[str, Any], docs: list[Any] | None = None, **options: Any) -> tuple[list[Any], int]:
    return evaluate(place, made["Own"](), Task(docs or questions()), **options)


# --- what changes between two calls ---------------------------------------------------------------------------------

SWEPT = {
    "a namespace": ("from types import *\nC = SimpleNamespace(p='A')", "question + C.p", "C.p = {!r}"),
    "arguments": ("from argparse import *\nC = Namespace(p='A')", "question + C.p", "C.p = {!r}"),
    "a dataclass": (
        "from dataclasses import *\n@dataclass\nclass T:\n p: str = 'A'\nC = T()",
        "question + C.p",
        "C.p = {!r}",
    ),
    "deeper": ("class T: p = 'A'\nC = dict(a=[T()])", "question + C['a'][0].p", "C['a'][0].p = {!r}"),
    "an array": ("import numpy\nC = numpy.array([65])", "question + chr(C[0])", "C[0] = ord({!r})"),
    "a tensor": ("import torch\nC = torch.tensor([65])", "question + chr(C[0])", "C.data[0] = ord({!r})"),
}


@ELSEWHERE
@pytest.mark.parametrize("how", SWEPT)
def test_what_a_sweep_changes_among_the_globals_of_a_model_counts_at_once(
    how: str, elsewhere: bool, place: str
) -> None:
    before, said, change = SWEPT[how]
    if "torch" in before:
        pytest.importorskip("torch")
    made = program(f"return {said}", before, CLIENT if elsewhere else "pass")
    lm, task = made["Own"](), Task(questions())
    lm.task_dict["mini"] = {"test": task.docs}
    cache = ResponseCache(place, model="echo")
    for round_, value in enumerate("ABCABC"):
        exec(change.format(value), made)
        assert cache.execute(lm, "generate_until", task.requests()) == [f"Q{k}{value}" for k in range(10)]
        assert lm.n_asked == 10 * min(round_ + 1, 3)


LIVE = {
    "an attribute": ("pass", "question + self.p", "setattr(lm, 'p', {!r})"),
    "an attribute's": ("self.o = SimpleNamespace(p='')", "question + self.o.p", "setattr(lm.o, 'p', {!r})"),
    "a text of the program": ("pass", "question + P", "globals().update(P={!r})"),
    "a method": ("pass", "question + self.two()", "setattr(Own, 'two', lambda self: {!r})"),
}


@ELSEWHERE
@pytest.mark.parametrize("how", LIVE)
def test_what_is_changed_on_a_live_model_counts_at_once(how: str, elsewhere: bool, place: str) -> None:
    begins, said, change = LIVE[how]
    begins += f"; {CLIENT}" if elsewhere else ""
    made = program(f"return {said}", "from types import SimpleNamespace", begins)
    made["lm"], task = made["Own"](), Task(questions())
    made["lm"].task_dict["mini"] = {"test": task.docs}
    cache = ResponseCache(place, model="echo")
    for value in "ABAB":
        exec(change.format(value), made)
        assert cache.execute(made["lm"], "generate_until", task.requests()) == [f"Q{k}{value}" for k in range(10)]
    assert made["lm"].n_asked == 20


# --- what changes while it answers ----------------------------------------------------------------------------------

MEMORY = """class Memory:
 def __init__(self): self.said = []
 def add(self, q): self.said.append(q); return '|'.join(self.said)
"""
HISTORIES = {
    "a list": ("", "self.h = []", "self.h.append(question); return '|'.join(self.h)"),
    "the last of a list": ("", "self.h = []", "self.h.append(question); return self.h[-2:]"),
    "a text": ("", "self.h = ''", "self.h += question; return self.h"),
    "a dict": ("", "self.h = {}", "self.h[question] = 1; return [*self.h]"),
    "a number": ("", "self.h = 0", "self.h += 1; return question + 'ab'[self.h % 2]"),
    "a number that begins later": ("", "self.h = 7", "self.h += 1; return question + 'ab'[self.h % 2]"),
    "a global list": ("h = []", "pass", "h.append(question); return '|'.join(h)"),
    "a global Counter": (
        "from collections import *\nh = Counter()",
        "pass",
        "h['n'] += 1; return question + str(h['n'])",
    ),
    "a helper's list": ("h = []\ndef say(q): h.append(q); return '|'.join(h)", "pass", "return say(question)"),
    "a module's list": ("import m_of_lmms as m\nm.h = []", "pass", "m.h.append(question); return '|'.join(m.h)"),
    "a helper's reading": (
        "def say(lm): return '|'.join(lm.h)", "self.h = []", "self.h.append(question); return say(self)",
    ),
    "by its name": ("", "self.h = []", "self.h.append(question); return '|'.join(getattr(self, 'h'))"),
    "by any name": ("", "self.h = []", "self.h.append(question); return '|'.join(vars(self)['h'])"),
    "a list of the class": ("", "type(self).h = []", "self.h.append(question); return '|'.join(self.h)"),
    "a variable": (
        "def make():\n h = []\n return lambda q: h.append(q) or '|'.join(h)\nsay = make()",
        "pass", "return say(question)",
    ),
    "a default": ("def say(q, h=[]): h.append(q); return '|'.join(h)", "pass", "return say(question)"),
    "an object": (MEMORY, "self.h = Memory()", "return self.h.add(question)"),
    "an object's object": (
        f"{MEMORY}class Holder: pass", "self.h = Holder(); self.h.m = Memory()", "return self.h.m.add(question)",
    ),
    "a global object": (f"{MEMORY}h = Memory()", "pass", "return h.add(question)"),
    "an object in a list": (MEMORY, "self.h = [Memory()]", "return self.h[0].add(question)"),
    "an object made later": (
        MEMORY, "self.h = None", "self.h = self.h or Memory(); return self.h.add(question)",
    ),
    "a count": ("import itertools", "self.h = itertools.count()", "return question + 'abc'[next(self.h) % 3]"),
    "a global count": ("import itertools\nh = itertools.count()", "pass", "return question + 'abc'[next(h) % 3]"),
    "a count in a list": ("import itertools", "self.h = [itertools.count()]", "return question + str(next(self.h[0]))"),
    "a count in an object": (
        "import itertools\nclass C:\n def __init__(self): self.n = itertools.count()",
        "self.h = C()",
        "return question + str(next(self.h.n))",
    ),
    "an iterator": ("", "self.h = iter('abcdefghijkl')", "return question + next(self.h)"),
    "random.Random": ("import random", "self.h = random.Random(0)", "return question + str(self.h.random())"),
    "a generator of an object": (
        "import random\nfrom types import *", "self.h = SimpleNamespace(r=random.Random(0))",
        "return question + str(self.h.r.random())",
    ),
    "numpy's generator": (
        "import numpy", "self.h = numpy.random.default_rng(0)", "return question + str(self.h.random())",
    ),
    "torch's generator": (
        "import torch", "self.h = torch.Generator().manual_seed(0)",
        "return question + str(torch.rand(1, generator=self.h).item())",
    ),
}  # fmt: skip


@ELSEWHERE
@pytest.mark.parametrize("how", HISTORIES)
def test_answers_that_hang_on_what_was_asked_before_are_not_kept(
    how: str, elsewhere: bool, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    before, begins, body = HISTORIES[how]
    if "torch" in before:
        pytest.importorskip("torch")
    begins += f"; {CLIENT}" if elsewhere else ""
    docs = questions(6)
    for part in (docs, docs[3:], docs):
        made = program(body, before, begins)
        answers, computed = ask(place, made, part, chunk_size=2)
        lm = program(body, before, begins)["Own"]()
        lm.task_dict["mini"] = {"test": part}
        requests = Task(part).requests()
        assert computed == len(part)
        assert sorted(answers) == sorted(lm.generate_until([*requests[:2]]) + lm.generate_until([*requests[2:]]))
    assert "while it answers, and its code reads that" in caplog.text


@pytest.mark.parametrize("how", ["a list", "a dict", "a number", "a global list", "a helper's list", "a variable"])
def test_what_is_said_to_be_harmless_counts_nothing_though_its_code_reads_it(how: str, place: str) -> None:
    before, begins, body = HISTORIES[how]
    body = body.replace("return", "self.last =") + "; return question"
    for expected in (10, 0):
        assert ask(place, program(body, before, begins), harmless=["h", "last"])[1] == expected


ADDED = {
    "numbers": ("", "self.n = 0; self.t = 0.0", "self.n += 1; self.t += len(question) / 7; return question"),
    "a list": ("", "self.h = []", "self.h.append((question, [c for c in question])); return question"),
    "a dict of lists": (
        "from collections import *", "self.h = defaultdict(list)", "self.h[question[0]].append(1); return question",
    ),
    "a dict": ("", "self.h = {}", "self.h[question] = len(question); return question"),
    "a helper's list": ("h = []\ndef note(q): h.append(q)", "pass", "note(question); return question"),
    "of another's name": ("", "self.count = 0", "self.count += 1; return question + str(len(question))"),
}  # fmt: skip


@pytest.mark.parametrize("how", ADDED)
def test_what_is_only_added_to_changes_nothing(how: str, place: str) -> None:
    before, begins, body = ADDED[how]
    for expected in (10, 0, 0):
        assert ask(place, program(body, before, begins))[1] == expected


LIMITER = """import datetime, time
class Limiter:
 def __init__(self): self.last = None; self.times = []; self.used = {'tokens': 0}; self.p = open('prompt.txt').read()
 def wait(self, q):
  self.last = datetime.datetime.now(); self.times.append(time.monotonic()); self.used['tokens'] += len(q); return True
h = None
"""
DRIFTING = {
    "a time": ("self.p = open('prompt.txt').read(); self.t = None", "self.t = time.time(); return question + self.p"),
    "a limiter": (
        "self.p = open('prompt.txt').read(); self.h = Limiter()", "self.h.wait(question); return question + self.p",
    ),
    "a limiter made later": (
        "self.p = open('prompt.txt').read(); self.h = None",
        "self.t = time.time(); self.h = Limiter(); return question + self.p",
    ),
    "an object with a counter": ("self.h = Limiter()", "self.h.wait(question); return question + self.h.p"),
    "a client made later": (
        "self.p = open('prompt.txt').read(); self.client = None",
        "self.client = self.client or type('Client', (), {'__module__': 'openai.client'})(); return question + self.p",
    ),
    "a value of its class": (
        "self.p = open('prompt.txt').read(); type(self).n = 0", "type(self).n += 1; return question + self.p",
    ),
}  # fmt: skip


@ELSEWHERE
@pytest.mark.parametrize("how", DRIFTING)
def test_of_a_model_that_changes_while_it_answers_all_else_counts(
    how: str, elsewhere: bool, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begins, body = DRIFTING[how]
    begins += f"; self.other = {CLIENT.partition('= ')[2]}" if elsewhere else ""
    monkeypatch.chdir(tmp_path)
    for text, expected in (("one", 10), ("one", 0), ("two", 10), ("one", 0)):
        Path("prompt.txt").write_text(text)
        answers, computed = ask(place, program(body, LIMITER, begins), chunk_size=2)
        assert answers == [f"Q{k}{text}" for k in range(10)]
        assert computed == expected


COUNTING = """import types
class Client:
 def __init__(self, t): self.t, self.calls, self.usage = t, 0, types.SimpleNamespace(tokens=0, strict=True)
 def ask(self, question):
  self.calls += 1; self.usage.tokens += len(question)
  return f'{question}{self.t}{self.usage.strict}'
"""


@pytest.mark.parametrize("where", ["an attribute", "a global"])
def test_of_an_object_that_counts_all_but_the_counts_counts(where: str, place: str) -> None:
    """Whatever its other numbers are: a temperature, a flag."""
    one, begins = ("CLIENT.ask", "pass") if where == "a global" else ("self.c.ask", "self.c = CLIENT")
    for t, strict, computed in ((0.1, True, 10), (0.1, True, 0), (0.9, True, 10), (0.1, False, 10), (0.1, True, 0)):
        made = program(f"return {one}(question)", f"{COUNTING}\nCLIENT = Client({t})", begins)
        made["CLIENT"].usage.strict = strict
        assert ask(place, made, chunk_size=2) == ([f"Q{k}{t}{strict}" for k in range(10)], computed)


def test_a_number_that_is_changed_between_calls_counts(place: str) -> None:
    made = program("return self.c.ask(question)", f"{COUNTING}\nCLIENT = Client(1)", "self.c = CLIENT")
    lm, task = made["Own"](), Task(questions())
    lm.task_dict["mini"] = {"test": task.docs}
    cache = ResponseCache(place, model="echo", chunk_size=2)
    for t in (1, 2, 1):
        lm.c.t = t
        assert cache.execute(lm, "generate_until", task.requests()) == [f"Q{k}{t}True" for k in range(10)]
    assert lm.n_asked == 20


BEGAN = {
    "a seed that is counted up": ("self.s = 1", "self.s = {}", "self.s += 1; return 0", (1, 1000)),
    "a flag": ("self.f = False", "self.f = bool({})", "self.f = True; return 0", (0, 1)),
    "a number beside one that changes": (
        "self.s = [0, 0]",
        "self.s[0] = {}",
        "self.s[1] += 1; return self.s[0]",
        (1, 2),
    ),
}


@pytest.mark.parametrize("how", BEGAN)
def test_numbers_that_change_count_as_they_were_at_first(how: str, place: str) -> None:
    begins, change, body, values = BEGAN[how]
    source = f"class C:\n def __init__(self): {begins}\n def set(self): pass\n def ask(self): {body}"
    for value, computed in ((values[0], 10), (values[0], 0), (values[1], 10), (values[0], 0)):
        made = program("self.c.ask(); return question", source, "self.c = C()")
        lm = made["Own"]()
        exec(change.format(value).replace("self", "c"), {"c": lm.c})
        assert evaluate(place, lm, Task(questions()), chunk_size=2)[1] == computed


GROWING = {
    "tokens": ("self.ids = []", "self.ids += [len(q)]; return str(len(self.ids))"),
    "texts in a buffer": ("import io; self.b = io.StringIO()", "self.b.write(q); return self.b.getvalue()"),
    "texts in a function": (
        "self.f = remembering()", "return self.f(q)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", GROWING)
def test_a_history_in_an_object_is_noticed_whatever_it_is_kept_in(how: str, place: str) -> None:
    begins, body = GROWING[how]
    before = (
        "def remembering():\n h = []\n def f(q):\n  h.append(q)\n  return ''.join(h)\n return f\n"
        f"class C:\n def __init__(self): {begins}\n def ask(self, q): {body}"
    )
    for n_docs in (2, 10):
        made = program("return self.c.ask(question)", before, "self.c = C()")
        assert ask(place, made, questions(n_docs), chunk_size=2)[1] == n_docs


UNTOLD = {
    "a pool": "import concurrent.futures; self.c.pool = concurrent.futures.ThreadPoolExecutor(1)",
    "a database": "import sqlite3; self.c.db = sqlite3.connect(':memory:')",
    "a view": "self.c.view = memoryview(b'a')",
    "what each thread has": "import threading; self.c.local = threading.local()",
}


@ELSEWHERE
@pytest.mark.parametrize("how", UNTOLD)
def test_what_lies_beside_something_that_nobody_can_look_into_counts(how: str, elsewhere: bool, place: str) -> None:
    """Which is told, but for what says how a program runs."""
    begins = f"self.c = C; {UNTOLD[how]}"
    begins += f"; self.other = {CLIENT.partition('= ')[2]}" if elsewhere else ""
    for text, computed in (("one", 10), ("one", 0), ("two", 10), ("one", 0)):
        made = program("return question + self.c.t", "import types\nC = types.SimpleNamespace()", begins)
        made["C"].t = text
        assert ask(place, made, chunk_size=2) == ([f"Q{k}{text}" for k in range(10)], computed)


def test_when_and_where_a_model_elsewhere_was_made_counts_where_its_code_goes_by_it(place: str) -> None:
    begins = f"self.t = time.time(); self.d = tempfile.mktemp(); {CLIENT}"
    for expected in (10, 0):
        assert ask(place, program("return question", "import time, tempfile", begins))[1] == expected
    for _ in range(2):
        assert ask(place, program("return question + self.d", "import time, tempfile", begins))[1] == 10


# --- what is drawn though nothing says so ---------------------------------------------------------------------------

DRAWN = {
    "random": ("import random", "return question + str(random.random())"),
    "numpy.random": ("import numpy", "return question + str(numpy.random.rand())"),
    "torch": ("import torch", "return question + str(torch.rand(1).item())"),
}


@pytest.mark.parametrize("settled", [False, True], ids=["new model", "known model"])
@pytest.mark.parametrize("how", DRAWN)
def test_answers_that_a_model_draws_unasked_are_not_kept(
    how: str, settled: bool, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    before, body = DRAWN[how]
    pytest.importorskip(how)
    settings = ({}, {"declared": "who it is"}) if settled else ({},)
    for options in settings:
        for _ in range(3):
            assert ask(place, program(body, before), **options)[1] == 10
        assert f"Own drew at random ({how})" in caplog.text.replace("echo", "Own")
    seeded = {"generation_kwargs": {"temperature": 1, "seed": 3}}
    runs = [evaluate(place, program(body, before)["Own"](), Task(questions(), **seeded)) for _ in range(2)]
    assert runs[1] == (runs[0][0], 0)
    said = [ask(place, program(body, before), harmless=["random"]) for _ in range(2)]
    assert said[1] == (said[0][0], 0)


def test_a_client_that_draws_how_long_to_wait_answers_as_ever(place: str) -> None:
    import random

    waiting = CLIENT.replace("{", "{'ask': staticmethod(wait), ")
    for expected in (10, 0):
        made = program("self.client.ask(); return question", begins=waiting)
        made["wait"] = random.random
        assert ask(place, made)[1] == expected


def test_only_what_was_drawn_is_not_kept(place: str) -> None:
    body = "return question + str(random.random() if question == 'Q3' else '')"
    assert [ask(place, program(body, "import random"), chunk_size=2)[1] for _ in range(3)] == [10, 2, 2]


# --- files and places that attributes name ---------------------------------------------------------------------------

FILES = {
    "a text": ("", "self.p = 'prompt.txt'", "return question + open(self.p).read()"),
    "a path": ("import pathlib", "self.p = pathlib.Path('prompt.txt')", "return question + self.p.read_text()"),
    "one of several": ("", "self.p = {'a': ['none', 'prompt.txt']}", "return question + open(self.p['a'][1]).read()"),
    "among arguments": (
        "import argparse",
        "self.p = argparse.Namespace(file='prompt.txt')",
        "return question + open(self.p.file).read()",
    ),
    "by its name": ("", "self.p = 'prompt.txt'", "return question + open(getattr(self, 'p')).read()"),
    "a text in the code": ("", "pass", "return question + open('prompt.txt').read()"),
    "a global": ("P = 'prompt.txt'", "pass", "return question + open(P).read()"),
    "the class": ("", "pass; self.__class__.p = 'prompt.txt'", "return question + open(self.p).read()"),
}


@ELSEWHERE
@pytest.mark.parametrize("how", FILES)
def test_a_file_that_an_attribute_names_counts_by_what_it_holds(
    how: str, elsewhere: bool, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, begins, body = FILES[how]
    begins += f"; {CLIENT}" if elsewhere else ""
    monkeypatch.chdir(tmp_path)
    for text, expected in (("one", 10), ("one", 0), ("two", 10), ("one", 0)):
        Path("prompt.txt").write_text(text)
        answers, computed = ask(place, program(body, before, begins))
        assert answers == [f"Q{k}{text}" for k in range(10)]
        assert computed == expected


def test_a_file_that_an_argument_names_counts_by_what_it_holds(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for text, expected in (("one", 10), ("one", 0), ("two", 10), ("one", 0)):
        Path("prompt.txt").write_text(text)
        made = program("return question", begins=CLIENT)  # whatever becomes of it elsewhere
        assert ask(place, made, model_args="system_file=prompt.txt")[1] == expected
    body = "open(self.log, 'a').write('a line'); return question"
    for expected in (10, 0, 0):
        made = program(body, begins=f"self.log = 'log.txt'; {CLIENT}")
        assert ask(place, made, model_args="log=log.txt")[1] == expected


def test_a_file_that_changes_while_a_model_is_used_counts_at_once(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, begins, body = FILES["a text"]
    monkeypatch.chdir(tmp_path)
    Path("prompt.txt").write_text("one")
    lm, task = program(body, before, begins)["Own"](), Task(questions())
    lm.task_dict["mini"] = {"test": task.docs}
    cache = ResponseCache(place, model="echo")
    for text in ("one", "two", "one"):
        Path("prompt.txt").write_text(text)
        assert cache.execute(lm, "generate_until", task.requests()) == [f"Q{k}{text}" for k in range(10)]
    assert lm.n_asked == 20


def test_a_file_that_a_model_only_writes_to_does_not_count(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = "open(self.p, 'a').write('a line'); return question"
    monkeypatch.chdir(tmp_path)
    assert [ask(place, program(body, "", "self.p = 'log.txt'"))[1] for _ in range(3)] == [10, 0, 0]


def test_where_a_module_was_loaded_from_counts_where_ones_own_code_goes_by_it(place: str) -> None:
    torch = pytest.importorskip("torch")

    def module() -> Any:
        made = torch.nn.Linear(2, 2)
        torch.nn.init.zeros_(made.weight)
        torch.nn.init.zeros_(made.bias)
        return made.eval()

    def run(where: str, body: str) -> int:
        lm = program(body)["Own"]()
        lm.model, lm.pretrained = module(), where
        return evaluate(place, lm, Task(questions()))[1]

    chosen = "return question + ('chat' if 'instruct' in self.pretrained else 'base')"
    assert [run(where, chosen) for where in ("base", "instruct", "base")] == [10, 10, 0]
    assert [run(where, "return question") for where in ("base", "instruct")] == [10, 0]


@pytest.mark.parametrize("client", ["pass", "self.client = type('Client', (), {'__module__': 'openai.client'})()"])
def test_keys_that_let_requests_through_do_not_count(place: str, client: str, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "{**self.headers, 'k': self.api_key}; return question + self.headers['X']"
    for key, other, expected in (("one", "y", 10), ("two", "y", 0), ("two", "z", 10)):
        monkeypatch.setenv("MY_API_KEY", key)
        begins = f"key = os.environ['MY_API_KEY']; self.headers = {{'Authorization': key, 'X': {other!r}}}"
        assert ask(place, program(body, "import os", f"{begins}; self.api_key = key; {client}"))[1] == expected


IN_PLACE = {
    "what a session sends along": (
        "import requests; self.session = requests.Session()",
        "self.session.headers.get('X-Model', '')",
        "lm.session.headers['X-Model'] = {!r}",
    ),
    "the pixels of an image": (
        "import PIL.Image; self.image = PIL.Image.new('L', (4, 4))",
        "chr(self.image.getpixel((0, 0)))",
        "lm.image.putpixel((0, 0), ord({!r}))",
    ),
}


@pytest.mark.parametrize("how", IN_PLACE)
def test_what_changes_within_an_object_of_a_package_counts_at_once(how: str, place: str) -> None:
    begins, said, change = IN_PLACE[how]
    made = program(f"return question + {said}", begins=begins)
    lm, task = made["Own"](), Task(questions())
    lm.task_dict["mini"] = {"test": task.docs}
    cache = ResponseCache(place, model="echo")
    for value in "ABA":
        exec(change.format(value), {"lm": lm})
        assert cache.execute(lm, "generate_until", task.requests()) == [f"Q{k}{value}" for k in range(10)]
    assert lm.n_asked == 20


# --- from run to run ------------------------------------------------------------------------------------------------

IN_EACH_RUN = {
    "an attribute": ("import time; self.started = time.time()", "started"),
    "a folder": ("import tempfile; self.folder = tempfile.mkdtemp()", "folder"),
}


@ELSEWHERE
@pytest.mark.parametrize("how", IN_EACH_RUN)
def test_what_is_new_in_each_run_is_told_once_it_was_in_three(
    how: str, elsewhere: bool, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    begins, name = IN_EACH_RUN[how]
    said: list[bool] = []
    for _ in range(4):
        between_runs._noted.clear()  # as in another process
        body = f"return question + str(self.{name})[:0]"
        made = program(body, begins=f"{CLIENT}; {begins}" if elsewhere else begins)
        assert ask(place, made)[1] == 10
        said.append("had new values in each of the last 3 runs" in caplog.text)
    assert said == [False, False, True, True]
    assert f"harmless=['{name}']" in caplog.text
    assert [ask(place, made, harmless=[name])[1] for _ in range(2)] == [10, 0]
