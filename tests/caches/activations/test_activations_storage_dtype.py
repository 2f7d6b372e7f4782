"""Values kept rounded, on request."""

import pytest
import torch

from lmstash.caches.activations import Activations
from lmstash.errors import InvalidArgumentError, NotFoundError
from lmstash.store.memory import MemoryStore


@pytest.fixture
def loud_model(make_model):
    """Block 0 of this one gives values that float16 cannot hold, for the tokens 0 to 9 only."""
    model = make_model()
    with torch.no_grad():
        model.model.embed_tokens.weight[:10, 0] = 1e6
    return model


@pytest.mark.parametrize("pool", ["last", "mean", None])
@pytest.mark.parametrize("storage", ["float16", "bfloat16"])
def test_a_cold_run_is_rounded_as_a_warm_one(model, prompts, pool, storage):
    store = MemoryStore()
    acts = Activations(store, model, storage_dtype=storage)
    cold = acts(prompts, [0, 2], pool)
    warm = acts(prompts, [0, 2], pool, on_miss="error")
    exact = Activations(MemoryStore(), model)(prompts, [0, 2], pool)
    for left, right, true in zip(cold, warm, exact, strict=True):
        assert left.dtype == right.dtype == torch.float32
        assert torch.equal(left, right)
        assert torch.equal(left, true.to(getattr(torch, storage)).float())
    assert store.events.stats.overflows == 0


def test_it_takes_half_the_bytes(make_model, prompts):
    model = make_model(hidden_size=256, num_attention_heads=4)
    sizes = {}
    for storage in (None, "bfloat16"):
        store = MemoryStore()
        Activations(store, model, storage_dtype=storage)(prompts, "all", None)
        sizes[storage] = sum(entry.nbytes for entry in store.entries())
    assert sizes["bfloat16"] < 0.56 * sizes[None]


@pytest.mark.parametrize("pool", ["last", None])
def test_a_value_that_overflows_is_kept_exactly_and_counted_and_the_others_are_not(loud_model, pool):
    store = MemoryStore()
    asked = [[20, 30, 5], [50, 60, 70]]
    acts = Activations(store, loud_model, storage_dtype="float16")
    cold = acts(asked, [0], pool)
    assert store.events.stats.overflows == 1
    warm = acts(asked, [0], pool, on_miss="error")
    exact = Activations(MemoryStore(), loud_model)(asked, [0], pool)
    assert all(torch.equal(left, right) for left, right in zip(cold, warm, strict=True))
    assert torch.equal(cold[0], exact[0])
    assert torch.isfinite(cold[0]).all()
    assert torch.equal(cold[1], exact[1].half().float())


def test_nan_and_infinity_are_no_overflow(make_model):
    model = make_model()
    with torch.no_grad():
        model.model.embed_tokens.weight[3, 0] = float("inf")
    for storage in (None, "float16"):
        store = MemoryStore()
        acts = Activations(store, model, storage_dtype=storage)
        cold = acts([[3], [4]], "all", "last", site="embed")
        assert torch.equal(cold, acts([[3], [4]], 0, "last", site="embed"))
        assert cold[0, 0, 0] == float("inf")
        assert store.events.stats.overflows == 0
        nan = acts([[3]], 1)
        assert torch.isnan(nan).any()
        assert torch.equal(nan.isnan(), acts([[3]], 1, on_miss="error").isnan())


def test_rounded_and_exact_values_are_never_mixed(model, prompts):
    store = MemoryStore()
    Activations(store, model, storage_dtype="float16")(prompts, 0)
    for storage in (None, "bfloat16"):
        with pytest.raises(NotFoundError):
            Activations(store, model, storage_dtype=storage)(prompts, 0, on_miss="error")


def test_an_unknown_storage_dtype_is_refused(model):
    with pytest.raises(InvalidArgumentError, match="storage_dtype"):
        Activations(MemoryStore(), model, storage_dtype="int8")
