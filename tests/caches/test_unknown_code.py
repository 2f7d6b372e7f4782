"""Code of somebody's own within a model may look at how long the whole prompt is, whatever the configuration says."""

import pytest
import torch
from torch import nn
from transformers import GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaForCausalLM as Whole
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRotaryEmbedding

import lmstash

LONG = [*range(1, 60), *range(3, 60), *range(5, 60)]
SHORT = LONG[:70]
ALIKE = 40
"""Tokens up to which the rotary embedding below is as it was."""


def llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, max_position_embeddings=512, **sizes, **ends)).eval()


class Stretched(LlamaRotaryEmbedding):
    """Dynamic NTK scaling: positions lie closer in prompts that are long."""

    def forward(self, x, position_ids):
        n_tokens = int(position_ids.max()) + 1
        return super().forward(x, position_ids / max(1.0, n_tokens / ALIKE))


def stretch(model):
    model.model.rotary_emb = Stretched(model.config)
    return model


@pytest.fixture(params=["a module", "a method of transformers'"])
def build(request, monkeypatch):
    if request.param == "a module":
        return lambda: stretch(llama())
    theirs = LlamaRotaryEmbedding.forward

    def forward(self, x, position_ids):
        return theirs(self, x, position_ids / max(1.0, (int(position_ids.max()) + 1) / ALIKE))

    monkeypatch.setattr(LlamaRotaryEmbedding, "forward", forward)
    return llama


def plain(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids]), output_hidden_states=True)


def test_activations_of_a_prompt_are_those_that_it_has_alone(build):
    model, oracle = build(), build()
    other = [*SHORT, 5]
    for pool in (None, "last"):
        with lmstash.open("memory://", strict=True) as stash:
            acts = stash.activations(model)
            for prompts in ([LONG], [SHORT, LONG], [other, LONG[::-1]]):  # by prefix, and beside a longer one
                for ids, got in zip(prompts, acts(prompts, 0, pool), strict=True):
                    wanted = plain(oracle, ids).hidden_states[1][0]
                    torch.testing.assert_close(got[0], wanted if pool is None else wanted[-1], rtol=1e-4, atol=1e-5)


def test_log_probabilities_are_those_of_the_prompt_alone(build):
    model, oracle = build(), build()
    with lmstash.open("memory://", strict=True) as stash:
        logprobs = stash.logprobs(model)
        for prompts in ([LONG], [LONG[:29], LONG], [SHORT, [*SHORT, 5]]):
            for ids, got in zip(prompts, logprobs.batch_next_token_logprobs(prompts), strict=True):
                wanted = plain(oracle, ids).logits[0, -1].float().log_softmax(-1)
                torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_kv_is_kept_only_where_somebody_vouches(build):
    with lmstash.open("memory://", strict=True) as stash:
        model = build()
        kv = stash.kv(model)
        for ids in (LONG, SHORT):
            given = torch.tensor([ids])
            wanted = build().generate(given, max_new_tokens=2, do_sample=False)
            assert torch.equal(kv.generate(input_ids=given, max_new_tokens=2, do_sample=False), wanted)
        stash.flush()
        assert "variant=" in kv.reason
        assert not stash.store.info().entries
        vouched = stash.kv(model, variant="positions lie closer in long prompts")
        vouched.generate(input_ids=torch.tensor([LONG]), max_new_tokens=2, do_sample=False)
        stash.flush()
        assert stash.store.info().entries


def test_who_vouches_has_raw_activations_by_prefix():
    model = llama()
    model.model.layers[0].mlp = type("Mine", (LlamaMLP,), {})(model.config).eval()
    with lmstash.open("memory://", strict=True) as stash:
        acts = stash.activations(model)
        acts([LONG], 0, None)
        assert acts.missing([LONG[:64]], 0, None) == [LONG[:64]]
        acts = stash.activations(model, variant="an MLP of my own")
        acts([LONG], 0, None)
        assert acts.missing([LONG[:64]], 0, None) == []


@pytest.mark.parametrize("kind", ["activations", "logprobs"])
def test_a_prompt_runs_alone_where_experts_have_room_for_so_many_tokens(kind):
    model = llama()
    model.model.layers[0].mlp.capacity = 100
    rows = counted(model)
    with lmstash.open("memory://", strict=True) as stash:
        prompts = [[1, 2, each] for each in range(3, 9)]
        if kind == "activations":
            stash.activations(model)(prompts, 0)
        else:
            logprobs = stash.logprobs(model)
            rows.clear()  # of its trials
            logprobs.batch_next_token_logprobs(prompts)
    assert set(rows[-6:]) == {1}


def counted(model):
    """Return a list of how many prompts lie in each pass, by a hook that is none of somebody else's."""

    def count(module, args):
        rows.append(len(args[0]))

    rows = []
    vars(count)["_lmstash"] = True
    model.get_input_embeddings().register_forward_pre_hook(count)
    return rows


class Quantised(nn.Module):
    """Rounds to so many bits, by the greatest of all numbers in the batch."""

    def __init__(self, inner, bits):
        super().__init__()
        self.inner, self.most = inner, 2 ** (bits - 1) - 1

    def forward(self, x):
        scale = x.abs().max() / self.most
        return self.inner((x / scale).round() * scale)


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("variant", [None, "quantised"])
def test_log_probabilities_do_not_depend_on_the_contexts_beside_them(bits, variant):
    model = llama()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    for block in model.model.layers:
        block.mlp.up_proj, block.mlp.down_proj = (
            Quantised(each, bits) for each in (block.mlp.up_proj, block.mlp.down_proj)
        )
    contexts = [LONG[start : start + 20] for start in range(0, 100, 7)]
    with lmstash.open("memory://", strict=True) as stash:
        logprobs = stash.logprobs(model, variant=variant)
        for ids, got in zip(contexts, logprobs.batch_next_token_logprobs(contexts), strict=True):
            wanted = plain(model, ids).logits[0, -1].float().log_softmax(-1)
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("kind", [LlamaForCausalLM, GPT2LMHeadModel])
def test_known_families_keep_their_batches(kind):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = kind(kind.config_class(vocab_size=64, **sizes)).eval()
    rows = counted(model)
    contexts = [[1, 2, 3, each] for each in range(4, 12)]
    with lmstash.open("memory://", strict=True) as stash:
        stash.logprobs(model).batch_next_token_logprobs(contexts)
    assert rows[-1] == len(contexts)


def test_what_is_put_before_the_base_model_is_not_left_out(monkeypatch):
    theirs = Whole.forward

    def forward(self, input_ids=None, **named):
        return theirs(self, inputs_embeds=self.model.embed_tokens(input_ids) * 2, **named)

    monkeypatch.setattr(Whole, "forward", forward)
    model = llama()
    with lmstash.open("memory://", strict=True) as stash:
        got = stash.activations(model)([SHORT], 0, None)[0]
    torch.testing.assert_close(got[0], plain(llama(), SHORT).hidden_states[1][0], rtol=1e-4, atol=1e-5)


def test_a_module_of_torch_s_own_is_known():
    model = llama()
    model.model.layers[0].mlp.act_fn = nn.GELU()
    with lmstash.open("memory://", strict=True) as stash:
        acts = stash.activations(model)
        acts([LONG], 0, None)
        assert acts.missing([LONG[:64]], 0, None) == []
