"""What comes to be while a program runs, or is changed in place, counts from then on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lmstash.caches.responses import Responses

from ..conftest import made_program


def test_the_order_of_a_dict_that_changes_in_place_counts(responses: Responses) -> None:
    program = made_program("D = ({'a': 1, 'b': 2},)\ndef ask(x): return [*D[0]]")
    ask = responses.cached(program["ask"])
    assert ask("x") == ["a", "b"]
    program["D"][0]["a"] = program["D"][0].pop("a")
    assert ask("x") == ["b", "a"]


LATER = {
    "a registered function": (
        "@functools.singledispatch\ndef f(x): return '1'\ndef ask(x): return f(x)",
        "f.register(str, lambda x: '2')",
    ),
    "a registered method": (
        "class A:\n @functools.singledispatchmethod\n def f(self, x): return '1'\ndef ask(x): return A().f(x)",
        "A.__dict__['f'].register(str, lambda self, x: '2')",
    ),
    "a member's attribute": ("class E(enum.Enum):\n A = 0\nE.A.n = '1'\ndef ask(x): return E.A.n", "E.A.n = '2'"),
    "a function's attribute": ("def f(): pass\nf.n = '1'\ndef ask(x): return f.n", "f.n = '2'"),
    "a list that is a function's attribute": (
        "def f(): pass\nf.n = ['1']\ndef ask(x): return f.n[0]",
        "f.n[0] = '2'",
    ),
    "a dict within a function's attribute": (
        "def f(): pass\nf.n = {'a': ['1']}\ndef ask(x): return f.n['a'][0]",
        "f.n['a'][0] = '2'",
    ),
    "what an annotation says beside a type": (
        "A = Annotated[str, {'a': ['1']}]\ndef f(a: A): pass\n"
        "def ask(x): return typing.get_type_hints(f, include_extras=True)['a'].__metadata__[0]['a'][0]",
        "A.__metadata__[0]['a'][0] = '2'",
    ),
    "what an alias says beside a type": (
        "A = Annotated[str, ['1']]\ndef ask(x): return A.__metadata__[0][0]",
        "A.__metadata__[0][0] = '2'",
    ),
    "a field's metadata": (
        "@dataclasses.dataclass\nclass D:\n a: int = dataclasses.field(default=1, metadata={'a': ['1']})\n"
        "def ask(x): return dataclasses.fields(D)[0].metadata['a'][0]",
        "dataclasses.fields(D)[0].metadata['a'][0] = '2'",
    ),
    "a docstring": ("def f(): '1'\ndef ask(x): return f.__doc__", "f.__doc__ = '2'"),
    "an annotation": ("def f(a: '1'): pass\ndef ask(x): return f.__annotations__['a']", "f.__annotations__['a'] = '2'"),
    "an annotation, all new": (
        "def f(a: '1'): pass\ndef ask(x): return f.__annotations__['a']",
        "f.__annotations__ = {'a': '2'}",
    ),
    "a global": ("def ask(x):\n try: return N\n except NameError: return '1'", "N = '2'"),
    "a global that a text names": ("def ask(x): return globals().get('N', '1')", "N = '2'"),
    "a builtin's name": ("def ask(x): return str(len(x))", "def len(x): return 2"),
    "a function's first attribute": ("def f(): pass\ndef ask(x): return getattr(f, 'n', '1')", "f.n = '2'"),
    "a module's attribute": (
        "import types\nm = types.ModuleType('lmstash_test_m')\ndef ask(x): return getattr(m, 'n', '1')",
        "m.n = '2'",
    ),
    "a module": (
        "import sys\nsys.modules.pop('lmstash_test_late', 0)\ndef ask(x):\n try: import lmstash_test_late as m\n"
        " except ImportError: return '1'\n return m.n",
        "import types\nsys.modules['lmstash_test_late'] = m = types.ModuleType('lmstash_test_late')\nm.n = '2'",
    ),
    "a variable that a function closes over": (
        "def make():\n def put(what):\n  nonlocal n\n  n = what\n def ask(x):\n  try: return n\n"
        "  except NameError: return '1'\n if 0: n = 0\n return ask, put\nask, put = make()",
        "put('2')",
    ),
    "a keyword's default": ("def f(*, n='1'): return n\ndef ask(x): return f()", "f.__kwdefaults__['n'] = '2'"),
    "an event": ("import threading\ne = threading.Event()\ndef ask(x): return str(1 + e.is_set())", "e.set()"),
    "a subclass": (
        "class A: pass\nclass B(A):\n n = '1'\ndef ask(x): return A.__subclasses__()[-1].n",
        "class C(A):\n n = '2'",
    ),
}


def test_an_attribute_of_an_argument_and_of_a_cached_function_changes_in_place(responses: Responses) -> None:
    program = made_program("def f(): pass\ndef g(x): return x\ndef ask(x): return str([*x.n, *g.n])")
    f = program["f"]
    program["g"] = responses.cached(program["g"])
    f.n, program["g"].n = ["a"], ["b"]
    ask = responses.cached(program["ask"])
    assert [ask(f), ask(f)] == ["['a', 'b']"] * 2
    f.n.append("c")
    assert ask(f) == "['a', 'c', 'b']"
    program["g"].n.append("d")
    assert ask(f) == "['a', 'c', 'b', 'd']"


@pytest.mark.parametrize("about", LATER)
def test_what_is_put_there_while_the_program_runs_is_seen(responses: Responses, about: str) -> None:
    source, later = LATER[about]
    program = made_program(source)
    ask = responses.cached(program["ask"])
    assert [ask("x"), ask("x")] == ["1", "1"]
    exec(later, program)
    assert ask("x") == "2"


def test_a_file_of_your_own_under_a_name_of_python_s_counts_before_it_is_imported(
    responses: Responses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    ask = responses.cached(made_program("def ask(x):\n import nturl2path\n return nturl2path.WORD")["ask"])
    for n in "12":
        (tmp_path / "nturl2path.py").write_text(f"WORD = '{n}'")
        monkeypatch.delitem(sys.modules, "nturl2path", raising=False)
        assert ask("x") == n
    monkeypatch.delitem(sys.modules, "nturl2path")
