"""Looks at torch's shared generators."""

import timeit

import numpy as np
import torch

from lmstash.caches.drawing import moved, torch_states


def test_what_is_drawn_or_seeded_is_seen():
    before = torch_states()
    assert moved(before, torch_states()) == []
    torch.rand(1)
    assert moved(before, torch_states()) == ["torch"]
    before = torch_states()
    torch.manual_seed(torch.initial_seed() + 1)
    assert moved(before, torch_states()) == ["torch"]


def test_generators_of_ones_own_and_others_are_not_torch_s():
    before = torch_states()
    torch.rand(1, generator=torch.Generator().manual_seed(1))
    np.random.rand()
    assert moved(before, torch_states()) == []


def test_a_look_is_cheap_and_draws_nothing():
    state = torch.get_rng_state()
    assert min(timeit.repeat(torch_states, number=100, repeat=5)) / 100 < 100e-6
    assert torch.equal(torch.get_rng_state(), state)
