"""`Cache` and `SimpleLRUCache` as seed 004 and mellea 0.8 have them; `ByteLRUCache` by bytes, and on disk."""

import dataclasses

import pytest
import torch

import lmstash
from lmstash.adapters.mellea import ByteLRUCache, Cache, SimpleLRUCache
from lmstash.adapters.mellea.byte_cache import bytes_held
from lmstash.errors import InvalidArgumentError
from lmstash.stash import Stash
from lmstash.store.memory import MemoryStore

transformers = pytest.importorskip("transformers")

KIB = 1024


def tensor(n_kib: int) -> torch.Tensor:
    return torch.rand(n_kib * KIB // 4)


def kv_cache(n_tokens: int = 8):
    layers = [(torch.rand(1, 2, n_tokens, 4), torch.rand(1, 2, n_tokens, 4)) for _ in range(3)]
    return transformers.DynamicCache(layers)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    settings = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape = transformers.LlamaConfig(vocab_size=32, num_key_value_heads=2, max_position_embeddings=64, **settings)
    return transformers.LlamaForCausalLM(shape).eval()


def test_the_abstract_cache_asks_for_three_methods_and_no_more():
    with pytest.raises(TypeError, match="abstract"):
        Cache()  # pyright: ignore[reportAbstractUsage]
    assert Cache.__abstractmethods__ == {"put", "get", "current_size"}
    assert issubclass(SimpleLRUCache, Cache)
    assert issubclass(ByteLRUCache, Cache)


@pytest.mark.parametrize("cache", [SimpleLRUCache(3), SimpleLRUCache(0), ByteLRUCache(KIB), ByteLRUCache(0)])
def test_an_empty_cache_is_true_and_has_no_length(cache):
    """mellea asks `if self._template_cache:` before it fills one."""
    assert cache
    assert not hasattr(cache, "__len__")


def test_the_least_recently_used_value_is_put_out_and_handed_to_on_evict():
    evicted = []
    cache = SimpleLRUCache(2, on_evict=evicted.append)
    cache.put("a", 1)
    cache.put(2, "two")
    assert cache.get("a") == 1
    cache.put("c", 3)
    assert evicted == ["two"]
    assert list(cache.cache) == ["a", "c"]
    assert cache.get(2) is None
    assert cache.current_size() == 2


def test_a_replaced_value_becomes_the_latest_and_is_not_handed_to_on_evict():
    evicted = []
    cache = SimpleLRUCache(2, evicted.append)
    cache.put("a", 1)
    cache.put("b", 2)
    cache.put("a", 10)
    assert (evicted, list(cache.cache)) == ([], ["b", "a"])
    cache.put("c", 3)
    assert (evicted, cache.get("a")) == ([2], 10)


@pytest.mark.parametrize("capacity", [0, -1])
def test_without_capacity_nothing_is_kept_and_nothing_handed_out(capacity):
    evicted = []
    cache = SimpleLRUCache(capacity, evicted.append)
    cache.put("a", 1)
    assert (cache.current_size(), cache.get("a"), evicted) == (0, None, [])


def test_capacity_is_read_at_each_put_and_one_value_goes_at_a_time():
    evicted = []
    cache = SimpleLRUCache(4, evicted.append)
    for key in range(4):
        cache.put(key, key)
    cache.capacity = 2
    assert cache.current_size() == 4
    cache.put("new", "new")
    assert (evicted, cache.current_size()) == ([0], 4)


def test_keys_are_those_of_a_dict():
    cache = SimpleLRUCache(5)
    cache.put(1, "int")
    cache.put(True, "bool")
    assert (cache.current_size(), cache.get(1)) == (1, "bool")


def test_an_on_evict_that_fails_is_heard_and_the_value_is_gone():
    def fail(value):
        raise RuntimeError(value)

    cache = SimpleLRUCache(1, fail)
    cache.put("a", "first")
    with pytest.raises(RuntimeError, match="first"):
        cache.put("b", "second")
    assert cache.current_size() == 0


def test_bytes_are_bounded_and_the_oldest_go_first():
    evicted = []
    cache = ByteLRUCache("10KiB", evicted.append)
    values = {key: tensor(4) for key in "abc"}
    for key in "ab":
        cache.put(key, values[key])
    assert cache.current_bytes() == 8 * KIB
    assert cache.get("a") is values["a"]
    cache.put("c", values["c"])
    assert [each is values["b"] for each in evicted] == [True]
    assert list(cache.cache) == ["a", "c"]
    cache.capacity_bytes = 4 * KIB
    cache.put("d", tensor(1))
    assert list(cache.cache) == ["d"]
    assert cache.current_size() == 1


def test_a_value_larger_than_the_limit_is_not_kept_and_puts_out_no_other():
    cache = ByteLRUCache(10 * KIB)
    cache.put("a", tensor(4))
    cache.put("b", tensor(11))
    assert list(cache.cache) == ["a"]
    cache.put("a", tensor(11))
    assert list(cache.cache) == []


def test_entries_taken_out_by_hand_are_not_counted():
    """mellea's own test clean-up pops from `backend._cache.cache`."""
    cache = ByteLRUCache(10 * KIB)
    cache.put(1, tensor(8))
    cache.cache.pop(1)
    cache.put(2, tensor(8))
    cache.cache.clear()
    assert cache.current_bytes() == 0
    cache.put(3, tensor(8))
    assert cache.current_bytes() == 8 * KIB


def test_what_a_value_keeps_alive_is_counted_once():
    @dataclasses.dataclass
    class Info:
        kv_cache: object
        scores: object

    whole = tensor(64)
    assert bytes_held([whole[:1], whole[1:2]]) == 64 * KIB
    kv = kv_cache()
    expected = sum(layer.keys.nbytes + layer.values.nbytes for layer in kv.layers)
    assert expected <= bytes_held(Info(kv, None)) <= expected + KIB


def test_values_under_text_keys_are_found_by_a_new_process_of_the_same_model(tmp_path, model):
    value = {"kv": kv_cache(), "ids": (torch.arange(9), [1, 2.5, None, "x", True])}
    with lmstash.open(tmp_path) as stash:
        ByteLRUCache("1MB", stash=stash, model=model).put("doc", value)
    with lmstash.open(tmp_path) as stash:
        cache = ByteLRUCache("1MB", stash=stash, model=model)
        found = cache.get("doc")
        assert cache.get("doc") is found
    assert type(found["kv"]) is transformers.DynamicCache
    assert found["kv"].get_seq_length() == 8
    for ours, theirs in zip(found["kv"].layers, value["kv"].layers, strict=True):
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)
    assert torch.equal(found["ids"][0], torch.arange(9))
    assert (type(found["ids"]), found["ids"][1]) == (tuple, [1, 2.5, None, "x", True])


def test_values_under_ids_never_leave_the_process(tmp_path, model):
    with lmstash.open(tmp_path) as stash:
        ByteLRUCache("1MB", stash=stash, model=model).put(12345, tensor(1))
        assert stash.info().entries == 0
        assert ByteLRUCache("1MB", stash=stash, model=model).get(12345) is None


def test_another_model_is_never_served_what_one_has_left(model):
    stash = Stash(MemoryStore())
    cache = ByteLRUCache(0, stash=stash, model=model)
    cache.put("doc", tensor(1))
    assert cache.get("doc") is not None
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    try:
        assert cache.get("doc") is None
    finally:
        with torch.no_grad():
            model.lm_head.weight[0, 0] -= 1


def test_what_cannot_be_restored_as_it_was_stays_in_memory(model, caplog):
    stash = Stash(MemoryStore())
    cache = ByteLRUCache("1MB", stash=stash, model=model)
    sliding = transformers.DynamicCache(config=transformers.MistralConfig(sliding_window=4, num_hidden_layers=1))
    sliding.update(torch.rand(1, 2, 8, 4), torch.rand(1, 2, 8, 4), 0)
    for key, value in (("sliding", sliding), ("object", object())):
        cache.put(key, value)
        assert cache.get(key) is value
    assert stash.info().entries == 0
    assert "KV of a DynamicSlidingWindowLayer" in caplog.text


def test_a_damaged_entry_is_a_miss(model):
    stash = Stash(MemoryStore())
    cache = ByteLRUCache("1MB", stash=stash, model=model)
    cache.put("doc", tensor(1))
    cache.cache.clear()
    identity = cache._shelf._identity("doc")
    stash.tensors.put(identity, {"record": torch.zeros(3, dtype=torch.uint8)})
    assert cache.get("doc") is None


def test_a_stash_without_a_model_is_refused(model):
    with pytest.raises(InvalidArgumentError, match="model="):
        ByteLRUCache(1, stash=Stash(MemoryStore()))
    with pytest.raises(InvalidArgumentError, match="stash="):
        ByteLRUCache(1, model=model)


def test_a_value_that_cannot_persist_does_not_leave_the_older_one_to_others(tmp_path):
    import lmstash
    from lmstash.adapters.mellea import ByteLRUCache

    model = torch.nn.Linear(2, 2).eval()
    model.config = None
    model.device = torch.device("cpu")
    with lmstash.open(tmp_path / "stash") as stash:
        cache = ByteLRUCache("1MB", stash=stash, model=model)
        cache.put("k", 2)
        assert ByteLRUCache("1MB", stash=stash, model=model).get("k") == 2
        cache.put("k", [3, object()])
        assert ByteLRUCache("1MB", stash=stash, model=model).get("k") is None


def test_sparse_tensors_are_counted():
    from lmstash.adapters.mellea import ByteLRUCache

    cache = ByteLRUCache("1MB")
    cache.put("k", torch.eye(3).to_sparse())
    assert cache.current_size() == 1
