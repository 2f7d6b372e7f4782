"""Operators of torch's dispatcher: by name where they are torch's, by function where it can be had, else not at all."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import lmstash
from lmstash.errors import UnsupportedModelError
from lmstash.identity.code.operators import is_unreadable, operator_name, operators_named

MUL, MUL_TENSOR = torch.ops.aten.mul, torch.ops.aten.mul.Tensor
factor = 2.0


class ByTensor(nn.Module):
    def forward(self, x):
        return MUL_TENSOR(x, factor)


class ByPacket(nn.Module):
    def forward(self, x):
        return MUL(x, factor)


class ByName(nn.Module):
    def forward(self, x):
        return torch.ops.lmstash_test.scaled(x)


class ByValue(nn.Module):
    def __init__(self):
        super().__init__()
        self.operator = torch.ops.lmstash_test.scaled

    def forward(self, x):
        return self.operator(x)


def model_with(activation):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes)).eval()
    model.model.layers[0].mlp.act_fn = activation
    return model


@pytest.fixture
def scaled():
    """An operator computed by a function that `Library.impl` has taken."""
    with torch.library._scoped_library("lmstash_test", "DEF") as library:
        library.define("scaled(Tensor x) -> Tensor")
        library.impl("scaled", lambda x: x * factor, "CPU")
        yield


def test_operators_are_told_by_their_names():
    assert [operator_name(each) for each in (MUL, MUL_TENSOR, 3, torch.mul)] == [
        "aten::mul",
        "aten::mul.Tensor",
        None,
        None,
    ]
    assert not is_unreadable("aten::mul.Tensor")


@pytest.mark.parametrize("kind", [ByTensor, ByPacket])
def test_torch_s_own_operators_hinder_nobody(kind):
    assert lmstash.fingerprint(model_with(kind())).hex == lmstash.fingerprint(model_with(kind())).hex


def test_another_operator_is_another_model(monkeypatch):
    before = lmstash.fingerprint(model_with(ByTensor())).hex
    monkeypatch.setitem(globals(), "MUL_TENSOR", torch.ops.aten.add.Tensor)
    assert lmstash.fingerprint(model_with(ByTensor())).hex != before


@pytest.mark.parametrize("kind", [ByName, ByValue])
def test_an_operator_whose_function_nobody_can_read_is_refused_unless_somebody_vouches(scaled, kind):
    model = model_with(kind())
    with pytest.raises(UnsupportedModelError, match=r"lmstash_test::scaled.*custom_op"):
        lmstash.fingerprint(model)
    assert lmstash.fingerprint(model, variant="by two").hex


def test_one_that_comes_while_a_cache_is_open_is_noticed():
    model = model_with(ByName())
    scope = torch.library._scoped_library("lmstash_test", "DEF")
    with lmstash.open("memory://", strict=True) as stash, scope as library:
        library.define("scaled(Tensor x) -> Tensor")
        acts = stash.activations(model)
        library.impl("scaled", lambda x: x * factor, "CPU")
        with pytest.raises(UnsupportedModelError, match="lmstash_test::scaled"):
            acts([[1, 2, 3]], 0, "last")


def test_only_what_code_names_is_looked_for(scaled):
    assert operators_named({"lmstash_test", "scaled"}) == []
    assert operators_named({"ops", "lmstash_test"}) == []
    ((name, _),) = operators_named({"ops", "lmstash_test", "scaled", "more"})
    assert name == "lmstash_test::scaled"
    assert operators_named({"ops", "aten", "mul"}) == []
