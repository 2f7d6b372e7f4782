"""What is drawn at random is not named by another draw, and reading it does not disturb who draws next."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy
import pytest
from lmms_standins import Echo, Task, evaluate, questions


class Looking(Echo):
    """Says what it was shown."""

    def answer(self, request: Any) -> Any:
        return f"{request.args[0]} -> {self.see(request)}"


def _torch() -> Any:
    return pytest.importorskip("torch")


GENERATORS: dict[str, tuple[Callable[[], Any], Callable[[int], Any]]] = {
    "random": (lambda: random.randrange(1 << 30), random.seed),
    "numpy": (lambda: int(numpy.random.randint(1 << 30)), numpy.random.seed),
    "torch": (lambda: _torch().randint(0, 1 << 30, (1,)).item(), lambda seed: _torch().manual_seed(seed)),
}


@pytest.mark.parametrize(("draw", "seed"), GENERATORS.values(), ids=GENERATORS)
def test_the_model_is_shown_what_it_would_have_been_shown_and_that_is_not_kept(tmp_path, draw, seed, caplog) -> None:
    task = Task(questions(5), doc_to_visual=lambda doc: [draw()] if doc["question"] != "Q1" else [])
    plain = Looking()
    plain.task_dict["mini"] = {"test": task.docs}
    seed(1)
    truth = plain.generate_until(task.requests())
    for expected in (5, 4):
        seed(1)
        answers, computed = evaluate(tmp_path / "answers", Looking(), task, chunk_size=2)
        assert answers == truth
        assert computed == expected
    assert "drawn at random" in caplog.text


@pytest.mark.parametrize(("draw", "seed"), GENERATORS.values(), ids=GENERATORS)
def test_what_a_function_draws_after_it_has_seeded_is_kept(tmp_path, draw, seed) -> None:
    def shown(doc: Any) -> list[Any]:
        seed(len(doc["question"]))
        return [draw()]

    answers = [evaluate(tmp_path / "answers", Looking(), Task(questions(12), doc_to_visual=shown)) for _ in range(2)]
    assert answers[0][0] == answers[1][0]
    assert [computed for _, computed in answers] == [12, 0]


def test_choices_of_one_drawn_document_are_not_kept_whichever_is_asked_first(tmp_path) -> None:
    task = Task(questions(3), doc_to_visual=lambda doc: [random.random()], repeats=3)
    for _ in range(2):
        assert evaluate(tmp_path / "answers", Looking(), task)[1] == 9
