"""An interrupt, or a signal handler that asks, gives no model another one's answers."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from lmms_standins import Echo, Task, questions
from tests.at_lines import at_line

import lmstash
from lmstash.adapters.lmms_eval import ResponseCache
from lmstash.adapters.lmms_eval.answering import response_cache
from lmstash.stash import Stash

HERE = "/lmms_eval/answering/response_cache.py"


@pytest.fixture
def stash() -> Iterator[Stash]:
    with lmstash.open("memory://") as opened:
        yield opened


def made(stash: Stash) -> ResponseCache:
    return ResponseCache(stash, harmless=["calls", "n_asked"])


def ask(cache: ResponseCache, lm: Echo, docs: list[dict[str, Any]]) -> list[Any]:
    lm.task_dict["mini"] = {"test": docs}
    return cache.execute(lm, "generate_until", Task(docs).requests())


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("has_met", [False, True], ids=["none before", "another before"])
def test_a_model_whose_meeting_was_interrupted_gets_its_own_answers(stash: Stash, has_met: bool) -> None:
    docs = questions(1)
    ask(made(stash), Echo("a "), docs)
    total = at_line(0, lambda: made(stash).meet(Echo("b ")), lambda: None, HERE)
    assert total > 5
    for line in range(1, total + 1):
        cache, lm = made(stash), Echo("b ")
        if has_met:
            assert ask(cache, Echo("a "), docs) == ["a Q0 -> 0"]
        with contextlib.suppress(KeyboardInterrupt):
            at_line(line, lambda cache=cache, lm=lm: cache.meet(lm), interrupt, HERE)
        assert ask(cache, lm, docs) == ["b Q0 -> 0"]


@pytest.mark.parametrize("within", ["/lmms_eval/answering/instances.py", HERE])
def test_a_handler_that_evaluates_another_model_leaves_the_one_under_way(
    stash: Stash, monkeypatch: pytest.MonkeyPatch, within: str
) -> None:
    monkeypatch.setattr(response_cache, "_WINDOW", 1)
    docs = questions(3)
    total = at_line(0, lambda: ask(made(stash), Echo("a "), docs), lambda: None, within)
    for line in range(1, total + 1, max(1, total // 12)):
        stash.clear()
        cache, answers, others = made(stash), list[Any](), list[Any]()
        at_line(
            line,
            lambda cache=cache, answers=answers: answers.extend(ask(cache, Echo("a "), docs)),
            lambda cache=cache, others=others: others.extend(ask(cache, Echo("b "), docs)),
            within,
        )
        assert answers == [f"a Q{k} -> 0" for k in range(3)]
        assert others == [f"b Q{k} -> 0" for k in range(3)]


class Drawing(Echo):
    """Draws at random what it is asked to draw."""

    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        if any(each.args[0] == "draw" for each in requests):
            random.random()
        return super().generate_until(requests)


def test_what_was_drawn_is_not_kept_though_a_handler_asks_before_it_would_be(stash: Stash) -> None:
    docs, lm, cache = [{"question": "draw"}, *questions(100)], Drawing(batch_size=1), made(stash)
    lm.task_dict["mini"] = {"test": docs}
    drawn, *plain = Task(docs).requests()

    def draw() -> None:
        cache.execute(lm, "generate_until", [drawn])

    cache.execute(lm, "generate_until", plain[:1])
    total = at_line(0, draw, lambda: None, "/responses/answers/shelf.py")
    assert 5 < total < 100
    for line in range(1, total + 1):
        asked = [plain[line]]
        at_line(
            line, draw, lambda asked=asked: cache.execute(lm, "generate_until", asked), "/responses/answers/shelf.py"
        )
        before = lm.n_asked
        draw()
        assert lm.n_asked == before + 1
