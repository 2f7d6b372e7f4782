"""A model that draws random numbers in its pass says something else each time: nothing of it is kept, in RAM either."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lmstash.caches.logprobs import Logprobs
from lmstash.caches.logprobs.language_model import Reuse
from lmstash.store.memory import MemoryStore

CONTEXT = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]


class Noisy(nn.Module):
    def __init__(self, inner, least):
        super().__init__()
        self.inner, self.least = inner, least

    def forward(self, x):
        out = self.inner(x)
        return functional.dropout(out, 0.5, training=True) if x.shape[1] >= self.least else out


@pytest.fixture
def build(make_model):
    def noisy(least=1):
        model = make_model()
        model.model.layers[0].mlp = Noisy(model.model.layers[0].mlp, least)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim > 1:
                    weight.mul_(4)
        return model

    return noisy


@pytest.mark.parametrize("least", [1, 12], ids=["always", "in passes longer than those that are tried"])
def test_rows_of_a_pass_that_drew_are_not_kept(build, least):
    store = MemoryStore(2**24)
    logprobs = Logprobs(store, build(least), variant="noisy")
    assert (logprobs._engine.model.reuse is Reuse.KV) == (least == 12)
    first, second = (logprobs.batch_next_token_logprobs([CONTEXT, CONTEXT[:13]]) for _ in range(2))
    assert not torch.equal(first, second)
    logprobs.flush()
    assert store.events.stats.puts == 0
    assert store.events.stats.drops["random"] == 4


def test_no_pass_goes_on_from_kv_of_one_that_drew(build):
    logprobs = Logprobs(MemoryStore(2**24), build(12), variant="noisy")
    logprobs.next_token_logprobs(CONTEXT)
    before = logprobs.fed_tokens
    logprobs.next_token_logprobs([*CONTEXT, 15])
    assert logprobs.fed_tokens - before == len(CONTEXT) + 1


def test_a_context_whose_pass_drew_nothing_is_kept(build):
    store = MemoryStore(2**24)
    model = build(12)
    logprobs = Logprobs(store, model, variant="noisy")
    row = logprobs.next_token_logprobs(CONTEXT[:5])
    logprobs.next_token_logprobs(CONTEXT)
    logprobs.flush()
    assert torch.equal(Logprobs(store, model, variant="noisy").next_token_logprobs(CONTEXT[:5]), row)
    assert store.events.stats.hits == 1


@pytest.mark.parametrize("least", [1, 12])
def test_scores_of_a_pass_that_drew_are_not_kept(build, least):
    store = MemoryStore(2**24)
    logprobs = Logprobs(store, build(least), variant="noisy")
    first, second = logprobs.score(CONTEXT), logprobs.score(CONTEXT)
    assert not torch.equal(first, second)
    logprobs.flush()
    assert store.events.stats.puts == 0
