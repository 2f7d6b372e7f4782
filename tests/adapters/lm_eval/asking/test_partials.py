"""What a crash leaves: results are kept as they are reported, or part by part where nothing is reported."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

import lm_eval.models.huggingface
import pytest

from lmstash.adapters.lm_eval import CachedLM
from lmstash.adapters.lm_eval.asking.partials import Pending
from lmstash.stash import Stash

from ..conftest import Scripted, echo, generations, instance, of_harness


class Crash(Exception):
    """Stands for whatever ends an evaluation."""


def crashing(after: int, lm_class: Callable[..., Any] = Scripted, **options: Any) -> Any:
    """A model that crashes when it is asked more than `after` requests."""
    asked = itertools.count(1)

    def say(method: str, arguments: tuple[Any, ...]) -> Any:
        if next(asked) > after:
            raise Crash
        return echo(method, arguments)

    return lm_class(say, **options)


class AllAtOnce(Scripted):
    """Has no batch size of its own, as vLLM with `auto`."""

    batch_size = "auto"  # pyright: ignore[reportAssignmentType]


@of_harness
class Normalising(Scripted):
    """Reports other arguments than it was given, as vLLM does."""

    def _each(self, method: str, requests: list[Any]) -> list[Any]:
        out = []
        for each in requests:
            self.seen.append((method, each.args))
            out.append(self._say(method, each.args))
            context, options = each.args
            changed = {**options, "until": [*options["until"], "</s>"], "temperature": 0.0}
            self.cache_hook.add_partial(method, (context, changed), out[-1])
        return out


@pytest.mark.parametrize("lm_class", [Scripted, Normalising], ids=["as asked", "normalised"])
def test_what_was_reported_before_a_crash_is_not_computed_again(stash, lm_class):
    lm = crashing(5, lm_class, reports=True)
    lm.batch_size = 4
    with pytest.raises(Crash):
        CachedLM(lm, stash, model="m").generate_until(generations(20))
    lm = lm_class(echo, reports=True)
    CachedLM(lm, stash, model="m").generate_until(generations(20))
    assert len(lm.seen) == 15


@pytest.mark.parametrize("lm_class", [Scripted, AllAtOnce])
def test_a_backend_that_reports_nothing_is_called_in_parts(stash, lm_class):
    lm = crashing(100, lm_class)
    with pytest.raises(Crash):
        CachedLM(lm, stash, model="m").generate_until(generations(200))
    lm = lm_class(echo)
    CachedLM(lm, stash, model="m").generate_until(generations(200))
    assert 100 <= len(lm.seen) < 200


def test_parts_stay_short_where_each_request_takes_long(stash, monkeypatch):
    sizes: list[int] = []
    now = [0.0]
    monkeypatch.setattr("lmstash.adapters.lm_eval.asking.running.time.perf_counter", lambda: now[0])

    class Slow(Scripted):
        def generate_until(self, requests: list[Any]) -> list[Any]:
            sizes.append(len(requests))
            now[0] += len(requests)
            return super().generate_until(requests)

    CachedLM(Slow(echo), stash, model="m").generate_until(generations(30))
    assert max(sizes) == 2
    assert sum(sizes) == 30


def test_a_backend_that_answers_many_side_by_side_and_says_nothing_of_it_gets_many(stash, monkeypatch):
    sizes: list[int] = []
    now = [0.0]
    monkeypatch.setattr("lmstash.adapters.lm_eval.asking.running.time.perf_counter", lambda: now[0])

    class Beside(Scripted):
        def generate_until(self, requests: list[Any]) -> list[Any]:
            sizes.append(len(requests))
            now[0] += 9.0
            return super().generate_until(requests)

    CachedLM(Beside(echo), stash, model="m").generate_until(generations(100))
    assert sizes == [1, 2, 4, 8, 16, 32, 37]


def test_once_a_backend_has_reported_a_part_it_gets_the_rest_at_once(stash):
    calls: list[int] = []

    @of_harness
    class Noting(Scripted):
        def generate_until(self, requests: list[Any]) -> list[Any]:
            calls.append(len(requests))
            return super().generate_until(requests)

    CachedLM(Noting(echo, reports=True), stash, model="m").generate_until(generations(50))
    assert calls == [1, 49]


def test_a_known_backend_is_called_once_with_all(stash, hflm, monkeypatch):
    lm = CachedLM(hflm(), stash)
    calls: list[int] = []
    collator = lm_eval.models.huggingface.Collator  # it is given the requests of each call
    monkeypatch.setattr(
        lm_eval.models.huggingface,
        "Collator",
        lambda requests, **options: calls.append(len(requests)) or collator(requests, **options),
    )
    lm.loglikelihood([instance("loglikelihood", "a", f" {word}") for word in "bcdefgh"])
    assert calls == [7]


@pytest.mark.parametrize("method", ["loglikelihood", "generate_until"])
def test_batches_of_a_local_model_are_kept_before_the_next_is_done(stash, hflm, method):
    """The model waits in its third batch until what the first two gave is kept: nothing else would let it go on."""
    inner = hflm()
    lm = CachedLM(inner, stash)
    inner.cache_hook = WaitingHook(inner.cache_hook, stash)  # of which, other than of a method, the answers are not
    requests = (
        [instance("loglikelihood", f"a {word}", " b c") for word in "klmnop"]
        if method == "loglikelihood"
        else generations(6)
    )
    with pytest.raises(Crash):
        getattr(lm, method)(requests)
    assert answers(stash) == 4


class WaitingHook:
    """Hands on what the first two batches report; what the third does is a crash, once they are kept."""

    def __init__(self, inner: Any, stash: Stash) -> None:
        self._inner, self._stash = inner, stash
        self._n_reported = 0

    def add_partial(self, *arguments: Any) -> None:
        self._n_reported += 1
        if self._n_reported > 4:
            deadline = time.monotonic() + 60
            while answers(self._stash) < 4 and time.monotonic() < deadline:
                time.sleep(0.001)
            raise Crash
        self._inner.add_partial(*arguments)


def answers(stash: Stash) -> int:
    return sum(each.namespace.startswith("responses/") for each in stash.store.entries())


def kept_by(method: str, arguments: list[Any], reports: list[Any], *, alone: bool = True) -> dict[int, Any]:
    found: dict[int, Any] = {}
    lock = threading.Lock()

    def keep(numbers: list[int], values: list[Any], seconds: float) -> None:
        with lock:
            found.update(zip(numbers, values, strict=True))

    pending = Pending(method, arguments, keep, alone=alone)
    for each in reports:
        pending.report(*each)
    pending.end()
    return found


def test_reports_are_matched_with_what_waits():
    greedy, other = {"until": ["a"]}, {"until": ["b"]}
    asked = [("p", greedy), ("p", other), ("q", greedy), ("q", greedy)]
    reports = [
        ("generate_until", ("p", other), 1),
        ("generate_until", ("q", dict(greedy)), 2),
        ("generate_until", ["q", greedy], 3),
        ("generate_until", ("q", greedy), 4),  # one too many
    ]
    assert kept_by("generate_until", asked, reports) == {1: 1, 2: 2, 3: 3}


def test_a_report_that_could_be_of_two_requests_is_of_none():
    asked = [("p", {"until": ["a"]}), ("p", {"until": ["b"]})]
    assert kept_by("generate_until", asked, [("generate_until", ("p", {"until": ["a", "</s>"]}), 1)]) == {}
    pictures = [("<image>", {"until": []}, {"visual": [1]}), ("<image>", {"until": []}, {"visual": [2]})]
    assert kept_by("generate_until", pictures, [("generate_until", ("<image>", {"until": []}), 1)]) == {}
    assert kept_by("generate_until", pictures[:1], [("generate_until", ("<image>", {"until": []}), 1)]) == {0: 1}
    # Beside what fills up a rank's calls, it may be the answer to that.
    report = ("generate_until", ("<image>", {"until": []}), 1)
    assert kept_by("generate_until", pictures[:1], [report], alone=False) == {}


def test_reports_of_another_method_or_of_half_a_pair_are_nobodys():
    asked = [("a", " b")]
    assert kept_by("loglikelihood", asked, [("greedy_until", ("a", " b"), 1), ("loglikelihood", ("a", " c"), 1)]) == {}
    assert kept_by("loglikelihood", asked, [("loglikelihood", None, 1)]) == {}


def test_what_a_call_returns_counts_where_it_differs_from_what_was_reported(stash):
    class Changing(Scripted):
        def generate_until(self, requests: list[Any]) -> list[Any]:
            return [f"{each} at last" for each in super().generate_until(requests)]

    said = CachedLM(Changing(echo, reports=True), stash, model="m").generate_until(generations(3))
    lm = Changing(echo, reports=True)
    assert CachedLM(lm, stash, model="m").generate_until(generations(3)) == said
    assert not lm.seen


def test_a_batch_after_a_keep_that_took_long_is_kept_before_the_next_begins():
    kept: list[int] = []

    def keep(numbers: list[int], values: list[Any], seconds: float) -> None:
        if not kept:
            time.sleep(0.2)
        kept.extend(numbers)

    arguments = [(f"q{number}", {}) for number in range(4)]
    pending = Pending("generate_until", arguments, keep, 2)
    for number, each in enumerate(arguments):
        pending.report("generate_until", each, "a")
        assert len(kept) == (number + 1) // 2 * 2  # at once, by whoever reported
    pending.end()
