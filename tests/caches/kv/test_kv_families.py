"""Models of many kinds, tiny and random: served exactly, or left to themselves with a reason."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.cache_utils import DynamicCache

import lmstash
from lmstash.caches.kv.families import family_of
from lmstash.caches.kv.probing import continues

WINDOW = 32
WANT = {"do_sample": False, "max_new_tokens": 5, "return_dict_in_generate": True, "output_logits": True}

PLAIN = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512},
    "gpt_neox": {},
    "bloom": {"n_layer": 3, "n_head": 4},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "phi3": {"pad_token_id": 0},
    "mixtral": {"num_local_experts": 4},
    "deepseek_v3": {
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 12,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
        "n_shared_experts": 1,
    },
}
SLIDING = {
    "mistral": {"sliding_window": WINDOW},
    "gemma2": {"sliding_window": WINDOW, "head_dim": 8},
    "gemma3_text": {"sliding_window": WINDOW, "head_dim": 8, "num_hidden_layers": 7},
    "gpt_oss": {"sliding_window": WINDOW, "head_dim": 8, "num_local_experts": 4},
    "llama4_text": {"attention_chunk_size": WINDOW, "head_dim": 8, "num_local_experts": 4, "intermediate_size_mlp": 48},
}
RECURRENT = {
    "granitemoehybrid": {
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_d_state": 16,
        "layer_types": ["mamba", "attention", "mamba"],
    },
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 16, "attn_layer_indices": [1]},
    "falcon_h1": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_ssm": 64},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"]},
    "qwen3_next": {
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
}


def logits_of(out):
    return torch.stack(out.logits)


def plain_cache(model):
    return DynamicCache(config=model.config.get_text_config(decoder=True))


@pytest.mark.parametrize("kind", [*PLAIN, *SLIDING])
def test_restored_continues_bit_for_bit(make_model, stash, prompt, kind, live, fed):
    """Prefixes that are cut anywhere, also far behind a window, continue as the cache that `generate` makes itself."""
    model = make_model(kind, **{**PLAIN, **SLIDING}[kind])
    kv, counter = stash.kv(model), fed(model)
    assert kv.reason == ""
    kv.prefill(prompt(150))
    for n_prefix in (150, 100, 20):
        ids = torch.cat([prompt(n_prefix), prompt(15, seed=n_prefix)], dim=1)
        past = plain_cache(model)
        with torch.no_grad():
            model(prompt(n_prefix), past_key_values=past)
        expected = model.generate(ids, past_key_values=past, **WANT)
        counter.take()
        out = kv.generate(ids, **WANT)
        assert counter.take()[0] == 15
        assert torch.equal(out.sequences, expected.sequences)
        if n_prefix == 150:
            assert torch.equal(logits_of(out), logits_of(expected))
        else:  # KV that was computed as part of a longer prompt: other matrix shapes, other last bits
            assert torch.allclose(logits_of(out), logits_of(expected), atol=1e-5)
        stash.flush()
    assert not kv.stats.passed_on
    assert not kv.stats.not_kept


@pytest.mark.parametrize("kind", SLIDING)
def test_what_is_handed_back_has_its_window_only(make_model, stash, prompt, kind):
    """Layers with a window remember everything for us; the caller's cache does not grow by it."""
    model = make_model(kind, **SLIDING[kind])
    kv = stash.kv(model)
    for _ in range(2):
        ours, plain = (
            kv.generate(prompt(150), **WANT).past_key_values,
            model.generate(prompt(150), **WANT).past_key_values,
        )
        assert [type(layer) for layer in ours.layers] == [type(layer) for layer in plain.layers]
        for mine, other in zip(ours.layers, plain.layers, strict=True):
            assert mine.get_seq_length() == other.get_seq_length()
            assert mine.keys.shape == other.keys.shape
            assert torch.allclose(mine.keys, other.keys, atol=1e-5)
            assert not getattr(mine, "record_past", False)
        stash.flush()


@pytest.mark.parametrize("kind", SLIDING)
def test_a_window_that_lost_tokens_is_not_put(make_model, stash, prompt, kind):
    model = make_model(kind, **SLIDING[kind])
    kv, past = stash.kv(model), plain_cache(model)
    with torch.no_grad():
        model(prompt(100), past_key_values=past)
    assert kv.put(prompt(100), past) == 0
    assert list(kv.stats.not_kept) == [
        "this cache's DynamicSlidingWindowLayer holds only the last tokens; generate and prefill of stash.kv keep all"
    ]
    short = plain_cache(model)
    with torch.no_grad():
        model(prompt(20), past_key_values=short)
    assert kv.put(prompt(20), short) == 20


@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrent_states_are_kept_where_prompts_part(make_model, stash, prompt, kind, fed):
    model = make_model(kind, **RECURRENT[kind])
    kv, counter = stash.kv(model), fed(model)
    assert kv.reason == ""

    def ask(n_shared, seed):
        ids = torch.cat([prompt(n_shared), prompt(100, seed=seed)], dim=1)
        counter.take()
        out = kv.generate(ids, **WANT)
        passes = counter.take()
        expected = model.generate(ids, **WANT)
        assert torch.equal(out.sequences, expected.sequences)
        assert torch.allclose(logits_of(out), logits_of(expected), atol=1e-5)
        stash.flush()
        return passes[: -WANT["max_new_tokens"] + 1]

    ask(150, 1)
    assert ask(150, 1) == [250 - 192]  # the state after its last whole block
    assert ask(150, 2) == [128, 64, 58]  # a pause where it leaves the first one, and at its own last block
    assert ask(150, 3) == [64, 58]
    assert ask(150, 2) == [58]
    assert kv.past(torch.cat([prompt(150), prompt(100, seed=3)], dim=1))[1] == 192
    assert kv.prefill(torch.cat([prompt(150), prompt(106, seed=3)], dim=1)) == 64
    assert not kv.stats.passed_on


@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrent_restored_continues_bit_for_bit(make_model, stash, prompt, kind):
    model = make_model(kind, **RECURRENT[kind])
    ids, past = prompt(150), plain_cache(model)
    with torch.no_grad():
        model(ids[:, :128], position_ids=torch.arange(128)[None], past_key_values=past)
    expected = model.generate(ids, past_key_values=past, **WANT)
    kv = stash.kv(model)
    kv.prefill(ids[:, :128])
    stash.flush()
    for _ in range(2):  # the model writes into a restored state: what is kept must not change
        assert torch.equal(logits_of(kv.generate(ids, **WANT)), logits_of(expected))
        assert kv.stats.tokens_reused > 0


def test_several_rows_of_a_recurrent_model_are_the_model_s(make_model, stash, prompt):
    model = make_model("lfm2", **RECURRENT["lfm2"])
    kv = stash.kv(model)
    rows = torch.cat([prompt(70), prompt(70, seed=1)])
    out = kv.generate(rows, do_sample=False, max_new_tokens=3)
    assert torch.equal(out, model.generate(rows, do_sample=False, max_new_tokens=3))
    assert list(kv.stats.passed_on) == ["several rows, or padding, of a model with recurrent layers"]


def test_a_model_that_ignores_its_state_is_found_out(make_model, stash, prompt, monkeypatch):
    """As Mamba and Jamba did in transformers 5.23: several tokens fed onto a state start from nothing."""
    from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv

    model = make_model("lfm2", **RECURRENT["lfm2"])
    assert continues(model, family_of(model))
    usual = Lfm2ShortConv.forward

    def forgetful(self, hidden_states, **kwargs):
        cache = kwargs.get("cache", kwargs.get("past_key_values"))
        if hidden_states.shape[1] > 1 and cache is not None:
            cache.layers[self.layer_idx].reset()
        return usual(self, hidden_states, **kwargs)

    monkeypatch.setattr(Lfm2ShortConv, "forward", forgetful)
    assert not continues(model, family_of(model))
    kv = stash.kv(model, variant="forgetful")
    kv.generate(prompt(100), do_sample=False, max_new_tokens=3)
    assert list(kv.stats.passed_on) == ["it does not continue from its cache as it should"]
    assert [entry.meta["id"]["kind"] for entry in stash.store.entries("kv/")] == ["kv probe"]


REFUSED = {
    "mamba": ({}, "it"),  # without keys and values, or under a name of its own
    "falcon_mamba": ({}, "it"),
    "rwkv": ({}, "a cache of its own kind"),
    "minimax": ({}, "a cache of its own kind"),
    "glm_moe_dsa": ({}, "index"),
    "bert": ({}, "encoder"),
    "roberta": ({}, "encoder"),
    "openai-gpt": ({}, "takes no cache"),
}
LONG_ROPE = {
    "dynamic": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
        "original_max_position_embeddings": 64,
    },
}


@pytest.mark.parametrize("kind", REFUSED)
def test_families_that_are_left_alone(make_model, stash, kind):
    options, words = REFUSED[kind]
    kv = stash.kv(make_model(kind, **options))
    assert words in kv.reason
    assert kv.past([1, 2, 3]) == (None, 0)
    assert kv.prefill([1, 2, 3]) == 0
    assert kv.put([1, 2, 3], None) == 0
    assert list(kv.stats.passed_on) == [kv.reason]


@pytest.mark.parametrize("rope", LONG_ROPE)
def test_rotary_embeddings_that_depend_on_the_length_are_left_alone(make_model, stash, prompt, rope):
    model = make_model("llama", rope_parameters=LONG_ROPE[rope], max_position_embeddings=64)
    kv = stash.kv(model)
    assert "rotary" in kv.reason
    for n_tokens in (50, 90):
        out = kv.generate(prompt(n_tokens), do_sample=False, max_new_tokens=3)
        assert torch.equal(out, model.generate(prompt(n_tokens), do_sample=False, max_new_tokens=3))


def test_encoder_decoders_are_left_alone(stash):
    torch.manual_seed(0)
    shape = {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4, "vocab_size": 120}
    model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("t5", decoder_start_token_id=0, **shape)).eval()
    kv = stash.kv(model)
    assert "encoder-decoder" in kv.reason
    ids = torch.arange(3, 20)[None]
    out = kv.generate(ids, do_sample=False, max_new_tokens=4)
    assert torch.equal(out, model.generate(ids, do_sample=False, max_new_tokens=4))
    assert stash.info().entries == 0


def test_models_of_several_modalities_are_left_alone(stash):
    torch.manual_seed(0)
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision = {**text, "image_size": 32, "patch_size": 16}
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig(
        text_config={"model_type": "llama", "vocab_size": 120, **text},
        vision_config={"model_type": "clip_vision_model", **vision},
    )
    model = LlavaForConditionalGeneration(config).eval()
    assert "modalities" in stash.kv(model).reason


def test_a_config_of_another_model_s_code_must_prove_itself(make_model, stash, prompt):
    """Code from elsewhere that somebody vouches for is asked once, and the answer is kept for other processes."""

    model = make_model()
    own = type("Custom", (type(model),), {"__module__": "somebody.else"})
    model.__class__ = own
    assert family_of(model).doubtful
    kv = stash.kv(model, variant="as the original")
    for _ in range(2):
        kv.generate(prompt(100), do_sample=False, max_new_tokens=3)
        stash.flush()
    assert kv.stats.tokens_reused == 99
    probes = [entry for entry in stash.store.entries("kv/") if entry.meta["id"].get("kind") == "kv probe"]
    assert len(probes) == 1


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_implementations_do_not_share(make_model, tmp_path, prompt, implementation):
    model = make_model()
    model.set_attn_implementation(implementation)
    with lmstash.open(tmp_path / "shared") as stash:
        kv = stash.kv(model)
        assert kv.past(prompt(100)) == (None, 0)
        kv.prefill(prompt(100))
        other = {"eager": "sdpa", "sdpa": "eager"}[implementation]
        model.set_attn_implementation(other)
        assert kv.past(prompt(100)) == (None, 0)
        model.set_attn_implementation(implementation)
        assert kv.past(prompt(100))[1] == 99


def test_a_family_is_found_without_a_name():
    config = AutoConfig.for_model("llama", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=50)
    family = family_of(AutoModelForCausalLM.from_config(config))
    assert (family.kept, family.sliding, family.linear, family.doubtful) == ((0, 1), (), (), False)
    assert family.argument in ("cache", "past_key_values")
