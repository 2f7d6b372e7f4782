"""A function that asks for sampling itself, `create(temperature=0.8)`, draws anew each time, as one that is told to."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from tests.caches.responses.conftest import made_program

import lmstash
from lmstash.caches.responses import Responses

START = """
N = []
def create(**given):
    N.append(given)
    return len(N)
"""
SAMPLED = {
    "a keyword": "def ask(q): return create(temperature=0.8, prompt=q)",
    "a whole number": "def ask(q): return create(temperature=1)",
    "a global": "T = 0.5\ndef ask(q): return create(temperature=T)",
    "a dict": "def ask(q): return create(**{'temperature': 0.8, 'prompt': q})",
    "a dict of one": "def ask(q):\n given = {'temperature': 0.8}\n return create(**given)",
    "another word for it": "def ask(q): return create(do_sample=True)",
    "a helper": "def draw(q): return create(temperature=0.8, prompt=q)\ndef ask(q): return draw(q)",
    "within it": "def ask(q): return (lambda: create(temperature=0.8))()",
    "beside another": "def ask(q, temperature=0): return create(temperature=0.8)",
    "no seed": "def ask(q): return create(temperature=0.8, seed=None)",
}
NOT = {
    "greedy": "def ask(q): return create(temperature=0)",
    "greedy, by a global": "T = 0.0\ndef ask(q): return create(temperature=T)",
    "a seed": "def ask(q): return create(temperature=0.8, seed=3)",
    "a seed that is an argument": "def ask(q, number=1): return create(temperature=0.8, seed=number)",
    "the weather": "def ask(q): return create(temperature=21.5)",
    "another word": "def ask(q): return create(do_sample=False, n=3)",
    "nobody knows": "def ask(q): return create(temperature=float('0.8'))",
    "another method": (
        "class M:\n def draw(self): return create(temperature=0.8)\n def best(self): return create(temperature=0)\n"
        "MODEL = M()\ndef ask(q): return MODEL.best()"
    ),
}


@pytest.mark.parametrize("how", SAMPLED)
def test_nothing_is_kept_of_what_samples(responses: Responses, caplog: pytest.LogCaptureFixture, how: str) -> None:
    ask = responses.cached(made_program(START + SAMPLED[how])["ask"], harmless=["N"])
    assert [ask("a"), ask("a")] == [1, 2]
    [said] = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert "keep_sampled=True" in said
    assert ("do_sample" if "do_sample" in SAMPLED[how] else "temperature") in said


@pytest.mark.parametrize("how", NOT)
def test_what_is_not_known_to_sample_is_kept(responses: Responses, how: str) -> None:
    ask = responses.cached(made_program(START + NOT[how])["ask"], harmless=["N"])
    assert [ask("a"), ask("a")] == [1, 1]


def test_samples_that_are_to_be_kept_are_several(tmp_path: Path) -> None:
    for _ in range(2):
        with lmstash.open(tmp_path, strict=True) as stash:
            ask = stash.responses(model="m", keep_sampled=True).cached(
                made_program(START + SAMPLED["a keyword"])["ask"], harmless=["N"]
            )
            assert [ask("a") for _ in range(3)] == [1, 2, 3]
    assert stash.stats.hits == 3
