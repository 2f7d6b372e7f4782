"""Whose reports are kept before the call returns."""

from __future__ import annotations

import itertools
import types
from typing import Any

import pytest
from lm_eval.models.huggingface import HFLM
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI

from lmstash.adapters.lm_eval import CachedLM
from lmstash.adapters.lm_eval.asking.reporting import returns_what_it_reports

from ..conftest import Scripted, echo, generations

METHODS = ("loglikelihood", "loglikelihood_rolling", "generate_until")


class Killed(BaseException):
    """Stands for a process that is killed."""


def killed_after(n_answers: int, kind: Any) -> Any:
    """A model that reports so many answers and is killed."""
    asked = itertools.count(1)

    def say(method: str, arguments: tuple[Any, ...]) -> Any:
        if next(asked) > n_answers:
            raise Killed
        return echo(method, arguments)

    lm = kind(say, reports=True)
    lm.batch_size = 2
    return lm


class Shouting(Scripted):
    def generate_until(self, requests: list[Any]) -> list[Any]:
        return [each.upper() for each in super().generate_until(requests)]


def shouting(say: Any, **options: Any) -> Any:
    """Shouts as an object alone."""
    lm = Scripted(say, **options)
    lm.generate_until = types.MethodType(  # pyright: ignore[reportAttributeAccessIssue]
        lambda self, requests: [each.upper() for each in type(self).generate_until(self, requests)], lm
    )
    return lm


class ShoutingInside(Scripted):
    def _each(self, method: str, requests: list[Any]) -> list[Any]:
        return [each.upper() for each in super()._each(method, requests)]


class ShoutingAnyway(Scripted):
    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        return (lambda requests: [each.upper() for each in found(requests)]) if name == "generate_until" else found


@pytest.mark.parametrize("kind", [Shouting, shouting, ShoutingInside, ShoutingAnyway])
def test_what_an_inner_method_reports_is_not_kept_under_the_name_of_the_outer_one(stash, kind):
    requests = generations(6)
    truth = kind(echo).generate_until(requests)
    with pytest.raises(Killed):
        CachedLM(killed_after(3, kind), stash, model="m").generate_until(requests)
    assert CachedLM(kind(echo, reports=True), stash, model="m").generate_until(requests) == truth
    assert truth[0].isupper()


def test_ones_own_method_gets_parts_though_all_of_the_first_was_reported(stash):
    sizes: list[int] = []

    class Noting(Scripted):
        def generate_until(self, requests: list[Any]) -> list[Any]:
            sizes.append(len(requests))
            return super().generate_until(requests)

    with pytest.raises(Killed):
        CachedLM(killed_after(5, Noting), stash, model="m").generate_until(generations(50))
    lm = Noting(echo, reports=True)
    CachedLM(lm, stash, model="m").generate_until(generations(50))
    assert sizes[0] == 2
    assert len(lm.seen) == 48  # the part that returned is kept


@pytest.mark.parametrize("known", [HFLM, LocalCompletionsAPI, LocalChatCompletion])
def test_the_harness_s_own_methods_return_what_they_report(known):
    assert all(returns_what_it_reports(object.__new__(known), method) for method in METHODS)


def test_one_s_own_code_beside_the_way_of_the_results_changes_nothing_about_that():
    class Mine(HFLM):
        def _model_call(self, inps: Any, **options: Any) -> Any:
            return super()._model_call(inps, **options) * 2

        def tok_encode(self, string: str, **options: Any) -> Any:  # pyright: ignore
            return super().tok_encode(string, **options)

    assert all(returns_what_it_reports(object.__new__(Mine), method) for method in METHODS)


def test_any_function_on_the_way_of_the_results_is_looked_at():
    class Tokens(HFLM):
        def _loglikelihood_tokens(self, requests: Any, **options: Any) -> Any:  # pyright: ignore
            return [(-value, greedy) for value, greedy in super()._loglikelihood_tokens(requests, **options)]

    class Beside(LocalChatCompletion):
        async def amodel_call(self, *args: Any, **options: Any) -> Any:
            return [f"! {each}" for each in await super().amodel_call(*args, **options) or ()]

    class Patched(HFLM):
        pass

    patched = object.__new__(Patched)
    patched._loglikelihood_tokens = lambda *args, **options: []  # pyright: ignore
    assert [returns_what_it_reports(object.__new__(Tokens), each) for each in METHODS] == [False, False, True]
    assert not returns_what_it_reports(object.__new__(Beside), "generate_until")
    assert [returns_what_it_reports(patched, each) for each in METHODS] == [False, False, True]


def test_a_function_that_was_put_into_a_class_of_the_harness_is_not_the_harness_s(monkeypatch):
    plain = HFLM.generate_until
    monkeypatch.setattr(HFLM, "generate_until", lambda self, requests: [each.upper() for each in plain(self, requests)])
    assert not returns_what_it_reports(object.__new__(HFLM), "generate_until")
