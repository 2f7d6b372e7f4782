"""What attention and MLP contribute, told apart from what lmstash reads: by what they add up to, or by known parts."""

import pytest
import torch
import transformers

from lmstash.caches.activations import Activations
from lmstash.caches.activations.sites import find_submodule
from lmstash.errors import UnsupportedModelError
from lmstash.store.memory import MemoryStore

IDS = [5, 17, 23, 9, 77, 31]
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 90}
GQA = {**SMALL, "num_key_value_heads": 2, "head_dim": 8}
EXPERTS = {**GQA, "num_local_experts": 4, "num_experts_per_tok": 2}


def build(name: str, config: str, **options):
    torch.manual_seed(0)
    return getattr(transformers, name)(getattr(transformers, config)(**options)).eval()


def read(model, site: str, layers=(1,)) -> torch.Tensor:
    return Activations(MemoryStore(), model)([IDS], list(layers), None, site=site)[0]


def outputs(model, *paths: str) -> list[torch.Tensor]:
    """What some modules return for the prompt; of several outputs the first."""
    kept = {}

    def note(path):
        return lambda _, args, output: kept.__setitem__(path, output[0] if isinstance(output, tuple) else output)

    handles = [model.get_submodule(path).register_forward_hook(note(path)) for path in paths]
    with torch.no_grad():
        model(input_ids=torch.tensor([IDS]))
    for each in handles:
        each.remove()
    return [kept[path].reshape(len(IDS), -1) for path in paths]


@pytest.mark.parametrize(
    ("name", "config", "options"),
    [
        ("GPT2LMHeadModel", "GPT2Config", {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 90}),
        ("LlamaForCausalLM", "LlamaConfig", GQA),
        ("Qwen3ForCausalLM", "Qwen3Config", GQA),
        ("GemmaForCausalLM", "GemmaConfig", GQA),
        ("OPTForCausalLM", "OPTConfig", {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32}),
        ("BloomForCausalLM", "BloomConfig", {"hidden_size": 32, "n_layer": 3, "n_head": 4, "vocab_size": 90}),
        ("MptForCausalLM", "MptConfig", {"d_model": 32, "n_heads": 4, "n_layers": 3, "vocab_size": 90}),
        ("GPTNeoXForCausalLM", "GPTNeoXConfig", SMALL),
        ("PhiForCausalLM", "PhiConfig", SMALL),
        ("FalconForCausalLM", "FalconConfig", SMALL),
        ("MixtralForCausalLM", "MixtralConfig", EXPERTS),
        ("Qwen2MoeForCausalLM", "Qwen2MoeConfig", {**GQA, "num_experts": 4, "moe_intermediate_size": 16}),
        ("GraniteMoeForCausalLM", "GraniteMoeConfig", EXPERTS),
        ("EsmModel", "EsmConfig", {**SMALL, "pad_token_id": 0, "position_embedding_type": "rotary"}),
    ],
)
def test_what_both_contribute_adds_up_to_what_a_block_adds(name, config, options):
    """Of families that normalise before and not after."""
    model = build(name, config, **options)
    before, after = read(model, "block_out", [0, 1])
    attention, mlp = read(model, "attn_out")[0], read(model, "mlp_out")[0]
    torch.testing.assert_close(after - before, attention + mlp, rtol=1e-4, atol=1e-5)


def test_attention_that_adds_the_residual_itself_is_read_before_that():
    model = build("MPNetModel", "MPNetConfig", **SMALL)
    [expected] = outputs(model, "encoder.layer.1.attention.attn.o")
    torch.testing.assert_close(read(model, "attn_out")[0], expected, rtol=1e-4, atol=1e-5)
    options = {**SMALL, "embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16}
    model = build("MobileBertModel", "MobileBertConfig", **options)
    [expected] = outputs(model, "encoder.layer.1.attention.output.dense")
    torch.testing.assert_close(read(model, "attn_out")[0], expected, rtol=1e-4, atol=1e-5)


def test_a_router_that_returns_several_things_is_asked_for_its_logits():
    options = {**EXPERTS, "intermediate_size_mlp": 48, "interleave_moe_layer_step": 1}
    model = build("Llama4ForCausalLM", "Llama4TextConfig", **options)
    router = model.model.layers[1].feed_forward.router
    seen = []

    def note(_, args, output):
        seen.append(args[0])

    note._lmstash = True  # reads only
    router.register_forward_hook(note)
    served = read(model, "router_logits")[0]
    torch.testing.assert_close(served, torch.nn.functional.linear(seen[-1], router.weight).detach())
    assert (served < 0).any()  # scores are not


class ProbabilitiesOnly(torch.nn.Linear):
    def forward(self, hidden):
        return super().forward(hidden).softmax(-1), None


class Several(torch.nn.Linear):
    def forward(self, hidden):
        router_logits = super().forward(hidden)
        if hidden is None:
            return router_logits, None
        return None, router_logits


@pytest.mark.parametrize("kind", [ProbabilitiesOnly, Several])
def test_a_router_that_does_not_say_which_are_its_logits_is_refused(kind):
    model = build("MixtralForCausalLM", "MixtralConfig", **EXPERTS)
    for block in model.model.layers:
        block.mlp.gate = kind(32, 4)
    with pytest.raises(UnsupportedModelError, match="no experts"):
        read(model, "router_logits")
    with pytest.raises(UnsupportedModelError, match="no router in a known form"):
        find_submodule(model.model.layers[0], "router_logits", 0, 4)


class Wrapped(torch.nn.Module):
    """As peft wraps what is trained whole."""

    def __init__(self, router):
        super().__init__()
        self.router = router

    def forward(self, *args, **options):
        return self.router(*args, **options)


def test_what_wraps_a_router_of_several_outputs_is_refused():
    options = {**EXPERTS, "intermediate_size_mlp": 48, "interleave_moe_layer_step": 1}
    model = build("Llama4ForCausalLM", "Llama4TextConfig", **options)
    for block in model.model.layers:
        block.feed_forward.router = Wrapped(block.feed_forward.router)
    with pytest.raises(UnsupportedModelError, match="router_logits"):
        read(model, "router_logits")


class NormsBefore(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer_norm, self.inner = torch.nn.LayerNorm(4), torch.nn.Linear(4, 4)

    def forward(self, hidden):
        return self.inner(self.layer_norm(hidden)) + 0


class NormsTheSum(NormsBefore):
    def forward(self, hidden):
        return self.layer_norm(hidden + self.inner(hidden))


def test_a_norm_of_its_own_matters_where_it_is_over_the_sum():
    block = torch.nn.Module()
    block.attention = NormsBefore()
    assert find_submodule(block, "attn_out", 0, None) is block.attention
    block.attention = NormsTheSum()
    with pytest.raises(UnsupportedModelError, match="attn_out"):
        find_submodule(block, "attn_out", 0, None)
    block.attention.attn = torch.nn.Linear(4, 4)
    assert find_submodule(block, "attn_out", 0, None) is block.attention.attn


def test_a_block_with_a_second_mlp_beside_the_first_is_refused():
    model = build("GraniteMoeSharedForCausalLM", "GraniteMoeSharedConfig", **EXPERTS, shared_intermediate_size=24)
    with pytest.raises(UnsupportedModelError, match="shared_mlp beside its MLP"):
        read(model, "mlp_out")
    assert read(model, "attn_out").shape == (1, len(IDS), 32)


def test_a_bias_that_a_block_adds_outside_is_not_left_out():
    model = build("GPTNeoXJapaneseForCausalLM", "GPTNeoXJapaneseConfig", **SMALL)
    assert read(model, "attn_out", [0]).shape == (1, len(IDS), 32)
    with pytest.raises(UnsupportedModelError, match="attn_out"):
        read(model, "attn_out", [2])
