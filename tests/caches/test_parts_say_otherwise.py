"""Parts of transformers' own, or of a quantiser's, that do what the model's configuration does not say."""

import copy
import inspect

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

import lmstash
from lmstash.caches.kv.families import family_of
from lmstash.caches.torch_model import TorchModel
from lmstash.errors import UnsupportedModelError

LONG = [*range(1, 60), *range(3, 60), *range(5, 60)]
SHORT = LONG[:70]
OUTLIER = 60
"""A token whose embedding goes beyond the threshold of LLM.int8."""


def llama(**options):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config = LlamaConfig(vocab_size=64, max_position_embeddings=512, **{**sizes, **ends, **options})
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(8)  # as far apart as a trained model's values are
    return model


def with_long_rope(model):
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "factor": 4.0}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 100, **factors}
    donor = llama(rope_parameters=rope)
    model.model.rotary_emb = LlamaRotaryEmbedding(donor.config)
    return model


def both_ways(model):
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    return model


def in_int8(model, threshold=6.0):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    with torch.no_grad():
        model.model.embed_tokens.weight[OUTLIER, 5] = 80.0
    for layer in model.model.layers:
        for part in (layer.mlp, layer.self_attn):
            for name, old in list(part.named_children()):
                if isinstance(old, nn.Linear):
                    new = bitsandbytes.nn.Linear8bitLt(
                        old.in_features, old.out_features, bias=False, has_fp16_weights=False, threshold=threshold
                    )
                    weight = old.weight.detach().clone()
                    new.weight = bitsandbytes.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
                    setattr(part, name, new.to("cpu"))
    return model.eval()


def changed(change):
    return lambda: change(llama())


CHANGES = [with_long_rope, both_ways, in_int8]
SAID_OTHERWISE = pytest.mark.parametrize("build", list(map(changed, CHANGES)), ids=[each.__name__ for each in CHANGES])


def assert_near(got, wanted):
    assert (got - wanted).norm() <= 2e-4 * wanted.norm()


def plain(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids]), output_hidden_states=True)


@SAID_OTHERWISE
def test_activations_are_those_of_the_prompt_alone(build):
    model, oracle = build(), build()
    with_outlier = [*SHORT, OUTLIER]
    for pool in (None, "last"):
        with lmstash.open("memory://", strict=True) as stash:
            acts = stash.activations(model)
            for prompts in ([with_outlier], [SHORT, LONG], [[OUTLIER, *SHORT[1:]], SHORT[::-1]]):
                for ids, got in zip(prompts, acts(prompts, 0, pool), strict=True):
                    wanted = plain(oracle, ids).hidden_states[1][0]
                    assert_near(got[0], wanted if pool is None else wanted[-1])


@SAID_OTHERWISE
def test_log_probabilities_are_those_of_the_prompt_alone(build):
    model, oracle = build(), build()
    with lmstash.open("memory://", strict=True) as stash:
        logprobs = stash.logprobs(model)
        for prompts in ([LONG], [SHORT, LONG], [[OUTLIER, *SHORT[1:]], SHORT[::-1], [*SHORT[:-1], 3]]):
            for ids, got in zip(prompts, logprobs.batch_next_token_logprobs(prompts), strict=True):
                wanted = plain(oracle, ids).logits[0, -1].float().log_softmax(-1)
                assert_near(got, wanted)


@SAID_OTHERWISE
def test_no_kv_is_kept(build):
    with lmstash.open("memory://", strict=True) as stash:
        kv = stash.kv(build())
        for ids in (SHORT, LONG):
            given = {"input_ids": torch.tensor([ids]), "max_new_tokens": 2, "do_sample": False}
            assert torch.equal(kv.generate(**given), build().generate(**given))
        stash.flush()
        assert kv.reason
        assert not kv.stats.tokens_reused


def test_a_part_that_turns_both_ways_is_noticed_when_it_is_made_so_later():
    with lmstash.open("memory://", strict=True) as stash:
        model = llama()
        kv = stash.kv(model)
        given = {"input_ids": torch.tensor([SHORT]), "max_new_tokens": 2, "do_sample": False}
        kv.generate(**given)
        both_ways(model)
        for _ in range(2):
            assert torch.equal(kv.generate(**given), both_ways(llama()).generate(**given))
        assert not kv.stats.tokens_reused


def inner_config(name, value):
    def change():
        model = llama()
        model.model.config = copy.deepcopy(model.config)
        setattr(model.model.config, name, value)
        return model

    return change


def test_classes_are_asked_once_whether_they_see_what_comes_later(monkeypatch):
    """With adapters there are thousands of modules of a few classes."""
    model, asked, look = llama(), [], inspect.getattr_static

    def counting(held, name, default):
        asked.append(held)
        return look(held, name, default)

    monkeypatch.setattr(inspect, "getattr_static", counting)
    assert family_of(model).reason == ""
    assert len(asked) <= len(set(map(type, model.modules()))) < len([*model.modules()])


@pytest.mark.parametrize(
    ("name", "value"), [("is_causal", False), ("is_causal", None), ("use_bidirectional_attention", True)]
)
def test_a_base_whose_own_configuration_turns_both_ways_keeps_no_kv(name, value):
    build = inner_config(name, value)
    assert "is_causal" in family_of(build()).reason
    with lmstash.open("memory://", strict=True) as stash:
        kv = stash.kv(build())
        for ids in (SHORT, LONG):
            given = {"input_ids": torch.tensor([ids]), "max_new_tokens": 2, "do_sample": False}
            assert torch.equal(kv.generate(**given), build().generate(**given))
        assert not kv.stats.tokens_reused


def test_a_class_may_say_so_too():
    class BothWays(nn.Identity):
        is_causal = False

    model = llama()
    model.model.norm.odd = BothWays()
    assert "is_causal" in family_of(model).reason


def test_what_would_look_at_another_text_hinders_nobody():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2, add_cross_attention=True)).eval()
    assert not family_of(model).reason


def test_parts_that_refuse_to_be_asked_are_passed_over():
    class Odd(nn.Identity):
        @property
        def is_causal(self):
            raise RuntimeError("not now")

    class Config:
        def __getattr__(self, name):
            raise RuntimeError("not now")

    model = llama()
    model.model.norm.odd = Odd()
    vars(model.model.norm.odd)["config"] = Config()
    assert not family_of(model).reason
    assert TorchModel(model).alike_tokens() is None


def test_a_model_that_does_not_give_its_configuration_is_refused_in_words():
    class Mine(nn.Module):
        @property
        def config(self):
            raise RuntimeError("not now")

    with lmstash.open("memory://", strict=True) as stash:
        with pytest.raises(UnsupportedModelError, match="no transformers model"):
            stash.activations(Mine())
        assert "generate" in stash.kv(Mine()).reason


def test_what_depends_on_nothing_else_is_served_as_before():
    assert TorchModel(llama()).declared_causal()
    assert not family_of(llama()).reason
    without_outliers = in_int8(llama(), threshold=0.0)
    assert TorchModel(without_outliers).declared_causal()
    assert not family_of(without_outliers).reason


def test_a_rotary_embedding_whose_kind_was_set_by_hand_is_believed_at_no_length():
    model = llama()
    model.model.rotary_emb.rope_type = "dynamic"
    assert TorchModel(model).alike_tokens() == 0
    assert "rotary" in family_of(model).reason
