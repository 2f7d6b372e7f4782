"""Tiny random models of many families, and what they say by plain forward passes."""

import copy
import random

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

VOCABULARY = 97

_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 300,
}
_OLD = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 300}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
_WINDOW = {"sliding_window": 8}
_EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
_LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
_LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 6}
_DEEP = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 1, "topk_group": 1}
_ROPE = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}

FAMILIES = {
    "llama": _SHAPE,
    "qwen2": _SHAPE,
    "qwen3": {**_SHAPE, "head_dim": 8},
    "gpt2": _OLD,
    "gptj": {**_OLD, "rotary_dim": 4},
    "gpt_neox": _SHAPE,
    "bloom": {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "opt": {**_SHAPE, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "falcon": {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "granite": {**_SHAPE, "logits_scaling": 4.0, "embedding_multiplier": 2.0},
    "cohere": {**_SHAPE, "logit_scale": 0.3},
    "mixtral": {**_SHAPE, "num_local_experts": 4},
    "qwen2_moe": {**_SHAPE, **_EXPERTS},
    "deepseek_v3": {**_SHAPE, **_LATENT, **_DEEP, "first_k_dense_replace": 1, "num_key_value_heads": 4},
    "mistral": {**_SHAPE, **_WINDOW},
    "gemma2": {**_SHAPE, **_WINDOW, "head_dim": 8},
    "gemma3_text": {**_SHAPE, **_WINDOW, "head_dim": 8},
    "gpt_oss": {**_SHAPE, **_WINDOW, "head_dim": 8, "num_local_experts": 4},
    "gpt_neo": {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 8,
        "max_position_embeddings": 300,
    },
    "llama4_text": {
        **_SHAPE,
        "head_dim": 8,
        "num_local_experts": 2,
        "attention_chunk_size": 8,
        "intermediate_size_mlp": 48,
        "no_rope_layers": [1, 0],
    },
    "mamba": {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
    "mamba2": {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "state_size": 8,
        "num_heads": 8,
        "head_dim": 8,
        "n_groups": 1,
    },
    "bamba": {**_SHAPE, **_MAMBA, "attn_layer_indices": [1]},
    "granitemoehybrid": {**_SHAPE, **_MAMBA, "layer_types": ["mamba", "attention"], "num_local_experts": 4},
    "recurrent_gemma": {**_SHAPE, "head_dim": 8, "lru_width": 32, "attention_window_size": 8},
    "qwen3_next": {**_SHAPE, **_EXPERTS, **_LINEAR, "head_dim": 8},
    "lfm2": {**_SHAPE, "full_attn_idxs": [1], "layer_types": ["conv", "full_attention"]},
    "rwkv": {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2},
    "llama, dynamic rope": {**_SHAPE, "max_position_embeddings": 24, "rope_parameters": _ROPE},
}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def make_model():
    """Build a Llama of 2 layers, 32 wide; one seed gives one set of weights."""

    def build(seed: int = 0, **options) -> LlamaForCausalLM:
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**{**_SHAPE, **options})).eval()

    return build


@pytest.fixture
def model(make_model):
    return make_model()


@pytest.fixture
def build_family():
    """Build a tiny model of a family."""

    def build(family: str):
        torch.manual_seed(0)
        config = CONFIG_MAPPING[family.partition(",")[0]](**FAMILIES[family])
        model = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for weight in model.parameters():  # fresh ones are so small that every context looks alike
                if weight.ndim > 1:
                    weight.mul_(4)
        return model

    return build


@pytest.fixture
def plain():
    """What a model says of a context in a pass of its own, without any cache."""

    def row(model, context) -> torch.Tensor:
        if "dynamic" in str(model.config):
            model = copy.deepcopy(model)  # its embeddings remember how long contexts were
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([list(context)]), use_cache=False).logits
        return torch.log_softmax(logits[0, -1].float(), -1)

    return row


@pytest.fixture
def contexts():
    """Contexts of 1 to 200 tokens, of which some begin alike, or are others' beginnings."""
    generator = random.Random(5)

    def tokens(count):
        return [generator.randrange(VOCABULARY) for _ in range(count)]

    shared, long = tokens(40), tokens(200)
    return [
        tokens(7),
        shared,
        [*shared, *tokens(3)],
        [*shared, *tokens(3)],
        shared[:12],
        [*shared[:30], *tokens(20)],
        long,
        long[:64],
        long[:128],
        long[:65],
        tokens(1),
    ]


class Fed:
    """How many tokens went through a model's first block, padding included, and in how many passes."""

    def __init__(self, model) -> None:
        self.tokens = 0
        self.passes = 0

        def count(module, args, kwargs):
            hidden = args[0] if args else kwargs["hidden_states"]
            self.tokens += hidden.shape[0] * hidden.shape[1]
            self.passes += 1

        count._lmstash = True  # reads only, so the model's fingerprint may overlook it
        model.model.layers[0].register_forward_pre_hook(count, with_kwargs=True)

    def take(self) -> tuple[int, int]:
        """Return passes and tokens since the last call."""
        out, self.passes, self.tokens = (self.passes, self.tokens), 0, 0
        return out


@pytest.fixture
def count_fed():
    return Fed
