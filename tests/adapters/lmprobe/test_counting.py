"""`cache_info` stays true and cheap, however much is kept, whatever was removed and whoever wrote it."""

from pathlib import Path

import pytest
import torch

import lmstash
import lmstash.adapters.lmprobe as adapter
from lmstash.adapters.lmprobe import CachedExtractor, config, import_cache
from lmstash.adapters.lmprobe.counting import LOOKED_AT
from lmstash.store.memory import MemoryStore

MANY = [f"prompt {number}" for number in range(2 * LOOKED_AT)]
MASK = torch.ones(1, 3, dtype=torch.int64)


class Tiny:
    """Two numbers a layer for each of three tokens."""

    batch_size = 64

    def __init__(self, layers=(0, 3), name="tiny", offset=0.0):
        self.model_name = name
        self.layer_indices = list(layers)
        self.offset = offset

    def extract_batch(self, prompts, layer_indices, remote=False):
        return torch.ones(len(prompts), 3, 2 * len(layer_indices)) + self.offset, torch.ones(len(prompts), 3)


class CountingStore(MemoryStore):
    """Counts what it is asked for."""

    asked = 0

    def contains_many(self, keys):
        self.asked += len(keys)
        return super().contains_many(keys)

    def fetch_many(self, keys):
        self.asked += len(keys)
        return super().fetch_many(keys)

    def entries(self, namespace=None):
        for each in super().entries(namespace):
            self.asked += 1
            yield each


@pytest.fixture(autouse=True)
def store():
    torch.set_num_threads(1)
    config.reset()
    store = CountingStore()
    adapter.set_cache_backend(store)
    yield store
    config.reset()


def only(name=None) -> adapter.ModelCacheInfo:
    [model] = adapter.cache_info(name).models
    return model


def test_the_cost_does_not_grow_with_the_entries(store):
    asked = []
    for prompts in (MANY, [f"{prompt} again" for prompt in MANY * 5]):
        CachedExtractor(Tiny()).extract(prompts, cache_only=True)
        store.asked = 0
        adapter.cache_info()
        asked.append(store.asked)
    assert asked[0] == asked[1] < 3 * LOOKED_AT


def test_prompts_and_layers_of_a_large_store_are_counted():
    CachedExtractor(Tiny([0, 3])).extract(MANY)
    CachedExtractor(Tiny([7])).extract(MANY[:5])
    model = only()
    assert (model.model_name, model.num_prompts, model.num_layers) == ("tiny", len(MANY), 3)
    assert (model.has_pooled, model.has_logits, model.has_perplexity) == (False, False, False)
    CachedExtractor(Tiny([0, 3])).extract([*MANY, "one more"])
    assert only().num_prompts == len(MANY) + 1


def test_other_identities_and_storage_dtypes_of_one_name_count_as_the_one_that_has_most(store):
    CachedExtractor(Tiny([0])).extract(MANY)
    exact = only().size_bytes
    adapter.set_cache_dtype("bfloat16")
    CachedExtractor(Tiny([1])).extract(MANY[:70])
    adapter.set_cache_dtype(None)
    CachedExtractor(Tiny([2], offset=1.0)).extract([*MANY, "one more"])
    model = only()
    assert (model.num_prompts, model.num_layers) == (len(MANY) + 1, 3)
    sizes = {each.namespace: each.nbytes for each in store.info().namespaces}
    held = [nbytes for namespace, nbytes in sizes.items() if namespace.startswith("activations/")]
    assert len(held) == 2
    assert model.size_bytes == sum(held) > exact


def test_removed_prompts_are_counted_no_more():
    CachedExtractor(Tiny()).extract(MANY)
    before = only()
    for prompt in MANY[:10]:
        adapter.invalidate_extraction_cache(adapter.get_prompt_cache_dir("tiny", prompt))
    model = only()
    assert model.num_prompts == len(MANY) - 10
    assert model.size_bytes < before.size_bytes
    for prompt in MANY[10:]:
        adapter.invalidate_extraction_cache(adapter.get_prompt_cache_dir("tiny", prompt))
    assert adapter.cache_info().models == []


def test_layers_that_went_with_a_prompt_are_counted_no_more_in_a_small_store():
    CachedExtractor(Tiny([0, 3])).extract(["abc", "de"])
    CachedExtractor(Tiny([7])).extract(["abc"])
    assert only().num_layers == 3
    adapter.invalidate_extraction_cache(adapter.get_prompt_cache_dir("tiny", "abc"))
    model = only()
    assert (model.num_prompts, model.num_layers) == (1, 2)


def test_after_a_clear_only_what_came_since_is_told():
    CachedExtractor(Tiny([0, 3])).extract(MANY)
    adapter.clear_cache()
    assert adapter.cache_info().models == []
    assert adapter.cache_info().total_size_bytes == 0
    CachedExtractor(Tiny([5])).extract(MANY)
    assert (only().num_prompts, only().num_layers) == (len(MANY), 1)


def test_a_cached_extractor_that_lived_through_a_clear_is_listed_again():
    cached = CachedExtractor(Tiny())
    cached.extract(MANY)
    adapter.clear_cache()
    cached.extract(MANY)
    assert (only().num_prompts, only().num_layers) == (len(MANY), 2)


def test_records_that_were_lost_are_written_again_by_a_warm_call(store):
    cached = CachedExtractor(Tiny())
    cached.extract(MANY)
    store.prune(namespace="lmprobe/")
    cached.extract(MANY)
    assert (only().num_prompts, only().num_layers) == (len(MANY), 2)
    assert all(adapter.discover_cached("tiny", prompt) for prompt in MANY)


def test_no_more_prompts_are_told_than_there_are_values(store):
    CachedExtractor(Tiny([0])).extract(MANY)
    for entry in list(store.entries("activations/"))[:50]:
        store.delete(entry.key)
    assert only().num_prompts == len(MANY) - 50
    for entry in list(store.entries("activations/")):
        store.delete(entry.key)
    assert adapter.cache_info().models == []


def test_what_a_full_store_evicted_is_not_told(tmp_path: Path):
    stash = lmstash.open(tmp_path, capacity_bytes=4 * 2**20)
    adapter.set_cache_backend(stash)

    class Wide(Tiny):
        def extract_batch(self, prompts, layer_indices, remote=False):
            return torch.ones(len(prompts), 3, 4096 * len(layer_indices)), torch.ones(len(prompts), 3)

    CachedExtractor(Wide([0])).extract(MANY, cache_only=True)
    kept = sum(adapter.discover_cached("tiny", prompt) is not None for prompt in MANY)
    model = only()
    assert kept <= model.num_prompts <= sum(each.kind == "activations" for each in stash.store.entries())
    assert kept < len(MANY)
    stash.store.evict(0)
    assert adapter.cache_info().models == []
    stash.close()


def test_a_large_import_is_counted_with_its_kinds(folder):
    for prompt in MANY:
        folder.add("m", prompt, {"layer_2": torch.ones(1, 3, 2), "attention_mask": MASK})
    folder.add("m", MANY[0], {"perplexity": torch.ones(3)}, suffix=".perplexity")
    folder.add("m", MANY[1], {"logits": torch.ones(1, 1, 9)}, suffix=".logits")
    folder.add("m", "pooled", {"pooled_mean_layer_4": torch.ones(1, 2)}, listed=False)
    import_cache(folder.base)
    model = only("m")
    assert (model.model_name, model.num_prompts, model.num_layers) == ("m", len(MANY) + 1, 2)
    assert (model.has_pooled, model.has_perplexity, model.has_logits) == (True, True, True)
    CachedExtractor(Tiny([9], name="m")).extract(MANY[:9])
    assert (only("m").num_prompts, only("m").num_layers) == (len(MANY) + 1, 3)


def test_times_go_from_the_first_call_to_the_last(monkeypatch):
    moment = 1_000_000.0
    monkeypatch.setattr("lmstash.store.memory.time.time", lambda: moment)
    CachedExtractor(Tiny()).extract(MANY)
    moment += 500
    CachedExtractor(Tiny()).extract(MANY)  # keeps nothing new
    assert adapter.cache_info().newest_mtime == 1_000_000.0
    CachedExtractor(Tiny()).extract(["another"])
    info = adapter.cache_info()
    assert (info.oldest_mtime, info.newest_mtime) == (1_000_000.0, 1_000_500.0)


def test_two_extractors_that_write_by_turns_lose_nothing(tmp_path: Path):
    first, second = lmstash.open(tmp_path), lmstash.open(tmp_path)
    for number in range(100):
        for at, stash in enumerate((first, second)):
            adapter.set_cache_backend(stash)
            CachedExtractor(Tiny([at])).extract([f"{at} {number}"], cache_only=True)
    model = only()
    assert (model.num_prompts, model.num_layers) == (200, 2)
    first.close()
    second.close()
