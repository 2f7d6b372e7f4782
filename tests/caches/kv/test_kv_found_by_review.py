"""Wrong hits and harm that a hostile review found: each stays a test."""

import threading

import pytest
import torch
from transformers import DynamicCache
from transformers.generation import LogitsProcessor, LogitsProcessorList, StoppingCriteria

PAD = 30
OPTIONS = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}


def ask(generate, ids, **more):
    return generate(ids, **OPTIONS, **more)


def same(left, right):
    close = all(torch.allclose(a, b, atol=1e-4) for a, b in zip(left.logits, right.logits, strict=True))
    return close and torch.equal(left.sequences, right.sequences)


def strong(model, factor=8.0):
    """Weights so large that a wrong prefix is seen."""
    with torch.no_grad():
        for each in model.parameters():
            each.mul_(factor if each.ndim > 1 else 1.0)
    return model


def padded(ids):
    zeros = torch.zeros(1, PAD, dtype=torch.long)
    return torch.cat([zeros, ids], 1), torch.cat([zeros, torch.ones_like(ids)], 1)


@pytest.fixture
def hybrid(make_model):
    return make_model(
        "qwen3_next", num_hidden_layers=4, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=32,
        shared_expert_intermediate_size=32, linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=8,
        linear_value_head_dim=8, head_dim=8,
    )  # fmt: skip


def test_states_of_a_padded_prompt_are_not_taken_for_those_of_a_plain_one(hybrid, stash, prompt):
    kv = stash.kv(hybrid)
    assert not kv.reason
    ids = prompt(200)
    wide, mask = padded(ids)
    assert same(ask(kv.generate, wide, attention_mask=mask), ask(hybrid.generate, wide, attention_mask=mask))
    kv.flush()
    assert same(ask(kv.generate, ids), ask(hybrid.generate, ids))
    kv.flush()
    assert same(ask(kv.generate, wide, attention_mask=mask), ask(hybrid.generate, wide, attention_mask=mask))
    assert kv.past(wide, mask) == (None, 0)
    assert kv.prefill(wide, mask) == 0


def test_an_edit_through_data_that_spans_a_call_and_is_undone_before_the_writing_is_not_kept(model, stash, prompt):
    strong(model)
    kv = stash.kv(model)
    ids = prompt(150)
    right = ask(model.generate, ids)
    go, put_many = threading.Event(), stash.store.put_many

    def slow_put(*arguments, **keywords):
        go.wait(30)
        return put_many(*arguments, **keywords)

    stash.store.put_many = slow_put
    ask(kv.generate, prompt(70, seed=9))
    weight = model.model.layers[0].self_attn.q_proj.weight
    saved = weight.data.clone()
    weight.data.mul_(3.0)
    ask(kv.generate, ids)
    weight.data.copy_(saved)
    assert same(ask(kv.generate, ids), right)
    go.set()
    kv.flush()
    assert same(ask(kv.generate, ids), right)
    del stash.store.put_many


def test_a_decoder_that_sees_what_comes_after_is_not_served(make_model, stash, prompt):
    model = make_model(is_causal=False)
    kv = stash.kv(model)
    assert "encoder" in kv.reason
    for n_tokens in (100, 140):
        assert same(ask(kv.generate, prompt(n_tokens)), ask(model.generate, prompt(n_tokens)))
    assert kv.stats.tokens_reused == 0


def test_a_sliding_cache_that_has_forgotten_its_beginning_is_not_kept(make_model, stash, prompt):
    model = strong(make_model("mistral", sliding_window=8))
    kv = stash.kv(model)
    ids = prompt(20)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids, past_key_values=cache, use_cache=True)
    assert kv.put(ids[:, :5], cache) == 0
    assert same(ask(kv.generate, ids), ask(model.generate, ids))


def test_a_configuration_that_makes_rope_depend_on_the_length_ends_reuse(model, stash, prompt):
    kv = stash.kv(model)
    ask(kv.generate, prompt(100))
    kv.flush()
    model.config.rope_parameters = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    ask(kv.generate, prompt(140))
    assert kv.stats.tokens_reused == 0
    assert any("length" in reason for reason in kv.stats.passed_on)


class Rewrites(StoppingCriteria):
    def __call__(self, input_ids, scores, **keywords):
        input_ids[:, 10] = 5
        return torch.zeros(len(input_ids), dtype=torch.bool)


def test_criteria_that_write_into_the_prompt_spoil_nothing(model, stash, prompt):
    strong(model)
    kv = stash.kv(model)
    ids = prompt(150)
    ask(kv.generate, ids.clone(), stopping_criteria=[Rewrites()])
    kv.flush()
    other = ids.clone()
    other[:, 10] = 5
    assert same(ask(kv.generate, other), ask(model.generate, other))
    assert kv.stats.not_kept


class Raises(LogitsProcessor):
    calls = 0

    def __call__(self, input_ids, scores):
        type(self).calls += 1
        raise KeyError("mine")


def test_what_the_callers_own_code_raises_reaches_the_caller_once(model, stash, prompt):
    kv = stash.kv(model)
    kv.prefill(prompt(100))
    Raises.calls = 0
    with pytest.raises(KeyError, match="mine"):
        kv.generate(prompt(120), max_new_tokens=2, logits_processor=LogitsProcessorList([Raises()]))
    assert Raises.calls == 1


def test_arguments_may_be_given_in_order(model, stash, prompt):
    kv = stash.kv(model)
    config = model.generation_config
    config.max_new_tokens, config.do_sample = 3, False
    left = kv.generate(prompt(100), config, LogitsProcessorList())
    assert torch.equal(left, model.generate(prompt(100), config, LogitsProcessorList()))
