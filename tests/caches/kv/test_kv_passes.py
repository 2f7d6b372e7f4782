"""KV of a pass that draws random numbers is not kept; what `generate` draws to choose tokens is nothing to it."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lmstash.caches.drawing import NOT_KEPT

SAMPLED = {"do_sample": True, "max_new_tokens": 5}
GREEDY = {"do_sample": False, "max_new_tokens": 5}


class Noisy(nn.Module):
    def __init__(self, inner, most):
        super().__init__()
        self.inner, self.most = inner, most

    def forward(self, x):
        out = self.inner(x)
        return functional.dropout(out, 0.3, training=True) if x.shape[1] <= self.most else out


@pytest.fixture
def noisy(make_model):
    def build(most=1000):
        model = make_model()
        model.model.layers[0].mlp = Noisy(model.model.layers[0].mlp, most)
        return model

    return build


@pytest.mark.parametrize("arguments", [SAMPLED, GREEDY, {**SAMPLED, "num_beams": 2}])
@pytest.mark.parametrize("most", [1000, 1], ids=["all passes", "those that follow the prompt's"])
def test_kv_of_passes_that_draw_is_not_kept(noisy, stash, prompt, arguments, most):
    model = noisy(most)
    kv = stash.kv(model, variant="noisy")
    for _ in range(2):
        kv.generate(prompt(100), **arguments)
    kv.flush()
    assert kv.stats.not_kept == {NOT_KEPT: 2}
    assert kv.stats.tokens_reused == kv.stats.tokens_kept == 0
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_prefilled_kv_is_not_kept_either(noisy, stash, prompt):
    kv = stash.kv(noisy(), variant="noisy")
    assert kv.prefill(prompt(100)) == 100
    assert kv.stats.not_kept == {NOT_KEPT: 1}
    assert kv.past(prompt(101)) == (None, 0)


@pytest.mark.parametrize("arguments", [SAMPLED, {**SAMPLED, "num_beams": 2}, {**SAMPLED, "num_return_sequences": 2}])
def test_sampled_tokens_do_not_stand_in_the_way(model, stash, prompt, arguments):
    kv = stash.kv(model)
    for _ in range(2):
        kv.generate(prompt(100), **arguments)
        kv.flush()
    assert not kv.stats.not_kept
    assert kv.stats.tokens_reused > 0


def test_sampling_by_a_model_with_an_adapter(model, stash, prompt):
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"])).eval()
    kv = stash.kv(adapted)
    for _ in range(2):
        kv.generate(input_ids=prompt(100), **SAMPLED)
        kv.flush()
    assert not kv.stats.not_kept
    assert kv.stats.tokens_reused > 0


def test_recurrent_layers_do_not_draw(make_model, stash, prompt):
    shape = {"layer_types": ["conv", "full_attention", "conv"], "full_attn_idxs": [1]}
    kv = stash.kv(make_model("lfm2", **shape))
    kv.generate(prompt(200), **SAMPLED)
    kv.flush()
    assert not kv.stats.not_kept
    assert kv.stats.tokens_kept > 0


def test_what_is_drawn_is_the_same_as_without_a_cache(model, stash, prompt):
    torch.manual_seed(3)
    expected = model.generate(prompt(100), **SAMPLED)
    torch.manual_seed(3)
    assert torch.equal(stash.kv(model).generate(prompt(100), **SAMPLED), expected)
