"""Ctrl-C, a handler's TimeoutError, or a handler that calls the cache itself, at any line of any cache.

What was interrupted is asked for again and must be right, whoever asks; the model is left as it was; and a handler gets
its own values.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.at_lines import at_line
from tests.caches.states.test_states_cache import keep, restored
from transformers import LlamaConfig, LlamaForCausalLM

import lmstash
from lmstash.adapters import lmprobe
from lmstash.caches.states.cache import States
from lmstash.identity.fingerprint import Fingerprint
from lmstash.identity.keys import Key

VOCABULARY = 97
Ask = Callable[[int], None]
"""Asks a cache for what a number stands for, and checks the answer."""


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config = LlamaConfig(**shape, **ends, vocab_size=VOCABULARY, num_key_value_heads=2, max_position_embeddings=300)
    return LlamaForCausalLM(config).eval()


def ids(n_tokens: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCABULARY, 100)[:n_tokens].tolist()


def activations(stash: lmstash.Stash) -> Ask:
    model = tiny_llama()
    acts = stash.activations(model)

    def ask(number: int) -> None:
        prompts = [ids(5 + number % 7, number), [*ids(70, number % 3), number % VOCABULARY], ids(3, 1)]
        with torch.no_grad():
            wanted = [model(torch.tensor([each]), output_hidden_states=True).hidden_states[1][0] for each in prompts]
        for got, each in zip(acts(prompts, 0, "last"), wanted, strict=True):
            torch.testing.assert_close(got[0], each[-1])
        for got, each in zip(acts(prompts, 0, None), wanted, strict=True):
            torch.testing.assert_close(got[0], each)

    return ask


def kv(stash: lmstash.Stash) -> Ask:
    model = tiny_llama()
    cache = stash.kv(model)

    def ask(number: int) -> None:
        prompt = torch.tensor([[*ids(70, number % 3), number % VOCABULARY, 5]])
        how: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
        assert torch.equal(cache.generate(prompt, **how), model.generate(prompt, **how))

    return ask


def logprobs(stash: lmstash.Stash) -> Ask:
    model = tiny_llama()
    cache = stash.logprobs(model)

    def ask(number: int) -> None:
        contexts = [[*ids(70, number % 3), number % VOCABULARY], ids(5, number), [*ids(5, number), 1]]
        with torch.no_grad():
            wanted = [model(torch.tensor([each])).logits[0, -1].log_softmax(-1) for each in contexts]
        rows = [*cache.batch_next_token_logprobs(contexts), cache.next_token_logprobs(contexts[0])]
        for row, each in zip(rows, [*wanted, wanted[0]], strict=True):
            torch.testing.assert_close(row, each, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(cache.start(contexts[1]).extend(1).logprobs(), wanted[2], rtol=1e-4, atol=1e-4)

    return ask


def responses(stash: lmstash.Stash) -> Ask:
    cache = stash.responses(model="m")

    @cache.cached
    def said(text: str) -> dict[str, str]:
        return {"said": text}

    def ask(number: int) -> None:
        assert cache.get_or_compute({"prompt": f"one {number}"}, lambda: {"answer": number}) == {"answer": number}
        requests = [{"prompt": f"{each} of {number}"} for each in range(3)]
        wanted = [each["prompt"] + "!" for each in requests]
        assert cache.map(requests, lambda some: [each["prompt"] + "!" for each in some]) == wanted
        assert said(f"text {number}") == {"said": f"text {number}"}

    return ask


def states(stash: lmstash.Stash) -> Ask:
    cache = States(stash.store, Fingerprint(Key({"kind": "toy", "name": "toy"}), {"name": "toy"}))

    def ask(number: int) -> None:
        tokens = [*ids(70, number % 3), *ids(10, number)]
        keep(cache, tokens)
        assert restored(cache, tokens) is not None

    return ask


class Lengths:
    """What lmprobe calls an extractor: the value of each token of a prompt is the prompt's length."""

    model_name = "lengths"
    layer_indices = (0, 1)
    batch_size = 4

    def extract_batch(self, prompts: list[str], layers: list[int], remote: bool = False) -> tuple[Any, Any]:
        values = torch.tensor([float(len(each)) for each in prompts])[:, None, None].expand(-1, 3, 8 * len(layers))
        return values.clone(), torch.ones(len(prompts), 3, dtype=torch.int64)


def of_lmprobe(stash: lmstash.Stash) -> Ask:
    lmprobe.set_cache_backend(stash)

    def ask(number: int) -> None:
        texts = [f"text {number}", f"another text {number % 5}"]
        values, _mask = lmprobe.CachedExtractor(Lengths()).extract(texts)
        for row, text in zip(values, texts, strict=True):
            assert (row == len(text)).all()

    return ask


def tensors(stash: lmstash.Stash) -> Ask:
    def ask(number: int) -> None:
        value = np.full((3, 4), number % 50)
        if stash.tensors.get(number % 50, framework="numpy") is None:
            stash.tensors.put(number % 50, {"it": value})
        found = stash.tensors.get(number % 50, framework="numpy")
        assert found is None or (found["it"] == value).all()

    return ask


KINDS = [activations, kv, logprobs, responses, states, of_lmprobe, tensors]


@pytest.fixture
def ask(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    with lmstash.open(tmp_path, trust_env=False) as stash:
        out: Ask = request.param(stash)
        for number in range(3):
            out(number)
        yield out
        assert stash.store.put(b"k" * 32, b"value"), "the store still takes something"
    lmprobe.set_cache_backend("memory://")


def lines_of(ask: Ask, n: int) -> list[int]:
    total = at_line(0, lambda: ask(10), lambda: None)
    assert total > 200, "the lines of lmstash are counted"
    return sorted(random.Random(n).sample(range(1, total), min(n, total - 1)))


def raised_at(ask: Ask, error: type[BaseException], n: int) -> None:
    def interrupt() -> None:
        raise error("at any time")

    for number, line in enumerate(lines_of(ask, n), 1000):
        with contextlib.suppress(error):
            at_line(line, lambda number=number: ask(number), interrupt)
        ask(number)
        ask(number + 1)


def called_at(ask: Ask, n: int) -> None:
    for number, line in enumerate(lines_of(ask, n)):
        for first, second in ((4 * number, 4 * number + 1), (4 * number + 2, 4 * number + 2)):
            at_line(line, lambda first=first: ask(first), lambda second=second: ask(second))
            ask(first)
            ask(second)


def named(kind: Callable[..., Any]) -> str:
    return kind.__name__


@pytest.mark.parametrize("ask", KINDS, indirect=True, ids=named)
@pytest.mark.parametrize("error", [KeyboardInterrupt, TimeoutError])
def test_what_was_interrupted_at_any_line_is_right_when_asked_for_again(ask: Ask, error: type[BaseException]):
    raised_at(ask, error, 6)


@pytest.mark.campaign
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("ask", KINDS, indirect=True, ids=named)
@pytest.mark.parametrize("error", [KeyboardInterrupt, TimeoutError])
def test_what_was_interrupted_at_a_thousand_lines_is_right_when_asked_for_again(ask: Ask, error: type[BaseException]):
    raised_at(ask, error, 1000)


@pytest.mark.parametrize("ask", KINDS, indirect=True, ids=named)
def test_a_handler_that_calls_the_cache_at_any_line_gets_its_values_and_changes_none(ask: Ask):
    called_at(ask, 6)


@pytest.mark.campaign
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("ask", KINDS, indirect=True, ids=named)
def test_a_handler_that_calls_the_cache_at_a_thousand_lines_gets_its_values_and_changes_none(ask: Ask):
    called_at(ask, 1000)
