"""`Responses`: each request is computed once, whoever asks, and no answer goes to another request."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lmstash
from lmstash.caches.responses import MISSING, register
from lmstash.caches.responses.answers import records as answers
from lmstash.caches.responses.requests.asking import namespace_of
from lmstash.errors import InvalidArgumentError
from lmstash.stash import Stash


@pytest.fixture
def stash(tmp_path: Path) -> Iterator[Stash]:
    with lmstash.open(tmp_path / "stash", capacity_bytes="100MB", strict=True) as opened:
        yield opened


def again(stash: Stash) -> Stash:
    """Open the folder as a second run of the program does."""
    stash.flush()
    store: Any = stash.store
    return lmstash.open(store.folder_path, strict=True)


class Counted:
    """A model that counts what it is asked."""

    def __init__(self, answer: Any = "four", seconds: float = 0.0) -> None:
        self.answer = answer
        self.seconds = seconds
        self.calls = 0
        self._lock = threading.Lock()

    def __call__(self) -> Any:
        with self._lock:
            self.calls += 1
        time.sleep(self.seconds)
        return self.answer

    async def later(self) -> Any:
        self.calls += 1
        await asyncio.sleep(self.seconds)
        return self.answer


def test_an_answer_is_computed_once_and_found_by_a_new_process(tmp_path: Path) -> None:
    model = Counted({"text": "four", "logprobs": (-0.1, -2.5)})
    for _ in range(2):
        with lmstash.open(tmp_path) as stash:
            responses = stash.responses(model="provider/model")
            for _ in range(2):
                got = responses.get_or_compute({"prompt": "2 + 2", "temperature": 0}, model)
                assert got == {"text": "four", "logprobs": (-0.1, -2.5)}
                assert type(got["logprobs"]) is tuple
    assert model.calls == 1


def test_what_a_caller_does_with_an_answer_changes_nothing(stash: Stash) -> None:
    responses = stash.responses(model="m")
    first = responses.get_or_compute({"q": 1}, lambda: {"words": ["a"]})
    first["words"].append("changed")
    second = responses.get_or_compute({"q": 1}, Counted())
    assert second == {"words": ["a"]}
    second.clear()
    assert responses.get({"q": 1}) == {"words": ["a"]}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"prompt": "a"}, {"prompt": "b"}),
        ({"prompt": "a", "n": 1}, {"prompt": "a", "n": True}),
        ({"prompt": ["a"]}, {"prompt": ("a",)}),
        ({"prompt": {1: "a"}}, {"prompt": {"1": "a"}}),
        ({"prompt": 1}, {"prompt": 1.0}),
        ({"prompt": "a", "max_tokens": 16}, {"prompt": "a", "max_tokens": 17}),
        ({"prompt": "a", "seed": 1}, {"prompt": "a", "seed": 2}),
        ({"prompt": "a", "stop": None}, {"prompt": "a"}),
        ({"schema": {"a": 1, "b": 2}}, {"schema": {"b": 2, "a": 1}}),
        ({"prompt": b"a"}, {"prompt": "a"}),
        ({"q": "which?", "options": {"A": "yes", "B": "no"}}, {"q": "which?", "options": {"B": "no", "A": "yes"}}),
        ({"prompt": "a", "authorization": "admin"}, {"prompt": "a", "authorization": "guest"}),
        ("a", {"prompt": "a"}),
    ],
)
def test_what_differs_is_another_request(stash: Stash, ours: Any, theirs: Any) -> None:
    responses = stash.responses(model="m")
    assert responses.put(ours, "ours")
    assert responses.get(theirs, MISSING) is MISSING
    assert responses.get(ours) == "ours"


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({"p": "a", "temperature": 0}, {"temperature": 0.0, "p": "a"}),
        ({"p": "a", "gen_kwargs": {"top_p": 1, "until": []}}, {"gen_kwargs": {"until": [], "top_p": 1.0}, "p": "a"}),
        ({"p": "a", "timeout": 3}, {"p": "a", "timeout": 60, "max_retries": 2}),
        ({"p": "a", "api_key": "sk-one"}, {"p": "a", "api_key": "sk-two"}),
    ],
)
def test_what_is_known_to_be_harmless_is_the_same_request(stash: Stash, ours: Any, theirs: Any) -> None:
    responses = stash.responses(model="m")
    assert responses.put(ours, "ours")
    assert responses.get(theirs) == "ours"


def test_models_do_not_answer_for_each_other(stash: Stash) -> None:
    stash.responses(model="m").put("q", "m")
    others: list[dict[str, Any]] = [
        {"model": "n"},
        {"model": "m", "revision": "2"},
        {"model": "m", "base_url": "http://elsewhere/v1"},
        {"model": "m", "variant": "v"},
        {"model": "m", "salt": "tenant"},
    ]
    for options in others:
        assert stash.responses(**options).get("q", MISSING) is MISSING
    assert stash.responses(model="m").get("q") == "m"


def test_a_base_url_counts_without_its_secrets(stash: Stash) -> None:
    stash.responses(model="m", base_url="https://user:secret@Host/v1/?key=1").put("q", "a")
    assert stash.responses(model="m", base_url="https://host/v1").get("q") == "a"


def test_what_is_answered_by_chance_is_kept_only_under_a_seed_or_when_asked(stash: Stash) -> None:
    plain, asked = stash.responses(model="m"), stash.responses(model="m", keep_sampled=True)
    drawn = iter(range(1, 100))
    hot = {"prompt": "a", "temperature": 0.7}
    assert [plain.get_or_compute(hot, lambda: next(drawn)) for _ in range(2)] == [1, 2]
    assert stash.stats.misses["sampled"] == 2
    assert [plain.get_or_compute(hot | {"seed": 7}, lambda: next(drawn)) for _ in range(2)] == [3, 3]
    seeded = [plain.get_or_compute(hot | {"seed": 7}, lambda: next(drawn), occurrence=n) for n in (0, 1, 1)]
    assert seeded == [3, 4, 4]
    assert [asked.get_or_compute(hot, lambda: next(drawn)) for _ in range(3)] == [5, 6, 7]
    with again(stash) as second:
        cache = second.responses(model="m", keep_sampled=True)
        assert [cache.get_or_compute(hot, lambda: next(drawn)) for _ in range(4)] == [5, 6, 7, 8]


def test_all_who_use_a_stash_draw_different_samples(stash: Stash) -> None:
    hot, drawn = {"prompt": "a", "temperature": 0.7}, iter(range(100))

    def draw(_number: int) -> int:
        """As a task does that makes a client for itself."""
        return stash.responses(model="m", keep_sampled=True).get_or_compute(hot, lambda: next(drawn))

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(draw, range(8))) == list(range(8))
    other = stash.responses(model="other", keep_sampled=True)
    assert other.get_or_compute(hot, lambda: "its first") == other.get(hot, occurrence=0) == "its first"


@pytest.mark.parametrize("how", ["get_or_compute", "map", "put"])
def test_an_attempt_that_fails_uses_up_no_occurrence(stash: Stash, how: str) -> None:
    cache, hot = stash.responses(model="m", keep_sampled=True), {"prompt": "a", "temperature": 0.7}
    busy = [True, True]

    def fails(answer: str) -> str:
        if busy:
            busy.pop()
            raise OSError("429")
        return answer

    def attempt(answer: str) -> Any:
        if how == "put":
            assert not cache.put(hot, "")
            return cache.put(hot, answer)
        if how == "map":
            return cache.map([hot], lambda batch: [fails(answer) for _ in batch])
        return cache.get_or_compute(hot, lambda: fails(answer))

    for _ in range(2 if how != "put" else 0):
        with pytest.raises(OSError, match="429"):
            attempt("lost")
    attempt("one")
    attempt("two")
    assert [cache.get(hot, occurrence=number) for number in range(3)] == ["one", "two", None]


def test_a_look_that_finds_nothing_uses_up_no_occurrence(stash: Stash) -> None:
    hot, cold = {"prompt": "a", "temperature": 0.7}, {"prompt": "a"}

    def ask(answers: list[str]) -> list[Any]:
        """As a program does that looks and puts by itself."""
        out = []
        with again(stash) as opened:
            cache = opened.responses(model="m", keep_sampled=True)
            for answer in answers:
                found = cache.get(hot, MISSING)
                if found is MISSING:
                    assert cache.put(hot, answer)
                out.append(answer if found is MISSING else found)
        return out

    assert ask(["one", "two"]) == ["one", "two"]
    assert ask(["1", "2", "three"]) == ["one", "two", "three"]
    cache = stash.responses(model="m", keep_sampled=True)
    assert cache.get_many([hot, cold, hot, hot, hot, hot]) == ["one", MISSING, "two", "three", MISSING, MISSING]
    assert cache.put_many([hot, hot], ["four", "five"]) == 2
    assert cache.get(hot, MISSING) is MISSING  # all five were handed out
    with again(stash) as opened:
        cache = opened.responses(model="m", keep_sampled=True)
        assert cache.get_many([hot] * 6)[3:] == ["four", "five", MISSING]


def test_a_sample_that_is_missing_among_others_is_put_in_its_place(stash: Stash) -> None:
    hot, cache = {"prompt": "a", "temperature": 0.7}, stash.responses(model="m", keep_sampled=True)
    cache.put(hot, "second", occurrence=1)
    assert cache.get_many([hot, hot]) == [MISSING, "second"]
    assert cache.get(hot, MISSING) is MISSING
    cache.put(hot, "first")
    assert cache.get(hot, occurrence=0) == "first"


@pytest.mark.parametrize("odd", [{"do_sample": np.ones(2)}, {"seed": np.ones(2), "temperature": 1.0}])
def test_what_cannot_say_whether_it_samples_is_computed(stash: Stash, odd: dict[str, Any]) -> None:
    responses = stash.responses(model="m")
    request = {"prompt": "p", **odd}
    assert responses.get(request, MISSING) is MISSING
    assert responses.get_many([request]) == [MISSING]
    assert responses.get_or_compute(request, lambda: "computed") == "computed"


def test_an_occurrence_may_be_any_integer(stash: Stash) -> None:
    class Number:
        def __index__(self) -> int:
            return 1

    responses, request = stash.responses(model="m"), {"prompt": "p", "temperature": 1.0, "seed": 1}
    assert responses.put(request, "second", occurrence=1)
    number: Any = Number()
    assert responses.get(request, occurrence=number) == "second"


@pytest.mark.parametrize("holder", ["options", "parameters", "gen_kwargs", "extra_body"])
def test_sampling_is_noticed_where_generation_arguments_lie(stash: Stash, holder: str) -> None:
    responses = stash.responses(model="m")
    assert not responses.put({"prompt": "a", holder: {"temperature": 0.7}}, "drawn")
    assert responses.put({"prompt": "a", holder: {"temperature": 0}}, "fixed")
    assert not responses.put({"prompt": "a", "options": {holder: {"temperature": 0.7}}}, "drawn")


@pytest.mark.parametrize("answer", [None, "", [], {}, {"error": {"code": 429}}])
def test_failures_and_empty_answers_are_kept_only_when_asked(stash: Stash, answer: Any) -> None:
    model = Counted(answer)
    responses = stash.responses(model="m")
    assert [responses.get_or_compute("q", model) for _ in range(2)] == [answer] * 2
    assert model.calls == 2
    assert stash.stats.drops["empty"] == 2
    everything = stash.responses(model="m", keep_if=lambda _: True)
    assert [everything.get_or_compute("q", model) for _ in range(2)] == [answer] * 2
    assert model.calls == 3


def test_what_the_function_raises_is_raised_and_nothing_is_kept(stash: Stash) -> None:
    responses = stash.responses(model="m")

    def broken() -> str:
        raise ConnectionError("no network")

    with pytest.raises(ConnectionError, match="no network"):
        responses.get_or_compute("q", broken)
    assert responses.get_or_compute("q", Counted()) == "four"


def test_refresh_computes_anew_and_replaces(stash: Stash) -> None:
    responses = stash.responses(model="m")
    responses.put("q", "old")
    assert responses.get_or_compute("q", Counted("new"), refresh=True) == "new"
    assert responses.get("q") == "new"


def test_answers_expire(tmp_path: Path) -> None:
    with lmstash.open(tmp_path) as stash:
        responses = stash.responses(model="m", ttl_seconds=0.2)
        responses.put("q", "a")
        assert responses.get("q") == "a"
        time.sleep(0.3)
        assert responses.get("q", MISSING) is MISSING


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_of_many_threads_one_computes(tmp_path: Path, where: str) -> None:
    with lmstash.open("memory://" if where == "memory" else tmp_path) as stash:
        responses, model = stash.responses(model="m"), Counted([1], seconds=0.1)
        with ThreadPoolExecutor(32) as pool:
            answers = list(pool.map(lambda _: responses.get_or_compute("q", model), range(64)))
        assert model.calls == 1
        assert answers == [[1]] * 64
        assert len({id(each) for each in answers}) == 64


def test_of_many_tasks_one_computes(stash: Stash) -> None:
    responses, model = stash.responses(model="m"), Counted([1], seconds=0.05)

    async def ask() -> list[Any]:
        return await asyncio.gather(*[responses.get_or_compute_async("q", model.later) for _ in range(200)])

    assert asyncio.run(ask()) == [[1]] * 200
    assert model.calls == 1


def test_who_waited_for_one_that_failed_computes_at_once_with_the_others(stash: Stash) -> None:
    responses = stash.responses(model="m")
    entered, calls = threading.Event(), []

    def failing() -> str:
        entered.set()
        time.sleep(0.2)
        raise ConnectionError

    def slow() -> str:
        calls.append(1)
        time.sleep(0.5)
        return "mine"

    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(responses.get_or_compute, "q", failing)
        entered.wait()
        started = time.monotonic()
        rest = [pool.submit(responses.get_or_compute, "q", slow) for _ in range(8)]
        assert [each.result() for each in rest] == ["mine"] * 8
        with pytest.raises(ConnectionError):
            first.result()
    assert time.monotonic() - started < 3.0, "one after the other it takes 4 s"
    assert 1 <= len(calls) <= 8


def test_a_function_that_asks_the_same_again_does_not_wait_for_itself(stash: Stash) -> None:
    responses = stash.responses(model="m", wait_seconds=5.0)
    started = time.monotonic()
    got = responses.get_or_compute("q", lambda: responses.get_or_compute("q", Counted("inner")))
    assert got == "inner"
    assert time.monotonic() - started < 4.0


def _ask(folder: str, gate: Any, counter: Any) -> None:
    with lmstash.open(folder) as stash:
        responses = stash.responses(model="m")

        def compute() -> str:
            with counter.get_lock():
                counter.value += 1
            time.sleep(0.3)
            return "a"

        gate.wait()
        assert responses.get_or_compute("q", compute) == "a"


@pytest.mark.slow
def test_of_many_processes_one_computes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    gate, counter = context.Barrier(4), context.Value("i", 0)
    workers = [context.Process(target=_ask, args=(str(tmp_path), gate, counter)) for _ in range(4)]
    for each in workers:
        each.start()
    for each in workers:
        each.join(60)
    assert [each.exitcode for each in workers] == [0] * 4
    assert counter.value == 1


def test_map_computes_what_is_not_kept_in_batches_and_keeps_each_as_it_returns(stash: Stash) -> None:
    responses = stash.responses(model="m")
    responses.put({"n": 2}, "kept")
    batches: list[list[int]] = []

    def model(requests: list[Any]) -> list[str]:
        batches.append([each["n"] for each in requests])
        if len(batches) == 3:
            raise KeyboardInterrupt
        return [f"answer {each['n']}" for each in requests]

    asked = [{"n": n} for n in (0, 1, 2, 1, 3, 4, 5)]
    with pytest.raises(KeyboardInterrupt):
        responses.map(asked, model, batch_size=2)
    assert batches == [[0, 1], [3, 4], [5]]
    got = responses.map(asked, model, batch_size=2)
    assert batches[3:] == [[5]]
    assert got == ["answer 0", "answer 1", "kept", "answer 1", "answer 3", "answer 4", "answer 5"]


def test_stream_yields_what_is_kept_first(stash: Stash) -> None:
    responses = stash.responses(model="m")
    responses.put(1, "one")
    assert list(responses.stream([0, 1], lambda batch: [f"new {each}" for each in batch])) == [
        (1, "one"),
        (0, "new 0"),
    ]


def test_a_function_that_returns_too_few_answers_is_told(stash: Stash) -> None:
    responses = stash.responses(model="m")
    with pytest.raises(InvalidArgumentError, match="got 3 requests and returned 2"):
        responses.map([1, 2, 3], lambda batch: ["a"] * (len(batch) - 1), batch_size=3)
    assert responses.get(1, MISSING) is MISSING


def test_a_progress_bar_counts_answers_found_and_computed(stash: Stash, capsys: pytest.CaptureFixture[str]) -> None:
    responses = stash.responses(model="m")
    responses.put("b", "B")
    assert responses.map(list("abc"), lambda batch: [each.upper() for each in batch], progress=True) == list("ABC")
    assert "3/3" in capsys.readouterr().err
    responses.map(list("abcd"), lambda batch: [each.upper() for each in batch])
    assert capsys.readouterr().err == ""


def test_two_maps_at_once_compute_each_request_once(stash: Stash) -> None:
    responses, calls, lock = stash.responses(model="m"), [], threading.Lock()

    def model(batch: list[int]) -> list[str]:
        with lock:
            calls.extend(batch)
        time.sleep(0.02)
        return [f"a{each}" for each in batch]

    with ThreadPoolExecutor(2) as pool:
        forth = pool.submit(responses.map, list(range(40)), model, batch_size=4)
        back = pool.submit(responses.map, list(range(39, -1, -1)), model, batch_size=4)
        assert forth.result() == [f"a{n}" for n in range(40)]
        assert back.result() == [f"a{n}" for n in range(39, -1, -1)]
    assert sorted(calls) == list(range(40))


def test_map_async(stash: Stash) -> None:
    responses = stash.responses(model="m")

    async def model(batch: list[int]) -> list[int]:
        await asyncio.sleep(0)
        return [each + 1 for each in batch]

    assert asyncio.run(responses.map_async([0, 1, 2], model, batch_size=2)) == [1, 2, 3]
    assert responses.get_many([0, 1, 2, 3]) == [1, 2, 3, MISSING]


def test_many_are_put_and_found(stash: Stash) -> None:
    responses = stash.responses(model="m")
    requests = [{"n": n} for n in range(1000)]
    assert responses.put_many(requests, [f"a{n}" for n in range(1000)]) == 1000
    assert responses.get_many(requests) == [f"a{n}" for n in range(1000)]


def test_a_damaged_entry_is_a_miss_and_is_computed_again(tmp_path: Path) -> None:
    with lmstash.open(tmp_path) as stash:
        stash.responses(model="m").put("q", "a" * 100)
    for path in (tmp_path / "segments").iterdir():
        data = bytearray(path.read_bytes())
        at = data.find(b"a" * 50)
        if at > 0:
            data[at] ^= 1
            path.write_bytes(data)
    with lmstash.open(tmp_path) as stash:
        model = Counted("new")
        assert stash.responses(model="m").get_or_compute("q", model) == "new"
        assert stash.responses(model="m").get_or_compute("q", model) == "new"
        assert model.calls == 1
        assert stash.stats.damaged == 1


def test_a_request_that_cannot_be_named_is_passed_on(tmp_path: Path) -> None:
    with lmstash.open(tmp_path) as stash:
        model = Counted()
        responses = stash.responses(model="m")
        assert [responses.get_or_compute({"x": object()}, model) for _ in range(2)] == ["four"] * 2
        assert responses.map([{"x": object()}], lambda batch: ["a"]) == ["a"]
        assert model.calls == 2
        assert stash.stats.misses["unsupported"] == 3


class Stubborn:
    """An object that fails when it is looked at."""

    @property
    def __class__(self) -> Any:
        raise RuntimeError("do not look")


def _holding_itself() -> dict[str, Any]:
    options: dict[str, Any] = {}
    options["options"] = options
    return {"options": options}


@pytest.mark.parametrize(
    "request_", [{"x": Path("a\0b")}, {"x": Stubborn()}, _holding_itself()], ids=["path", "object", "cycle"]
)
def test_whatever_a_request_does_when_it_is_read_the_answer_comes(tmp_path: Path, request_: Any) -> None:
    with lmstash.open(tmp_path) as stash:
        responses = stash.responses(model="m")
        assert responses.get_or_compute(request_, Counted()) == "four"
        assert stash.stats.misses["unsupported"] == 1


class Fragile:
    """A registered type that cannot be taken apart, or not be put together again."""

    def __init__(self, apart: bool) -> None:
        self.apart = apart


def _take_apart(value: Fragile) -> Any:
    if not value.apart:
        raise RuntimeError("not to be taken apart")
    return {"apart": True}


def _put_together(plain: Any) -> Fragile:
    raise RuntimeError("not to be put together")


@pytest.mark.parametrize("apart", [False, True])
def test_an_answer_whose_type_fails_is_handed_over_all_the_same(tmp_path: Path, apart: bool) -> None:
    register(Fragile, to_plain=_take_apart, from_plain=_put_together)
    with lmstash.open(tmp_path) as stash:
        responses, answer = stash.responses(model="m"), Fragile(apart)
        assert responses.get_or_compute("q", lambda: answer) is answer
        assert responses.get_or_compute("q", lambda: answer) is answer
        assert responses.map(["p", "p"], lambda batch: [answer] * len(batch)) == [answer, answer]
        model = Counted(answer, seconds=0.1)
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(lambda _: responses.get_or_compute("r", model), range(4))) == [answer] * 4


class Unknown:
    """A type that is registered where it is written and not where it is read."""


def test_a_batch_gives_what_each_look_up_gives_whatever_is_among_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers of a type that is not registered, compressed ones and damaged ones are only their own misses."""
    monkeypatch.setattr(answers, "_by_class", dict(answers._by_class))
    monkeypatch.setattr(answers, "_by_name", dict(answers._by_name))
    register(Unknown, to_plain=lambda value: 1, from_plain=lambda plain: Unknown())
    values = ["one", ("two", 2.0), {"three": [b"3", None]}, "$four", 5, [6], None, "eight"]
    with lmstash.open(tmp_path) as stash:
        responses = stash.responses(model="m", keep_if=lambda _: True)
        for number, value in enumerate(values):
            responses.put({"q": number}, value)
        asked = [{"q": number} for number in (3, 0, 1, 99, 6, 2, 0, 4, 5, 7)]
        expected = [responses.get(each, MISSING) for each in asked]
        assert expected[3] is MISSING
        assert [type(each) for each in responses.get_many(asked)] == [type(each) for each in expected]
        assert responses.get_many(asked) == expected

        responses.put({"q": "unknown"}, Unknown())
        stash.responses(model="m", compress=True).put({"q": "compressed"}, "nine")
        key = responses.asker.ask(responses.asker.look(), {"q": "damaged"}).key
        namespace = namespace_of(responses.asker.look())
        stash.store.put(key, b"\0\1\0\0\0[", namespace=namespace)
    answers._by_class.pop(Unknown)
    answers._by_name.clear()
    with lmstash.open(tmp_path) as stash:
        responses = stash.responses(model="m")
        among = [*asked, {"q": "unknown"}, {"q": "compressed"}, {"q": "damaged"}]
        assert responses.get_many(among) == [*expected, MISSING, "nine", MISSING]
        assert (stash.stats.misses["mismatch"], stash.stats.misses["damaged"]) == (1, 1)


def test_a_store_that_keeps_nothing_computes_each_time() -> None:
    with lmstash.open("memory://", capacity_bytes=0) as stash:
        model = Counted()
        responses = stash.responses(model="m")
        assert [responses.get_or_compute("q", model) for _ in range(2)] == ["four"] * 2
        assert model.calls == 2


def test_secrets_are_nowhere_in_the_folder(tmp_path: Path) -> None:
    with lmstash.open(tmp_path) as stash:
        responses = stash.responses(model="m", base_url="https://me:hunter2@host/v1")
        responses.put(
            {"q": 1, "api_key": "sk-secret", "extra_headers": {"Authorization": "Bearer sk-secret"}},
            "answer",
        )
    everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"answer" in everything
    assert b"sk-secret" not in everything
    assert b"hunter2" not in everything


def test_a_private_stash_keeps_no_request(tmp_path: Path) -> None:
    with lmstash.open(tmp_path, private=True) as stash:
        stash.responses(model="m").put({"prompt": "confidential"}, "answer")
        assert stash.responses(model="m").get({"prompt": "confidential"}) == "answer"
    everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"confidential" not in everything


def test_a_batch_may_be_as_large_as_somebody_says(stash: Stash) -> None:
    sizes = iter([1, 2, 2, 4, 4, 4, 4, 8, 8, 8, 8, 8, 8, 8, 8])
    asked: list[int] = []

    def answer(requests: list[Any]) -> list[str]:
        asked.append(len(requests))
        return ["a"] * len(requests)

    responses = stash.responses("provider/model")
    responses.map([{"prompt": str(k)} for k in range(10)], answer, batch_size=lambda: next(sizes))
    assert asked == [1, 2, 4, 3]


def test_requests_of_a_table_are_answered_row_by_row(stash: Stash) -> None:
    """Whatever its rows are called after they were shuffled and filtered."""
    pandas = pytest.importorskip("pandas")
    responses = stash.responses(model="m")
    column = pandas.Series(["two", "zero", "one"], index=[2, 0, 1])[lambda each: each != "zero"]
    assert responses.map(column, lambda batch: [f"answer to {each}" for each in batch]) == [
        "answer to two",
        "answer to one",
    ]
    assert responses.get_many(column) == ["answer to two", "answer to one"]
    assert responses.put_many(column, pandas.Series(["2", "1"], index=[5, 6]), tags=pandas.Series([{}, {}])) == 2
    assert responses.map(column, lambda batch: pandas.Series(batch)) == ["2", "1"]
    assert responses.map((each for each in ["new", "two"]), lambda batch: np.array([1])) == [1, "2"]
    assert responses.map({"last": 1}.keys(), lambda batch: batch) == ["last"]


@pytest.mark.parametrize("how", ["map", "put_many"])
def test_tags_are_one_dict_for_all_or_one_for_each(stash: Stash, how: str) -> None:
    responses, asked = stash.responses(model="m"), []

    def keep(requests: list[str], tags: Any) -> Any:
        if how == "put_many":
            return responses.put_many(requests, requests, tags=tags)
        return responses.map(requests, lambda batch: asked.append(batch) or batch, tags=tags)

    keep(["a", "b"], {"task": "both"})
    keep(["c", "d"], [{"task": "c"}, None])
    assert [len(list(responses.find(task=task))) for task in ("both", "c")] == [2, 1]
    n_asked = len(asked)
    with pytest.raises(InvalidArgumentError, match="2 requests have 1 tags"):
        keep(["e", "f"], [{"task": "e"}])
    assert len(asked) == n_asked, "nothing was computed in vain"


def test_a_time_to_live_that_is_none_is_refused_before_anything_is_computed(stash: Stash) -> None:
    responses, model = stash.responses(model="m"), Counted()
    odd: Any = "5"
    with pytest.raises(InvalidArgumentError, match="number of seconds"):
        responses.get_or_compute("q", model, ttl_seconds=odd)
    with pytest.raises(InvalidArgumentError, match="number of seconds"):
        responses.map(["q"], lambda batch: [model() for _ in batch], ttl_seconds=odd)
    assert model.calls == 0


def test_tags_that_hold_themselves_cost_no_answer(stash: Stash) -> None:
    tags: dict[str, Any] = {"task": "t"}
    tags["more"] = tags
    responses = stash.responses(model="m")
    assert responses.get_or_compute("q", lambda: "a", tags=tags) == "a"
    assert responses.get("q") == "a"


def test_tags_that_cannot_be_looked_at_cost_no_answer_and_show_no_secret(tmp_path: Path) -> None:
    class Hostile:
        def __repr__(self) -> str:
            raise TypeError("never shown")

    with lmstash.open(tmp_path, strict=True) as stash:
        responses = stash.responses(model="m")
        tags = {"api_key": "SEKRET1", "config": {"password": [Hostile()], "more": "SEKRET1"}}
        assert responses.get_or_compute("q", lambda: "a", tags=tags, ttl_seconds=np.int64(60)) == "a"
        assert responses.get("q") == "a"
    assert not any(b"SEKRET1" in each.read_bytes() for each in tmp_path.rglob("*") if each.is_file())


def test_a_dict_that_reports_a_failure_is_not_kept_and_that_is_said_once(
    stash: Stash, caplog: pytest.LogCaptureFixture
) -> None:
    responses = stash.responses(model="m")
    for _ in range(2):
        responses.get_or_compute("order 7", lambda: {"order": 7, "status": "failed"})
    assert sum("keep_if" in each.message for each in caplog.records) == 1


def test_a_sampled_request_without_a_seed_is_not_kept_and_that_is_said_once(
    stash: Stash, caplog: pytest.LogCaptureFixture
) -> None:
    responses = stash.responses(model="m")
    for _ in range(2):
        responses.get_or_compute({"prompt": "p", "n": 3}, lambda: "a")
    assert sum("keep_sampled" in each.message for each in caplog.records) == 1
