"""A signal handler in the midst of mellea's caches: it raises there, or uses the same one."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.at_lines import at_line

import lmstash
from lmstash.adapters.mellea import ByteLRUCache, SimpleLRUCache

transformers = pytest.importorskip("transformers")

WITHIN = "adapters/mellea"
N_VALUES, N_BYTES = 4, 4000


class Stop(KeyboardInterrupt):
    """Somebody pressed Ctrl-C."""


def interrupt() -> None:
    raise Stop


def fill(cache: ByteLRUCache | SimpleLRUCache, first: int) -> None:
    for number in range(first, first + 6):
        cache.put(number, torch.full((250,), float(number)))
        cache.get(first)
        got = cache.get(number)
        assert got is None or float(got[0]) == number
    if isinstance(cache, ByteLRUCache):
        assert cache.current_bytes() >= 0


@pytest.mark.parametrize("kind", [ByteLRUCache, SimpleLRUCache])
@pytest.mark.parametrize("first", [0, 100])
def test_a_handler_may_use_the_cache_it_has_interrupted(kind: Any, first: int) -> None:
    def made() -> Any:
        return ByteLRUCache(N_BYTES) if kind is ByteLRUCache else SimpleLRUCache(N_VALUES)

    n_lines = at_line(0, lambda: fill(made(), 0), interrupt, WITHIN)
    for line in range(1, n_lines + 1):
        cache = made()
        at_line(line, lambda cache=cache: fill(cache, 0), lambda cache=cache: fill(cache, first), WITHIN)
        cache.put("next", torch.zeros(250))
        if kind is ByteLRUCache:
            kept = sum(each.nbytes for each in cache.cache.values())
            assert cache.current_bytes() == kept <= N_BYTES


def test_an_interrupted_put_does_not_leave_the_older_value_to_be_served_after_the_new_one() -> None:
    shape = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    model = transformers.LlamaForCausalLM(shape).eval()
    cache = ByteLRUCache("1MB", stash=lmstash.open("memory://", strict=True), model=model)
    n_lines = at_line(0, lambda: cache.put("key", "old"), interrupt, WITHIN)
    n_served = 0
    for line in range(1, n_lines + 1):
        cache.put("key", "old")
        with contextlib.suppress(Stop):
            at_line(line, lambda: cache.put("key", "new"), interrupt, WITHIN)
        if cache.get("key") == "new":
            n_served += 1
            cache.cache.clear()  # other values have put it out of memory
            assert cache.get("key") in ("new", None)
    assert n_served


SMALL = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9}


def test_what_could_not_be_replaced_in_the_folder_is_served_no_more(tmp_path: Path) -> None:
    model = transformers.BertModel(transformers.BertConfig(**SMALL)).eval()
    with lmstash.open(tmp_path) as stash:
        ByteLRUCache(None, stash=stash, model=model).put("a", {"x": torch.ones(3)})
    with lmstash.open(tmp_path, read_only=True) as stash:
        cache = ByteLRUCache(0, stash=stash, model=model)
        before = cache.get("a")
        assert before is not None
        assert before["x"].equal(torch.ones(3))
        cache.put("a", {"x": torch.zeros(3)})
        assert cache.get("a") is None
        assert cache.get("b") is None
