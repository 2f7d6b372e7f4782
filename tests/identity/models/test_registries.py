"""What is registered under a word counts with all that it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import lmstash
from lmstash.identity.models.watch import watch_model


def scaled(*given: Any, by: float = 1, **named: Any) -> Any:
    output, weights = sdpa_attention_forward(*given, **named)
    return output * by, weights


class Scaled:
    def __init__(self, by: float) -> None:
        self.by = by

    def __call__(self, *given: Any, **named: Any) -> Any:
        return scaled(*given, by=self.by, **named)


WAYS: dict[str, Callable[[float], Any]] = {
    "a partial": lambda by: partial(scaled, by=by),
    "an object": Scaled,
    "a method": lambda by: Scaled(by).__call__,
    "a closure": lambda by: lambda *given, **named: scaled(*given, by=by, **named),
}


@pytest.fixture
def register() -> Iterator[Callable[[Any], None]]:
    yield lambda function: AttentionInterface.register("lmstash_way", function)
    AttentionInterface._global_mapping.pop("lmstash_way")  # what is registered counts for every model


@pytest.mark.parametrize("make", WAYS.values(), ids=WAYS)
def test_what_is_registered_counts_with_what_it_holds(build_llama: Any, register: Any, make: Any) -> None:
    model, seen = build_llama(), []
    model.config._attn_implementation = "lmstash_way"
    for by in (1, 2, 1):
        register(make(by))
        seen.append(lmstash.fingerprint(model).hex)
    assert seen[0] == seen[2] != seen[1]


def test_an_object_that_is_registered_and_changes_is_noticed(build_llama: Any, register: Any) -> None:
    model, held = build_llama(), Scaled(1)
    model.config._attn_implementation = "lmstash_way"
    register(held)
    watch = watch_model(model)
    first = watch.recognise().hex
    held.by = 2
    assert watch.recognise().hex != first
