"""Models that set themselves up at their first pass are kept from the first call of a process on."""

import logging
import threading

import pytest
import torch
from torch import nn

from lmstash.caches.activations.cache import Activations
from lmstash.errors import UnsupportedModelError
from lmstash.store.memory import MemoryStore


class SetsUp(nn.Module):
    """As quantizers' layers do: what it computes with is made from the weights when it first runs."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.scale = None

    def forward(self, *args, **options):
        if self.scale is None:
            self.scale = torch.full((1,), 2.0)
        return self.inner(*args, **options) * self.scale


class Remembers(nn.Module):
    """As RepE's wrappers do: the last output is at hand afterwards."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.output = None
        self.outputs = []
        self.by_pass = {}
        self.meanwhile = None
        self.register_buffer("last", torch.zeros(1))

    def forward(self, *args, **options):
        output = self.output = self.block(*args, **options)
        self.last.fill_(float(output.sum()))
        self.outputs.append(output)
        self.by_pass[len(self.outputs)] = output
        if self.meanwhile is not None and threading.current_thread() is threading.main_thread():
            thread = threading.Thread(target=self.meanwhile)
            thread.start()
            thread.join()
        return output


class Refuses(SetsUp):
    """Takes no short prompts."""

    def forward(self, *args, **options):
        if args[0].shape[1] < 3:
            raise ValueError("too short")
        return super().forward(*args, **options)


_passes: list[int] = []
"""Tokens of each pass that a model of one's own ran."""


@pytest.fixture(autouse=True)
def _none_yet():
    _passes.clear()


@pytest.fixture
def build(make_model):
    """Build a model with a block wrapped; the same each time, as in another process."""

    def make(kind):
        model = make_model()
        model.model.layers[1] = wrapper = kind(model.model.layers[1]).eval()

        def count(module, args):
            _passes.append(args[0].shape[1])

        count._lmstash = True  # so that it does not count as a change of the model
        wrapper.register_forward_pre_hook(count)
        return model

    return make


def _kept_at_once(store, model, prompts, **options):
    values = Activations(store, model, **options)(prompts, [0, 2])
    return values, len(list(store.entries("activations/")))


def test_a_model_that_sets_itself_up_is_kept_at_once_and_found_by_the_next_process(build, prompts):
    store = MemoryStore()
    values, n_kept = _kept_at_once(store, build(SetsUp), prompts)
    assert n_kept == len(prompts)
    again = Activations(store, build(SetsUp))
    assert again.missing(prompts, [0, 2]) == []
    assert again(prompts, [0, 2], on_miss="error").equal(values)
    assert store.events.stats.drops["model_changed"] == 0


def test_a_model_that_accelerate_has_dispatched_is_kept_at_once(make_model, prompts):
    hooks = pytest.importorskip("accelerate.hooks")

    def dispatched():
        model = make_model()
        devices = {"": "cpu", **{f"model.layers.{layer}": "cpu" for layer in range(4)}}
        hooks.attach_align_device_hook_on_blocks(model, execution_device=devices, offload=False)
        return model

    store = MemoryStore()
    _, n_kept = _kept_at_once(store, dispatched(), prompts, variant="dispatched")
    assert n_kept == len(prompts)
    assert Activations(store, dispatched(), variant="dispatched").missing(prompts, [0, 2]) == []


def test_a_model_that_ran_before_goes_by_the_same_name(build):
    model = build(SetsUp)
    with torch.no_grad():
        model(torch.arange(9)[None])
    assert Activations(MemoryStore(), model).fingerprint == Activations(MemoryStore(), build(SetsUp)).fingerprint


def test_nothing_runs_before_a_stock_model_is_asked(model, prompts, count_forwards):
    forwards = count_forwards(model)
    acts = Activations(MemoryStore(), model)
    assert forwards.batches == 0
    acts(prompts, [0, 3], batch_size=len(prompts))
    assert forwards.batches == 1


def test_a_model_is_tried_once_in_a_process(build):
    model = build(SetsUp)
    for variant in (None, None, "another name"):
        Activations(MemoryStore(), model, variant=variant)
    assert _passes == [2, 1]


@pytest.mark.parametrize("options", [{"assume_frozen": True}, {"variant": "with my hook"}])
def test_nothing_runs_where_somebody_vouches_or_has_hooks_of_their_own(build, options):
    model = build(SetsUp)
    if "variant" in options:
        model.model.layers[0].register_forward_hook(lambda module, args, output: None)
    Activations(MemoryStore(), model, **options)
    assert _passes == []


def test_nothing_runs_in_a_model_that_is_refused_anyway(build):
    model = build(SetsUp)
    model.model.layers[1].noise = 0.1
    model.train()
    with pytest.raises(UnsupportedModelError, match="eval"):
        Activations(MemoryStore(), model)
    assert _passes == []


def test_a_model_that_cannot_run_so_is_cached_as_ever(build, prompts):
    store, model = MemoryStore(), build(Refuses)
    long = [prompt for prompt in prompts if len(prompt) > 2]
    acts = Activations(store, model)
    first = acts(long, [0, 2])  # which sets it up
    assert store.events.stats.drops["model_changed"] == len(long)
    assert acts(long, [0, 2]).equal(first)
    assert acts.missing(long, [0, 2]) == []


def test_what_a_wrapper_remembers_of_the_last_pass_stays_as_it_was(build):
    model = build(Remembers)
    with torch.no_grad():
        model(torch.arange(9)[None])
    wrapper = model.model.layers[1]
    output, last = wrapper.output, wrapper.last.clone()
    Activations(MemoryStore(), model)
    assert _passes == [9, 2, 1]
    assert wrapper.output is output
    assert wrapper.last.equal(last)
    assert [id(each) for each in wrapper.outputs] == [id(output)]
    assert {number: id(each) for number, each in wrapper.by_pass.items()} == {1: id(output)}


def test_nothing_runs_where_a_pass_may_wait_for_other_processes(build, tmp_path):
    distributed = torch.distributed
    distributed.init_process_group("fake", store=_fake_store(), rank=0, world_size=2)
    try:
        Activations(MemoryStore(), build(SetsUp))
    finally:
        distributed.destroy_process_group()
    assert _passes == []


def _fake_store():
    from torch.testing._internal.distributed.fake_pg import FakeStore

    return FakeStore()


def test_what_another_thread_left_meanwhile_stays(build):
    model = build(Remembers)
    wrapper = model.model.layers[1]
    lengths = iter((9, 10))

    def run() -> None:
        with torch.no_grad():
            model(torch.arange(next(lengths))[None])

    wrapper.meanwhile = run
    Activations(MemoryStore(), model)
    assert wrapper.output.shape[1] == 10


def test_what_changes_with_each_pass_is_named_with_what_to_do(build, prompts, caplog):
    store, model = MemoryStore(), build(Remembers)
    with caplog.at_level(logging.WARNING, logger="lmstash"):
        Activations(store, model)(prompts, [0, 2])
    assert store.events.stats.drops["model_changed"] == len(prompts)
    (message,) = [record.getMessage() for record in caplog.records]
    assert "modules.model.layers.1.output" in message
    assert "assume_frozen=True" in message


def test_a_wrapper_that_is_vouched_for_is_kept_and_found_again(build, prompts):
    store = MemoryStore()
    values, n_kept = _kept_at_once(store, build(Remembers), prompts, assume_frozen=True)
    assert n_kept == len(prompts)
    again = Activations(store, build(Remembers), assume_frozen=True)
    assert again(prompts, [0, 2], on_miss="error").equal(values)


def test_what_made_a_model_one_that_cannot_be_cached_is_named_with_what_to_do(model, prompts, caplog):
    forward = model.model.layers[3].forward

    def edit(module, args):
        model.model.layers[3].forward = lambda *given, **named: forward(*given, **named)

    edit._lmstash = True
    model.model.layers[0].register_forward_pre_hook(edit)
    with caplog.at_level(logging.WARNING, logger="lmstash"):
        Activations(MemoryStore(), model)(prompts, [0, 2])
    (message,) = [record.getMessage() for record in caplog.records]
    assert "model.layers.3 has its own `forward`" in message
    assert "variant=" in message
