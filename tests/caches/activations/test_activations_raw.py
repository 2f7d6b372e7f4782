"""Raw values: shared by token prefix where the model is causal, by exact prompt where it is not."""

import numpy as np
import pytest
import torch

from lmstash.caches.activations import Activations
from lmstash.errors import NotFoundError
from lmstash.store.memory import MemoryStore

SYSTEM = [(7 * number) % 113 for number in range(150)]


def keys(store):
    return {entry.key for entry in store.entries("activations/")}


def test_a_shared_prefix_is_stored_once(model):
    store = MemoryStore()
    acts = Activations(store, model)
    acts([SYSTEM + [1] * 50], [0, 2], None)
    assert len(keys(store)) == 3 + 1  # 200 tokens: three blocks and a tail, two layers in each
    acts([SYSTEM + [2] * 50, SYSTEM + [3] * 20], [0, 2], None)
    # Two blocks (128 tokens) are shared; of the rest 200 tokens make a block and a tail, 170 a tail.
    assert len(keys(store)) == 4 + 2 + 1


def test_prompts_with_one_prefix_agree_on_it_bit_for_bit_in_the_run_that_computes_it(model):
    store = MemoryStore()
    acts = Activations(store, model)
    asked = [SYSTEM + [number] * (1 + 9 * number) for number in range(1, 9)]
    cold = acts(asked, [1, 3], None, batch_size=2)
    for each in cold[1:]:
        assert torch.equal(each[:, :128], cold[0][:, :128])
    warm = acts(asked, [1, 3], None, on_miss="error")
    assert all(torch.equal(left, right) for left, right in zip(cold, warm, strict=True))


def test_a_later_prompt_takes_over_the_blocks_kept_before(make_model):
    store, model = MemoryStore(), make_model()
    acts = Activations(store, model)
    (before,) = acts([SYSTEM], [0], None)
    longer = [*SYSTEM[:140], 5, 6, 7]
    (cold,) = acts([longer], [0], None)
    assert torch.equal(cold[:, :128], before[:, :128])
    (warm,) = acts([longer], [0], None, on_miss="error")
    assert torch.equal(cold, warm)


def test_a_prompt_of_whole_blocks_under_a_kept_one_is_a_hit(model):
    store = MemoryStore()
    acts = Activations(store, model)
    (long,) = acts([SYSTEM], [2], None)
    (short,) = acts([SYSTEM[:128]], [2], None, on_miss="error")
    assert torch.equal(short, long[:, :128])


def test_short_prompts_with_one_first_token_do_not_displace_each_other(model):
    acts = Activations(MemoryStore(), model)
    asked = [[0, number, number + 1] for number in range(40)]
    cold = acts(asked, [0], None)
    warm = acts(asked, [0], None, on_miss="error")
    assert all(torch.equal(left, right) for left, right in zip(cold, warm, strict=True))


def test_each_block_names_its_tokens_and_its_parent(model):
    from lmstash.codecs.tensors import decode_tensors

    store = MemoryStore()
    Activations(store, model)([SYSTEM], [0], None)
    by_start = {entry.meta["id"]["components"]["start"]: entry for entry in store.entries("activations/")}
    parent = b""
    for start in (0, 64, 128):
        entry = by_start[start]
        kept = decode_tensors(store.get(entry.key), framework="numpy")
        assert kept["tokens"].tolist() == SYSTEM[start : start + 64]
        assert kept["value"].shape == (1, len(kept["tokens"]), 32)
        assert entry.parent == parent
        assert entry.n_tokens == len(kept["tokens"])
        parent = entry.key


def test_a_block_of_other_tokens_under_the_key_is_not_used(model):
    from lmstash.codecs.tensors import decode_tensors, encode_tensors

    store = MemoryStore()
    acts = Activations(store, model)
    (cold,) = acts([SYSTEM], [0], None)
    for entry in list(store.entries("activations/")):
        kept = decode_tensors(store.get(entry.key), framework="numpy", copy=True)
        kept["tokens"][3] += np.uint32(1)
        kept["value"][:] = 99.0
        forged = encode_tensors(kept)
        store.put(entry.key, forged, namespace=entry.namespace, meta=entry.meta, parent=entry.parent)
    (again,) = acts([SYSTEM], [0], None)
    torch.testing.assert_close(again, cold)
    assert store.events.stats.misses["mismatch"] == 3


def test_a_block_with_another_parent_is_not_used(model):
    store = MemoryStore()
    acts = Activations(store, model)
    acts([SYSTEM], [0], None)
    for entry in list(store.entries("activations/")):
        value = bytes(store.get(entry.key))
        store.put(entry.key, value, namespace=entry.namespace, meta=entry.meta, parent=b"\7" * 32)
    with pytest.raises(NotFoundError):
        acts([SYSTEM], [0], None, on_miss="error")


def test_only_the_evicted_part_is_stored_again(model):
    store = MemoryStore()
    acts = Activations(store, model)
    (cold,) = acts([SYSTEM], [0, 1], None)
    gone = next(entry for entry in store.entries("activations/") if entry.meta["id"]["components"]["start"] == 64)
    store.delete(gone.key)
    puts = store.events.stats.puts
    (again,) = acts([SYSTEM], [0, 1], None)
    assert store.events.stats.puts == puts + 1
    torch.testing.assert_close(again, cold)


def test_a_model_that_sees_the_future_shares_only_equal_prompts(encoder):
    store = MemoryStore()
    acts = Activations(store, encoder)
    asked = [SYSTEM, SYSTEM[:128], [*SYSTEM, 1]]
    cold = acts(asked, [0, 3], None)
    assert len(keys(store)) == 3  # both layers of a prompt together
    assert not torch.allclose(cold[0][:, :128], cold[1])
    warm = acts(asked, [0, 3], None, on_miss="error")
    assert all(torch.equal(left, right) for left, right in zip(cold, warm, strict=True))
    with pytest.raises(NotFoundError):
        acts([SYSTEM[:64]], [0], None, on_miss="error")


def test_batches_of_the_encoder_equal_single_prompts(encoder):
    together = Activations(MemoryStore(), encoder)([SYSTEM, SYSTEM[:5], SYSTEM[:70]], "all", None)
    alone = [Activations(MemoryStore(), encoder)([ids], "all", None)[0] for ids in (SYSTEM, SYSTEM[:5], SYSTEM[:70])]
    for left, right in zip(together, alone, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


def test_pooled_and_raw_values_of_one_prompt_agree(model):
    acts = Activations(MemoryStore(), model)
    (raw,) = acts([SYSTEM], "all", None)
    assert torch.allclose(acts([SYSTEM], "all", "last")[0], raw[:, -1], rtol=1e-4, atol=1e-5)
    assert torch.allclose(acts([SYSTEM], "all", "max")[0], raw.amax(1), rtol=1e-4, atol=1e-5)
