"""What is kept is told by name and prompt, truthfully, and removed without touching anything else."""

from pathlib import Path

import pytest
import torch

import lmstash
import lmstash.adapters.lmprobe as adapter
from lmstash.adapters.lmprobe import CachedExtractor, config, import_cache
from lmstash.errors import InvalidArgumentError
from lmstash.stash import Stash
from lmstash.store.memory import MemoryStore

MASK = torch.ones(1, 3, dtype=torch.int64)


class Tiny:
    batch_size = 4

    def __init__(self, layers=(0, 3), name="tiny", offset=0.0):
        self.model_name = name
        self.layer_indices = list(layers)
        self.offset = offset
        self.calls = 0

    def extract_batch(self, prompts, layer_indices, remote=False):
        self.calls += 1
        longest = max(map(len, prompts))
        mask = torch.tensor([[int(at < len(prompt)) for at in range(longest)] for prompt in prompts])
        return torch.ones(len(prompts), longest, 2 * len(layer_indices)) + self.offset, mask


@pytest.fixture(autouse=True)
def store():
    config.reset()
    store = MemoryStore()
    adapter.set_cache_backend(store)
    yield store
    config.reset()


def test_raw_layers_are_discovered_without_the_extractor():
    CachedExtractor(Tiny([3, 0])).extract(["abc", "de"])
    CachedExtractor(Tiny([7])).extract(["abc"])
    found = adapter.discover_cached("tiny", "abc")
    assert found == adapter.CachedPromptInfo([0, 3, 7], {}, False, None, False, False, 3, [])
    assert adapter.discover_cached("tiny", "de").raw_layers == [0, 3]
    assert adapter.discover_cached("tiny", "other") is None
    assert adapter.discover_cached("other", "abc") is None


def test_nothing_evicted_stays_listed(store):
    """W16: lmprobe's manifest goes on listing what was evicted, and never lists pooled entries."""
    CachedExtractor(Tiny([0, 3])).extract(["abc"])
    gone = next(entry for entry in store.entries("activations/") if entry.meta["id"]["components"]["layer"] == 0)
    store.delete(gone.key)
    assert adapter.discover_cached("tiny", "abc").raw_layers == [3]
    for entry in list(store.entries("activations/")):
        store.delete(entry.key)
    assert adapter.discover_cached("tiny", "abc") is None


def test_pooled_raw_and_router_entries_of_a_live_model_are_described(tmp_path):
    transformers = pytest.importorskip("transformers")
    from lmstash.adapters.lmprobe.catalog import Reading, record_keys, record_write, register
    from lmstash.adapters.lmprobe.layout import hash16
    from lmstash.caches.activations.context import Context
    from lmstash.caches.activations.prompts import Prompt

    torch.manual_seed(0)
    shape = transformers.MixtralConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=2, max_position_embeddings=64,
    )  # fmt: skip
    model = transformers.MixtralForCausalLM(shape).eval()
    stash = config.current_stash()
    acts = stash.activations(model)
    prompt = Prompt(torch.tensor([1, 2, 3]).numpy().astype("uint32"), "one two three")
    acts([prompt], layers=[1], pool="last")
    acts([prompt], layers="all", pool="mean")
    acts([prompt], layers=[0], pool=None)
    acts([prompt], layers=[1], pool=None, site="router_logits")
    # What CachedExtractor leaves behind for a live model:
    digest = bytes.fromhex(acts.fingerprint)
    register(stash.store, Reading("mix", digest, None, by_tokens=True, causal=True, n_layers=2, width=16, n_experts=2))
    context = Context(stash.store, acts._source, digest, None, None, False, None)
    [key] = record_keys("mix", digest, None, [hash16(str(prompt.text))])
    stash.store.put_many([record_write(key, context, prompt, 3, True)])
    found = adapter.discover_cached("mix", "one two three")
    assert found.raw_layers == [0]
    assert found.pooled == {"last_token": [1], "mean": [0, 1]}
    assert found.router_layers == [1]
    assert found.num_tokens == 3
    info = adapter.cache_info("mix")
    assert info.models[0].has_pooled


class Words:
    """A tokenizer: `w5` is 5."""

    def __call__(self, texts, **settings):
        return {"input_ids": [[int(word[1:]) for word in text.split()] for text in texts]}


@pytest.fixture(scope="module")
def mixtral():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    shape = transformers.MixtralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=2, max_position_embeddings=256,
    )  # fmt: skip
    model = transformers.MixtralForCausalLM(shape).eval()
    model.config.name_or_path = "mix"
    return model


@pytest.mark.parametrize("private", [False, True])
def test_what_stash_activations_keeps_is_described_by_name_and_prompt(mixtral, private):
    """W16: lmprobe lists no prompt of which pooled values alone are kept."""
    adapter.set_cache_backend(Stash(MemoryStore(), private=private))
    acts = config.current_stash().activations(mixtral, Words())
    acts(["w1 w2 w3"], layers=[1], pool="last")
    assert adapter.discover_cached("mix", "w1 w2 w3") == adapter.CachedPromptInfo(
        [], {"last_token": [1]}, False, None, False, False, 3, []
    )
    acts(["w1 w2 w3", "w9"], layers="all", pool="mean")
    acts(["w1 w2 w3"], layers=[0], pool=None)
    acts(["w1 w2 w3"], layers=[1], pool=None, site="router_logits")
    acts(["w1 w2 w3"], layers=[1], pool=None, site="mlp_out")
    pooled = {"last_token": [1], "mean": [0, 1]}
    everything = adapter.CachedPromptInfo([0], pooled, False, None, False, False, 3, [1])
    assert adapter.discover_cached("mix", "w1 w2 w3") == everything
    assert adapter.discover_cached("mix", "w1 w2") is None
    assert adapter.discover_cached("other", "w1 w2 w3") is None


def test_a_router_entry_alone_is_described(mixtral):
    acts = config.current_stash().activations(mixtral, Words())
    acts(["w1 w2 w3"], layers=[1], pool=None, site="router_logits")
    found = adapter.discover_cached("mix", "w1 w2 w3")
    assert (found.raw_layers, found.pooled, found.router_layers) == ([], {}, [1])


def test_nothing_evicted_stays_listed_that_was_found_by_its_text(mixtral, store):
    acts = config.current_stash().activations(mixtral, Words())
    acts(["w1 w2 w3"], layers=[1], pool="last")
    assert adapter.discover_cached("mix", "w1 w2 w3") is not None
    store.delete_many([entry.key for entry in store.entries("activations/")])
    assert adapter.discover_cached("mix", "w1 w2 w3") is None
    acts(["w1 w2 w3"], layers=[0], pool="mean")
    assert adapter.discover_cached("mix", "w1 w2 w3").pooled == {"mean": [0]}


def test_raw_values_found_by_their_text_are_named_only_when_every_block_is_kept(mixtral, store):
    acts = config.current_stash().activations(mixtral, Words())
    long = " ".join(f"w{each % 60}" for each in range(130))
    acts([long], layers=[0, 1], pool=None)
    assert adapter.discover_cached("mix", long).raw_layers == [0, 1]
    assert adapter.discover_cached("mix", long).num_tokens == 130
    [second] = [entry for entry in store.entries("activations/") if entry.n_tokens == 64 and entry.parent]
    store.delete(second.key)
    assert adapter.discover_cached("mix", long) is None
    acts([long], layers=[0, 1], pool=None)
    store.delete(next(entry.key for entry in store.entries("activations/") if entry.n_tokens == 2))
    assert adapter.discover_cached("mix", long) is None  # the tail is gone: what is left is another, shorter prompt


def test_a_stash_with_a_salt_is_not_told_of_the_entries_of_others(mixtral, store):
    Stash(store).activations(mixtral, Words())(["w1 w2 w3"], layers=[1], pool="last")
    adapter.set_cache_backend(Stash(store, salt="tenant"))
    assert adapter.discover_cached("mix", "w1 w2 w3") is None


def test_entries_are_gone_through_once_for_many_questions(mixtral, store, monkeypatch):
    acts = config.current_stash().activations(mixtral, Words())
    acts([f"w{each}" for each in range(1, 20)], layers=[1], pool="last")
    looked = []
    entries = type(store).entries
    monkeypatch.setattr(type(store), "entries", lambda self, *rest: looked.append(rest) or entries(self, *rest))
    found = [adapter.discover_cached("mix", f"w{each}") for each in range(1, 30)]
    assert sum(each is not None for each in found) == 19
    assert len(looked) == 1


def test_sidecars_outlive_the_main_values_they_came_with_and_go_when_the_prompt_goes(folder, store):
    """W16: evicting a main file leaves lmprobe's sidecars behind, where nothing lists or removes them."""
    main = {"layer_2": torch.ones(1, 3, 2), "attention_mask": MASK}
    folder.add("m", "p", main)
    folder.add("m", "p", {"logits": torch.ones(1, 1, 9)}, suffix=".logits")
    folder.add("m", "p", {"perplexity": torch.ones(3)}, suffix=".perplexity")
    folder.add("m", "orphan", {"perplexity": torch.ones(3)}, suffix=".perplexity", listed=False)
    import_cache(folder.base)
    assert adapter.discover_cached("m", "orphan").has_perplexity
    for entry in list(store.entries("activations/")):
        if entry.meta["tensor"] in main:
            store.delete(entry.key)
    assert adapter.discover_cached("m", "p") == adapter.CachedPromptInfo([], {}, True, None, True, False, None, [])
    assert adapter.cache_info("m").models[0].has_perplexity
    for prompt in ("p", "orphan"):
        adapter.invalidate_extraction_cache(adapter.get_prompt_cache_dir("m", prompt))
        assert adapter.discover_cached("m", prompt) is None
    assert list(store.entries("activations/")) == []


def test_sidecars_that_were_imported_are_described(folder):
    """W4: full logits and the top k of them are told apart; in lmprobe one replaces the other."""
    folder.add(
        "m", "p", {"layer_2": torch.ones(1, 3, 2), "attention_mask": MASK, "router_layer_1": torch.ones(1, 3, 4)}
    )
    top = {"logits_top_k_values": torch.ones(1, 1, 5), "logits_top_k_indices": torch.ones(1, 1, 5, dtype=torch.int32)}
    folder.add("m", "p", {"logits": torch.ones(1, 1, 9), **top}, suffix=".logits")
    perplexity = {"perplexity": torch.ones(3), "token_perplexity": torch.ones(2), "token_ids": torch.ones(3)}
    folder.add("m", "p", perplexity, suffix=".perplexity")
    import_cache(folder.base)
    assert adapter.discover_cached("m", "p") == adapter.CachedPromptInfo([2], {}, True, 5, True, True, 3, [1])
    [model] = adapter.cache_info().models
    assert (model.num_layers, model.num_prompts) == (1, 1)
    assert (model.has_pooled, model.has_perplexity, model.has_logits) == (False, True, True)


def test_cache_info_reports_sizes_prompts_and_layers_by_model(store):
    CachedExtractor(Tiny([0, 3])).extract(["abc", "de"])
    CachedExtractor(Tiny([1], name="other")).extract(["abc"])
    info = adapter.cache_info()
    found = {model.model_name: (model.num_prompts, model.num_layers) for model in info.models}
    assert found == {"tiny": (2, 2), "other": (1, 1)}
    assert all(model.size_bytes > 0 for model in info.models)
    assert info.total_size_bytes >= sum(model.size_bytes for model in info.models)
    assert info.oldest_mtime <= info.newest_mtime
    assert info.cache_limit_bytes is None
    assert "tiny" in repr(info)
    only = adapter.cache_info("tiny")
    assert [model.model_name for model in only.models] == ["tiny"]
    assert only.total_size_bytes < info.total_size_bytes
    assert adapter.cache_info("nobody").models == []


def test_cache_info_of_an_empty_cache_is_empty():
    info = adapter.cache_info()
    assert (info.total_size_bytes, info.models, info.total_size_gb) == (0, [], 0.0)


def test_clear_cache_removes_activations_and_nothing_else(tmp_path: Path):
    """W9: lmprobe's clear_cache removes every folder beside the cache, photographs included."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("meow")
    stash = lmstash.open(tmp_path)
    adapter.set_cache_backend(stash)
    stash.store.put(bytes(32), b"answer", namespace="responses/someone")
    CachedExtractor(Tiny()).extract(["abc"])
    assert adapter.clear_cache() == 2
    assert adapter.discover_cached("tiny", "abc") is None
    assert adapter.cache_info().models == []
    assert bytes(stash.store.get(bytes(32)) or b"") == b"answer"
    assert (tmp_path / "photos" / "cat.jpg").read_text() == "meow"
    assert adapter.clear_cache() == 0
    stash.close()


def test_evict_leaves_other_folders_and_entries_alone(tmp_path: Path):
    """W10: lmprobe's evict empties the folder of an environment variable, a user's own files in it included."""
    (tmp_path / "theirs" / "sub").mkdir(parents=True)
    (tmp_path / "theirs" / "sub" / "file.txt").write_text("mine")
    CachedExtractor(Tiny()).extract(["abc"])
    adapter.set_cache_limit(1.0)
    adapter.evict()
    assert adapter.discover_cached("tiny", "abc").raw_layers == [0, 3]
    assert (tmp_path / "theirs" / "sub" / "file.txt").read_text() == "mine"


@pytest.mark.parametrize("suffix", ["", ".safetensors"])
def test_one_prompt_is_removed_by_its_path_in_all_its_layers(folder, suffix):
    folder.add("tiny", "abc", {"layer_9": torch.ones(1, 3, 2), "attention_mask": MASK})
    import_cache(folder.base)
    before = folder.picture()
    extractor = Tiny([0, 3])
    CachedExtractor(extractor).extract(["abc", "de"])
    CachedExtractor(Tiny([5], offset=1.0)).extract(["abc"])
    path = adapter.get_prompt_cache_dir("tiny", "abc")
    adapter.invalidate_extraction_cache(path.with_name(path.name + suffix))
    assert adapter.discover_cached("tiny", "abc") is None
    assert adapter.discover_cached("tiny", "de").raw_layers == [0, 3]
    assert folder.picture() == before
    calls = extractor.calls
    CachedExtractor(extractor).extract(["abc"])
    assert extractor.calls == calls + 1


@pytest.mark.parametrize("path", ["", "/", "somewhere", "/tmp/photos/2024"])
def test_paths_that_name_no_prompt_are_refused(path):
    with pytest.raises(InvalidArgumentError, match="get_prompt_cache_dir"):
        adapter.invalidate_extraction_cache(Path(path))


def test_private_stashes_are_described_without_text():
    adapter.set_cache_backend(Stash(MemoryStore(), private=True))
    CachedExtractor(Tiny([0, 3])).extract(["abc"])
    assert adapter.discover_cached("tiny", "abc").raw_layers == [0, 3]
    assert adapter.cache_info("tiny").models[0].num_prompts == 1
