"""What shows that a tokenizer has changed in place."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

from lmstash.adapters.lm_eval.tokenizing import cleans_up, rules_of


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


def test_whether_it_cleans_up() -> None:
    assert not cleans_up(SimpleNamespace())
    assert cleans_up(SimpleNamespace(clean_up_tokenization_spaces=True))
