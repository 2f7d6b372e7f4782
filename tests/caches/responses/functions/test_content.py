"""Whatever a cached function leads to and may look at is part of its name, or its calls are not cached."""

from __future__ import annotations

import builtins
import logging
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from lmstash.caches.responses import Responses
from lmstash.identity.code.owners import version_of
from lmstash.stash import Stash

from ..conftest import library, made_program

EDITS = {
    "a registered function": "@functools.singledispatch\ndef f(x): return 'o'\n@f.register\ndef _(x: str): return '1'\n"
    "def ask(x): return f(x)",
    "what singledispatch begins with": "@functools.singledispatch\ndef f(x): return '1'\ndef ask(x): return f(x)",
    "a registered method": "class A:\n @functools.singledispatchmethod\n def f(self, x): return 'o'\n @f.register\n"
    " def _(self, x: str): return '1'\ndef ask(x): return A().f(x)",
    "a context manager that decorates": "class C(contextlib.ContextDecorator):\n"
    " def __enter__(self): WORDS.append('1')\n def __exit__(self, *a): pass\nWORDS = []\n@C()\n"
    "def f(x): return WORDS.pop()\ndef ask(x): return f(x)",
    "an object in an enum": "@dataclasses.dataclass(frozen=True)\nclass S:\n n: str\nclass E(enum.Enum):\n A = S('1')\n"
    "def ask(x): return E.A.value.n",
    "a function in an enum": "class E(enum.Enum):\n A = enum.member(lambda: '1')\ndef ask(x): return E.A.value()",
    "which value is whose in an enum": "class E(enum.Enum):\n A = '1'\n B = str(3 - int(A))\n"
    "def ask(x): return E.A.value",
    "an attribute of a member": "class E(enum.Enum):\n A = 'a'\nE.A.more = '1'\ndef ask(x): return E.A.more",
    "an attribute of a function": "def f(): pass\nf.template = '1'\ndef ask(x): return f.template",
    "a metaclass": "class M(type):\n def __getattr__(cls, name): return '1'\nclass C(metaclass=M): pass\n"
    "def ask(x): return C.anything",
    "a subclass": "class A: pass\nclass B(A):\n n = '1'\ndef ask(x): return A.__subclasses__().pop().n",
    "a docstring": "class A:\n 'You are 1.'\ndef ask(x): return A.__doc__",
    "a docstring given later": "def f(): pass\nf.__doc__ = '1'\ndef ask(x): return f.__doc__",
    "an annotation": "def f(a: Literal['1']): pass\ndef ask(x): return str(inspect.signature(f))",
    "an annotation with more": "def f(a: Annotated[int, '1']): pass\ndef ask(x): return str(f.__annotations__)",
    "a typed dict": "class T(TypedDict):\n a: Literal['1']\ndef ask(x): return str(T.__annotations__)",
    "a field's type": "@dataclasses.dataclass\nclass D:\n a: Literal['1']\ndef ask(x): return str(D.__annotations__)",
    "a field's metadata": "@dataclasses.dataclass\nclass D:\n a: int = dataclasses.field(metadata={'say': '1'})\n"
    "def ask(x): return dataclasses.fields(D)[0].metadata['say']",
    "what an annotation's text stands for": "Kind = Literal['1']\ndef f(a: 'Kind'): pass\n"
    "def ask(x): return str(typing.get_type_hints(f))",
    "a class that an annotation names": "class A:\n n = '1'\ndef f(a: list[A]): pass\n"
    "def ask(x): return typing.get_type_hints(f)['a'].__args__[0].n",
    "an alias": "Kind = Literal['1']\ndef ask(x): return str(Kind)",
    "a default factory": "@dataclasses.dataclass\nclass D:\n a: str = dataclasses.field(default_factory=lambda: '1')\n"
    "def ask(x): return D().a",
    "a named tuple's default": "class N(NamedTuple):\n a: str = '1'\ndef ask(x): return N().a",
    "a partial": "def f(a): return a\ng = functools.partial(f, '1')\ndef ask(x): return g()",
    "a partial of a function that remembers": "@functools.cache\ndef f(a): return a\ng = functools.partial(f, '1')\n"
    "def ask(x): return g()",
    "what a function that remembers bears": "@functools.lru_cache\ndef f(): pass\nf.n = '1'\ndef ask(x): return f.n",
    "a property of your own kind": "class P(property):\n def __get__(self, *a): return '1'\nclass A:\n"
    " f = P(len)\ndef ask(x): return A.f",
    "an attribute by a name that is made": "def f(): pass\nf.template = '1'\n"
    "def ask(x): return getattr(f, 'templat' + x.replace('x', 'e'))",
    "an attribute of an object's function": "@dataclasses.dataclass\nclass C:\n n: str\ndef ask(x):\n"
    " return vars(L[0])['c' + x].n\nask.cx = C('1')\nL = [ask]",
    "what a dataclass holds as a list": "@dataclasses.dataclass\nclass C(list):\n n: str = 'n'\nc = C()\n"
    "c.append('1')\ndef ask(x): return c[0]",
    "a slot that is no field": "class B:\n __slots__ = ('m',)\n@dataclasses.dataclass(slots=True)\nclass C(B):\n"
    " n: str = 'n'\nc = C()\nc.m = '1'\ndef ask(x): return c.m",
    "which mark it is": "A, B = object(), object()\nM = [A, B][2 - 1]\ndef ask(x): return '2' if M is A else '1'",
    "the source of a function": "def f():\n return '1'\ndef ask(x):\n try: return inspect.getsource(f)\n"
    " except OSError: return f()",
    "the name of a global in a text": "PROMPT = '1'\ndef ask(x): return globals()['PROMPT']",
    "a global in a template": "ROLE = '1'\nPROMPT = 'Be {ROLE}.'\ndef ask(x): return PROMPT.format(**globals())",
    "a global in a template, by a helper": "ROLE = '1'\ndef fill(p): return p.format_map(globals())\n"
    "def ask(x): return fill('Be {ROLE}.')",
    "a global in a template of Python's own": "import string\nROLE = '1'\nT = string.Template('Be $ROLE.')\n"
    "def ask(x): return T.substitute(globals())",
    "a global in code that is a text": "ROLE = '1'\ndef ask(x): return eval('ROLE + x')",
    "a function's attribute in a template": "def f(): pass\nf.n = '1'\ndef ask(x): return '{f.n}'.format(f=f)",
}
UNREADABLE = {
    *("a context manager that decorates", "what a dataclass holds as a list", "the source of a function"),
}


@pytest.mark.parametrize("about", EDITS)
def test_an_edit_of_what_a_function_leads_to_is_another_function(
    responses: Responses, stash: Stash, about: str
) -> None:
    for n in "121":
        ask = responses.cached(made_program(EDITS[about].replace("1", n))["ask"])
        assert n in ask("x")
        assert n in ask("x")
    expected = {"unsupported": 6} if about in UNREADABLE else {"absent": 2}
    assert dict(stash.stats.misses) == expected


ORDERS = {
    "a global": "D = {ITEMS}\ndef ask(x): return [*D]",
    "a list": "D = [{ITEMS}]\ndef ask(x): return [*D[0]]",
    "a default": "def ask(x, d={ITEMS}): return [*d]",
    "a default of a function within": "def f(d={ITEMS}): return [*d]\ndef ask(x): return f()",
    "a class": "class C:\n d = {ITEMS}\ndef ask(x): return [*C.d]",
    "a closure": "def make(d):\n def ask(x): return [*d]\n return ask\nask = make({ITEMS})",
    "attributes": "C = type('C', (), {ITEMS})\ndef ask(x): return [n for n in vars(C) if n in 'ab']",
}


@pytest.mark.parametrize("about", ORDERS)
def test_the_order_of_dicts_that_code_names_counts(responses: Responses, about: str) -> None:
    for items, said in (("'a': 1, 'b': 2", ["a", "b"]), ("'b': 2, 'a': 1", ["b", "a"])):
        assert responses.cached(made_program(ORDERS[about].replace("ITEMS", items))["ask"])("x") == said


def test_a_class_and_a_function_that_are_arguments_count_by_all_that_they_say(responses: Responses) -> None:
    sources = [
        "class T(TypedDict):\n 'N'\n a: int",
        "class T(TypedDict):\n a: Literal['N']",
        "def T(a: Literal['N']): 'Says.'",
        "def T(): pass\nT.n = 'N'",
        "@dataclasses.dataclass(frozen=True)\nclass S:\n n: str\nclass E(enum.Enum):\n A = S('N')\nT = E.A",
    ]
    ask = responses.cached(made_program("def ask(what, look): return look(what)")["ask"])

    def look(what: Any) -> str:
        value = getattr(what, "value", None)
        return f"{what.__doc__} {getattr(what, '__annotations__', 0)} {getattr(what, 'n', 0)} {getattr(value, 'n', 0)}"

    for source in sources:
        for n in "12":
            assert n in ask(made_program(source.replace("N", n))["T"], look)


def test_a_function_under_a_wrapper_of_a_library_counts_by_its_own_code(responses: Responses, stash: Stash) -> None:
    pydantic = pytest.importorskip("pydantic")
    for n in "12":
        program = made_program(f"def ask(x: str): return '{n}'")
        assert responses.cached(pydantic.validate_call(program["ask"]))("x") == n
        inner = pydantic.validate_call(program["ask"])
        outer = made_program("def ask(x): return inner(x)")
        outer["inner"] = inner
        assert responses.cached(outer["ask"])("x") == n
    assert stash.stats.misses["unsupported"] == 0


WRAPPERS = """
import functools

class Held:
    def __init__(self, fn, by): self.fn, self.by = fn, by

def bare(fn):
    held = Held(fn, None)
    def call(*args): return held.fn(*args)
    return call

def by(n):
    def wrap(fn):
        held = Held(fn, n)
        @functools.wraps(fn)
        def call(*args): return held.fn(*args) + (held.by if isinstance(held.by, str) else held.by())
        return call
    return wrap
"""


def test_a_wrapper_of_a_library_that_hides_its_function_is_not_cached(
    responses: Responses, stash: Stash, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrappers = library(tmp_path, monkeypatch, "lmstash_test_bare", WRAPPERS)
    for n in "12":
        outer = made_program("def ask(x): return inner(x)")
        outer["inner"] = wrappers.bare(made_program(f"def ask(x): return '{n}'")["ask"])
        assert responses.cached(outer["ask"])("x") == n
    assert dict(stash.stats.misses) == {"unsupported": 2}


def test_settings_that_a_wrapper_of_a_library_holds_count(
    responses: Responses, stash: Stash, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrappers = library(tmp_path, monkeypatch, "lmstash_test_by", WRAPPERS)
    for setting in ("1", "2", lambda: "3", lambda: "4"):
        program = made_program("def ask(x): return x")
        said = setting if isinstance(setting, str) else setting()
        assert responses.cached(wrappers.by(setting)(program["ask"]))("x") == f"x{said}"
    assert dict(stash.stats.misses) == {"absent": 4}


def test_another_version_of_a_package_is_another_function(
    responses: Responses, stash: Stash, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in "121":
        held = "class Word: pass\nword = Word()\nword.__qualname__ = 'word'"
        package = library(tmp_path, monkeypatch, f"lmstash_test_v{n}", held, version=n)
        package.__name__ = package.Word.__module__ = "lmstash_test_v"
        monkeypatch.setitem(sys.modules, "lmstash_test_v", package)
        version_of.cache_clear()
        for source in ("def ask(x): return [x, m.word][0]", "word = m.word\ndef ask(x): return [x, word][0]"):
            program = {**made_program(""), "m": package}
            exec(source, program)
            assert responses.cached(program["ask"])("x") == "x"
    assert (stash.stats.hits, dict(stash.stats.misses)) == (2, {"absent": 4})


def test_the_package_that_a_function_lies_in_is_never_taken_by_its_version(
    responses: Responses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in "12":
        source = f"PROMPT = '{n}'\ndef helper(): return '{n}'\ndef ask(x): return PROMPT + helper()"
        package = library(tmp_path, monkeypatch, f"lmstash_test_own{n}", source)
        package.ask.__module__ = package.__name__ = package.ask.__globals__["__name__"] = "lmstash_test_own"
        monkeypatch.setitem(sys.modules, "lmstash_test_own", package)
        assert responses.cached(package.ask)("x") == n + n


def test_what_a_package_of_its_own_imports_when_it_runs_is_read(
    responses: Responses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = library(tmp_path, monkeypatch, "lmstash_test_prompts", "TEXT = '1'")
    program = made_program("def ask(x):\n from lmstash_test_prompts import TEXT\n return TEXT")
    program["ask"].__module__ = "lmstash_test_prompts"
    ask = responses.cached(program["ask"])
    assert ask("x") == "1"
    prompts.TEXT = "2"
    assert ask("x") == "2"


def test_what_a_module_of_your_own_makes_when_it_is_asked_counts(
    responses: Responses, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in "12":
        module = types.ModuleType("lmstash_test_lazy")
        exec(f"def __getattr__(name): return '{n}'\nP_A = '{n}'", vars(module))
        monkeypatch.setitem(sys.modules, module.__name__, module)
        for source in ("def ask(x): return m.TEXT", "def ask(x): return getattr(m, 'P_' + x)"):
            program = made_program(source)
            program["m"] = module
            assert responses.cached(program["ask"])("A") == n


def test_a_set_is_not_a_dict_that_looks_like_what_stands_for_it(responses: Responses) -> None:
    ask = responses.cached(made_program("def ask(x): return str(x)")["ask"])
    for value in ({1, 2}, {"lmstash:set": [1, 2]}, {"set": [1, 2]}, {int: 1}, {int: 2}):
        assert ask(value) == str(value)


def test_which_model_answers_within_counts(stash: Stash) -> None:
    for source in (
        "@CACHE.cached\ndef f(x): return NOTES[0]",
        "def f(x): return CACHE.get_or_compute(x, lambda: NOTES[0])",
    ):
        for n in "12":
            program = {**made_program(""), "CACHE": stash.responses(model=f"m{n}"), "NOTES": [n]}
            exec(source + "\ndef ask(x): return f(x)", program)
            ask = stash.responses(model="m").cached(program["ask"], harmless=["NOTES"])
            assert [ask("x"), ask("x")] == [n, n]


def test_what_somebody_puts_into_builtins_counts(responses: Responses, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = responses.cached(made_program("def ask(x): return LMSTASH_TEST_TEXT")["ask"])
    for text in ("1", "2"):
        monkeypatch.setattr(builtins, "LMSTASH_TEST_TEXT", text, raising=False)
        assert ask("x") == text


READS = {
    "a global": "NAME = 'LMSTASH_TEST_V'\ndef ask(x): return os.environ.get(NAME)",
    "another function": "def get(name): return os.environ.get(name)\ndef ask(x): return get('LMSTASH_TEST_V')",
    "a dict": "C = {'env': 'LMSTASH_TEST_V'}\ndef ask(x): return os.environ.get(C['env'])",
    "its end": "def ask(x, kind='lmstash'): return os.environ.get(f'{kind.upper()}_TEST_V')",
    "a default": "def ask(x, name='LMSTASH_TEST_V'): return os.environ.get(name)",
    "a class": "class C:\n V = 'LMSTASH_TEST_V'\n def get(self): return os.environ.get(self.V)\n"
    "def ask(x): return C().get()",
    "an argument": "def ask(x): return os.environ.get(x)",
    "an object": "@dataclasses.dataclass\nclass C:\n name: str\nc = C('LMSTASH_TEST_V')\n"
    "def ask(x): return os.environ.get(c.name)",
    "another name of the environment": "from os import environ as E\ndef ask(x): return E.get('LMSTASH_TEST_V')",
    "bytes": "def ask(x): return os.environb.get(b'LMSTASH_TEST_V').decode()",
    "a text with a dollar": "def ask(x): return os.path.expandvars('${LMSTASH_TEST_V}')",
    "two pieces": "PREFIX = 'LMSTASH_TEST'\ndef ask(x, name='V'): return os.environ[f'{PREFIX}_{name}']",
    "two pieces in lower case": (
        "def named(*parts): return os.environ['_'.join(each.upper() for each in parts)]\n"
        "def ask(x): return named('lmstash_test', 'v')"
    ),
    "another name of getenv": "from os import getenv as get\ndef ask(x): return get('LMSTASH_TEST_V')",
}


@pytest.mark.parametrize("about", READS)
def test_a_variable_of_the_environment_counts_wherever_its_name_stands(
    responses: Responses, stash: Stash, monkeypatch: pytest.MonkeyPatch, about: str
) -> None:
    ask = responses.cached(made_program(READS[about])["ask"])
    for value in ("one", "two"):
        monkeypatch.setenv("LMSTASH_TEST_V", value)
        assert [ask("LMSTASH_TEST_V"), ask("LMSTASH_TEST_V")] == [value, value]
    monkeypatch.setenv("LMSTASH_TEST_OTHER", "whatever")
    assert ask("LMSTASH_TEST_V") == "two"
    assert dict(stash.stats.misses) == {"absent": 2}


@pytest.mark.parametrize(
    "source",
    [
        "@dataclasses.dataclass\nclass D:\n a: list = dataclasses.field(default_factory=list)\n"
        "def ask(x): return D().a or x",
        "class N(NamedTuple):\n a: int\n b: str = 'b'\ndef ask(x, n=N(1)): return [n.b, N(2).b]",
        "NONE = object()\ndef ask(x): return x is NONE or x",
        "import threading\nL = threading.Lock()\ndef ask(x):\n with L: return x",
        "T = typing.TypeVar('T')\nclass G(typing.Generic[T]):\n def g(self) -> T: return 'x'\n"
        "def ask(x): return G[int]().g()",
        "from numpy import array_equal\ndef ask(x): return [array_equal([1], [2]), x]",
        "D = {int: str, str: len}\ndef ask(x): return D[str](x)",
        "@dataclasses.dataclass\nclass D:\n a: object = object()\ndef ask(x): return x or D.__doc__",
        "class E(enum.Flag):\n A = 1\n B = 2\ndef ask(x): return (E.A | E.B).value",
    ],
)
def test_common_programs_are_cached_and_named_alike_by_the_next_run(
    responses: Responses, stash: Stash, source: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            responses.cached(made_program(source)["ask"])("x")
    assert not caplog.records
    assert (stash.stats.hits, dict(stash.stats.misses)) == (1, {"absent": 1})
