"""A model that draws random numbers in its pass computes something else each time: nothing of it is kept."""

import logging

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import BigBirdConfig, BigBirdModel, ReformerConfig, ReformerModel

from lmstash.caches.activations import Activations
from lmstash.store.memory import MemoryStore

PROMPTS = [[1, 2, 3], [4, 5, 6], [7, 8]]


class Noisy(nn.Module):
    def __init__(self, inner, draw):
        super().__init__()
        self.inner, self.draw, self.on = inner, draw, True

    def forward(self, x):
        out = self.inner(x)
        return self.draw(out) if self.on else out


def dropout(x):
    return functional.dropout(x, 0.3, training=True)


def noise(x):
    return x + torch.randn_like(x)


@pytest.fixture
def store():
    return MemoryStore(2**24)


@pytest.mark.parametrize("pool", ["last", None])
@pytest.mark.parametrize("draw", [dropout, noise])
def test_what_is_drawn_is_returned_and_not_kept(make_model, store, caplog, draw, pool):
    model = make_model()
    model.model.layers[1].mlp = Noisy(model.model.layers[1].mlp, draw)
    activations = Activations(store, model)
    with caplog.at_level(logging.WARNING, "lmstash"):
        first, second = (activations(PROMPTS, pool=pool) for _ in range(2))
    assert not torch.equal(first[0], second[0])
    assert len(activations.missing(PROMPTS, pool=pool)) == len(PROMPTS)
    assert store.events.stats.drops["random"] > 0
    assert store.events.stats.puts == 0
    assert len([each for each in caplog.records if "draws from torch's random numbers" in each.getMessage()]) == 1


def test_layers_before_the_noise_are_kept(make_model, store):
    model = make_model()
    model.model.layers[1].mlp = Noisy(model.model.layers[1].mlp, dropout)
    activations = Activations(store, model)
    kept = activations(PROMPTS, layers=0)
    assert not activations.missing(PROMPTS, layers=0)
    assert torch.equal(activations(PROMPTS, layers=0), kept)


def test_only_batches_that_drew_are_not_kept(make_model, store):
    model = make_model()

    def long_ones(x):
        return dropout(x) if x.shape[1] > 2 else x

    model.model.layers[1].mlp = Noisy(model.model.layers[1].mlp, long_ones)
    activations = Activations(store, model)
    activations(PROMPTS, batch_size=1)
    assert activations.missing(PROMPTS) == PROMPTS[:2]


def test_random_hashing_of_a_reformer_is_not_kept(store):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "feed_forward_size": 32, "num_attention_heads": 2, "attention_head_size": 16}
    hashing = {"attn_layers": ["lsh"], "lsh_attn_chunk_length": 4, "num_buckets": 4, "is_decoder": True}
    places = {"axial_pos_embds": False, "max_position_embeddings": 64, "vocab_size": 50}
    activations = Activations(store, ReformerModel(ReformerConfig(**shape, **hashing, **places)).eval())
    prompts = [[*range(1, 33)]]
    activations(prompts, site="block_out")
    assert activations.missing(prompts, site="block_out") == prompts


def test_a_seed_or_a_draw_between_calls_is_nothing(model, store):
    activations = Activations(store, model)
    for prompt in PROMPTS:
        torch.manual_seed(1)
        torch.rand(3)
        activations([prompt])
    assert not activations.missing(PROMPTS)
    assert not store.events.stats.drops


def test_weights_that_a_pass_draws_and_overwrites_are_nothing(store):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = BigBirdModel(BigBirdConfig(**shape, vocab_size=50, block_size=16)).eval()
    assert model.attention_type == "block_sparse"
    activations = Activations(store, model)
    activations(PROMPTS)
    assert not activations.missing(PROMPTS)
    model.encoder.layer[1].output.dense = Noisy(model.encoder.layer[1].output.dense, noise)
    activations = Activations(store, model)
    activations(PROMPTS)
    assert len(activations.missing(PROMPTS)) == len(PROMPTS)
