"""A part of a model that was swapped for an equal one: the model is the same, and the old part is no longer of it."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

import lmstash

IDS = [list(range(1, 13))]


def llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes)).eval()


def swap_base(model):
    other, old = LlamaModel(model.config).eval(), model.model
    other.load_state_dict(old.state_dict())
    model.model = other
    return old


def swap_block(model):
    old = model.model.layers[0]
    model.model.layers[0] = copy.deepcopy(old, {id(model.config): model.config})
    return old


def swap_head(model):
    old = model.lm_head
    model.lm_head = copy.deepcopy(old)
    return old


def ask_activations(stash, model):
    acts = stash.activations(model)
    return lambda ids: acts([ids], 0, None)[0][0]


def ask_logprobs(stash, model):
    return stash.logprobs(model).next_token_logprobs


def ask_kv(stash, model):
    kv = stash.kv(model)
    settings = {"max_new_tokens": 1, "do_sample": False, "output_scores": True, "return_dict_in_generate": True}
    return lambda ids: kv.generate(input_ids=torch.tensor([ids]), **settings).scores[0][0]


@pytest.mark.parametrize("ask", [ask_activations, ask_logprobs, ask_kv])
@pytest.mark.parametrize("swap", [swap_base, swap_block, swap_head])
def test_nothing_is_computed_by_the_part_that_went(tmp_path, ask, swap):
    model = llama()
    with lmstash.open(tmp_path, strict=True) as stash:
        asked = ask(stash, model)
        asked([1, 2, 3])
        old = swap(model)
        asked([1, 2, 3, 4])
        with torch.no_grad():
            for each in old.parameters():
                each.mul_(1.5)
        with lmstash.open("memory://", strict=True) as other:
            wanted = [ask(other, llama())(ids) for ids in IDS]
        for ids, values in zip(IDS, wanted, strict=True):
            torch.testing.assert_close(asked(ids), values, rtol=1e-4, atol=1e-5)
    with lmstash.open(tmp_path, strict=True) as stash:  # and nothing of it was kept
        asked = ask(stash, llama())
        for ids, values in zip(IDS, wanted, strict=True):
            torch.testing.assert_close(asked(ids), values, rtol=1e-4, atol=1e-5)
