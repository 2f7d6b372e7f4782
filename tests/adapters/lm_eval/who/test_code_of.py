"""The code of an evaluation: what somebody has put into a class of the harness is seen, whenever it is done."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType
from typing import Any

import pytest
from lm_eval.models.huggingface import HFLM

from lmstash.adapters.lm_eval import CachedLM
from lmstash.adapters.lm_eval.who.code_of import class_of
from lmstash.adapters.lm_eval.who.identity import who_answers
from lmstash.errors import UnsupportedModelError

from ..conftest import instance

PLAIN = HFLM._model_call


class Scale:
    """Stands in the place of a method; says that it wraps the harness's."""

    def __init__(self, factor: float) -> None:
        functools.update_wrapper(self, PLAIN)
        self.factor = factor

    def __get__(self, lm: Any, kind: Any = None) -> Any:
        return functools.partial(self.call, lm)

    def call(self, lm: Any, *arguments: Any, **options: Any) -> Any:
        return PLAIN(lm, *arguments, **options) * self.factor


def scaled(lm: Any, *arguments: Any, factor: float = 0.5, **options: Any) -> Any:
    return PLAIN(lm, *arguments, **options) * factor


def halved(lm: Any, *arguments: Any, **options: Any) -> Any:
    return PLAIN(lm, *arguments, **options) * 0.5


def closed_over(factor: float) -> Callable[..., Any]:
    return lambda lm, *arguments, **options: PLAIN(lm, *arguments, **options) * factor


SCALE = Scale(0.5)


def by_object(lm: Any, *arguments: Any, **options: Any) -> Any:
    return SCALE.call(lm, *arguments, **options)


def requests() -> list[Any]:
    return [instance("loglikelihood", "a b", f" {word}") for word in "cdef"]


REPLACED: dict[str, Callable[[], Any]] = {
    "function": lambda: halved,
    "closure": lambda: closed_over(0.5),
    "partialmethod": lambda: functools.partialmethod(scaled, factor=0.5),
    "object": lambda: Scale(0.5),
    "function that names an object": lambda: by_object,
}


@pytest.mark.parametrize("make", REPLACED.values(), ids=REPLACED)
def test_a_method_that_is_put_into_the_harnesss_class_is_another_model(stash, hflm, monkeypatch, make):
    lm = CachedLM(hflm(), stash)
    plain = lm.loglikelihood(requests())
    monkeypatch.setattr(HFLM, "_model_call", make())
    changed = lm.loglikelihood(requests())
    assert lm.counts.hits == 0
    assert changed != plain
    assert lm.loglikelihood(requests()) == changed
    monkeypatch.undo()
    assert lm.loglikelihood(requests()) == plain
    assert (lm.counts.hits, lm.counts.computed) == (8, 8)


PAIRS: dict[str, Callable[[float], Any]] = {
    "closure": closed_over,
    "partialmethod": lambda factor: functools.partialmethod(scaled, factor=factor),
    "object": Scale,
    "bound method": lambda factor: Scale(factor).call,
}


@pytest.mark.parametrize("make", PAIRS.values(), ids=PAIRS)
def test_what_is_put_there_counts_with_all_that_it_holds(hflm, monkeypatch, make):
    who = who_answers(hflm())
    seen = []
    for factor in (0.5, 0.5, 0.25):
        monkeypatch.setattr(HFLM, "_model_call", make(factor))
        seen.append(who.look())
    assert seen[0] == seen[1] != seen[2]


def test_an_object_that_ones_own_code_names_counts_as_it_is_now(hflm, monkeypatch):
    who = who_answers(hflm())
    monkeypatch.setattr(HFLM, "_model_call", by_object)
    first = who.look()
    monkeypatch.setattr(SCALE, "factor", 0.25)
    assert who.look() != first


def test_code_that_is_swapped_within_the_harnesss_own_function_counts(hflm, monkeypatch):
    function = FunctionType(PLAIN.__code__, PLAIN.__globals__, "_model_call", PLAIN.__defaults__, PLAIN.__closure__)
    monkeypatch.setattr(HFLM, "_model_call", function)
    who = who_answers(hflm())
    first = who.look()
    function.__code__ = halved.__code__.replace(co_qualname=PLAIN.__code__.co_qualname)
    assert who.look() != first


def test_a_method_that_is_put_there_in_the_middle_of_a_run_takes_its_answers_back(stash, hflm, monkeypatch):
    lm = CachedLM(hflm(), stash)
    lm.set_cache_hook(Meanwhile(lambda: monkeypatch.setattr(HFLM, "_model_call", halved)))
    lm.loglikelihood(requests())
    assert stash.stats.drops["model_changed"]
    monkeypatch.undo()
    assert CachedLM(hflm(), stash).loglikelihood(requests()) == hflm().loglikelihood(requests())


class Meanwhile:
    """A hook that does something when the first result is reported."""

    def __init__(self, what: Callable[[], None]) -> None:
        self._what = what

    def add_partial(self, *arguments: Any) -> None:
        self._what()


def test_what_cannot_be_read_is_refused_unless_somebody_vouches_for_it(hflm, monkeypatch):
    monkeypatch.setattr(HFLM, "_model_call", closed_over(memoryview(b"opaque")))  # pyright: ignore[reportArgumentType]
    with pytest.raises(UnsupportedModelError, match="vouch for it"):
        who_answers(hflm())
    assert who_answers(hflm(), variant="mine").look()


def test_the_harnesss_own_classes_hold_nothing_foreign(hflm):
    code, about = class_of(hflm(), vouched=False)
    assert isinstance(about, dict)
    assert about.keys() == {"name", "lm_eval", "sources"}
    assert not code.components()
