"""Tokenizers and tables that code names count by what they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pandas
import pytest
from transformers import AutoTokenizer

from lmstash.caches.responses import Responses
from lmstash.stash import Stash

from ..conftest import made_program


def frame(n: str) -> Any:
    return pandas.DataFrame({"q": ["a", n], "x": [1.5, float("nan")], "d": [pandas.Timestamp("2020-01-01")] * 2})


TABLES = {
    "a frame": frame,
    "a column": lambda n: frame(n)["q"],
    "rows of a frame": lambda n: frame(n).iloc[1:],
    "a data set": lambda n: datasets.Dataset.from_dict({"q": ["a", n]}),
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_counts_by_what_it_holds(responses: Responses, stash: Stash, kind: str) -> None:
    for n in "1212":
        program = made_program("def ask(x): return x + str(TABLE)")
        program["ask"].__globals__["TABLE"] = TABLES[kind](n)
        responses.cached(program["ask"])("x")
    assert (stash.stats.hits, dict(stash.stats.misses)) == (2, {"absent": 2})


def test_a_tokenizer_counts_by_what_it_makes_of_texts(responses: Responses, stash: Stash, smollm2_folder: Path) -> None:
    program = made_program(
        "def ask(x): return TOKENIZER.apply_chat_template([dict(role='user', content=x)], tokenize=False)"
    )
    tokenizer = program["ask"].__globals__["TOKENIZER"] = AutoTokenizer.from_pretrained(str(smollm2_folder))
    ask, template = responses.cached(program["ask"]), tokenizer.chat_template
    for chat in (template, "{{ messages[0].content }}!", template):
        tokenizer.chat_template = chat
        assert ask("x") == program["ask"]("x")
    assert (stash.stats.hits, dict(stash.stats.misses)) == (1, {"absent": 2})
    program["ask"].__globals__["TOKENIZER"] = AutoTokenizer.from_pretrained(str(smollm2_folder))
    ask("x")
    assert stash.stats.hits == 2
