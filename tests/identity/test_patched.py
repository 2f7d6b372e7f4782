"""torch's functions and methods replaced by others: another model, until they are put back."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy
import pytest
import torch
from torch.nn import functional

import lmstash
from lmstash.errors import UnsupportedModelError
from lmstash.identity.code import CodeGraph
from lmstash.identity.patched import patched
from lmstash.identity.watch import watch_model

ABSENT = object()
PLACES = [
    (functional, "silu"),
    (functional, "scaled_dot_product_attention"),
    (torch, "matmul"),
    (torch.nn.Linear, "forward"),
    (torch.nn.Module, "__call__"),
    (torch.Tensor, "softmax"),
    (torch.Tensor, "__matmul__"),
]


class Tiny(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(4, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return functional.silu(self.inner(ids))


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return Tiny().eval()


@pytest.fixture
def put(request: pytest.FixtureRequest) -> Callable[[Any, str, Any], Callable[[], None]]:
    """Replace what lies in a place; returns what puts it back."""

    def replace(owner: Any, name: str, value: Any) -> Callable[[], None]:
        before = vars(owner).get(name, ABSENT)

        def back() -> None:
            if before is not ABSENT:
                setattr(owner, name, before)
            elif name in vars(owner):
                delattr(owner, name)

        request.addfinalizer(back)
        setattr(owner, name, value)
        return back

    return replace


def around(function: Any) -> Any:
    return lambda *given, **named: function(*given, **named)


@pytest.mark.parametrize(("owner", "name"), PLACES)
def test_a_function_in_the_place_of_torchs_makes_another_model(
    model: torch.nn.Module, put: Any, owner: Any, name: str
) -> None:
    watch = watch_model(model)
    first, plain = watch.recognise().hex, lmstash.fingerprint(model).hex
    back = put(owner, name, around(getattr(owner, name)))
    assert lmstash.fingerprint(model).hex != plain
    assert watch.recognise().hex != first
    back()
    assert lmstash.fingerprint(model).hex == plain
    assert watch.recognise().hex == first


def test_what_the_function_does_counts(model: torch.nn.Module, put: Any) -> None:
    put(functional, "silu", lambda x: x * 2)
    twice = lmstash.fingerprint(model).hex
    put(functional, "silu", lambda x: x * 3)
    assert lmstash.fingerprint(model).hex != twice


class Times:
    def __init__(self, by: int) -> None:
        self.by = by

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.by


def scripted(by: int) -> Any:
    from torch.jit import script

    return script(twice if by == 2 else thrice)


def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def thrice(x: torch.Tensor) -> torch.Tensor:
    return x * 3


WAYS = {
    "an object": Times,
    "a method": lambda by: Times(by).__call__,
    "a partial": lambda by: partial(torch.mul, other=by),
    "a closure": lambda by: lambda x: x * by,
    "a method of a tensor": lambda by: torch.full((4,), float(by)).mul,
    "a remembering function": lambda by: lru_cache(lambda x: x * by),
    "a class": lambda by: type("Made", (), {"by": by, "__new__": lambda cls, x: x * cls.by}),
    "a scripted function": scripted,
    "another package's function": lambda by: (numpy.dot, math.sqrt)[by - 2],
    "another package's object": lambda by: (numpy.sin, numpy.cos)[by - 2],
}


@pytest.mark.parametrize("make", WAYS.values(), ids=WAYS)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_other_callables_count_with_what_they_hold(
    model: torch.nn.Module, put: Any, make: Callable[[int], Any]
) -> None:
    """Or the model cannot be named, and nothing is cached."""
    seen = {lmstash.fingerprint(model).hex}
    for by in (2, 3):
        put(functional, "silu", make(by))
        try:
            seen.add(lmstash.fingerprint(model).hex)
        except UnsupportedModelError:
            seen.add(f"unsupported {by}")
    assert len(seen) == 3


def test_torchs_own_function_in_anothers_place_is_noticed_after_the_first_look(
    model: torch.nn.Module, put: Any
) -> None:
    watch = watch_model(model)
    first = watch.recognise().hex
    back = put(functional, "silu", functional.gelu)
    assert watch.recognise().hex != first
    back()
    assert watch.recognise().hex == first


def test_nothing_is_found_where_nobody_has_changed_anything() -> None:
    """In a new process, with the packages that people have beside torch, and models made meanwhile."""
    program = """
import torch, transformers, accelerate, datasets
from lmstash.identity.code import CodeGraph
from lmstash.identity.patched import patched
sizes = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=8)
config = transformers.LlamaConfig(**sizes)
for _ in range(2):
    model, graph = transformers.LlamaForCausalLM(config), CodeGraph()
    assert not patched(model, graph), patched(model, graph)
    assert graph.unchanged()
    transformers.LlamaForCausalLM(config)
    assert graph.unchanged()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_it_finds_torchs_own_places(model: torch.nn.Module, put: Any) -> None:
    put(torch.linalg, "norm", around(torch.linalg.norm))
    assert list(patched(model, CodeGraph())) == ["torch.linalg.norm"]
