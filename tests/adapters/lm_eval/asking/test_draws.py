"""What is drawn together becomes whole when the last of it has come, in whatever order."""

from __future__ import annotations

import pytest

from lmstash.adapters.lm_eval.asking.draws import Draws, Place
from lmstash.caches.responses.answers.shelf import MISSING
from lmstash.caches.responses.requests.asking import Asked
from lmstash.caches.responses.who import named

NAME = Asked(b"k", b"", named("m"), 0)


def draws() -> Draws:
    return Draws({1: Place(0, 2), 3: Place(1, 2)}, {0: NAME._replace(key=b"other"), 1: NAME, 3: NAME})


def test_answers_become_whole_when_the_last_one_has_come():
    drawn = draws()
    assert drawn.complete([3], ["b"]) == []
    assert drawn.complete([0, 1], ["alone", "a"]) == [(0, "alone", 1), (1, ["a", "b"], 2)]


def test_an_answer_that_comes_again_makes_them_whole_again():
    drawn = draws()
    drawn.complete([1, 3], ["a", "b"])
    assert drawn.complete([3], ["c"]) == [(3, ["a", "c"], 2)]


def test_answers_without_a_name_are_never_whole():
    assert Draws({1: Place(0, 2), 3: Place(1, 2)}, {}).complete([1, 3], ["a", "b"]) == []


@pytest.mark.parametrize("kept", [MISSING, ["a"], ["a", "b", "c"], "ab", None], ids=str)
def test_where_not_all_are_kept_none_is(kept):
    assert Place(1, 2).of(kept) is MISSING
    assert Place(1, 2).of(["a", "b"]) == "b"
