"""What the harness asks, as requests."""

from __future__ import annotations

import pytest

from lmstash.adapters.lm_eval.asking.draws import Place
from lmstash.adapters.lm_eval.asking.questions import Questions
from lmstash.caches.responses.requests.encoding import read_request
from lmstash.caches.responses.requests.reading import RequestReader

from ..conftest import instance

PLAIN = {"until": ["\n"], "do_sample": False, "temperature": 0.0}
SAMPLED = {"until": ["\n"], "do_sample": True, "temperature": 0.5}


def test_a_request_names_what_is_asked_and_nothing_of_the_task():
    asked = Questions("generate_until", [instance("generate_until", "p", PLAIN)], world_size=1, seed=None).part(0, 1)
    assert asked == [{"method": "generate_until", "context": "p", "gen_kwargs": PLAIN}]
    asked = Questions("loglikelihood", [instance("loglikelihood", "p", " c")], world_size=1, seed=None).part(0, 1)
    assert asked == [{"method": "loglikelihood", "context": "p", "continuation": " c"}]


def test_a_sampled_request_names_its_document_and_the_seed():
    once = instance("generate_until", "p", SAMPLED)
    questions = Questions("generate_until", [once], world_size=1, seed=7)
    (asked,) = questions.part(0, 1)
    assert asked["doc"] == [once.task_name, once.doc_id, once.idx]
    assert asked["seed"] == 7
    assert not questions.places


def test_samples_of_one_prompt_are_one_request_that_names_all_of_them():
    one, other = instance("generate_until", "p", SAMPLED), instance("generate_until", "p", dict(SAMPLED), doc=5)
    asked = [one, instance("generate_until", "q", SAMPLED), one, other]
    questions = Questions("generate_until", asked, world_size=1, seed=7)
    first, alone, again = questions.part(0, 3)
    (last,) = questions.part(3, 4)
    assert first is again is last
    assert first["docs"] == [["t", 0, 0, 2], ["t", 5, 0, 1]]
    assert first["seed"] == 7
    assert "repeat" not in first
    assert alone["doc"] == ["t", 0, 0]
    assert questions.places == {0: Place(0, 3), 2: Place(1, 3), 3: Place(2, 3)}


def test_greedy_repeats_are_numbered():
    once = instance("generate_until", "p", PLAIN)
    first, again = Questions("generate_until", [once, once], world_size=1, seed=7).part(0, 2)
    assert again == {**first, "repeat": 1}


def test_padding_of_a_sample_is_no_other_sample():
    once = instance("generate_until", "p", SAMPLED)
    questions = Questions("generate_until", [once, once], world_size=2, seed=7)
    first, again = questions.part(0, 2)
    assert first == again
    assert not questions.places


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
