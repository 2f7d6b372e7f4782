"""What the harness asks, as requests."""

from __future__ import annotations

import pytest

from lmstash.adapters.lm_eval.questions import Questions
from lmstash.caches.responses.reading import RequestReader
from lmstash.caches.responses.requests import read_request

from .conftest import instance

PLAIN = {"until": ["\n"], "do_sample": False, "temperature": 0.0}
SAMPLED = {"until": ["\n"], "do_sample": True, "temperature": 0.5}


def test_a_request_names_what_is_asked_and_nothing_of_the_task():
    asked = Questions("generate_until", [instance("generate_until", "p", PLAIN)], world_size=1, seed=None).part(0, 1)
    assert asked == [{"method": "generate_until", "context": "p", "gen_kwargs": PLAIN}]
    asked = Questions("loglikelihood", [instance("loglikelihood", "p", " c")], world_size=1, seed=None).part(0, 1)
    assert asked == [{"method": "loglikelihood", "context": "p", "continuation": " c"}]


def test_sampled_requests_name_their_document_and_the_seed_and_repeats_their_number():
    once = instance("generate_until", "p", SAMPLED)
    questions = Questions("generate_until", [once, once], world_size=1, seed=7)
    first, again = [*questions.part(0, 1), *questions.part(1, 2)]
    assert first["doc"] == [once.task_name, once.doc_id, once.idx]
    assert first["seed"] == 7
    assert again == {**first, "repeat": 1}


@pytest.mark.parametrize("seed", [None, -1, 5])
def test_a_seed_that_a_request_names_stands_before_the_models(seed):
    asked = Questions(
        "generate_until", [instance("generate_until", "p", SAMPLED | {"seed": seed})], world_size=1, seed=7
    )
    assert "seed" not in asked.part(0, 1)[0]


def test_padding_asks_again_what_was_asked():
    first, last = instance("loglikelihood", "p", " c"), instance("loglikelihood", "q", " c")
    asked = Questions("loglikelihood", [first, last, last], world_size=2, seed=None).part(0, 3)
    assert asked[1] == asked[2]


def test_usual_requests_of_the_harness_are_read_quickly():
    reader = RequestReader()
    for method, second in (("generate_until", PLAIN), ("generate_until", SAMPLED), ("loglikelihood", " c")):
        for each in Questions(method, [instance(method, "p", second)], world_size=1, seed=None).part(0, 1):
            assert reader.write(each, {}) == read_request(each).text
