"""Who answers: of a torch model also what it generates by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import lmstash
from lmstash import Stash
from lmstash.caches.responses import MISSING

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ASKED = {"prompt": "p", "do_sample": False}


@pytest.fixture
def stash() -> Iterator[Stash]:
    with lmstash.open("memory://", strict=True, trust_env=False) as opened:
        yield opened


def make(**settings: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    return model


def test_what_a_model_generates_by_counts(stash: Stash) -> None:
    model = make()
    cache = stash.responses(model)
    assert cache.put(ASKED, "plain")
    model.generation_config.repetition_penalty = 1.7
    assert cache.get(ASKED, MISSING) is MISSING
    assert cache.put(ASKED, "penalised")
    model.generation_config.repetition_penalty = None
    assert cache.get(ASKED) == "plain"
    assert stash.responses(make()).get(ASKED) == "plain"
    assert stash.responses(make(repetition_penalty=1.7)).get(ASKED) == "penalised"
    assert stash.responses(make(eos_token_id=[1, 2])).get(ASKED, MISSING) is MISSING


def test_a_configuration_that_is_replaced_counts(stash: Stash) -> None:
    model = make()
    cache = stash.responses(model, assume_frozen=True)
    cache.put(ASKED, "plain")
    model.generation_config = transformers.GenerationConfig(max_new_tokens=3)
    assert cache.get(ASKED, MISSING) is MISSING
    assert cache.get_or_compute(ASKED, lambda: "short") == "short"
    assert cache.get(ASKED) == "short"


def test_one_that_changes_while_it_answers_keeps_nothing(stash: Stash) -> None:
    model = make()
    cache = stash.responses(model)

    def answer() -> str:
        model.generation_config.min_p = 0.1
        return "before or after?"

    assert cache.get_or_compute(ASKED, answer) == "before or after?"
    assert cache.get(ASKED, MISSING) is MISSING
    model.generation_config.min_p = None
    assert cache.get(ASKED, MISSING) is MISSING


def test_a_model_within_another_counts(stash: Stash) -> None:
    outer = torch.nn.Module()
    outer.language_model = make()
    cache = stash.responses(outer)
    cache.put(ASKED, "plain")
    outer.language_model.generation_config.top_k = 3
    assert cache.get(ASKED, MISSING) is MISSING


def test_a_model_that_samples_by_itself_is_known_for_it(stash: Stash) -> None:
    model = make(do_sample=True)
    cache = stash.responses(model)
    assert [cache.get_or_compute({"prompt": "p"}, iter([n]).__next__) for n in (1, 2)] == [1, 2]
    assert stash.stats.misses["sampled"] == 2
    assert [cache.get_or_compute(ASKED, iter([n]).__next__) for n in (3, 4)] == [3, 3]
    model.generation_config.do_sample = False
    assert [cache.get_or_compute({"prompt": "p"}, iter([n]).__next__) for n in (5, 6)] == [5, 5]


def test_what_cannot_be_told_apart_is_not_cached(stash: Stash) -> None:
    model = make()
    model.generation_config.watcher = object()
    cache = stash.responses(model)
    assert [cache.get_or_compute(ASKED, iter([n]).__next__) for n in (1, 2)] == [1, 2]


def test_a_module_that_generates_nothing_is_its_fingerprint(stash: Stash) -> None:
    torch.manual_seed(0)
    module = torch.nn.Linear(2, 2)
    stash.responses(module).put(ASKED, "linear")
    assert stash.responses(lmstash.fingerprint(module)).get(ASKED) == "linear"
