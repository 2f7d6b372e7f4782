"""What the harness's own cache of answers gets wrong, by its list of defects: here it is right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lmms_standins import Echo, Task, evaluate, questions


@pytest.fixture
def place(tmp_path: Path) -> str:
    return str(tmp_path / "answers")


def computed(place: str, lm: Any = None, **kwargs: Any) -> int:
    """How many of five questions are computed under these generation arguments."""
    return evaluate(place, lm or Echo(), Task(questions(5), generation_kwargs={"max_new_tokens": 8, **kwargs}))[1]


def test_a_commit_in_whatever_repository_lies_around_empties_nothing(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    utils = pytest.importorskip("lmms_eval.utils")
    monkeypatch.setattr(utils, "get_git_commit_hash", lambda: "1234567")
    assert computed(place) == 5
    monkeypatch.setattr(utils, "get_git_commit_hash", lambda: "89abcde")
    assert utils.get_lmms_eval_cache_version() == "89abcde"
    assert computed(place) == 0


def test_a_temperature_in_words_samples_as_its_number_does(place: str) -> None:
    assert [computed(place, temperature="0.7", do_sample=True) for _ in range(2)] == [5, 5]
    assert [computed(place, temperature="0.7") for _ in range(2)] == [5, 5]


@pytest.mark.parametrize(("name", "one", "other"), [("top_p", 0.5, 0.9), ("top_k", 5, 50), ("min_p", 0.1, 0.2)])
def test_what_narrows_the_choice_alone_is_part_of_the_question(place: str, name: str, one: Any, other: Any) -> None:
    for value in (one, other):
        assert computed(place, **{name: value}, do_sample=False) == 5
        assert computed(place, **{name: value}, do_sample=False) == 0


class Chatting(Echo):
    """As the harness's chat models: a tokenizer whose template makes the prompt."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self._tokenizer = tokenizer


def test_another_chat_template_is_another_model(place: str) -> None:
    tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")

    def run(template: str) -> int:
        inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
        tokenizer.chat_template = template
        return computed(place, Chatting(tokenizer))

    assert [run("{{ messages }}"), run("{{ messages }}"), run("Say: {{ messages }}"), run("{{ messages }}")] == [
        *(5, 0, 5, 0)
    ]


class Elsewhere(Echo):
    """As the harness's models that ask a server: who answers is what the arguments say."""

    def __init__(self) -> None:
        super().__init__()
        self.client = type("Client", (), {"__module__": "openai.client"})()


def test_another_revision_in_the_arguments_is_another_model(place: str) -> None:
    def run(arguments: str) -> int:
        return evaluate(place, Elsewhere(), Task(questions(5)), model="openai", model_args=arguments)[1]

    base = "pretrained=org/name"
    assert [run(f"{base},revision=main"), run(f"{base},revision=v2"), run(f"revision=v2,{base}"), run(base)] == [
        *(5, 5, 0, 5)
    ]
