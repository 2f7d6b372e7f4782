"""What `torch.compile` made, of what, and by whose compiler: read off what it left. Nothing is run."""

import pytest
import torch
from torch import nn

from lmstash.identity.models.compiled import is_compiled, is_compiled_by_torch


class Doubling(nn.Module):
    """A model."""

    def forward(self, x):
        return x * 2


def mine(graph, inputs):
    return graph.forward


def by_torch(placed, module):
    return is_compiled_by_torch(placed, module, type(module).forward)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mode": "reduce-overhead"},
        {"options": {"max_autotune": True}, "fullgraph": True, "dynamic": True},
        {"backend": "eager"},
        {"backend": "aot_eager"},
    ],
    ids=str,
)
def test_torch_s_own_compilers_are_known(settings):
    module = Doubling()
    placed = torch.compile(module.forward, **settings)
    assert is_compiled(placed)
    assert by_torch(placed, module)
    module.compile(**settings)
    assert is_compiled_by_torch(module._compiled_call_impl, module, nn.Module._call_impl)


@pytest.mark.parametrize(
    "settings",
    [
        {"backend": mine},
        {"options": {"guard_filter_fn": lambda guards: [False for _ in guards]}},
        {"options": {"post_grad_custom_post_pass": mine}},
        {"backend": "eager", "options": {"mine": mine}},
    ],
    ids=["a backend", "a filter of guards", "a pass over the operations", "an option"],
)
def test_what_somebody_puts_into_a_compiler_is_not(settings):
    module = Doubling()
    placed = torch.compile(module.forward, **settings)
    assert is_compiled(placed)
    assert not by_torch(placed, module)


def test_a_backend_that_somebody_has_registered_is_not(monkeypatch):
    registry = pytest.importorskip("torch._dynamo.backends.registry")
    monkeypatch.setitem(registry._BACKENDS, "mine", None)
    monkeypatch.setitem(registry._COMPILER_FNS, "mine", mine)
    module = Doubling()
    assert not by_torch(torch.compile(module.forward, backend="mine"), module)


def test_only_what_runs_anyway_may_be_what_is_compiled():
    module, other = Doubling(), Doubling()
    assert not by_torch(torch.compile(other.forward, backend="eager"), module)
    assert not by_torch(torch.compile(lambda x: x * 3, backend="eager"), module)
    assert not by_torch(torch.compile(Doubling.forward, backend="eager"), module)
    assert not is_compiled(module.forward)
    assert not is_compiled(None)


def test_names_on_it_say_nothing():
    """Of what it runs: that is what it has closed over, and what is compiled around it takes."""
    module = Doubling()
    good = torch.compile(module.forward, backend="eager")

    def posing(x):
        return x * 3

    vars(posing).update(vars(good))
    assert not is_compiled(posing)
    bad = torch.compile(lambda x: x * 3, backend="eager")
    bad._torchdynamo_orig_callable = bad._torchdynamo_inline = module.forward
    assert not by_torch(bad, module)
    good._torchdynamo_inline = posing
    assert not by_torch(good, module)
