"""A hit that costs more than computing is declined."""

import time

import pytest
import torch

from lmstash.caches.kv.cache import KV
from lmstash.caches.kv.gate import Gate
from lmstash.store.memory import MemoryStore

GREEDY = {"do_sample": False, "max_new_tokens": 2}


def test_nothing_is_declined_before_both_rates_are_known():
    gate = Gate()
    assert gate.worth(1000)
    gate.computed(1000, 1e-6)
    assert gate.worth(1000)
    gate = Gate()
    gate.restored(1000, 100 << 20, 100.0)
    assert gate.worth(1000)


@pytest.mark.parametrize(("load_seconds", "compute_seconds", "worth"), [(1.0, 2.0, True), (2.0, 1.0, False)])
def test_the_cheaper_one_is_chosen(load_seconds, compute_seconds, worth):
    gate = Gate()
    gate.restored(1000, 100 << 20, load_seconds)
    gate.computed(1000, compute_seconds)
    assert gate.worth(500) == worth


def test_short_ones_say_nothing():
    gate = Gate()
    gate.restored(1000, 100 << 20, 1.0)
    gate.computed(1000, 2.0)
    gate.restored(1, 1000, 1.0)
    gate.computed(1, 1e-9)
    assert gate.worth(1000)
    assert gate.seconds_per_token == 0.002


def test_what_is_declined_is_tried_again_now_and_then():
    gate = Gate()
    gate.restored(1000, 100 << 20, 2.0)
    gate.computed(1000, 1.0)
    assert sum(gate.worth(1000) for _ in range(64)) == 4
    for _ in range(8):
        gate.restored(1000, 100 << 20, 0.1)  # the store became faster
    assert gate.worth(1000)


class Slow(MemoryStore):
    """A store behind a slow line."""

    seconds_per_value = 0.0

    def borrow_many(self, keys):
        found = super().borrow_many(keys)
        time.sleep(self.seconds_per_value * sum(loan is not None for loan in found))
        return found


def test_a_slow_store_is_not_used(make_model, prompt):
    model = make_model(num_hidden_layers=8, num_key_value_heads=4)
    store = Slow()
    kv = KV(store, model)
    want = {seed: model.generate(prompt(500, seed), **GREEDY) for seed in range(4)}
    for seed in range(3):
        assert torch.equal(kv.generate(prompt(500, seed), **GREEDY), want[seed])
        kv.flush()
    assert torch.equal(kv.generate(prompt(500, 0), **GREEDY), want[0])
    assert (kv.stats.tokens_reused, kv.stats.declined) == (499, 0)
    store.seconds_per_value = 0.2
    for seed in (1, 2):
        assert torch.equal(kv.generate(prompt(500, seed), **GREEDY), want[seed])
    reused = kv.stats.tokens_reused
    for _ in range(2):
        assert torch.equal(kv.generate(prompt(500, 2), **GREEDY), want[2])
    assert kv.stats.declined >= 2
    assert kv.stats.tokens_reused == reused
