"""What counts of a model object's parts: its tokenizer as it is now, wherever and whenever it was changed."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmstash.adapters.lmms_eval import ResponseCache

_spec = importlib.util.spec_from_file_location("lmms_standins", Path(__file__).with_name("standins.py"))
assert _spec is not None
assert _spec.loader is not None
standins = sys.modules.setdefault("lmms_standins", importlib.util.module_from_spec(_spec))
_spec.loader.exec_module(standins)
Echo, Task, evaluate, questions = standins.Echo, standins.Task, standins.evaluate, standins.questions


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
