"""What your own code comes by without naming it in the same function: handed on, put together, hung on a function."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import lmstash
from lmstash.identity.models.watch import watch_model

PACKAGE = "asked_by_text_mine"
BEFORE = "import functools, importlib, operator, pkgutil, pydoc, sys\nfrom torch import Tensor, nn\n"
MINE = "class Mine(nn.Module):\n    kind = 'two'\n    def forward(self, x):\n        return {0}\n"
TWO = "def act_two(x):\n    return x * 2.0\n"

HANDED_ON: dict[str, tuple[str, str]] = {
    "to a function": (f"from {PACKAGE} import other\ndef use(x, m): return x * m.SCALE\n", "use(x, other)"),
    "by its package": (f"import {PACKAGE}.other\ndef use(x, m): return x * m.SCALE\n", f"use(x, {PACKAGE}.other)"),
    "imported when it runs": (
        f"def use(x, m): return x * m.SCALE\ndef run(x):\n    from {PACKAGE} import other\n    return use(x, other)\n",
        "run(x)",
    ),
    "to one that asks by text": (
        f"from {PACKAGE} import other\ndef use(x, m): return x * getattr(m, 'SC' + 'ALE'.upper())\n",
        "use(x, other)",
    ),
}


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., nn.Module]:
    """Write a package, and return the model in it as a new process would import it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = tmp_path / PACKAGE
    folder.mkdir()
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(code: str, returns: str, **others: str) -> nn.Module:
        for name, text in {"__init__": "", "model": BEFORE + code + MINE.format(returns), **others}.items():
            (folder / f"{name}.py").write_text(text)
        for each in [each for each in sys.modules if each.partition(".")[0] == PACKAGE]:
            del sys.modules[each]
        importlib.invalidate_caches()
        return importlib.import_module(f"{PACKAGE}.model").Mine().eval()

    return write


def hexes(build: Any, code: str, returns: str, *others: dict[str, str]) -> list[str]:
    return [lmstash.fingerprint(build(code, returns, **each)).hex for each in others]


@pytest.mark.parametrize(("code", "returns"), HANDED_ON.values(), ids=HANDED_ON)
def test_a_module_that_is_handed_on_counts_by_what_any_code_asks_of_it(build: Any, code: str, returns: str) -> None:
    texts = [{"other": f"SCALE = {by}\n"} for by in (2.0, 3.0, 2.0)]
    first, second, third = hexes(build, code, returns, *texts)
    assert first == third != second


def test_an_edit_of_a_module_that_is_handed_on_is_noticed_and_other_names_and_clients_in_it_are_not(build: Any) -> None:
    code, returns = HANDED_ON["to a function"]
    watch = watch_model(build(code, returns, other="SCALE = 2.0\nOTHER = 1\nclient = (each for each in ())\n"))
    first, other = watch.recognise().hex, sys.modules[f"{PACKAGE}.other"]
    vars(other)["OTHER"] = 2
    assert watch.recognise().hex == first
    vars(other)["SCALE"] = 3.0
    assert not watch.unchanged()
    assert watch.recognise().hex != first
    vars(other)["SCALE"] = (each for each in ())  # nobody can read it
    assert watch.refresh().hex != first


EDITS: dict[str, tuple[str, str, str, str]] = {
    "attribute of a function": ("def f(x): return x * f.s\nf.s = 2.0\n", "f(x)", "s = 2.0", "s = 3.0"),
    "by its text": ("def f(x): return x * getattr(f, 's', 1)\nf.s = 2.0\n", "f(x)", "s = 2.0", "s = 3.0"),
    "list on a function": ("def f(x): return x * f.s[0]\nf.s = [2.0]\n", "f(x)", "[2.0]", "[3.0]"),
    "order": (
        "T = {'a': 2.0, 'b': 3.0}\n",
        "[x * each for each in T.values()]",
        "{'a': 2.0, 'b': 3.0}",
        "{'b': 3.0, 'a': 2.0}",
    ),
    "order in a list": ("T = [{'a': 2, 'b': 3}]\n", "[*T[0]]", "{'a': 2, 'b': 3}", "{'b': 3, 'a': 2}"),
    "order of functions": (
        "T = {'a': lambda x: x, 'b': lambda x: -x}\n",
        "[f(x) for f in T.values()]",
        "'a': lambda x: x, 'b': lambda x: -x",
        "'b': lambda x: -x, 'a': lambda x: x",
    ),
    "order in an object": (
        "class K: pass\nk = K()\nk.a = 2; k.b = 3\n",
        "vars(k)",
        "k.a = 2; k.b = 3",
        "k.b = 3; k.a = 2",
    ),
    "order in a class": ("class K:\n    a = 2; b = 3\n", "vars(K)", "a = 2; b = 3", "b = 3; a = 2"),
    "own module by __name__": (TWO, "getattr(sys.modules[__name__], 'act_' + self.kind)(x)", "2.0", "3.0"),
    "own module by __module__": (TWO, "vars(sys.modules[self.__module__])['act_' + self.kind](x)", "2.0", "3.0"),
    "eval": (TWO, "eval('act_' + self.kind)(x)", "2.0", "3.0"),
    "singledispatch": (
        "@functools.singledispatch\ndef f(x): return x\n@f.register\ndef _(x: Tensor): return x * 2.0\n",
        "f(x)",
        "2.0",
        "3.0",
    ),
    "type of singledispatch": (
        "@functools.singledispatch\ndef f(x): return x\n@f.register(Tensor)\ndef _(x): return x * 2.0\n",
        "f(x)",
        "(Tensor)",
        "(int)",
    ),
    "metaclass": (
        "class Meta(type):\n    def __getattr__(cls, name): return 2.0\nclass K(metaclass=Meta): pass\n",
        "x * K.s",
        "2.0",
        "3.0",
    ),
    "subclasses": ("class R: pass\nclass A(R):\n    by = 2.0\n", "x * R.__subclasses__()[0].by", "2.0", "3.0"),
    "name of an attribute": (
        "get = operator.attrgetter('by')\nclass K:\n    by = 2.0\n",
        "x * get(sys.modules[__name__].K)",
        "2.0",
        "3.0",
    ),
    "torch op": (
        "from torch.library import custom_op\n@custom_op('lmstash_mine::f', mutates_args=())\n"
        "def f(x: Tensor) -> Tensor: return x * 2.0\n",
        "f(x)",
        "2.0",
        "3.0",
    ),
    "torch op by its name": (
        "import torch\n@torch.library.custom_op('lmstash_mine::f', mutates_args=())\n"
        "def f(x: Tensor) -> Tensor: return x * 2.0\n",
        "torch.ops.lmstash_mine.f(x)",
        "2.0",
        "3.0",
    ),
    "docstring": ("class K:\n    '2.0'\n", "x * float(K.__doc__)", "2.0", "3.0"),
}


@pytest.mark.parametrize(("code", "returns", "old", "new"), EDITS.values(), ids=EDITS)
def test_edits_of_what_code_reaches_count(build: Any, code: str, returns: str, old: str, new: str) -> None:
    assert old in code
    first, second, third = (
        lmstash.fingerprint(build(each, returns)).hex for each in (code, code.replace(old, new), code)
    )
    assert first == third != second


IMPORTED: dict[str, tuple[str, str]] = {
    "class attribute": ("class K(nn.Module):\n    path = 'PACKAGE.other'\n", "importlib.import_module(K.path).f(x)"),
    "global": ("PATH = 'PACKAGE.other'\n", "importlib.import_module(PATH).f(x)"),
    "relative": ("", "importlib.import_module('.other', __package__).f(x)"),
    "relative, put together": ("NAME = 'other'\n", "importlib.import_module('.' + NAME, __package__).f(x)"),
    "by a beginning": ("NAME = 'other'\n", "importlib.import_module(f'PACKAGE.{NAME}').f(x)"),
    "by a longer beginning": ("NAME = 'er'\n", "importlib.import_module('PACKAGE.oth' + NAME).f(x)"),
    "located": ("", "pydoc.locate('PACKAGE.other.f')(x)"),
    "resolved": ("", "pkgutil.resolve_name('PACKAGE.other:f')(x)"),
}


@pytest.mark.parametrize(("code", "returns"), IMPORTED.values(), ids=IMPORTED)
def test_modules_that_texts_name_count_before_they_are_loaded(build: Any, code: str, returns: str) -> None:
    texts = [{"other": f"def f(x): return x * {by}\n"} for by in (2.0, 3.0, 2.0)]
    first, second, third = hexes(build, code.replace("PACKAGE", PACKAGE), returns.replace("PACKAGE", PACKAGE), *texts)
    assert first == third != second


FURTHER: dict[str, tuple[str, dict[str, str]]] = {
    "by text": (
        "getattr(other, 'act_' + self.kind)(x)",
        {"other": "FROM third\ndef act_two(x): return x * third.BY\n"},
    ),
    "in a dict": ("{'a': other}['a'].f(x)", {"other": "FROM third\ndef f(x): return x * third.BY\n"}),
    "helper": ("getattr(other, self.kind)(x)", {"other": "FROM third\ndef two(x): return third.f(x)\n"}),
    "class": ("getattr(other, self.kind)(x)", {"other": "FROM third\nclass two(third.K): pass\n"}),
    "asked of the module itself": ("x * other.BY", {"other": "FROM third\ndef __getattr__(name): return third.BY\n"}),
}


@pytest.mark.parametrize(("returns", "others"), FURTHER.values(), ids=FURTHER)
def test_code_that_is_met_by_text_counts_with_what_it_names(build: Any, returns: str, others: dict[str, str]) -> None:
    others = {name: text.replace("FROM", f"from {PACKAGE} import") for name, text in others.items()}
    third = "BY = 2.0\nclient = (each for each in ())\nclass K:\n    by = 2.0\ndef f(x): return x * 2.0, client\n"
    texts = [{**others, "third": third.replace("2.0", by)} for by in ("2.0", "3.0", "2.0")]
    first, second, again = hexes(build, f"from {PACKAGE} import other\n", returns, *texts)
    assert first == again != second


def test_changes_in_place_of_what_hangs_on_functions_and_of_orders_are_noticed(build: Any) -> None:
    code = "T = {'a': 2, 'b': 3}\ndef f(x): return x * f.s\nf.s = 2\ndef g(x): return getattr(g, 's', 1)\n"
    watch = watch_model(build(code, "f(x), g(x), [*T]"))
    module = sys.modules[f"{PACKAGE}.model"]
    seen = [watch.recognise().hex]
    for change in ("f.s = 3", "g.s = 3", "T['a'] = T.pop('a')"):
        exec(change, vars(module))
        assert not watch.unchanged()
        seen.append(watch.recognise().hex)
    assert len({*seen}) == 4


def test_a_function_that_counts_its_calls_is_the_same_after_each(build: Any) -> None:
    code = "def f(x):\n    f.calls += 1\n    return x * f.s\nf.calls = 0\nf.s = 1\n"
    model = build(code, "f(x)")
    watch = watch_model(model)
    first = watch.recognise().hex
    model(1)
    assert watch.unchanged()
    assert lmstash.fingerprint(model).hex == first


def test_every_process_finds_the_same(build: Any, tmp_path: Path) -> None:
    code = "".join(each[0] for each in (*EDITS.values(), *HANDED_ON.values()))
    build(code, "use(x, other)", other="SCALE = 2.0\nNAMES = {'a', 'b', 'c'}\n")
    script = f"import lmstash, {PACKAGE}.model as m; print(lmstash.fingerprint(m.Mine().eval()).hex)"
    said = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]), "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1
