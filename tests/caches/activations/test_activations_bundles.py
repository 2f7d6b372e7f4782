"""Several layers in one entry: what is kept together, what is added beside it, and what a refresh replaces."""

import json

import numpy as np
import pytest
import torch

from lmstash.caches.activations import Activations
from lmstash.caches.activations.pieces import BUNDLE_BYTES, group_size
from lmstash.codecs.records import decode_record
from lmstash.codecs.tensors import decode_tensors, encode_tensors
from lmstash.identity.chain import chain_key, chain_root
from lmstash.identity.fingerprint import Fingerprint
from lmstash.identity.keys import KeyFamily
from lmstash.identity.tokens import digest_text, digest_tokens
from lmstash.store.memory import MemoryStore

IDS = list(range(100))


def kept(store):
    """Layers of each entry of activations, in the order they were written."""
    entries = sorted(store.entries("activations/"), key=lambda entry: entry.created)
    return [entry.meta["id"]["components"]["layers"] for entry in entries]


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize(
    ("n_tokens", "width", "layers"),
    [(4, 1152, 16), (64, 576, 2), (64, 1024, 2), (32, 1024, 4), (1, 1, 64), (1, 10**6, 1)],
)
def test_a_group_is_a_power_of_two_of_layers_that_fit(n_tokens, width, layers):
    assert group_size(n_tokens, width) == layers
    assert layers == 1 or layers * n_tokens * width * 4 <= BUNDLE_BYTES


def test_an_extractor_that_does_not_say_how_wide_its_values_are_has_groups_too():
    assert group_size(32, None) == 4


@pytest.mark.parametrize("pool", ["mean", None])
def test_layers_asked_for_together_are_one_entry(model, pool):
    store = MemoryStore()
    Activations(store, model)([IDS[:20]], [3, 0, 2], pool)
    assert kept(store) == [[0, 2, 3]]
    [entry] = store.entries("activations/")
    tensors = decode_tensors(store.get(entry.key), framework="numpy")
    assert tensors["layers"].tolist() == [0, 2, 3]
    assert tensors["value"].shape == ((3, 32) if pool else (3, 20, 32))


@pytest.mark.parametrize("pool", ["last", None])
def test_any_order_and_choice_of_layers_is_served_from_what_was_kept_bit_by_bit(model, prompts, pool):
    store = MemoryStore()
    acts = Activations(store, model)
    first = acts(prompts, [1], pool)
    second = acts(prompts, [3, 0], pool)
    for layers, parts in (([0, 3], (1, 0)), ([3, 0], (0, 1))):
        again = acts(prompts, layers, pool, on_miss="error")
        for row, whole in enumerate(again):
            for position, part in enumerate(parts):
                assert torch.equal(whole[position], second[row][part])
    mixed = acts(prompts, [3, 1, 0], pool, on_miss="error")
    for row, whole in enumerate(mixed):
        assert torch.equal(whole[1], first[row][0])
        assert torch.equal(whole[0], second[row][0])
        assert torch.equal(whole[2], second[row][1])


def test_what_is_added_goes_beside_what_is_kept(model):
    store = MemoryStore()
    acts = Activations(store, model)
    for layer in (2, 0, 3):
        acts([IDS], [layer])
    assert kept(store) == [[2], [0], [3]]
    acts([IDS], "all")
    assert kept(store) == [[2], [0], [3], [1]]
    assert acts.missing([IDS]) == []


def test_an_evicted_first_slot_takes_nothing_else_with_it_for_good(model):
    store = MemoryStore()
    acts = Activations(store, model)
    acts([IDS], [0])
    before = acts([IDS], [1])
    first = min(store.entries("activations/"), key=lambda entry: entry.created)
    store.delete(first.key)
    assert acts.missing([IDS], [1]) == [IDS]  # slot 1 is not found without slot 0
    acts([IDS], [0])
    assert torch.equal(acts([IDS], [1], on_miss="error"), before)


@pytest.mark.parametrize("pool", ["last", None])
def test_a_refresh_replaces_what_is_asked_for_and_loses_nothing_else(model, pool):
    store = MemoryStore()
    acts = Activations(store, model)
    acts([IDS], [0, 1], pool)
    acts([IDS], [2, 3], pool)
    # Forge what is kept, so that the old values can be told from the new.
    for entry in list(store.entries("activations/")):
        whole = store.fetch_many([entry.key])[0]
        tensors = decode_tensors(whole.value, framework="numpy", copy=True)
        tensors["value"][:] = 7.0
        store.put(entry.key, encode_tensors(tensors), namespace=entry.namespace, meta=entry.meta, parent=whole.parent)
    fresh = acts([IDS], [1, 2], pool, refresh=True)
    assert not (fresh[0] == 7.0).any()
    (after,) = acts([IDS], "all", pool, on_miss="error")
    assert (after[0] == 7.0).all()
    assert (after[3] == 7.0).all()
    assert torch.equal(after[1:3], fresh[0])
    # Even the slots behind hold nothing old of what was refreshed.
    for entry in store.entries("activations/"):
        tensors = decode_tensors(store.get(entry.key), framework="numpy")
        for layer, value in zip(tensors["layers"].tolist(), tensors["value"], strict=True):
            assert (value == 7.0).all() == (layer in (0, 3))


def test_a_layer_that_overflows_does_not_keep_its_neighbours_in_float32(make_model):
    model = make_model()
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight.mul_(1e9)
    store = MemoryStore()
    acts = Activations(store, model, storage_dtype="float16")
    cold = acts([IDS], "all")
    assert store.events.stats.overflows == 2  # the residual carries it on
    assert torch.equal(acts([IDS], "all", on_miss="error"), cold)
    found = {}
    for entry in store.entries("activations/"):
        tensors = decode_tensors(store.get(entry.key), framework="numpy")
        found |= dict.fromkeys(tensors["layers"].tolist(), tensors["value"].dtype)
    assert found == {0: np.float16, 1: np.float16, 2: np.float32, 3: np.float32}
    again = acts([IDS], [1, 2], refresh=True)
    assert torch.equal(acts([IDS], [1, 2], on_miss="error"), again)
    assert torch.equal(acts([IDS], [0, 3], on_miss="error"), cold[:, [0, 3]])


@pytest.mark.parametrize("pool", ["last", None])
def test_entries_of_the_layout_before_bundles_are_a_miss(model, pool):
    """One entry per prompt and layer, and the layer in the key, is how values were kept at first."""
    store = MemoryStore()
    acts = Activations(store, model)
    model_digest = bytes.fromhex(acts.fingerprint)
    old: list[bytes] = []
    for layer in (0, 1):
        if pool is None:
            layout = f"tail {digest_tokens(IDS[:9]).hex()}"
            site = f"block_out/{layer}"
            key = chain_key(chain_root(model_digest), layout=layout, kind="activations", site=site, dtype="exact")
        else:
            common = {"kind": "activations", "site": "block_out", "pool": pool, "storage": "exact"}
            family = KeyFamily({**common, "model": model_digest, "salt": None}, ("tokens", "layer"))
            key = family.digest(digest_tokens(IDS[:9]), layer)
        value = np.full((9, 32) if pool is None else 32, 5.0, dtype=np.float32)
        tensors = {"value": value, "tokens": np.array(IDS[:9], np.uint32), "key": np.frombuffer(key, np.uint8)}
        store.put(key, encode_tensors(tensors), namespace=acts.namespace, meta={"id": {"components": {"layer": layer}}})
        old.append(key)
    assert acts.missing([IDS[:9]], [0, 1], pool) == [IDS[:9]]
    result = acts([IDS[:9]], [0, 1], pool)
    assert not (result[0] == 5.0).any()
    # And a value of that shape under a key of today is refused.
    [entry] = [entry for entry in store.entries(acts.namespace) if entry.key not in old]
    forged = {**tensors, "key": np.frombuffer(entry.key, np.uint8)}
    store.put(entry.key, encode_tensors(forged), namespace=acts.namespace)
    assert not (acts([IDS[:9]], [0, 1], pool)[0] == 5.0).any()
    assert store.events.stats.misses["mismatch"] == 1


@pytest.mark.parametrize("private", [False, True])
def test_each_entry_names_its_text_by_digest(model, tokenizer, private):
    store = MemoryStore()
    acts = Activations(store, model, tokenizer, private=private)
    for pool in ("last", None):
        acts(["w1 w2"], [0], pool)
    for entry in store.entries("activations/"):
        assert entry.meta["text_id"] == digest_text("w1 w2")
        assert ("text" in entry.meta) == (not private)
        assert json.dumps(entry.meta)


def test_the_model_is_described_once_when_the_first_values_are_kept(model, prompts):
    store = MemoryStore()
    acts = Activations(store, model)
    assert list(store.entries("models/all")) == []
    acts(prompts[:2], 0)
    acts(prompts, [0, 1])
    [entry] = store.entries("models/all")
    found = Fingerprint.from_description(decode_record(bytes(store.get(entry.key))))
    assert found.hex == acts.fingerprint
    assert entry.meta["model"] == acts.fingerprint[:16]
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(2)
    acts(prompts, 0)
    assert len(list(store.entries("models/all"))) == 2
