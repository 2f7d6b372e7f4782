"""What a model of somebody's own draws at random is not kept as if it were the one answer."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval.models.huggingface import HFLM

from lmstash.adapters.lm_eval import CachedLM
from lmstash.adapters.lm_eval.generators import Generators

from .conftest import Scripted, generations, instance, tiny_model

DRAWS: dict[str, Callable[[], Any]] = {
    "random": lambda: random.random(),
    "numpy.random": lambda: np.random.randint(1000),
    "torch": lambda: float(torch.rand(1)),
}


def drawing(draw: Callable[[], Any]) -> Scripted:
    return Scripted(lambda method, arguments: f"{arguments[0]} {draw()}")


def n_computed(lm: Any, stash: Any, requests: list[Any], **options: Any) -> int:
    cached = CachedLM(lm, stash, **options)
    cached.generate_until(requests)
    return cached.counts.computed


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("reports", [False, True], ids=["returned", "reported"])
def test_what_is_drawn_unasked_is_not_kept_unless_its_owner_says_so(stash, caplog, name, reports):
    for options, computed in (({}, [2, 2]), ({"keep_sampled": True}, [2, 0])):
        for expected in computed:
            lm = drawing(DRAWS[name])
            lm._reports = reports
            assert n_computed(lm, stash, generations(2), model="m", **options) == expected
    said = [each.getMessage() for each in caplog.records if "draws at random" in each.getMessage()]
    assert len(said) == 1
    assert f"(from {name})" in said[0]
    assert "keep_sampled=True" in said[0]


def test_what_is_asked_to_be_sampled_is_kept_as_it_was(stash):
    for expected in (2, 0):
        asked = generations(2, do_sample=True, temperature=1.0, seed=1)
        assert n_computed(drawing(DRAWS["random"]), stash, asked, model="m") == expected


def test_sampling_in_ones_own_code_is_not_kept_as_greedy(stash, tokenizer):
    class Sampling(HFLM):
        def _model_generate(self, context: Any, max_length: int, stop: Any, **options: Any) -> Any:
            options |= {"do_sample": True, "temperature": 1.5, "max_length": max_length}
            return self.model.generate(input_ids=context, pad_token_id=2, **options)

    given = {"pretrained": tiny_model(), "tokenizer": tokenizer, "batch_size": 2}
    for seed in (1, 2):
        torch.manual_seed(seed)
        assert n_computed(Sampling(**given), stash, generations(3)) == 3
    rest = [instance("loglikelihood", "a", f" {word}") for word in "bc"]  # which draws nothing, of the same model
    CachedLM(Sampling(**given), stash).loglikelihood(rest)
    again = CachedLM(Sampling(**given), stash)
    again.loglikelihood(rest)
    assert again.counts.hits == 2


def test_only_a_part_that_drew_is_not_kept(stash):
    draws = iter([True, False, False])
    lm = Scripted(lambda method, arguments: str(next(draws) and random.random()))
    n_computed(lm, stash, generations(3), model="m")  # one request in the first part
    assert n_computed(drawing(lambda: 0), stash, generations(3), model="m") == 1


def test_a_harness_that_decodes_greedily_moves_nothing(hflm):
    lm, generators = hflm(), Generators()
    generators.begin([])
    lm.generate_until(generations(3, num_beams=2))
    lm.generate_until(generations(3))
    lm.loglikelihood([instance("loglikelihood", "a", f" {word}") for word in "bc"])
    lm.loglikelihood_rolling([instance("loglikelihood_rolling", "a b c")])
    assert generators.moved() == []


@pytest.mark.parametrize(("drawn", "moved"), [(0, []), (1, ["torch.cuda 0"])])
def test_a_generator_that_was_made_meanwhile_counts_if_it_was_drawn_from(monkeypatch, drawn, moved):
    generators = Generators()
    generators.begin([])
    state = torch.tensor([1, *[0] * 7, drawn, *[0] * 7], dtype=torch.uint8)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [state])
    assert generators.moved() == moved
