"""lmstash's own objects on a model, or within reach of its code: passed over where nobody asks them, else refused."""

import time

import pytest
import torch

import lmstash
from lmstash.errors import UnsupportedModelError
from lmstash.identity.models.glance import Glance
from lmstash.identity.models.watch import ModelWatch

PROMPT = [[*range(1, 12)]]
PUT = {
    "the stash": lambda stash, model: stash,
    "activations": lambda stash, model: stash.activations(model),
    "log-probabilities": lambda stash, model: stash.logprobs(model),
    "key-value": lambda stash, model: stash.kv(model),
    "a method": lambda stash, model: stash.kv(model).generate,
    "a fingerprint": lambda stash, model: lmstash.fingerprint(model),
}
ASKED = None


class Asking(torch.nn.Module):
    """Computes with what a cache says, its own or one of the module's."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.acts = None

    def forward(self, x):
        acts = self.acts or ASKED
        return self.inner(x) if acts is None else acts(x.tolist(), 0, "last")


@pytest.fixture
def stash():
    with lmstash.open("memory://") as opened:
        yield opened


@pytest.mark.parametrize("put", PUT.values(), ids=PUT)
def test_they_change_nothing_of_a_model_whose_code_knows_them_not(build_llama, stash, put):
    model = build_llama()
    before = lmstash.fingerprint(model)
    acts = stash.activations(model)
    acts(PROMPT, 0, "last")
    model.kept, model.model.layers[0].mlp.kept = put(stash, model), put(stash, model)
    started = time.monotonic()
    assert lmstash.fingerprint(model) == before
    assert time.monotonic() - started < 2  # to walk into them took four times that
    again = stash.activations(model)(PROMPT, 0, "last")
    assert torch.equal(acts(PROMPT, 0, "last"), again)
    assert stash.stats.hits == 2


def test_a_glance_does_not_look_into_them(build_llama, stash):
    model = build_llama()
    model.rows = stash.logprobs(model)
    glance = Glance(model, {})
    model.rows.batch_next_token_logprobs(PROMPT)  # moves its counters
    assert glance.holds()
    model.model.norm.variance_epsilon = 1e-2
    assert not glance.holds()


def test_code_of_yours_that_may_ask_them_is_refused(build_llama, stash):
    model = Asking(build_llama())
    model.acts = stash.activations(model.inner)
    with pytest.raises(UnsupportedModelError, match=r"acts is lmstash's own \(Activations\)"):
        ModelWatch(model)
    ModelWatch(model, variant="asks the model inside")
    model.acts = None
    watch = ModelWatch(model)
    model.inner.late = [stash]
    with pytest.raises(UnsupportedModelError, match=r"late\[0\] is lmstash's own \(Stash\)"):
        watch.refresh()
    del model.inner.late
    assert watch.refresh() == ModelWatch(model).fingerprint


def test_code_of_yours_that_names_one_is_refused(build_llama, stash, monkeypatch):
    model = Asking(build_llama())
    watch = ModelWatch(model)
    monkeypatch.setitem(globals(), "ASKED", stash.activations(model.inner))
    with pytest.raises(UnsupportedModelError, match=r"ASKED is lmstash's own"):
        watch.refresh()


def test_code_of_yours_that_comes_later_is_refused(build_llama, stash):
    model = build_llama()
    watch = ModelWatch(model)
    model.acts = stash.activations(model)
    watch.refresh()
    model.lm_head = Asking(model.lm_head)
    with pytest.raises(UnsupportedModelError, match="lmstash's own"):
        watch.refresh()
