"""Whatever decides what your own code computes is part of it, however the code comes by it."""

from __future__ import annotations

import enum
import functools
import importlib
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lmstash
from lmstash.identity.code.digests import CodeGraph
from lmstash.identity.models.watch import watch_model


class Mode(enum.Enum):
    ONE = 1
    TWO = 2


class Held:
    def __init__(self, by: float) -> None:
        self.by = by


class Wrapping(Held):
    """As a decorator that is a class makes it."""

    def __init__(self, by: float) -> None:
        super().__init__(by)
        functools.update_wrapper(self, run)

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.by


def run(self: Any, x: Tensor) -> Tensor:
    return self.act(x)


def model(**members: Any) -> nn.Module:
    return type("Mine", (nn.Module,), {"__module__": __name__, "forward": run, **members})().eval()


def told(first: nn.Module, second: nn.Module) -> bool:
    return lmstash.fingerprint(first).hex != lmstash.fingerprint(second).hex


IN_A_CLASS: dict[str, tuple[Any, Any]] = {
    "tensor": (torch.tensor(1.0), torch.tensor(2.0)),
    "dtype": (torch.float16, torch.bfloat16),
    "builtin": (torch.tanh, torch.sin),
    "static builtin": (staticmethod(torch.tanh), staticmethod(torch.sin)),
    "partial": (functools.partial(torch.mul, other=2), functools.partial(torch.mul, other=3)),
    "partial method": tuple(functools.partialmethod(lambda self, x, k: x * k, k=k) for k in (2, 3)),
    "object": (Held(1), Held(2)),
    "wrapper": (Wrapping(1), Wrapping(2)),
    "class": (type("C", (), {"k": 1}), type("C", (), {"k": 2})),
    "cached property": (functools.cached_property(lambda self: 1), functools.cached_property(lambda self: 2)),
    "remembering function": (functools.lru_cache(lambda self, x: x), functools.lru_cache(lambda self, x: x * 2)),
    "enum": (Mode.ONE, Mode.TWO),
    "functions": ([torch.tanh], [torch.sin]),
    "words": ({"a": torch.tanh}, {"a": torch.sin}),
    "set": ({Mode.ONE}, {Mode.TWO}),
}


@pytest.mark.parametrize("pair", IN_A_CLASS.values(), ids=IN_A_CLASS)
def test_what_lies_in_a_class_counts(pair: tuple[Any, Any]) -> None:
    assert told(model(act=pair[0]), model(act=pair[1]))
    assert not told(model(act=pair[0]), model(act=pair[0]))


DEFAULTS: dict[str, tuple[Any, Any]] = {
    **{name: IN_A_CLASS[name] for name in ("tensor", "dtype", "builtin", "partial", "object", "class", "enum")},
    "function": (lambda x: x, lambda x: x * 2),
    "constant": (2j, 3j),
    "list": ([torch.tanh], [torch.sin]),
}


@pytest.mark.parametrize("pair", DEFAULTS.values(), ids=DEFAULTS)
@pytest.mark.parametrize("by_keyword", [False, True])
def test_defaults_of_arguments_count(pair: tuple[Any, Any], by_keyword: bool) -> None:
    def with_default(value: Any) -> nn.Module:
        def act(self: Any, x: Tensor, how: Any = value) -> Any:
            return how, x

        def act_named(self: Any, x: Tensor, *, how: Any = value) -> Any:
            return how, x

        return model(act=act_named if by_keyword else act)

    assert told(with_default(pair[0]), with_default(pair[1]))
    assert not told(with_default(pair[0]), with_default(pair[0]))


def test_constants_of_every_kind_count() -> None:
    assert told(model(act=lambda self, x: x * 2j), model(act=lambda self, x: x * 3j))


def test_functions_that_differ_in_their_defaults_alone_are_all_told_apart() -> None:
    def several(*functions: Any) -> nn.Module:
        made = [lambda x, f=f: f(x) for f in functions]
        return model(**{f"act{number}": staticmethod(each) for number, each in enumerate(made)})

    kept = {lmstash.fingerprint(several(*each)).hex for each in itertools.product((torch.sin, torch.cos), repeat=3)}
    assert len(kept) == 8


@functools.lru_cache
def remembered(by: int) -> int:
    return by * 2


def test_the_code_behind_a_remembering_function_counts() -> None:
    def with_helper(source: str) -> nn.Module:
        scope: dict[str, Any] = {"__name__": "of_my_own", "functools": functools}
        exec(source + "\ndef act(self, x):\n    return x * helper(2)", scope)
        return model(act=scope["act"])

    cached = "@functools.lru_cache\ndef helper(by):\n    return by * "
    assert told(with_helper(cached + "2"), with_helper(cached + "3"))
    assert not told(with_helper(cached + "2"), with_helper(cached + "2"))
    assert remembered(2) == 4


NOT_ASKED_FOR: dict[str, str] = {
    "attribute": "return x * self.layer",
    "method": "return x.norm()",
    "attribute of an attribute": "return self.v.layer.norm",
    "set as an attribute": "self.layer = x",
    "within": "return [each.norm() for each in x] + (lambda: self.layer)()",
}


@pytest.mark.parametrize("body", NOT_ASKED_FOR.values(), ids=NOT_ASKED_FOR)
def test_a_global_that_has_the_name_of_an_attribute_does_not_count(body: str) -> None:
    """As results and loop variables of scripts have: `for layer in range(4):` beside `self.layer`."""

    def with_globals(**others: Any) -> nn.Module:
        scope: dict[str, Any] = {"__name__": "of_my_own", **others}
        exec(f"def act(self, x):\n    {body}", scope)
        return model(act=scope["act"])

    none = with_globals()
    cannot_be_read = (each for each in ())
    assert not told(none, with_globals(layer=2, norm=torch.ones(3)))
    assert not told(none, with_globals(layer=cannot_be_read, norm=cannot_be_read))


ASKED_FOR: dict[str, str] = {
    "by itself": "return x * layer",
    "beside an attribute": "return self.layer * layer",
    "its attribute": "return x * layer.real",
    "within": "return [each * layer for each in x]",
    "deeper": "return (lambda: [(lambda: layer)() for each in x])()",
    "a class within": "class Inner:\n        k = layer\n    return x * Inner.k",
    "called": "return layer.__add__(x)",
    "deleted and read": "global layer\n    x = x * layer\n    layer = 0\n    return x",
}


@pytest.mark.parametrize("body", ASKED_FOR.values(), ids=ASKED_FOR)
def test_a_global_that_is_asked_for_counts_wherever_that_is(body: str) -> None:
    def with_global(layer: Any) -> nn.Module:
        scope: dict[str, Any] = {"__name__": "of_my_own", "layer": layer}
        exec(f"def act(self, x):\n    {body}", scope)
        return model(act=scope["act"])

    assert told(with_global(2), with_global(3))
    assert told(with_global(torch.tensor(2.0)), with_global(torch.tensor(3.0)))
    assert not told(with_global(2), with_global(2))


def replaced_code() -> tuple[nn.Module, Callable[[], None]]:
    scope: dict[str, Any] = {"__name__": "of_my_own"}
    exec("def helper(x):\n    return x\ndef act(self, x):\n    return helper(x)", scope)
    other = compile("def helper(x):\n    return x * 2", "", "exec").co_consts[0]

    def change() -> None:
        scope["helper"].__code__ = other

    return model(act=scope["act"]), change


def replaced_defaults() -> tuple[nn.Module, Callable[[], None]]:
    def act(self: Any, x: Tensor, by: int = 1) -> Tensor:
        return x * by

    def change() -> None:
        act.__defaults__ = (2,)

    return model(act=act), change


def replaced_keywords() -> tuple[nn.Module, Callable[[], None]]:
    def act(self: Any, x: Tensor, *, by: int = 1) -> Tensor:
        return x * by

    def change() -> None:
        act.__kwdefaults__ = {"by": 2}

    return model(act=act), change


def changed_default() -> tuple[nn.Module, Callable[[], None]]:
    by = [1]

    def made(factors: list[int]) -> Any:
        def act(self: Any, x: Tensor, by: list[int] = factors) -> Tensor:
            return x * by[0]

        return act

    return model(act=made(by)), lambda: by.append(2)


def rebound_closure() -> tuple[nn.Module, Callable[[], None]]:
    by = 1

    def act(self: Any, x: Tensor) -> Tensor:
        return x * by

    def change() -> None:
        nonlocal by
        by = 2

    return model(act=act), change


def changed_closure() -> tuple[nn.Module, Callable[[], None]]:
    by = [1]

    def act(self: Any, x: Tensor) -> Tensor:
        return x * by[0]

    return model(act=act), lambda: by.__setitem__(0, 2)


def changed_object() -> tuple[nn.Module, Callable[[], None]]:
    held = Held(1)
    return model(held=held, act=lambda self, x: x * self.held.by), lambda: setattr(held, "by", 2)


CHANGES = [
    *(replaced_code, replaced_defaults, replaced_keywords, changed_default, rebound_closure, changed_closure),
    changed_object,
]


@pytest.mark.parametrize("make", CHANGES)
def test_what_changes_in_place_is_noticed(make: Callable[[], tuple[nn.Module, Callable[[], None]]]) -> None:
    """As notebooks reload code: functions stay, and get other code."""
    mine, change = make()
    watch = watch_model(mine)
    first = watch.recognise().hex
    assert watch.recognise().hex == first
    change()
    assert not watch.unchanged()
    assert watch.recognise().hex != first
    assert watch.recognise().hex == lmstash.fingerprint(mine).hex


# --- modules of one's own -----------------------------------------------------------------------------------------

BODIES = {
    "by its package": "import {0}.deep.ops\ndef act(self, x):\n    return {0}.deep.ops.scale(x)",
    "imported when it runs": "def act(self, x):\n    from {0}.deep.ops import scale\n    return scale(x)",
    "imported from within": (
        "def act(self, x):\n    def inner():\n        import {0}.deep.ops as ops\n        return ops.scale(x)\n"
        "    return inner()"
    ),
    "imported as a module": "def act(self, x):\n    from {0}.deep import ops\n    return ops.scale(x)",
    "held by the model": "from {0}.deep import ops\ndef act(self, x):\n    return self.ops.scale(x)",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], nn.Module]:
    """Write a package whose deepest function multiplies, and return a model that comes to it by some code."""
    monkeypatch.syspath_prepend(str(tmp_path))
    name = "of_my_own_package"

    def write(body: str, by: int) -> nn.Module:
        deep = tmp_path / name / "deep"
        deep.mkdir(parents=True, exist_ok=True)
        for file in (deep.parent / "__init__.py", deep / "__init__.py"):
            file.write_text("")
        (deep / "ops.py").write_text(f"def scale(x):\n    return x * {by}\n" + "#" * by)
        for each in [each for each in sys.modules if each.partition(".")[0] == name]:
            del sys.modules[each]
        importlib.invalidate_caches()
        scope: dict[str, Any] = {"__name__": "of_my_own"}
        exec(body.format(name), scope)
        return model(act=scope["act"])

    return write


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_code_in_modules_of_ones_own_is_followed_however_it_is_reached(package: Any, body: str) -> None:
    first = lmstash.fingerprint(package(body, 2)).hex
    assert lmstash.fingerprint(package(body, 3)).hex != first
    assert lmstash.fingerprint(package(body, 2)).hex == first


def test_what_cannot_be_imported_or_is_installed_counts_by_its_name_or_version() -> None:
    def act(self: Any, x: Tensor) -> Any:
        import no_such_package  # pyright: ignore[reportMissingImports]
        import pytest

        return pytest, no_such_package

    graph = CodeGraph()
    graph.add(act)
    said = {str(name).rpartition(" ")[2]: what for name, what in graph.components().items() if " imports " in str(name)}
    assert said["pytest"] == pytest.__version__
    assert said["no_such_package"] == "not found"
