"""Every family and site against hooks set here by hand, on prompts run one at a time without padding."""

from dataclasses import dataclass, field

import pytest
import torch
import transformers

from lmstash.caches.activations import Activations
from lmstash.caches.activations.model_source import ModelSource
from lmstash.errors import InvalidArgumentError, UnsupportedModelError
from lmstash.store.memory import MemoryStore

LLAMA = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 90}
SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 90}
GQA = {**LLAMA, "num_key_value_heads": 2, "head_dim": 8}
PROMPTS = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14, 15, 16, 17, 18, 19, 20]]
LAYERS = [0, 2]


@dataclass
class Family:
    """A tiny model, and where its values leave, written down by hand."""

    name: str
    options: dict
    blocks: str
    attn: str
    mlp: str
    final: str
    router: str = ""
    extra: dict = field(default_factory=dict)
    encoder: bool = False
    """Whether it is the encoder of this model that is read."""

    def __str__(self):
        return self.name


FAMILIES = [
    Family(
        "GPT2LMHeadModel",
        {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 90},
        "transformer.h",
        "attn",
        "mlp",
        "transformer.ln_f",
    ),
    Family("GPTNeoXForCausalLM", {**LLAMA}, "gpt_neox.layers", "attention", "mlp", "gpt_neox.final_layer_norm"),
    Family(
        "GPTJForCausalLM",
        {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 90, "rotary_dim": 4},
        "transformer.h",
        "attn",
        "mlp",
        "transformer.ln_f",
    ),
    Family("LlamaForCausalLM", GQA, "model.layers", "self_attn", "mlp", "model.norm"),
    Family("MistralForCausalLM", {**GQA, "sliding_window": 4}, "model.layers", "self_attn", "mlp", "model.norm"),
    Family("Qwen2ForCausalLM", GQA, "model.layers", "self_attn", "mlp", "model.norm"),
    Family("Qwen3ForCausalLM", GQA, "model.layers", "self_attn", "mlp", "model.norm"),
    Family("GemmaForCausalLM", GQA, "model.layers", "self_attn", "mlp", "model.norm"),
    Family("Gemma2ForCausalLM", {**GQA, "sliding_window": 4}, "model.layers", "self_attn", "mlp", "model.norm"),
    Family("Gemma3ForCausalLM", {**GQA, "sliding_window": 4}, "model.layers", "self_attn", "mlp", "model.norm"),
    Family("PhiForCausalLM", LLAMA, "model.layers", "self_attn", "mlp", "model.final_layernorm"),
    Family("Phi3ForCausalLM", {**GQA, "pad_token_id": 0}, "model.layers", "self_attn", "mlp", "model.norm"),
    Family(
        "StableLmForCausalLM", {**LLAMA, "num_key_value_heads": 4}, "model.layers", "self_attn", "mlp", "model.norm"
    ),
    Family(
        "OPTForCausalLM",
        {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32},
        "model.decoder.layers",
        "self_attn",
        "fc2",
        "model.decoder.final_layer_norm",
    ),
    Family(
        "OPTForCausalLM",
        {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
        "model.decoder.layers",
        "self_attn",
        "fc2",
        "model.decoder.project_out",
    ),
    Family(
        "BloomForCausalLM",
        {"hidden_size": 32, "n_layer": 3, "n_head": 4, "vocab_size": 90},
        "transformer.h",
        "self_attention.dense",
        "mlp.dense_4h_to_h",
        "transformer.ln_f",
    ),
    Family("FalconForCausalLM", SMALL, "transformer.h", "self_attention", "mlp", "transformer.ln_f"),
    Family(
        "MptForCausalLM",
        {"d_model": 32, "n_layers": 3, "n_heads": 4, "vocab_size": 90, "max_seq_len": 64},
        "transformer.blocks",
        "attn",
        "ffn.down_proj",
        "transformer.norm_f",
    ),
    Family(
        "MixtralForCausalLM",
        {**GQA, "num_local_experts": 4},
        "model.layers",
        "self_attn",
        "mlp",
        "model.norm",
        "mlp.gate",
    ),
    Family(
        "Qwen2MoeForCausalLM",
        {**GQA, "num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
        "model.layers",
        "self_attn",
        "mlp",
        "model.norm",
        "mlp.gate",
    ),
    Family(
        "OlmoeForCausalLM",
        {**GQA, "num_experts": 4, "num_experts_per_tok": 2},
        "model.layers",
        "self_attn",
        "mlp",
        "model.norm",
        "mlp.gate",
    ),
    Family(
        "BertModel",
        {**LLAMA},
        "encoder.layer",
        "attention.output.dense",
        "output.dense",
        "encoder.layer.2",
    ),
    Family(
        "RobertaForMaskedLM",
        {**LLAMA, "max_position_embeddings": 66},
        "roberta.encoder.layer",
        "attention.output.dense",
        "output.dense",
        "roberta.encoder.layer.2",
    ),
    Family(
        "DistilBertModel",
        {"dim": 32, "hidden_dim": 48, "n_layers": 3, "n_heads": 4, "vocab_size": 90},
        "transformer.layer",
        "attention",
        "ffn",
        "transformer.layer.2",
    ),
]
T5 = {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4, "vocab_size": 90}
SEVERAL = {"attn": "layer.0.SelfAttention", "mlp": "layer.1.DenseReluDense", "encoder": True}
BART = {
    **{"d_model": 32, "encoder_layers": 3, "decoder_layers": 2, "vocab_size": 90},
    **{"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48},
    **{"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1, "decoder_start_token_id": 1},
    **{"forced_eos_token_id": 1},
}
ENCODERS = [
    Family("T5ForConditionalGeneration", T5, "block", final="final_layer_norm", **SEVERAL),
    Family("MT5Model", T5, "block", final="final_layer_norm", **SEVERAL),
    Family("BartModel", BART, "layers", "self_attn", "fc2", "layers.2", encoder=True),
    Family("MBartForConditionalGeneration", BART, "layers", "self_attn", "fc2", "layer_norm", encoder=True),
    Family("MarianModel", BART, "layers", "self_attn", "fc2", "layers.2", encoder=True),
    Family("PegasusModel", BART, "layers", "self_attn", "fc2", "layer_norm", encoder=True),
]


def build(family: Family, **more) -> torch.nn.Module:
    torch.manual_seed(0)
    kind = getattr(transformers, family.name)
    model = kind(kind.config_class(**{**family.options, **more})).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # away from zeros and ones, so that every module shows
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.get_encoder() if family.encoder else model


def first(output):
    while isinstance(output, tuple):
        output = output[0]
    return output


def read_by_hand(model, path: str, ids: list[int], *, before: bool = False) -> torch.Tensor:
    """`[n_tokens, width]` of one module for one prompt, through the whole model."""
    kept = []
    module = model.get_submodule(path)
    if before:
        handle = module.register_forward_pre_hook(
            lambda _, args, kwargs: kept.append((args[0] if args else kwargs["hidden_states"]).clone()),
            with_kwargs=True,
        )
    else:
        handle = module.register_forward_hook(lambda _, args, output: kept.append(first(output).clone()))
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]))
    handle.remove()
    (value,) = kept
    return value.reshape(len(ids), -1)


def paths(family: Family, site: str) -> list[str]:
    if site == "embed":
        return [f"{family.blocks}.0"]
    if site == "final":
        return [family.final]
    inner = {"block_out": "", "attn_out": family.attn, "mlp_out": family.mlp, "router_logits": family.router}[site]
    return [f"{family.blocks}.{layer}" + (f".{inner}" if inner else "") for layer in LAYERS]


CASES = [
    pytest.param(family, site, id=f"{index}-{family}-{site}")
    for index, family in enumerate([*FAMILIES, *ENCODERS])
    for site in ("block_out", "embed", "attn_out", "mlp_out", "final", *(["router_logits"] if family.router else []))
]


@pytest.mark.parametrize(("family", "site"), CASES)
def test_every_site_equals_hooks_set_by_hand(family, site):
    model = build(family)
    acts = Activations(MemoryStore(), model)
    expected = [
        torch.stack([read_by_hand(model, path, ids, before=site == "embed") for path in paths(family, site)])
        for ids in PROMPTS
    ]
    cold = acts(PROMPTS, LAYERS, None, site=site)
    warm = acts(PROMPTS, LAYERS, None, site=site)
    for computed, kept, wanted in zip(cold, warm, expected, strict=True):
        torch.testing.assert_close(computed, wanted, rtol=1e-4, atol=1e-5)
        assert torch.equal(computed, kept)
    pooled = acts(PROMPTS, LAYERS, "last", site=site)
    torch.testing.assert_close(pooled, torch.stack([each[:, -1] for each in expected]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", [*FAMILIES, *ENCODERS], ids=lambda family: f"{family}")
def test_only_models_whose_tokens_see_no_future_are_kept_by_prefix(family):
    expected = family.name not in ("BertModel", "RobertaForMaskedLM", "DistilBertModel") and not family.encoder
    assert ModelSource(build(family)).causal() is expected


def test_the_vocabulary_head_and_later_blocks_do_not_run():
    model = build(FAMILIES[3])
    ran = []
    for name, module in model.named_modules():
        if name in ("lm_head", "model.layers.1", "model.layers.2", "model.norm"):

            def note(_, args, output, name=name):
                ran.append(name)

            note._lmstash = True  # reads only: with hooks that may do anything, the model would be tried with padding
            module.register_forward_hook(note)
    acts = Activations(MemoryStore(), model)
    acts(PROMPTS, 1)
    assert ran == ["model.layers.1"]
    ran.clear()
    acts(PROMPTS, 0, site="final")
    assert ran == ["model.layers.1", "model.layers.2", "model.norm"]


def test_no_hook_is_left_behind_even_after_an_error():
    model = build(FAMILIES[3])
    acts = Activations(MemoryStore(), model)
    acts(PROMPTS, "all")
    model.model.layers[1].self_attn.k_proj.weight = torch.nn.Parameter(torch.zeros(3, 3))
    with pytest.raises(RuntimeError):
        acts(PROMPTS, 2, refresh=True)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_dense_layer_among_expert_layers_has_no_router():
    model = build(FAMILIES[19], mlp_only_layers=[1])
    acts = Activations(MemoryStore(), model)
    assert acts(PROMPTS, "all", site="router_logits").shape == (3, 2, 4)
    with pytest.raises(InvalidArgumentError, match="layer 1 has no 'router_logits'"):
        acts(PROMPTS, [1], site="router_logits")


def test_router_logits_of_a_model_without_experts_are_refused():
    with pytest.raises(UnsupportedModelError, match="no experts"):
        Activations(MemoryStore(), build(FAMILIES[3]))(PROMPTS, 0, site="router_logits")


def test_an_encoder_decoder_is_refused_with_the_way_out():
    config = transformers.T5Config(d_model=16, d_ff=16, d_kv=4, num_layers=1, num_heads=2, vocab_size=30)
    with pytest.raises(UnsupportedModelError, match="extractor="):
        Activations(MemoryStore(), transformers.T5ForConditionalGeneration(config).eval())


@pytest.mark.parametrize("family", ENCODERS, ids=lambda family: f"{family}")
def test_the_way_out_of_an_encoder_decoder_is_one(family):
    kind = getattr(transformers, family.name)
    whole = kind(kind.config_class(**family.options)).eval()
    with pytest.raises(UnsupportedModelError, match=r"Pass model\.get_encoder\(\)"):
        Activations(MemoryStore(), whole)
    assert Activations(MemoryStore(), whole.get_encoder())(PROMPTS, "all").shape == (3, 3, 32)


@pytest.mark.parametrize("family", [ENCODERS[0], ENCODERS[2]], ids=lambda family: f"{family}")
def test_the_decoder_of_an_encoder_decoder_is_not_sent_to_its_encoder(family):
    kind = getattr(transformers, family.name)
    decoder = kind(kind.config_class(**family.options)).eval().get_decoder()
    with pytest.raises(UnsupportedModelError, match="depend on what the encoder read") as refused:
        Activations(MemoryStore(), decoder)
    assert "get_encoder" not in str(refused.value)


def test_an_encoder_that_takes_no_tokens_is_no_way_out():
    config = transformers.WhisperConfig(**{**BART, "encoder_layers": 2})
    with pytest.raises(UnsupportedModelError, match="Pass extractor="):
        Activations(MemoryStore(), transformers.WhisperModel(config).eval())


def test_a_module_without_blocks_is_refused_with_the_way_out():
    with pytest.raises(UnsupportedModelError, match="extractor="):
        Activations(MemoryStore(), torch.nn.Linear(2, 2))


def test_a_model_on_the_meta_device_is_refused_with_the_way_out():
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**GQA)).eval()
    with pytest.raises(UnsupportedModelError, match="meta device"):
        Activations(MemoryStore(), model)


def test_an_unknown_site_names_those_there_are():
    with pytest.raises(InvalidArgumentError, match="block_out"):
        Activations(MemoryStore(), build(FAMILIES[3]))(PROMPTS, 0, site="resid_post")


@pytest.mark.parametrize(
    ("rope", "chained"),
    [
        ({"rope_type": "default", "rope_theta": 10000.0}, True),
        ({"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}, True),
        ({"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}, False),
    ],
)
def test_rotary_embeddings_that_depend_on_the_prompt_length_are_not_kept_by_prefix(rope, chained):
    model = build(FAMILIES[3], rope_parameters=rope, max_position_embeddings=64)
    assert ModelSource(model).causal() is chained


def test_an_indexer_whose_scores_tie_is_given_prompts_of_one_length():
    attention = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
    indexer = {"index_n_heads": 2, "index_head_dim": 8, "index_topk": 4}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "n_shared_experts": 1}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 90, "first_k_dense_replace": 1}
    torch.manual_seed(0)
    config = transformers.DeepseekV32Config(**attention, **indexer, **experts, **sizes, **heads)
    model = transformers.DeepseekV32ForCausalLM(config).eval()
    prompts = [list(range(1, 8)), [12], list(range(20, 32)), list(range(40, 70))]
    assert not ModelSource(model).causal()
    got = Activations(MemoryStore(), model)(prompts, 0, None, site="final")
    for ids, values in zip(prompts, got, strict=True):
        with torch.no_grad():
            wanted = model.model(torch.tensor([ids]))[0]
        torch.testing.assert_close(values, wanted, rtol=1e-4, atol=1e-5)


def test_attention_that_keeps_the_best_tokens_is_given_prompts_of_one_length():
    sizes = {**GQA, "keep_window_size": 8, "num_hidden_layers": 2, "pad_token_id": 0}
    torch.manual_seed(0)
    model = transformers.DogeForCausalLM(transformers.DogeConfig(**sizes)).eval()
    prompts = [list(range(1, 41)), list(range(1, 31)), [12, 13]]
    assert not ModelSource(model).causal()
    for ids, values in zip(prompts, Activations(MemoryStore(), model)(prompts, 0, None, site="final"), strict=True):
        with torch.no_grad():
            wanted = model.model(torch.tensor([ids]))[0]
        torch.testing.assert_close(values, wanted, rtol=1e-4, atol=1e-5)


def test_a_prompt_longer_than_an_mpt_has_positions_for_is_refused():
    config = transformers.MptConfig(d_model=32, n_heads=4, n_layers=2, vocab_size=90, max_seq_len=16)
    acts = Activations(MemoryStore(), transformers.MptForCausalLM(config).eval())
    assert acts([[5] * 16], 0).shape == (1, 1, 32)
    with pytest.raises(InvalidArgumentError, match="17 tokens"):
        acts([[5] * 17], 0)


def test_roberta_positions_leave_fewer_tokens_than_the_table_has_rows():
    acts = Activations(MemoryStore(), build(FAMILIES[-2]))
    assert acts([[5] * 64], 0).shape == (1, 1, 32)
    with pytest.raises(InvalidArgumentError, match="65 tokens"):
        acts([[5] * 65], 0)


def test_a_block_that_runs_twice_has_no_one_value():
    model = build(FAMILIES[3])
    layer = model.model.layers[1]
    once = layer.forward
    layer.forward = lambda *args, **kwargs: once(layer.mlp(args[0]) + args[0], *args[1:], **kwargs)
    acts = Activations(MemoryStore(), model, variant="mlp twice in block 1")
    with pytest.raises(UnsupportedModelError, match="runs twice"):
        acts(PROMPTS, [1, 2], site="mlp_out")


def test_a_wrapper_that_is_no_transformers_model_is_told_what_to_do():
    class Wrapper(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.config = inner, inner.config

    with pytest.raises(UnsupportedModelError, match=r"get_input_embeddings.*extractor="):
        Activations(MemoryStore(), Wrapper(build(FAMILIES[3])))
