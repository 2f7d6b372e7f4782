import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

torch.set_num_threads(1)


def llama(**changes):
    """A Llama of 2 layers whose weights follow from the seed alone."""
    torch.manual_seed(0)
    settings = {
        "vocab_size": 64,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
    }
    return LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).eval()


def gpt2(**changes):
    """A GPT-2 of 2 layers whose weights follow from the seed alone; its embeddings are tied."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**{"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, **changes})).eval()


@pytest.fixture(params=[llama, gpt2], ids=["llama", "gpt2"])
def build(request):
    return request.param


@pytest.fixture
def build_llama():
    return llama
