"""What `functools.lru_cache` remembers of how all was before an edit is not kept under the name of how it is now."""

import functools
import gc
import logging

import pytest
import torch
from torch import nn

import lmstash
from lmstash.identity.models.fingerprinting import fingerprint_model
from lmstash.identity.models.watch import ModelWatch

IDS, OTHERS = [[1, 2, 3, 4]], [[9, 9, 9, 9]]
SCALE = 1.0
SCALES = {"scale": 1.0}


class Settings:
    scale = 1.0


settings = Settings()


@functools.lru_cache
def of_global():
    return SCALE


@functools.cache
def of_table(n, dtype):
    return torch.full((n, 1), SCALES["scale"], dtype=dtype)


@functools.cache
def of_object(*, power=1):
    return settings.scale**power


@torch.no_grad()
@functools.lru_cache
def wrapped():
    return SCALE


@functools.lru_cache
def pure(n):
    return {"scale": float(n) / n}


@functools.lru_cache
def of_config(config):
    return config.factor


@functools.lru_cache
def of_weight(weight):
    return float(weight.detach()[0, 0])


class Config:
    def __init__(self):
        self.factor = 1.0


class Wrap(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.alpha, self.config = inner, 1.0, Config()
        self.keeps = functools.lru_cache(maxsize=4)(of_attribute)

    def forward(self, x):
        return self.inner(x) * self.scale(x)


def of_attribute(module):
    return module.alpha


class OfGlobal(Wrap):
    def scale(self, x):
        return of_global()

    def edit(self):
        global SCALE
        SCALE = 5.0

    memo = of_global


class Wrapped(OfGlobal):
    def scale(self, x):
        return wrapped()

    memo = wrapped.__wrapped__


class OfTable(Wrap):
    def scale(self, x):
        return of_table(x.shape[1], x.dtype)

    def edit(self):
        SCALES["scale"] = 5.0

    memo = of_table


class OfObject(Wrap):
    def scale(self, x):
        return of_object(power=1)

    def edit(self):
        settings.scale = 5.0

    memo = of_object


class Method(Wrap):
    @functools.lru_cache(maxsize=8)  # noqa: B019
    def table(self, n):
        return torch.full((n, 1), self.alpha)

    def scale(self, x):
        return self.table(x.shape[1])

    def edit(self):
        self.alpha = 5.0

    memo = table


class Property(Wrap):
    @property
    @functools.lru_cache  # noqa: B019
    def factor(self):
        return self.alpha

    def scale(self, x):
        return self.factor

    edit = Method.edit
    memo = factor.fget


class Attribute(Wrap):
    def scale(self, x):
        return self.keeps(self)

    edit = Method.edit
    memo = property(lambda self: self.keeps)


class OfConfig(Wrap):
    def scale(self, x):
        return of_config(self.config)

    def edit(self):
        self.config.factor = 5.0

    memo = of_config


class OfWeight(Wrap):
    def scale(self, x):
        return of_weight(self.inner.down_proj.weight)

    def edit(self):
        self.inner.down_proj.weight.data[0, 0] += 5.0

    memo = of_weight


class Pure(Wrap):
    def scale(self, x):
        return pure(x.shape[1])["scale"] * self.alpha

    edit = Method.edit
    memo = pure


KINDS = [OfGlobal, Wrapped, OfTable, OfObject, Method, Property, Attribute, OfConfig, OfWeight]


@pytest.fixture(autouse=True)
def _as_at_first():
    def undo():
        global SCALE
        SCALE, SCALES["scale"], settings.scale = 1.0, 1.0, 1.0
        for each in (of_global, of_table, of_object, wrapped.__wrapped__, pure, of_config, of_weight):
            each.cache_clear()
        Method.table.cache_clear()
        Property.factor.fget.cache_clear()

    undo()
    yield
    undo()


@pytest.fixture
def make(build_llama):
    def build(kind):
        model = build_llama(seed=0)
        model.model.layers[0].mlp = kind(model.model.layers[0].mlp)
        return model, model.model.layers[0].mlp

    return build


def plain(model, ids):
    with torch.no_grad():
        return model(torch.tensor(ids), use_cache=False, output_hidden_states=True).hidden_states[1][:, -1:]


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_remembered_before_an_edit_is_not_kept_as_of_now(make, kind, tmp_path, caplog):
    model, mlp = make(kind)
    activations = lmstash.open(tmp_path).activations(model)
    activations(IDS, layers=0)
    mlp.edit()
    with caplog.at_level(logging.WARNING, "lmstash"):
        outdated = activations(OTHERS, layers=0)
    assert torch.equal(outdated, plain(model, OTHERS))  # as the program computes without a cache
    mlp.memo.cache_clear()
    now = activations(OTHERS, layers=0)
    assert torch.equal(now, plain(model, OTHERS))
    assert not torch.equal(now, outdated)
    said = [each.getMessage() for each in caplog.records if "cache_clear()" in each.getMessage()]
    assert len(said) <= 1  # once in a process


@pytest.mark.parametrize("kind", KINDS)
def test_another_process_gets_nothing_of_it(make, kind, tmp_path):
    model, mlp = make(kind)
    activations = lmstash.open(tmp_path / "first").activations(model)
    activations(IDS, layers=0)
    mlp.edit()
    activations(OTHERS, layers=0)
    name = fingerprint_model(model).hex
    mlp.memo.cache_clear()
    assert fingerprint_model(model).hex != name
    assert lmstash.open(tmp_path / "first").activations(model).missing(OTHERS, layers=0) == OTHERS


@pytest.mark.parametrize("kind", [*KINDS, Pure])
def test_a_model_that_is_not_edited_keeps_its_name(make, kind):
    model, mlp = make(kind)
    name = fingerprint_model(model).hex
    plain(model, IDS)
    assert mlp.memo.cache_info().currsize
    assert fingerprint_model(model).hex == name
    plain(model, [[1, 2]])
    assert ModelWatch(model).fingerprint.hex == name
    mlp.memo.cache_clear()
    assert fingerprint_model(model).hex == name


def test_an_edit_is_nothing_to_a_function_that_does_not_go_by_it(make):
    model, mlp = make(Pure)
    name = fingerprint_model(model).hex
    plain(model, IDS)
    mlp.edit()
    edited = fingerprint_model(model).hex
    assert edited != name
    assert fingerprint_model(model).hex == edited
    model.lm_head.weight.data[0] += 1
    assert fingerprint_model(model).hex == fingerprint_model(model).hex
    mlp.alpha = 1.0
    model.lm_head.weight.data[0] -= 1
    pure.cache_clear()
    assert fingerprint_model(make(Pure)[0]).hex == name


def test_an_edit_that_is_followed_by_clearing_leaves_no_mark(make):
    model, mlp = make(OfGlobal)
    watch = ModelWatch(model)
    plain(model, IDS)
    mlp.edit()
    of_global.cache_clear()
    edited = watch.refresh().hex
    plain(model, IDS)
    assert watch.refresh().hex == edited == fingerprint_model(make(OfGlobal)[0]).hex


def test_what_was_remembered_under_both_of_two_settings_stays_of_neither(make):
    model, mlp = make(OfTable)
    name = fingerprint_model(model).hex
    plain(model, IDS)
    mlp.edit()
    assert fingerprint_model(model).hex != name
    plain(model, [[1, 2]])
    SCALES["scale"] = 1.0
    assert fingerprint_model(model).hex != name  # of two tokens it remembers what is wrong now
    of_table.cache_clear()
    assert fingerprint_model(model).hex == name


def test_a_model_that_is_made_anew_calls_the_same_functions(make):
    model, mlp = make(OfGlobal)
    fingerprint_model(model)
    plain(model, IDS)
    mlp.edit()
    del model, mlp
    gc.collect()
    model, _ = make(OfGlobal)
    name = fingerprint_model(model).hex
    of_global.cache_clear()
    assert fingerprint_model(model).hex != name


def test_another_model_that_calls_the_same_function_is_not_an_edit(make):
    names = []
    for alpha in (1.0, 2.0, 1.0):
        model, mlp = make(Method)
        mlp.alpha = alpha
        names.append(fingerprint_model(model).hex)
        plain(model, IDS)
        assert fingerprint_model(model).hex == names[-1]
    assert names[0] == names[2] != names[1]


def test_clearing_is_seen_by_each_look(make):
    model, mlp = make(OfGlobal)
    watch = ModelWatch(model)
    plain(model, IDS)
    mlp.edit()
    marked = watch.recognise()
    assert watch.recognise() == marked == watch.refresh()
    assert watch.unchanged(marked)
    of_global.cache_clear()
    assert not watch.unchanged(marked)
    now = watch.recognise()
    plain(model, IDS)
    assert watch.recognise() == now == watch.refresh()


def test_what_a_function_remembers_anew_meanwhile_counts(make):
    model, mlp = make(OfTable)
    watch = ModelWatch(model)
    plain(model, IDS)
    mlp.edit()
    marked = watch.refresh()
    plain(model, IDS)
    assert watch.unchanged(marked)
    plain(model, [[1, 2]])
    assert not watch.unchanged(marked)


def test_functions_of_installed_packages_may_remember_what_they_like(build_llama, monkeypatch):
    from transformers.models.llama import modeling_llama

    remembering = functools.lru_cache(modeling_llama.rotate_half)
    monkeypatch.setattr(modeling_llama, "rotate_half", remembering)
    model = build_llama(seed=0)
    fingerprint_model(model)
    plain(model, IDS)
    model.lm_head.weight.data[0] += 1
    assert fingerprint_model(model).hex == fingerprint_model(model).hex
