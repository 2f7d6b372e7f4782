"""For people who call `forward` themselves."""

import copy
import threading

import numpy as np
import pytest
import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, StaticCache

from lmstash.errors import InvalidArgumentError

GREEDY = {"do_sample": False, "max_new_tokens": 3}


def go_on(model, ids, past, n_tokens):
    with torch.no_grad():
        return model(ids[:, n_tokens:], past_key_values=past, use_cache=True)


def test_past_put_and_on(model, stash, prompt, live):
    kv = stash.kv(model)
    ids = prompt(200)
    assert kv.past(ids) == (None, 0)
    with torch.no_grad():
        first = model(ids, use_cache=True)
    assert kv.put(ids, first.past_key_values) == 200
    longer = prompt(230)
    past, n_tokens = kv.past(longer)
    assert n_tokens == 200
    out = go_on(model, longer, past, n_tokens)
    expected = go_on(model, longer, live(model, ids), 200)
    assert torch.equal(out.logits, expected.logits)
    assert kv.put(longer, past) == 38  # what is new, and a tail that had to be written again
    assert kv.past(prompt(231))[1] == 230


@pytest.mark.parametrize("n_tokens", [2, 63, 64, 65, 128])
def test_at_least_one_token_is_left_to_feed(model, stash, prompt, live, n_tokens):
    kv = stash.kv(model)
    kv.put(prompt(200), live(model, prompt(200)))
    past, n = kv.past(prompt(n_tokens))
    assert n == n_tokens - 1
    assert past.get_seq_length() == n
    assert [layer.keys.shape[2] for layer in past.layers] == [n] * 3


def test_a_prompt_of_one_token_has_no_past(model, stash, prompt, live):
    kv = stash.kv(model)
    kv.put(prompt(200), live(model, prompt(200)))
    assert kv.past(prompt(1)) == (None, 0)


@pytest.mark.parametrize("form", ["list", "row", "batch", "numpy", "int32"])
def test_prompts_in_many_forms(model, stash, prompt, form):
    kv = stash.kv(model)
    ids = prompt(100)
    forms = {
        "list": ids[0].tolist(),
        "row": ids[0],
        "batch": ids,
        "numpy": ids[0].numpy().astype(np.int32),
        "int32": ids.to(torch.int32),
    }
    assert kv.prefill(forms[form]) == 100
    assert kv.past(forms[form])[1] == 99


@pytest.mark.parametrize("wrong", [[], torch.zeros(1, 2, 3, dtype=torch.long), torch.zeros(0, 5, dtype=torch.long)])
def test_what_is_no_prompt_is_said(model, stash, wrong):
    with pytest.raises(InvalidArgumentError, match="input_ids"):
        stash.kv(model).past(wrong)


def test_each_past_is_a_cache_of_its_own(model, stash, prompt):
    kv = stash.kv(model)
    kv.prefill(prompt(150))
    first, n_tokens = kv.past(prompt(151))
    second, _ = kv.past(prompt(151))
    before = [layer.keys.clone() for layer in second.layers]
    go_on(model, prompt(160), first, n_tokens)
    for layer in first.layers:
        layer.keys.zero_()
        layer.values.zero_()
    assert all(torch.equal(layer.keys, keys) for layer, keys in zip(second.layers, before, strict=True))
    third, _ = kv.past(prompt(151))
    assert all(torch.equal(layer.keys, keys) for layer, keys in zip(third.layers, before, strict=True))


def test_a_restored_cache_is_a_cache(model, stash, prompt, live):
    """Everything that a DynamicCache can do, before and after the model first added to it."""
    kv = stash.kv(model)
    kv.put(prompt(150), live(model, prompt(150)))

    def restored():
        return kv.past(prompt(151))[0]

    plain = live(model, prompt(150))
    assert isinstance(restored(), DynamicCache)
    assert len(restored()) == 3
    assert restored().is_initialized
    assert restored().is_croppable
    assert restored().get_mask_sizes(5, 0) == plain.get_mask_sizes(5, 0)
    assert restored().get_max_length() == plain.get_max_length()

    def same(one, other):
        for mine, theirs in zip(one.layers, other.layers, strict=True):
            assert type(mine.keys) is torch.Tensor
            assert torch.equal(mine.keys, theirs.keys)
            assert torch.equal(mine.values, theirs.values)
            assert mine.get_seq_length() == theirs.get_seq_length()
            assert type(mine) is DynamicLayer

    same(restored(), plain)
    for change in (
        lambda cache: cache.crop(-7),
        lambda cache: cache.batch_repeat_interleave(3),
        lambda cache: cache.batch_select_indices(torch.tensor([0, 0])),
        lambda cache: cache.reorder_cache(torch.tensor([0])),
        lambda cache: cache.layers[0].update(torch.ones(1, 2, 4, 8), torch.zeros(1, 2, 4, 8)),
    ):
        mine, theirs = restored(), copy.deepcopy(plain)
        change(mine)
        change(theirs)
        same(mine, theirs)
    same(copy.deepcopy(restored()), plain)
    for mine, theirs in zip(restored(), plain, strict=True):
        assert torch.equal(mine[0], theirs[0])
    emptied = restored()
    emptied.reset()
    assert emptied.get_seq_length() == 0


def test_a_cache_that_is_shorter_or_longer_than_the_prompt(model, stash, prompt, live):
    kv = stash.kv(model)
    assert kv.put(prompt(150), live(model, prompt(120))) == 120
    assert kv.past(prompt(150))[1] == 120
    assert kv.put(prompt(60, seed=1), live(model, prompt(90, seed=1))) == 60
    assert kv.past(prompt(90, seed=1))[1] == 60


def test_a_batch_with_padding_is_put_row_by_row(make_model, stash, prompt):
    model = make_model(pad_token_id=0)
    kv = stash.kv(model)
    lengths = (100, 63)
    ids, mask = torch.zeros(2, 100, dtype=torch.long), torch.zeros(2, 100, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, 100 - length :], mask[row, 100 - length :] = prompt(length, seed=row), 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        out = model(ids, attention_mask=mask, position_ids=positions, use_cache=True)
    assert kv.put(ids, out.past_key_values, attention_mask=mask) == 163
    assert [kv.past(prompt(length + 1, seed=row))[1] for row, length in enumerate(lengths)] == [100, 63]
    past, width = kv.past(ids, attention_mask=mask)
    assert width == 99
    again = model(ids[:, 99:], attention_mask=mask, position_ids=positions[:, 99:], past_key_values=past)
    assert torch.allclose(again.logits[:, -1], out.logits[:, -1], atol=1e-5)


def test_a_static_cache_is_copied_from(model, stash, prompt):
    kv = stash.kv(model)
    past = StaticCache(config=model.config, max_cache_len=140)
    with torch.no_grad():
        model(prompt(100), past_key_values=past)
    assert kv.put(prompt(100), past) == 100
    with torch.no_grad():
        model(prompt(110)[:, 100:], past_key_values=past)  # writes in place
    restored, n_tokens = kv.past(prompt(101))
    assert n_tokens == 100
    assert torch.equal(restored.layers[0].keys, past.layers[0].keys[:, :, :100])


class Odd(DynamicLayer):
    """A layer of somebody's own, whose keys mean who knows what."""


@pytest.mark.parametrize("wrong", ["tuple", "None", "own layers", "quantised", "empty", "few layers", "another model"])
def test_caches_that_cannot_be_kept(make_model, stash, prompt, live, wrong):
    model = make_model()
    kv = stash.kv(model)
    plain = live(model, prompt(100))
    caches = {
        "tuple": tuple((layer.keys, layer.values) for layer in plain.layers),
        "None": None,
        "empty": DynamicCache(config=model.config),
        "few layers": DynamicCache([(layer.keys, layer.values) for layer in plain.layers[:2]]),
        "another model": live(make_model(num_hidden_layers=1), prompt(100)),
        "own layers": copy.deepcopy(plain),
        "quantised": copy.deepcopy(plain),
    }
    caches["own layers"].layers[1].__class__ = Odd
    caches["quantised"].layers[1].keys = torch.tensor([])
    assert kv.put(prompt(100), caches[wrong]) == 0
    assert sum(kv.stats.not_kept.values()) == (0 if wrong == "empty" else 1)
    assert stash.info().entries == 0


def test_threads_share_one_kv(model, stash, prompt):
    kv = stash.kv(model)
    expected = {seed: model.generate(prompt(80 + seed, seed), **GREEDY) for seed in range(4)}
    same = []

    def work(seed):
        same.extend(torch.equal(kv.generate(prompt(80 + seed, seed), **GREEDY), expected[seed]) for _ in range(4))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert same == [True] * 16
    assert kv.stats.tokens_reused > 0


def test_a_thread_under_autocast_beside_one_without(model, stash, prompt):
    kv = stash.kv(model)
    results = {}

    def work(name, enabled):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            results[name] = [kv.generate(prompt(90), **GREEDY) for _ in range(3)]

    threads = [threading.Thread(target=work, args=(str(each), each)) for each in (True, False)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    stash.flush()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model.generate(prompt(90), **GREEDY)
    assert all(torch.equal(out, expected) for out in results["True"])
    assert all(torch.equal(out, model.generate(prompt(90), **GREEDY)) for out in results["False"])


def test_prefill_computes_what_is_missing(model, stash, prompt, fed):
    kv, counter = stash.kv(model), fed(model)
    assert kv.prefill(prompt(100)) == 100
    assert kv.prefill(prompt(100)) == 0
    assert kv.prefill(prompt(170)) == 70
    assert counter.take() == [100, 70]
    rows = torch.cat([torch.cat([prompt(100), prompt(30, seed)], dim=1) for seed in (1, 2)])
    assert kv.prefill(rows) == 60
    assert kv.prefill(rows) == 0
