"""lm-eval and lmms-eval name their request caches alike: one variable, one suffix, one pattern. They never mix here."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lmstash
from lmstash.adapters.lmms_eval import delete_cache, load_from_cache, save_to_cache

KEY = "requests-mini-0shot-rank0-world_size1-tokenizer"


@pytest.fixture
def lm_eval_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """lm-eval's own module of cached requests, over the folder that both harnesses are told."""
    module = pytest.importorskip("lm_eval.caching.cache")
    with monkeypatch.context() as patch:
        patch.setenv("LM_HARNESS_CACHE_PATH", str(tmp_path))
        yield importlib.reload(module)  # it reads the variable when it is imported
    importlib.reload(module)


def test_requests_of_one_are_never_served_to_the_other(lm_eval_cache: Any, tmp_path: Path) -> None:
    lm_eval_cache.save_to_cache(KEY, ["theirs"])
    assert load_from_cache(KEY) is None
    save_to_cache(KEY, ["ours"])
    assert (lm_eval_cache.load_from_cache(KEY, cache=True), load_from_cache(KEY)) == (["theirs"], ["ours"])


def test_neither_removes_what_the_other_keeps(lm_eval_cache: Any, tmp_path: Path) -> None:
    lm_eval_cache.save_to_cache(KEY, ["theirs"])
    save_to_cache(KEY, ["ours"])
    delete_cache()
    assert (lm_eval_cache.load_from_cache(KEY, cache=True), load_from_cache(KEY)) == (["theirs"], None)
    save_to_cache(KEY, ["ours"])
    lm_eval_cache.delete_cache()
    assert (lm_eval_cache.load_from_cache(KEY, cache=True), load_from_cache(KEY)) == (None, ["ours"])


def test_answers_of_one_are_never_served_to_the_other(tmp_path: Path) -> None:
    """One stash, one model's name, one prompt, one task."""
    pytest.importorskip("lm_eval")
    instance = importlib.import_module("lm_eval.api.instance").Instance
    model = importlib.import_module("lm_eval.api.model")
    theirs = importlib.import_module("lmms_eval.api.instance").Instance if _has_lmms() else None
    from lmstash.adapters.lm_eval import CachedLM
    from lmstash.adapters.lmms_eval import ResponseCache

    if theirs is None:
        pytest.skip("lmms-eval is not installed")

    class One(model.LM):
        def generate_until(self, requests: list[Any]) -> list[str]:
            return ["of lm-eval"] * len(requests)

        loglikelihood = loglikelihood_rolling = None  # pyright: ignore

    class Other:
        task_dict: dict[str, Any] = {"mini": {"test": [{"question": "Q"}]}}  # noqa: RUF012

        def generate_until(self, requests: list[Any]) -> list[str]:
            return ["of lmms-eval"] * len(requests)

    kwargs = {"until": ["\n"], "max_gen_toks": 8, "temperature": 0.0, "do_sample": False}
    first = instance("generate_until", {}, ("Q", dict(kwargs)), 0, ("mini", 0, 1))
    second = theirs(
        request_type="generate_until",
        arguments=("Q", dict(kwargs), None, 0, "mini", "test"),
        idx=0,
        metadata={"task": "mini", "doc_id": 0, "repeats": 1, "split": "test"},
    )
    for _ in range(2):
        with lmstash.open(tmp_path / "one") as stash:
            assert CachedLM(One(), stash, model="m").generate_until([first]) == ["of lm-eval"]
        cache = ResponseCache(str(tmp_path / "one"), model="m")
        assert cache.execute(Other(), "generate_until", [second]) == ["of lmms-eval"]
        cache.finalize(success=True)


def _has_lmms() -> bool:
    return importlib.util.find_spec("lmms_eval") is not None
