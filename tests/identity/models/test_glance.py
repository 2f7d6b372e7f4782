"""A glance sees what leaves a trace in Python, and every byte of small weights; `recognise` looks wholly when due."""

import copy
import time

import pytest
import torch

from lmstash.identity.memory import dict_stamps
from lmstash.identity.models import glance as glance_module
from lmstash.identity.models.glance import Glance
from lmstash.identity.models.watch import ModelWatch


class Adapted(torch.nn.Module):
    """A linear layer with adapters of which one is active, as peft keeps them."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.active = ["first"]
        self.scaling = {"first": 1.0, "second": 2.0}
        self.deltas = torch.nn.ParameterDict(
            {name: torch.nn.Parameter(torch.randn_like(inner.weight) * 0.1) for name in ("first", "second")}
        )

    def forward(self, x):
        out = self.inner(x)
        for name in self.active:
            out = out + self.scaling[name] * torch.nn.functional.linear(x, self.deltas[name])
        return out


def adapted(build_llama):
    model = build_llama()
    block = model.model.layers[1].mlp
    block.down_proj = Adapted(block.down_proj)
    return model


CHANGES = {
    "an optimiser's step": lambda m: torch.nn.init.ones_(m.model.norm.weight.mul_(1.5)),
    "one element through .data": lambda m: m.model.layers[0].mlp.up_proj.weight.data[3, 4].add_(1),
    "another parameter": lambda m: setattr(m.lm_head, "weight", torch.nn.Parameter(m.lm_head.weight.detach() * 2)),
    "other memory": lambda m: setattr(m.lm_head.weight, "data", m.lm_head.weight.detach() * 2),
    "another module": lambda m: setattr(m, "lm_head", torch.nn.Linear(32, 64, bias=False)),
    "a setting": lambda m: setattr(m.model.norm, "variance_epsilon", 1e-2),
    "a setting of the configuration": lambda m: setattr(m.config, "rms_norm_eps", 1e-2),
    "inside the configuration": lambda m: m.config.rope_parameters.update(rope_theta=77.0),
    "a hook": lambda m: m.model.layers[0].register_forward_hook(lambda *_: None),
    "training mode": lambda m: m.train(),
    "the active adapter, in place": lambda m: m.model.layers[1].mlp.down_proj.active.__setitem__(0, "second"),
    "the active adapter": lambda m: setattr(m.model.layers[1].mlp.down_proj, "active", ["second"]),
    "an adapter's scale": lambda m: m.model.layers[1].mlp.down_proj.scaling.update(first=3.0),
    "no buffer any more": lambda m: m.model.rotary_emb._buffers.popitem(),
    "a new buffer": lambda m: m.lm_head.register_buffer("extra", torch.zeros(1)),
    "another class": lambda m: setattr(m.model.norm, "__class__", type("Other", (type(m.model.norm),), {})),
    "a setting, past setattr": lambda m: vars(m.model.norm).update(variance_epsilon=1e-2),
    "a forward of its own": lambda m: setattr(m.model.norm, "forward", lambda x: x),
    "a parameter less": lambda m: m.lm_head._parameters.pop("weight"),
}


@pytest.fixture(params=[True, False], ids=["stamps", "values"])
def stamps(request, monkeypatch):
    """Both ways to see whether dicts changed, whatever this Python offers by itself."""
    if request.param and not dict_stamps._are_kept():
        pytest.skip("this Python keeps no numbers in dicts")
    monkeypatch.setattr(dict_stamps, "_are_kept", lambda: request.param)


@pytest.mark.usefixtures("stamps")
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_shows_at_once(build_llama, change):
    model = adapted(build_llama)
    glance = Glance(model, {})
    assert glance.holds()
    with torch.no_grad():
        change(model)
    assert not glance.holds()


@pytest.mark.usefixtures("stamps")
def test_what_is_set_to_what_it_was_is_no_change(build_llama):
    model = adapted(build_llama)
    glance = Glance(model, {})
    for value in (1e-2, float("1e-6")):
        before = model.model.norm.variance_epsilon
        model.model.norm.variance_epsilon = value
        model.model.norm.variance_epsilon = float(str(before))
        assert glance.holds()


@pytest.mark.usefixtures("stamps")
def test_an_equal_copy_is_looked_at_in_place_of_what_it_replaced(build_llama):
    model = adapted(build_llama)
    glance = Glance(model, {})
    block = model.model.layers[1].mlp.down_proj
    block.scaling = copy.deepcopy(block.scaling)
    glance.holds()
    block.scaling["first"] = 9.0
    assert not glance.holds()


def test_autocast_and_precision_show(build_llama):
    glance = Glance(build_llama(), {})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not glance.holds()
    assert glance.holds()


def test_a_forward_pass_is_no_change(build_llama):
    model = adapted(build_llama)
    model(torch.tensor([[1, 2, 3]]))
    glance = Glance(model, {})
    with torch.no_grad():
        model(torch.tensor([[4, 5]]))
    assert glance.holds()


@pytest.mark.parametrize("change", [lambda w: w.mul_(1.5), lambda w: w.copy_(torch.randn_like(w))])
def test_of_large_weights_a_word_is_read_so_that_whole_tensors_show(build_llama, monkeypatch, change):
    monkeypatch.setattr(glance_module, "WHOLE_BYTES", 1000)
    model = build_llama()
    glance = Glance(model, {})
    for name, weight in model.named_parameters():
        before = weight.detach().clone()
        change(weight.data)
        assert not glance.holds(), name
        weight.data.copy_(before)
        assert glance.holds(), name


def test_memory_that_was_freed_is_not_read(build_llama):
    model = build_llama()
    glance = Glance(model, {})
    model.lm_head.weight.data.untyped_storage().resize_(0)
    assert not glance.holds()


def test_weights_made_under_inference_mode_are_seen(build_llama):
    with torch.inference_mode():
        model = build_llama()
    glance = Glance(model, {})
    assert glance.holds()
    with torch.inference_mode():
        model.lm_head.weight.mul_(2)
    assert not glance.holds()


def test_recognise_gives_what_refresh_gives(build_llama):
    model = adapted(build_llama)
    watch = ModelWatch(model)
    first = watch.recognise()
    assert watch.recognise() == first == ModelWatch(model).fingerprint
    model.model.layers[1].mlp.down_proj.active[0] = "second"
    second = watch.recognise()
    assert second != first
    assert second == ModelWatch(model).fingerprint
    model.model.layers[1].mlp.down_proj.active[0] = "first"
    assert watch.recognise() == first


def test_a_whole_look_is_taken_when_it_is_due(build_llama, monkeypatch):
    monkeypatch.setattr(glance_module, "WHOLE_BYTES", 0)
    model = build_llama()
    watch = ModelWatch(model)
    first = watch.recognise()
    place = model.model.layers[0].mlp.up_proj.weight
    monkeypatch.setattr(glance_module._random, "randrange", lambda size: 0)
    watch._glance = None
    watch.recognise()  # the word read is the first one
    place.data[3, 4] += 1
    assert watch.recognise() == first  # the window that is documented
    monkeypatch.setattr(time, "monotonic", lambda now=time.monotonic: now() + 3600)
    assert watch.recognise() != first


def test_assume_frozen_looks_at_nothing(build_llama):
    model = build_llama()
    watch = ModelWatch(model, assume_frozen=True)
    first = watch.recognise()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert watch.recognise() == first
