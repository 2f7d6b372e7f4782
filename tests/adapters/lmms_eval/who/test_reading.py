"""What counts of a model object's parts: its tokenizer as it is now, wherever and whenever it was changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lmms_standins import Echo, Task, evaluate, questions

import lmstash
from lmstash.adapters.lmms_eval import ResponseCache
from lmstash.adapters.lmms_eval.who.code_of import source_of


@pytest.fixture
def place(tmp_path: Path) -> str:
    return str(tmp_path / "answers")


def words(**options: Any) -> Any:
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "a": 1, "b": 2}, unk_token="<unk>"))
    given = {"padding_side": "left", **options}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **given)


class Worded(Echo):
    """As `Echo`, with a tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.tokenizer = tokenizer


def _add_rule(tokenizer: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="a $A", special_tokens=[("a", 1)])


CHANGES: dict[str, Callable[[Any], Any]] = {
    "padding_side": lambda tokenizer: setattr(tokenizer, "padding_side", "right"),
    "truncation_side": lambda tokenizer: setattr(tokenizer, "truncation_side", "left"),
    "clean_up_tokenization_spaces": lambda tokenizer: setattr(tokenizer, "clean_up_tokenization_spaces", True),
    "model_max_length": lambda tokenizer: setattr(tokenizer, "model_max_length", 5),
    "post-processor": _add_rule,
    "word that the vocabulary has": lambda tokenizer: tokenizer.add_tokens(["a"]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_tokenizer_changed_in_place_is_another_one_at_once_and_in_other_processes(
    place: str, change: Callable[[Any], Any]
) -> None:
    lm = Worded(words())
    lm.task_dict["mini"] = {"test": questions()}
    cache = ResponseCache(place, model="echo")
    for _ in range(2):
        cache.execute(lm, "generate_until", Task(questions()).requests())
    assert lm.n_asked == 10
    change(lm.tokenizer)
    cache.execute(lm, "generate_until", Task(questions()).requests())
    assert lm.n_asked == 20
    other = words()
    change(other)
    assert evaluate(place, Worded(other), Task(questions()))[1] == 0
    assert evaluate(place, Worded(words()), Task(questions()))[1] == 0


def test_padding_and_truncation_that_a_call_sets_are_no_change(place: str) -> None:
    tokenizer = words(pad_token="a")
    lm = Worded(tokenizer)
    lm.task_dict["mini"] = {"test": questions()}
    cache = ResponseCache(place, model="echo")
    for length in (3, 5):
        cache.execute(lm, "generate_until", Task(questions()).requests())
        tokenizer(["a b", "a"], padding=True, truncation=True, max_length=length)
    assert lm.n_asked == 10


class Scaled(Echo):
    """Goes by the environment, and has a function beside it that goes by an attribute."""

    def answer(self, request: Any) -> Any:
        return f"{os.environ.get('LMSTASH_TEST_SCALE')} {beside(self)} {super().answer(request)}"


def beside(lm: Any) -> Any:
    return getattr(lm, "timeout", None)


def test_what_ones_own_code_reads_of_the_environment_counts_as_it_is_at_each_call(place: str, monkeypatch) -> None:
    lm = Scaled()
    for value, expected in (("2", 10), ("2", 0), ("3", 10)):
        monkeypatch.setenv("LMSTASH_TEST_SCALE", value)
        monkeypatch.setenv("LMSTASH_TEST_OTHER", f"another {value}")
        answers, computed = evaluate(place, lm, Task(questions()))
        assert (answers[0][0], computed) == (value, expected)
        assert evaluate(place, Scaled(), Task(questions()))[1] == 0
    with ResponseCache(place, model="echo").stash as stash:
        held = ResponseCache(stash, model="echo")
        held.meet(lm)
        before = held.identity()
        monkeypatch.delenv("LMSTASH_TEST_SCALE")
        assert held.identity() != before


def test_what_functions_beside_ones_own_class_go_by_counts_whatever_it_is(place: str) -> None:
    def ask(kind: type, timeout: Any) -> int:
        lm = kind()
        lm.timeout = timeout
        return evaluate(place, lm, Task(questions()))[1]

    assert [ask(Scaled, each) for each in (1, 1, 2)] == [10, 0, 10]
    held = [SimpleNamespace(word=word) for word in ("cats", "cats", "dogs")]
    assert [ask(Scaled, each) for each in held] == [10, 0, 10]
    assert [ask(Echo, each) for each in (1, 2)] == [10, 0]


def test_what_nobody_can_say_is_told_for_each_reason(place: str, caplog) -> None:
    def failing(doc: Any) -> Any:
        raise [KeyError, OSError][doc["number"] % 2](f"no image {doc['number']}")

    docs = [{"question": f"Q{k}", "number": k} for k in range(6)]
    lm = Echo()
    lm.see = lambda request: []
    evaluate(place, lm, Task(docs, doc_to_visual=failing))
    told = [each.getMessage() for each in caplog.records if "a request is not cached" in each.getMessage()]
    assert [each.partition("cached: ")[2].partition(":")[0] for each in told][:2] == ["KeyError", "OSError"]
    caplog.clear()
    with lmstash.open(place) as stash:
        for name in ("one", "other", "one"):
            lm = Echo()
            setattr(lm, name, (each for each in ()))  # which nobody can take apart
            evaluate(stash, lm, Task(questions()), model=lm)
    told = [each.getMessage() for each in caplog.records if "nothing is cached" in each.getMessage()]
    assert [each.partition("model: ")[2].split()[0] for each in told] == ["one", "other"]


def test_of_a_model_that_is_known_by_its_name_what_its_code_reads_of_the_environment_counts(
    place: str, monkeypatch
) -> None:
    def ask(value: str) -> int:
        lm = Scaled()
        lm.held = (each for each in ())  # which nobody can take apart
        monkeypatch.setenv("LMSTASH_TEST_SCALE", value)
        return evaluate(place, lm, Task(questions()))[1]

    assert [ask(value) for value in ("2", "2", "3")] == [10, 0, 10]


def test_what_functions_of_later_rounds_read_of_the_environment_counts(monkeypatch) -> None:
    def shown(doc: Any) -> Any:
        return [] if doc.get("round") is None else os.environ["LMSTASH_TEST_SCALE"]

    sources = []
    for value in ("2", "2", "3"):
        monkeypatch.setenv("LMSTASH_TEST_SCALE", value)
        sources.append(source_of(shown))
    assert sources[0] == sources[1] != sources[2]
