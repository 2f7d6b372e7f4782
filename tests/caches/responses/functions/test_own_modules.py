"""What code reads from a module of one's own counts, wherever the module was handed on the way."""

from __future__ import annotations

import importlib
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest

from lmstash.caches.responses import Responses
from lmstash.identity.code.own_code import OwnCode
from lmstash.stash import Stash

from ..conftest import made_program

ONE, TWO = "lmstash_test_one", "lmstash_test_two"
HANDED = {
    "to a helper": "def build(cfg): return cfg.N\ndef ask(x): return build(one)",
    "by a keyword": "def build(settings): return settings.N\ndef ask(x): return build(settings=one)",
    "to an object": "class J:\n def __init__(self, m): self.m = m\n def say(self): return self.m.N\n"
    "def ask(x): return J(one).say()",
    "in a list": "def each(ms): return ' '.join(m.say() for m in ms)\ndef ask(x): return each([one])",
    "to a local variable": "def build(m): return m.K.N\ndef ask(x):\n m = one\n return build(m)",
    "by a function": "def pick(): return one if 1 else two\ndef ask(x): return pick().N",
    "by a property": "class J:\n @property\n def cfg(self): return one\ndef ask(x): return J().cfg.N",
    "by a dict": "def pick(): return {'one': one}['one']\ndef ask(x): return pick().N",
    "by a loop": "def say(m): return m.say()\ndef ask(x): return ' '.join(say(m) for m in (one, two))",
    "to getattr": "def get(m, n): return getattr(m, n)\ndef ask(x): return get(one, 'N')",
    "to getattr, by a made name": "def get(m, n): return getattr(m, n.upper())\ndef ask(x): return get(one, 'n')",
    "to vars": "def show(m): return str({k: v for k, v in vars(m).items() if k == 'N'})\ndef ask(x): return show(one)",
    "from an import": f"def build(m): return m.N\ndef ask(x):\n import {ONE} as m\n return build(m)",
    "to a template": "def ask(x): return 'Be {one.N}.'.format(one=one)",
    "by the table of modules": "import sys\ndef ask(x): return getattr(sys.modules['lmstash_test_one'], 'N')",
    "from within another module": "def build(m): return m.N\ndef ask(x): return build(two.inner)",
}


def _module(monkeypatch: pytest.MonkeyPatch, name: str, source: str) -> Any:
    module = types.ModuleType(name)
    exec(source, vars(module))
    monkeypatch.setitem(sys.modules, name, module)
    return module


@pytest.mark.parametrize("about", HANDED)
def test_what_is_read_from_a_module_that_is_handed_on_counts(
    responses: Responses, stash: Stash, monkeypatch: pytest.MonkeyPatch, about: str
) -> None:
    for n in "121":
        program = made_program(HANDED[about])
        source = f"N = '{n}'\ndef say(): return N\nclass K:\n N = '{n}'\n"
        program["one"] = _module(monkeypatch, ONE, source)
        program["two"] = _module(monkeypatch, TWO, source.replace(n, "0"))
        program["two"].inner = program["one"]
        assert n in responses.cached(program["ask"])("x")
    assert stash.stats.hits == 1
    assert dict(stash.stats.misses) == {"absent": 2}


def test_a_template_in_a_file_may_ask_a_module_for_any_value(
    responses: Responses, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("{one.N} {one.S.n}")
    for n in "121":
        program = made_program(f"def ask(x): return open({str(tmp_path / 'a.txt')!r}).read().format(one=one)")
        source = f"import types\nN = '{n}'\nS = types.SimpleNamespace(n={n})\nC = (x for x in 'x')"
        program["one"] = _module(monkeypatch, ONE, source)
        assert responses.cached(program["ask"])("x") == f"{n} {n}"
    assert responses.store.events.stats.hits == 1


def test_a_change_of_a_module_that_was_handed_on_counts(responses: Responses, monkeypatch: pytest.MonkeyPatch) -> None:
    program = made_program("def build(cfg): return cfg.N\ndef ask(x): return build(one)")
    program["one"] = module = _module(monkeypatch, ONE, "N = '1'")
    ask = responses.cached(program["ask"])
    assert ask("x") == "1"
    module.N = "2"
    assert ask("x") == "2"


def test_what_cannot_be_read_refuses_only_where_code_names_it(
    responses: Responses, stash: Stash, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = made_program(
        "def get(m, n): return getattr(m, n)\ndef ask(x): return get(one, 'N')\n"
        "def name(m): return str(m.client)\ndef tell(x): return name(one)"
    )
    program["one"] = _module(monkeypatch, ONE, "class C: pass\nN = '1'\nclient = (x for x in 'x')")
    ask = responses.cached(program["ask"])
    assert ask("x") == ask("x") == "1"
    assert dict(stash.stats.misses) == {"absent": 1}
    responses.cached(program["tell"])("x")
    assert stash.stats.misses["unsupported"] == 1


def test_an_attribute_with_a_name_of_its_own_does_not_bring_in_all_code_of_a_module(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for get, counts in (("getattr(m, 'N', None)", False), ("getattr(m, 'N' + n)", True)):
        program = made_program(f"def get(m, n=''): return {get}\ndef ask(x): return get(one)")
        program["one"] = _module(monkeypatch, ONE, "N = '1'\ndef other(): pass")
        units = OwnCode("program", program["ask"]).components()
        assert (f"{ONE}.other" in units) == counts


def test_a_program_of_many_modules_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    modules: dict[str, Any] = {}
    for at in reversed(range(15)):
        behind = f"m{at + 1}.f_{{n}}(x)" if modules else "x"
        lines = [f"def f_{n}(x): return getattr(x, 'usage', {behind.format(n=n)})" for n in range(10)]
        module = _module(monkeypatch, f"lmstash_test_m{at}", "\n".join(lines))
        vars(module).update(modules)
        modules[f"m{at}"] = module
    program = made_program("def ask(x): return m0.f_0(x)") | modules
    program["ask"].__globals__.update(modules)
    began = time.perf_counter()
    OwnCode("program", program["ask"])
    assert time.perf_counter() - began < 5


def test_what_only_a_template_names_and_cannot_be_read_refuses_nothing(responses: Responses, stash: Stash) -> None:
    source = "client = (x for x in 'x')\nROLE = '1'\ndef ask(x): return '{ROLE}: {client}'.format(**globals())[:1]"
    ask = responses.cached(made_program(source)["ask"])
    assert ask("x") == ask("x") == "1"
    assert dict(stash.stats.misses) == {"absent": 1}


IMPORTED = {
    "a statement": f"def ask(q):\n from {ONE} import say\n return say()",
    "a module": f"def ask(q):\n import {ONE}\n return {ONE}.say()",
    "a text": f"import importlib\ndef ask(q): return importlib.import_module('{ONE}').say()",
    "a text, by another name": f"from importlib import import_module\ndef ask(q): return import_module('{ONE}').say()",
    "a text, of old": f"def ask(q): return __import__('{ONE}').say()",
    "a text, in a function within": (
        f"import importlib\ndef ask(q):\n def inner(): return importlib.import_module('{ONE}').say()\n return inner()"
    ),
}


@pytest.mark.parametrize("about", IMPORTED)
def test_what_a_function_imports_when_it_runs_counts(
    responses: Responses, stash: Stash, monkeypatch: pytest.MonkeyPatch, about: str
) -> None:
    for n in "121":
        program = made_program(IMPORTED[about])
        _module(monkeypatch, ONE, f"def say(): return '{n}'")
        assert responses.cached(program["ask"])("x") == n
    assert stash.stats.hits == 1
    assert dict(stash.stats.misses) == {"absent": 2}


PUT_TOGETHER = {
    "a text with a place": "def ask(q): return import_module(f'lmstash_tasks.{q}').say()",
    "a sum": "def ask(q): return import_module('lmstash_tasks.' + q).say()",
    "the beginning of a module's name": "def ask(q): return import_module(f'lmstash_tasks.q{q[1:]}').say()",
    "a global": "T = 'qa'\ndef ask(q): return import_module(f'lmstash_tasks.{T}').say()",
    "a helper": "def load(t): return import_module(f'lmstash_tasks.{t}')\ndef ask(q): return load(q).say()",
    "a variable": "def ask(q):\n name = f'lmstash_tasks.{q}'\n return import_module(name).say()",
    "one of two variables": (
        "def ask(q):\n name = 'json'\n if q: name = f'lmstash_tasks.{q}'\n return import_module(name).say()"
    ),
    "a template": "def ask(q): return import_module('lmstash_tasks.{}'.format(q)).say()",
    "of old": "def ask(q): return __import__(f'lmstash_tasks.{q}', fromlist=['say']).say()",
    "from the package": "def ask(q): return import_module(f'.{q}', 'lmstash_tasks').say()",
    "from the package, by a keyword": "def ask(q): return import_module(f'.{q}', package='lmstash_tasks').say()",
    "from a package in it": "def ask(q): return import_module(f'..{q}', 'lmstash_tasks.deep').say()",
    "from its own package": "def ask(q): return import_module(f'.{q}', P).say()",
    "from its own package, beside it": "def ask(q): return import_module(f'..{q}', P + '.deep').say()",
}


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("about", PUT_TOGETHER)
def test_modules_of_which_code_says_how_their_names_begin_count(
    responses: Responses, stash: Stash, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, about: str, inner: bool
) -> None:
    package = tmp_path / "lmstash_tasks"
    place = package / "deep" if "beside" in about else package if "its own" in about else tmp_path
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    for n in "121":
        for each in [each for each in sys.modules if each.startswith("lmstash_tasks")]:
            monkeypatch.delitem(sys.modules, each)
        (package / "common.py").write_text(f"N = '{n}'")
        (package / "qa.py").write_text(
            "from .common import N\ndef say(): return N" if inner else f"def say(): return '{n}'"
        )
        importlib.invalidate_caches()
        program: dict[str, Any] = {"__name__": "program", "P": "lmstash_tasks"}
        source = "from importlib import import_module\n" + PUT_TOGETHER[about]
        exec(compile(source, str(place / "program.py"), "exec", dont_inherit=True), program)
        with monkeypatch.context() as patched:
            patched.setattr(sys, "dont_write_bytecode", True)
            ask = responses.cached(program["ask"])
            assert [ask("qa"), ask("qa")] == [n, n]
    assert stash.stats.hits == 4
    assert dict(stash.stats.misses) == {"absent": 2}


def test_what_code_writes_beside_such_modules_does_not_count(
    responses: Responses, stash: Stash, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "lmstash_tasks"
    package.mkdir()
    (package / "qa.py").write_text("def say(): return '1'")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    source = (
        f"import importlib\ndef ask(q):\n with open({str(package)!r} + f'/{{q}}.json', 'w') as f: f.write(q)\n"
        " return importlib.import_module(f'lmstash_tasks.{q}').say()"
    )
    ask = responses.cached(made_program(source)["ask"])
    assert [ask("qa"), ask("qa")] == ["1", "1"]
    assert dict(stash.stats.misses) == {"absent": 1}
    monkeypatch.delitem(sys.modules, "lmstash_tasks.qa")
    monkeypatch.delitem(sys.modules, "lmstash_tasks")


def test_of_installed_packages_no_folder_counts(responses: Responses, stash: Stash) -> None:
    program = made_program("import importlib\ndef ask(q): return importlib.import_module(f'torch.nn.{q}').__name__")
    ask = responses.cached(program["ask"])
    assert ask("init") == ask("init") == "torch.nn.init"
    assert dict(stash.stats.misses) == {"absent": 1}
