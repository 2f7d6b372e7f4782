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
from lmstash.identity.code.digests import CodeGraph
from lmstash.identity.models.patched import patched
from lmstash.identity.models.watch import watch_model

ABSENT = object()
PLACES = [
    (functional, "silu"),
    (functional, "scaled_dot_product_attention"),
    (torch, "matmul"),
    (torch.nn.Linear, "forward"),
    (torch.nn.Module, "__call__"),
    (torch.Tensor, "softmax"),
    (torch.Tensor, "__matmul__"),
    (torch._C._nn, "silu"),
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
from lmstash.identity.code.digests import CodeGraph
from lmstash.identity.models.patched import patched
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


def test_torchs_own_function_in_anothers_place_is_known_by_its_name_from_the_first_look() -> None:
    program = """
import sys, torch
if sys.argv[1] == "1":
    torch.nn.functional.silu = torch.nn.functional.gelu
if sys.argv[1] == "2":
    torch.tanh = torch.sin
import lmstash
torch.manual_seed(0)
print(lmstash.fingerprint(torch.nn.Linear(2, 2)).hex)
"""
    said = [
        subprocess.run([sys.executable, "-c", program, each], check=True, timeout=120, capture_output=True).stdout
        for each in ("0", "1", "2")
    ]
    assert len({*said}) == 3


def test_compiling_anything_makes_no_other_model() -> None:
    """`torch.compile` puts functions of its own into `torch.nn.Module` when it is first used."""
    program = """
import torch
from transformers import LlamaConfig, LlamaModel
import lmstash
from lmstash.identity.models.watch import watch_model
sizes = dict(hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=8)
model = LlamaModel(LlamaConfig(**sizes)).eval()
watch = watch_model(model)
before = watch.recognise().hex
init = torch.nn.Module.__init__
torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2))
assert torch.nn.Module.__init__ is not init, "torch no longer does so: nothing is tested here"
assert watch.unchanged()
assert watch.recognise().hex == before == lmstash.fingerprint(model).hex
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=200)


def test_a_kernel_that_is_replaced_is_refused_unless_somebody_vouches_for_it(model: torch.nn.Module) -> None:
    watch = watch_model(model)
    first = watch.recognise().hex
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("silu", lambda x: x * 2, "CPU")
        with pytest.raises(UnsupportedModelError, match="aten/silu/CPU"):
            watch.recognise()
        assert lmstash.fingerprint(model, variant="doubled").hex != lmstash.fingerprint(Tiny().eval(), variant="x").hex
    assert watch.recognise().hex == first


def test_a_kernel_for_every_kind_of_tensor_is_refused_too(model: torch.nn.Module) -> None:
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("linear", lambda x, weight, bias=None: x @ weight.T * 2, "CompositeImplicitAutograd")
        with pytest.raises(UnsupportedModelError, match="aten/linear/CompositeImplicitAutograd"):
            lmstash.fingerprint(model)


@pytest.mark.parametrize("file", [__file__, "<stdin>", "<ipython-input-3-0f>"])
@pytest.mark.parametrize("of", ["torch", "transformers"])
def test_code_that_is_put_into_a_method_counts_at_once(build_llama: Any, of: str, file: str) -> None:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    def forward(self, given):
        return given * 2

    method = torch.nn.Linear.forward if of == "torch" else LlamaRMSNorm.forward
    watch = watch_model(build_llama())
    first, code = watch.recognise().hex, method.__code__
    try:
        method.__code__ = forward.__code__.replace(co_qualname=code.co_qualname, co_filename=file)
        assert watch.recognise().hex != first
        assert watch.runs_unknown_code()
        assert lmstash.fingerprint(build_llama()).hex != first
    finally:
        method.__code__ = code
    assert watch.recognise().hex == first


def test_what_torchs_modules_take_for_its_functions_counts(build_llama: Any, put: Any) -> None:
    class Functions:
        def __getattr__(self, name):
            return getattr(torch.nn.functional, name)

        def linear(self, x, weight, bias=None):
            return torch.nn.functional.linear(x, weight, bias) * 2

    watch = watch_model(build_llama())
    first = watch.recognise().hex
    back = put(torch.nn.modules.linear, "F", Functions())
    assert watch.recognise().hex != first
    back()
    assert watch.recognise().hex == first


def test_what_is_no_function_in_the_place_of_one_of_transformers_counts(put: Any, build_llama: Any) -> None:
    from transformers.models.llama import modeling_llama

    model = build_llama()
    watch = watch_model(model)
    seen = {watch.recognise().hex}
    for name in ("a partial", "an object", "a method", "a remembering function", "another package's function"):
        for by in (2, 3):
            put(modeling_llama, "rotate_half", WAYS[name](by))
            seen.add(watch.recognise().hex)
    assert len(seen) == 11


def test_what_is_put_where_attention_is_computed_counts(put: Any, build_llama: Any) -> None:
    from transformers.integrations import sdpa_attention

    watch = watch_model(build_llama())
    first, theirs = watch.recognise().hex, sdpa_attention.repeat_kv
    back = put(sdpa_attention, "repeat_kv", lambda x, n: theirs(x, n) * 2)
    assert watch.recognise().hex != first
    back()
    assert watch.recognise().hex == first


def test_it_finds_torchs_own_places(model: torch.nn.Module, put: Any) -> None:
    put(torch.linalg, "norm", around(torch.linalg.norm))
    assert list(patched(model, CodeGraph())) == ["torch.linalg.norm"]
