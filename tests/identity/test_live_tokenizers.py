"""What shows that a tokenizer has changed in place, and what of it counts only where texts are answered."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from lmstash.identity.live_tokenizers import LiveTokenizers, is_tokenizer, rules_of


@pytest.fixture
def tokenizer(smollm2_folder: Any) -> Any:
    return AutoTokenizer.from_pretrained(str(smollm2_folder))


def test_its_words_and_rules_show_and_what_a_call_sets_does_not(tokenizer: Any) -> None:
    words = copy.deepcopy(tokenizer)
    words.pad_token = words.eos_token
    before = rules_of(words)
    words(["a b", "a"], padding=True, truncation=True, max_length=3)
    assert rules_of(words) == before
    words.add_tokens(["world"])  # which the vocabulary has
    assert rules_of(words) != before


def test_one_without_a_backend_shows_by_its_vocabulary() -> None:
    assert rules_of(SimpleNamespace(get_vocab=lambda: {"a": 1})) != rules_of(
        SimpleNamespace(get_vocab=lambda: {"a": 2})
    )
    assert rules_of(SimpleNamespace()) == ""


def test_each_change_in_place_is_told_and_what_comes_back_is_the_same(tokenizer: Any) -> None:
    known = LiveTokenizers()
    told = [known.told(tokenizer)]
    for name, value in (
        ("chat_template", "{{ messages }}"),
        ("padding_side", "left" if tokenizer.padding_side != "left" else "right"),
        ("clean_up_tokenization_spaces", not tokenizer.clean_up_tokenization_spaces),
        ("add_prefix_space", "another"),
    ):
        before = getattr(tokenizer, name, None)
        setattr(tokenizer, name, value)
        told.append(known.told(tokenizer))
        setattr(tokenizer, name, before)
        assert known.told(tokenizer) == told[0], name
    assert len({str(each) for each in told}) == len(told)
    assert LiveTokenizers().told(copy.deepcopy(tokenizer)) == told[0]


def test_what_is_one(tokenizer: Any) -> None:
    assert is_tokenizer(tokenizer)
    assert not is_tokenizer(SimpleNamespace(encode=1, get_vocab=2))
    assert not is_tokenizer(type(tokenizer))
