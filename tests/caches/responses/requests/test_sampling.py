"""What is answered by chance is known for it, wherever in a request that is said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lmstash
from lmstash.caches.responses.requests.encoding import read_request
from lmstash.caches.responses.requests.sampling import is_sampled, seed_of
from lmstash.stash import Stash

HOLDERS = [
    *("generationConfig", "config", "inferenceConfig", "model_kwargs", "generate_kwargs", "kwargs", "generation_args"),
    *("gen_args", "sampling", "body", "options", "parameters", "extra_body", "gen_kwargs", "of_my_own", "input"),
]


@pytest.fixture
def stash() -> Stash:
    return lmstash.open("memory://", trust_env=False, strict=True)


def sampled(request: Any, by_default: bool = False) -> bool:
    return is_sampled(read_request(request).arguments, by_default)


def seed(request: Any) -> Any:
    return seed_of(read_request(request).arguments)


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("said", [{"temperature": 0.9}, {"do_sample": True}, {"num_return_sequences": 4}])
def test_sampling_is_noticed_whatever_dict_of_a_request_says_it(stash: Stash, holder: str, said: Any) -> None:
    responses, drawn = stash.responses(model="m"), iter(range(9))
    wrapped: list[Any] = [{"p": 1, holder: said}, {"p": 1, "call": {holder: said}}, {"p": 1, holder: [said]}]
    for each in wrapped:
        assert responses.get_or_compute(each, lambda: next(drawn)) != responses.get_or_compute(
            each, lambda: next(drawn)
        )
        assert responses.get_many([each, each]) == [lmstash.caches.responses.MISSING] * 2


@pytest.mark.parametrize(
    "request_", [("ctx", {"temperature": 0.9}), [{"p": 1}, {"do_sample": 1}], [[{"temperature": 1}]]]
)
def test_sampling_is_noticed_in_a_request_that_is_a_list_or_tuple(request_: Any) -> None:
    assert sampled(request_)


@pytest.mark.parametrize(
    "request_",
    [
        {"messages": [{"role": "tool", "content": {"temperature": 21.5}}], "temperature": 0},
        {"messages": [{"role": "user", "content": '{"temperature": 0.9}'}]},
        {"contents": [{"parts": [{"functionResponse": {"response": {"temperature": 21.5}}}]}]},
        {"tools": [{"input_schema": {"examples": [{"temperature": 21.5}]}}]},
        {"schema_of_mine": {"properties": {"temperature": {"type": "number", "default": 0.7}}}},
        {"parameters": {"temperature": {"type": "number"}, "n": {"type": "integer"}}},
        {"doc": {"temperature": 21.5, "do_sample": True}},
        {"weather": {"temperature": 0}},
        {"options": {"n": "no", "y": "yes"}},
        ("ctx", {"until": ["\n"], "do_sample": False, "temperature": 0.0}),
    ],
)
def test_a_temperature_that_is_read_and_not_set_says_nothing(request_: Any) -> None:
    assert not sampled(request_)


@pytest.mark.parametrize("name", ["n", "num_return_sequences", "best_of", "candidate_count", "candidateCount"])
def test_several_answers_are_drawn_unless_decoding_is_greedy_or_by_beams(name: str) -> None:
    asked = {"prompt": "p", name: 4}
    assert sampled(asked)
    assert sampled(asked | {"temperature": None})
    assert sampled(asked | {"do_sample": None, "num_beams": 1})
    assert sampled({"prompt": "p", "gen_kwargs": {name: 4}})
    for fixed in ({name: 1}, {name: None}, {"temperature": 0}, {"do_sample": False}, {"num_beams": 4}):
        assert not sampled(asked | fixed)
    assert not sampled(asked | {"use_beam_search": True})
    assert sampled(asked | {"temperature": 0.5, "num_beams": 4}), "beams may be drawn, too"


def test_n_alone_may_count_anything() -> None:
    assert not sampled({"n": 4})
    assert not sampled({"prompt": "p", "page": {"n": 4}})
    assert sampled({"prompt": "p", "model_kwargs": {"n": 4}})
    assert sampled([{"messages": 1, "n": 4}])


def test_of_two_places_that_say_something_else_the_one_counts_that_asks_for_sampling() -> None:
    for holder in HOLDERS:
        assert sampled({"temperature": 0, holder: {"temperature": 0.9}})
        assert sampled({"temperature": 0.9, holder: {"temperature": 0}})
    assert sampled({"gen_kwargs": {"temperature": 0}, "extra_body": {"temperature": 0.9}})
    assert sampled({"temperature": 0, "judge": {"num_return_sequences": 2}}), "another model's"


def test_greedy_decoding_that_is_said_where_arguments_lie_counts_for_a_host_that_samples() -> None:
    for holder in ("config", "generationConfig", "options", "extra_body"):
        assert not sampled({"p": 1, holder: {"temperature": 0}}, by_default=True)
    assert sampled({"p": 1, "weather": {"temperature": 0}}, by_default=True)
    assert sampled({"p": 1, "do_sample": None}, by_default=True)


def test_a_seed_counts_only_beside_what_asks_for_sampling_or_among_the_requests_own_fields() -> None:
    for holder in HOLDERS:
        assert seed({"p": 1, holder: {"temperature": 0.9, "seed": 7}}) == 7
        assert seed({"p": 1, "seed": 7, holder: {"temperature": 0.9}}) == 7
    assert seed(("ctx", {"temperature": 0.9, "seed": 7})) == 7
    assert seed({"temperature": 0.9, "config": {"seed": 42}}) is None, "of a shuffle, perhaps"
    assert seed({"temperature": 0.9, "config": {"temperature": 0.9, "seed": 42}}) is None
    assert seed({"judge": {"temperature": 0.9}, "config": {"temperature": 0.9, "seed": 42}}) is None
    assert seed({"seed": 7, "extra_body": {"temperature": 0.9, "seed": -1}}) is None
    assert seed({"p": 1, "options": {"seed": 7}}) == 7, "the host may sample by default"
    assert seed({"temperature": 0.9, "doc": {"temperature": 0.9, "seed": 7}}) is None


def test_what_cannot_say_whether_it_samples_does() -> None:
    assert sampled({"p": 1, "do_sample": np.ones(2)})
    assert sampled({"p": 1, "temperature": "hot"})
    assert sampled({"p": 1, "config": {"temperature": [0.0, 0.2]}}), "as Whisper takes them"
    assert seed({"p": 1, "temperature": 1.0, "seed": np.ones(2)}) is None


CHATS: list[Any] = [
    {"messages": [{"role": "user", "content": "Two and two?"}]},
    {"model": "m", "contents": [{"parts": [{"text": "Two and two?"}]}], "max_tokens": 8},
]


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("model", ["openai/m", lmstash.caches.responses.who.named("m")])
def test_a_chat_that_says_nothing_is_sampled_as_all_known_servers_do_and_that_is_said_once(
    stash: Stash, chat: Any, model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    responses = stash.responses(model=model)
    assert not responses.put(chat, "four")
    assert responses.map([chat, chat, {**chat, "x": 1}], lambda batch: [2] * len(batch)) == [2, 2, 2]
    assert stash.stats.misses == {"sampled": 4}
    assert [record.message for record in caplog.records if "temperature=0" in record.message] == [
        caplog.records[0].message
    ]
    for said in (
        {"temperature": 0},
        {"do_sample": False},
        {"temperature": 0.5, "seed": 3},
        {"generationConfig": {"temperature": 0}},
    ):
        assert responses.put(chat | said, "four")
        assert responses.get(chat | said) == "four"
        assert responses.get_many([chat | said] * 2) == ["four", "four"]
    assert stash.responses(model=model, keep_sampled=True).put(chat, "four")


def test_who_opens_the_cache_says_what_a_silent_request_is(stash: Stash) -> None:
    greedy, drawn = (
        stash.responses(model="m", sampled_by_default=False),
        stash.responses(model="m", sampled_by_default=True),
    )
    for each in (*CHATS, {"prompt": "x"}, "x"):
        assert greedy.put(each, 1)
        assert greedy.get_many([each, each]) == [1, 1]
        assert not drawn.put(each, 1)
    assert stash.responses(model="m").put({"prompt": "x"}, 1)


@pytest.mark.parametrize("said", [None, False, True])
def test_what_a_request_is_sampled_by_is_told_whatever_a_silent_one_is(
    stash: Stash, said: bool | None, caplog: pytest.LogCaptureFixture
) -> None:
    responses = stash.responses(model="m", sampled_by_default=said)
    for request_ in ({"prompt": "a", "n": 3}, {"prompt": "b", "n": 3}, {"prompt": "a", "p": {"temperature": 0.7}}):
        assert not responses.put(request_, 1)
    told = [each.getMessage() for each in caplog.records]
    assert ["(by n)" in each for each in told] == [True, False]
    assert "(by temperature)" in told[1]


def test_a_temperature_in_a_row_of_data_is_no_sampling_where_no_model_could_mean_it(stash: Stash) -> None:
    cached = stash.responses(model="m").cached(lambda row=None, config=None: 1)
    for kept in ({"city": "a", "temperature": 21.5}, {"city": "a", "temperature": -3}):
        cached(row=kept)
        cached(row=kept)
    assert (stash.stats.hits, dict(stash.stats.misses)) == (2, {"absent": 2})
    cached(row={"city": "b", "temperature": 21.5})
    assert stash.stats.misses["absent"] == 3
    for drawn in ({"q": "a", "temperature": 0.7}, {"prompt": "a", "temperature": 21}, {"x": {"temperature": 0.7}}):
        cached(row=drawn)
    cached(config={"temperature": 21})
    assert stash.stats.misses["sampled"] == 4
