"""transformers' own caches, masks and look-ups replaced by others': another model, until they are put back."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from transformers import cache_utils, masking_utils, modeling_utils
from transformers.integrations import moe
from transformers.utils import generic

import lmstash
from lmstash.identity.code.digests import CodeGraph
from lmstash.identity.models.patched_library import patched_library
from lmstash.identity.models.watch import watch_model

PLACES = [
    (cache_utils.DynamicLayer, "update"),
    (cache_utils.Cache, "update"),
    (cache_utils, "DynamicCache"),
    (masking_utils, "sliding_window_overlay"),
    (masking_utils, "fast_all"),
    (modeling_utils.AttentionInterface, "get_interface"),
    (generic.GeneralInterface, "__getitem__"),
    (generic.ModelOutput, "__setitem__"),
    (moe, "_grouped_mm"),
    (moe.ExpertsInterface, "get_interface"),
]


def test_code_that_is_put_into_a_function_counts(build_llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations import sdpa_attention

    def sdpa_attention_forward(module, query, key, value, attention_mask, *rest, **named):
        return value, None

    code = sdpa_attention_forward.__code__.replace(co_qualname="sdpa_attention_forward")
    first = lmstash.fingerprint(build_llama()).hex
    theirs = sdpa_attention.sdpa_attention_forward
    before = theirs.__code__, theirs.__defaults__
    try:
        theirs.__code__ = code
        after = lmstash.fingerprint(build_llama()).hex
    finally:
        theirs.__code__, theirs.__defaults__ = before
    assert after != first
    assert lmstash.fingerprint(build_llama()).hex == first


def around(function: Any) -> Any:
    return lambda *given, **named: function(*given, **named)


WAYS: dict[str, Callable[[Any], Any]] = {
    "a function": around,
    "under torch's decorator": lambda function: torch.no_grad()(around(function)),
    "a partial": lambda function: partial(around(function)),
    "another library function": lambda function: masking_utils.causal_mask_function,
}


@pytest.mark.parametrize(("owner", "name"), PLACES)
def test_a_function_in_the_place_of_transformers_own_makes_another_model(
    build_llama: Any, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    model = build_llama()
    watch = watch_model(model)
    first, plain = watch.recognise().hex, lmstash.fingerprint(model).hex
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, around(getattr(owner, name)))
        assert lmstash.fingerprint(model).hex != plain
        assert watch.recognise().hex != first
    assert lmstash.fingerprint(model).hex == plain
    assert watch.recognise().hex == first


@pytest.mark.parametrize("way", WAYS)
def test_it_counts_whatever_it_is(build_llama: Any, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    model = build_llama()
    plain = lmstash.fingerprint(model).hex
    monkeypatch.setattr(masking_utils, "sliding_window_overlay", WAYS[way](masking_utils.sliding_window_overlay))
    assert lmstash.fingerprint(model).hex != plain


def test_what_the_function_does_counts(build_llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, theirs, seen = build_llama(), cache_utils.DynamicLayer.update, set[str]()
    for by in (2, 3):
        monkeypatch.setattr(cache_utils.DynamicLayer, "update", lambda *given, by=by: theirs(*given)[0] * by)
        seen.add(lmstash.fingerprint(model).hex)
    assert len(seen) == 2


def test_a_registry_and_a_method_of_its_own_count(build_llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_llama()
    watch = watch_model(model)
    first = watch.recognise().hex
    with monkeypatch.context() as patch:
        patch.setitem(masking_utils.LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING, "full_attention", lambda **named: None)
        assert watch.recognise().hex != first
    with monkeypatch.context() as patch:  # it has none of its own, but its base class
        patch.setattr(modeling_utils.AttentionInterface, "__getitem__", lambda self, key: None, raising=False)
        assert watch.recognise().hex != first
    assert watch.recognise().hex == first


def test_the_parts_of_what_torch_compiled_are_nobody_s_code(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = CodeGraph()
    patched_library(graph)
    for name in ("__compiled_fn_1_0f3c", "__resume_at_20_2"):
        monkeypatch.setattr(generic, name, around(len), raising=False)
    assert patched_library(CodeGraph()) == {}
    assert graph.unchanged()


def test_it_finds_transformers_own_places(monkeypatch: pytest.MonkeyPatch) -> None:
    assert patched_library(CodeGraph()) == {}
    graph = CodeGraph()
    patched_library(graph)
    monkeypatch.setattr(cache_utils.Cache, "update", around(cache_utils.Cache.update))
    assert list(patched_library(CodeGraph())) == ["transformers.cache_utils.Cache.update"]
    assert not graph.unchanged()


@pytest.mark.parametrize("others", ["", "peft, accelerate, bitsandbytes", "transformers.integrations.peft"])
def test_nothing_is_found_where_nobody_has_changed_anything(others: str) -> None:
    """In a new process, whatever packages beside transformers patch when they are imported."""
    pytest.importorskip("peft")
    pytest.importorskip("bitsandbytes")
    program = f"""
import torch, transformers
{"import " + others if others else ""}
from lmstash.identity.code.digests import CodeGraph
from lmstash.identity.models.patched_library import patched_library
sizes = dict(hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=8)
sizes |= dict(num_key_value_heads=2, head_dim=8)
graph = CodeGraph()
assert not patched_library(graph), patched_library(graph)
for kind in ("llama", "gemma2", "mixtral"):
    config = transformers.AutoConfig.for_model(kind, **sizes)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.generate(torch.ones(1, 3, dtype=torch.int64), max_new_tokens=2)
    assert not patched_library(CodeGraph()), patched_library(CodeGraph())
assert graph.unchanged()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=200)


class Holder:
    """Holds a model, and takes weak references or none."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize(
    "make", [lambda it: lambda x, it=it: x, lambda it: partial(around, it)], ids=["code", "object"]
)
def test_what_was_put_there_is_not_kept_alive_by_who_has_seen_it(build_llama: Any, make: Any) -> None:
    held = Holder()
    seen = weakref.ref(held)
    first = lmstash.fingerprint(build_llama()).hex
    vars(masking_utils)["extra"] = make(held)
    after = lmstash.fingerprint(build_llama()).hex
    del masking_utils.extra, held  # pyright: ignore[reportAttributeAccessIssue]
    gc.collect()
    assert seen() is None
    assert lmstash.fingerprint(build_llama()).hex == first != after


def test_another_function_in_the_place_of_one_that_is_gone_counts(build_llama: Any) -> None:
    found = set()
    try:
        for number in range(5):  # at the same address, as it happens
            scope: dict[str, Any] = {"__name__": "own"}
            exec(f"def extra(x): return x + {number}", scope)
            vars(masking_utils)["extra"] = scope.pop("extra")
            del scope
            found.add(lmstash.fingerprint(build_llama()).hex)
    finally:
        del masking_utils.extra  # pyright: ignore[reportAttributeAccessIssue]
    assert len(found) == 5
