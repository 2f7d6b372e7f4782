"""The quick way of writing requests, against the general one."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lmstash.adapters.lm_eval.questions import Questions, Writer
from lmstash.caches.responses.requests import Request, read_request

from .conftest import instance

NAMES = st.sampled_from(["until", "temperature", "max_gen_toks", "do_sample", "top_p", "api_key", "$odd"])
VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.lists(st.text(max_size=3), max_size=2)
    | st.tuples(st.text(max_size=2))
)
TEXTS = st.text(max_size=20) | st.just("data:image/png;base64," + "A" * 5000) | st.just('{"api_key":"' + "x" * 5000)


@given(st.lists(st.tuples(TEXTS, st.dictionaries(NAMES, VALUES, max_size=4)), max_size=6))
def test_generations_are_written_as_they_are_read(asked: list[tuple[str, dict[str, Any]]]):
    write = Writer()
    for context, options in asked:
        found = write.plain("generate_until", (context, options))
        if found is not None:
            plain = {"method": "generate_until", "context": context, "gen_kwargs": options}
            assert found.text == read_request(plain).text


@given(TEXTS, TEXTS)
def test_likelihoods_are_written_as_they_are_read(context: str, continuation: str):
    found = Writer().plain("loglikelihood", (context, continuation))
    if found is not None:
        plain = {"method": "loglikelihood", "context": context, "continuation": continuation}
        assert found.text == read_request(plain).text


def test_the_usual_requests_are_written_the_quick_way_and_sampled_ones_are_not():
    usual = instance("generate_until", "p", {"until": ["\n"], "do_sample": False, "temperature": 0.0})
    sampled = instance("generate_until", "p", {"until": ["\n"], "temperature": 0.5})
    asked = Questions("generate_until", [sampled, usual, usual], world_size=1, seed=None)
    kinds = [type(each) for start in range(3) for each in asked.part(start, start + 1)]
    assert kinds == [dict, Request, dict]


def test_what_looks_the_same_but_is_not_is_not_taken_for_it():
    class Liar(str):
        def __repr__(self) -> str:
            return "'a'"

    write = Writer()
    assert write.plain("generate_until", ("p", {"until": "a"})) is not None
    assert write.plain("generate_until", ("p", {"until": Liar("b")})) is None
    assert write.plain("generate_until", ("p", {"until": [Liar("b")]})) is None
    assert write.plain("generate_until", (Liar("p"), {"until": "a"})) is None
    assert write.plain("generate_until", ("p", {Liar("until"): "a"})) is None
