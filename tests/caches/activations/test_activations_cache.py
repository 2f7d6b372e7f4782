"""What a user of `Activations` relies on, pooled and raw."""

import logging
import threading

import numpy as np
import pytest
import torch

from lmstash.caches.activations import Activations
from lmstash.caches.activations import publish as publishing
from lmstash.errors import InvalidArgumentError, MismatchError, NotFoundError, UnsupportedModelError
from lmstash.store.memory import MemoryStore

POOLS = ["last", "first", "mean", "max", 0, -1, None]


def same(left, right) -> bool:
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return left.dtype == right.dtype and torch.equal(left, right)


def plain(model, ids, layers) -> torch.Tensor:
    """`[n_layers, n_tokens, hidden]` of one prompt, alone, unpadded."""
    kept = {}
    handles = [
        model.model.layers[layer].register_forward_hook(
            lambda _, args, output, layer=layer: kept.__setitem__(layer, output[0])
        )
        for layer in layers
    ]
    with torch.no_grad():
        model(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return torch.stack([kept[layer] for layer in layers])


def entries(store):
    """What is kept of activations, by key."""
    return {entry.key: entry for entry in store.entries("activations/")}


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_warm_run_equals_the_cold_one_bit_for_bit(make_model, prompts, pool, dtype):
    model, store = make_model().to(dtype), MemoryStore()
    cold = Activations(store, model)(prompts, [0, -1], pool)
    warm = Activations(store, model)(prompts, [0, -1], pool)
    assert same(cold, warm)
    assert store.events.stats.puts == store.events.stats.hits + 1  # and the model's description
    first = cold[0] if pool is None else cold
    assert first.dtype == dtype


def test_values_are_those_of_a_plain_run(model, prompts):
    acts = Activations(MemoryStore(), model)
    pooled = acts(prompts, [3, 1], "mean")
    raw = acts(prompts, [3, 1], None)
    for row, ids in enumerate(prompts):
        expected = plain(model, ids, [3, 1])
        torch.testing.assert_close(raw[row], expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(pooled[row], expected.mean(dim=1), rtol=1e-4, atol=1e-5)


def test_nothing_is_computed_twice(model, prompts, count_forwards):
    acts = Activations(MemoryStore(), model)
    forwards = count_forwards(model)
    acts(prompts, [0], "last", batch_size=2)
    assert forwards.rows == len(prompts)
    acts(prompts, [0], "last")
    acts(list(reversed(prompts)), 0, "last")
    assert forwards.rows == len(prompts)


def test_equal_prompts_are_computed_once_and_all_returned(model, prompts, count_forwards):
    acts = Activations(MemoryStore(), model)
    forwards = count_forwards(model)
    result = acts([prompts[0]] * 5 + [prompts[1]] + [prompts[0]] * 5, 1)
    assert forwards.rows == 2
    assert all(torch.equal(result[row], result[0]) for row in (1, 4, 6, 10))
    assert not torch.equal(result[5], result[0])


def test_equal_raw_prompts_come_in_memory_of_their_own(model, prompts):
    first, second = Activations(MemoryStore(), model)([prompts[0]] * 2, 1, None)
    first.zero_()
    assert second.abs().sum() > 0


@pytest.mark.parametrize("pool", ["last", None])
def test_adding_a_layer_computes_and_stores_only_that_layer(model, prompts, pool):
    store = MemoryStore()
    acts = Activations(store, model)
    acts(prompts, [0, 2], pool)
    kept = entries(store)
    deeper = []

    def count(module, args):
        deeper.append(1)

    count._lmstash = True
    model.model.layers[2].register_forward_pre_hook(count)
    acts(prompts, [0, 1, 2], pool)
    assert len(entries(store)) == 2 * len(kept)
    assert all(entry.created == kept[key].created for key, entry in entries(store).items() if key in kept)
    new = [entry for key, entry in entries(store).items() if key not in kept]
    assert all(entry.meta["id"]["components"]["layers"] == [1] for entry in new)
    assert deeper == []  # block 1 was the last one needed


def test_prompts_that_miss_other_layers_are_each_completed(model, prompts):
    acts = Activations(MemoryStore(), model)
    expected = Activations(MemoryStore(), model)(prompts, [0, 1, 2])
    acts(prompts[:3], [0])
    acts(prompts[2:5], [1, 2])
    torch.testing.assert_close(acts(prompts, [0, 1, 2]), expected, rtol=1e-4, atol=1e-5)


def test_layers_may_be_a_number_a_list_or_all(model, prompts):
    acts = Activations(MemoryStore(), model)
    everything = acts(prompts, "all")
    assert everything.shape == (7, 4, 32)
    assert torch.equal(acts(prompts, 2), everything[:, 2:3])
    assert torch.equal(acts(prompts, [-1, 0]), everything[:, [3, 0]])
    assert torch.equal(acts(prompts, range(1, 3)), everything[:, 1:3])
    assert torch.equal(acts(prompts, np.array([1])), everything[:, 1:2])


@pytest.mark.parametrize("layers", [4, -5, [0, 9], [], "most", [1.0], True, [0, 0], [3, -1]])
def test_layers_that_are_not_there_are_explained(model, prompts, layers):
    with pytest.raises(InvalidArgumentError, match="layer"):
        Activations(MemoryStore(), model)(prompts, layers)


def test_an_empty_list_of_prompts_gives_an_empty_result(model):
    acts = Activations(MemoryStore(), model)
    assert acts([], [0, 1]).shape == (0, 2, 32)
    assert acts([], [0, 1], dtype="float16").dtype == torch.float16
    assert acts([], [0], None) == []
    assert acts.missing([], [0]) == []
    assert list(acts.batches([], [0])) == []


def test_a_prompt_longer_than_the_context_is_refused_with_both_lengths(model):
    with pytest.raises(InvalidArgumentError, match=r"prompt 1 has 301 tokens.* takes 300"):
        Activations(MemoryStore(), model)([[1], [1] * 301], 0)


def test_an_id_beyond_the_vocabulary_is_refused(model):
    with pytest.raises(InvalidArgumentError, match="prompt 0 holds the id 120"):
        Activations(MemoryStore(), model)([[120]], 0)


def test_strings_and_their_ids_are_one_prompt(model, tokenizer, count_forwards):
    store = MemoryStore()
    acts = Activations(store, model, tokenizer)
    forwards = count_forwards(model)
    texts = acts(["w0 w1", "w5"], 1)
    assert torch.equal(texts, acts([[0, 2, 3], [0, 7]], 1))
    assert forwards.rows == 2
    assert {entry.meta["text"] for entry in entries(store).values()} == {"w0 w1", "w5"}


def test_a_left_padding_tokenizer_changes_nothing(model, tokenizer):
    expected = Activations(MemoryStore(), model, tokenizer)(["w0 w1 w2 w3", "w5"], "all", "first")
    tokenizer.pad_token, tokenizer.padding_side = "<unk>", "left"
    assert torch.equal(Activations(MemoryStore(), model, tokenizer)(["w0 w1 w2 w3", "w5"], "all", "first"), expected)


@pytest.mark.parametrize("pool", ["last", None])
def test_weights_changed_in_place_are_another_model_until_they_are_restored(model, prompts, pool, count_forwards):
    acts = Activations(MemoryStore(), model)
    before = acts(prompts, [0, 3], pool)
    forwards = count_forwards(model)
    weight = model.model.layers[0].mlp.down_proj.weight
    saved = weight.detach().clone()
    weight.data.mul_(3.0)  # moves no version counter
    changed = acts(prompts, [0, 3], pool)
    assert not same(before, changed)
    assert forwards.rows >= len(prompts)
    weight.data.copy_(saved)
    assert same(acts(prompts, [0, 3], pool, on_miss="error"), before)
    assert same(acts(prompts, [0, 3], pool), before)


def test_values_of_a_model_that_changes_during_the_call_are_not_kept(model, prompts):
    store = MemoryStore()
    acts = Activations(store, model)
    handle = _change_weights_at_second_batch(model)
    result = acts(prompts, [0, 1], batch_size=2)
    handle.remove()
    assert result.shape == (7, 2, 32)
    assert store.events.stats.drops["model_changed"] > 0
    assert len(entries(store)) + store.events.stats.drops["model_changed"] == 7
    assert len(entries(store)) == 2  # the first batch was published before the change
    with pytest.raises(NotFoundError):
        acts(prompts, [0, 1], on_miss="error")


def test_a_strict_store_raises_when_the_model_changes_during_the_call(model, prompts):
    acts = Activations(MemoryStore(strict=True), model)
    handle = _change_weights_at_second_batch(model)
    with pytest.raises(MismatchError, match=r"model changed.*tensors\.model\.layers\.1\.mlp\.down_proj\.weight"):
        acts(prompts, [0, 1], batch_size=2)
    handle.remove()


def _change_weights_at_second_batch(model):
    seen = []

    def change(module, args):
        seen.append(1)
        if len(seen) == 2:
            model.model.layers[1].mlp.down_proj.weight.data.mul_(2.0)

    change._lmstash = True
    return model.model.layers[0].register_forward_pre_hook(change)


def test_a_model_in_training_mode_with_dropout_is_refused(make_model, prompts):
    model = make_model(attention_dropout=0.1)
    acts = Activations(MemoryStore(), model)
    acts(prompts, 0)
    model.train()
    with pytest.raises(UnsupportedModelError, match="eval"):
        acts(prompts, 0)


def test_two_models_with_one_name_share_nothing(make_model, prompts, count_forwards):
    store = MemoryStore()
    one, two = make_model(0), make_model(1)
    one.config._name_or_path = two.config._name_or_path = "same/name"
    first = Activations(store, one)(prompts, 1)
    forwards = count_forwards(two)
    second = Activations(store, two)(prompts, 1)
    assert forwards.rows == len(prompts)
    assert not torch.equal(first, second)


def test_one_model_in_two_folders_shares_everything(model, prompts, tmp_path):
    store = MemoryStore()
    kind = type(model)
    loaded = []
    for name in ("here", "there"):
        model.save_pretrained(tmp_path / name)
        loaded.append(kind.from_pretrained(tmp_path / name).eval())
    first = Activations(store, loaded[0])(prompts, 1)
    second = Activations(store, loaded[1])(prompts, 1, on_miss="error")
    assert torch.equal(first, second)


def test_an_interrupted_run_keeps_what_was_done_and_goes_on(model, prompts, count_forwards):
    store = MemoryStore()
    acts = Activations(store, model)
    seen = []

    def interrupt(module, args):
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt

    interrupt._lmstash = True
    handle = model.model.layers[2].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        acts(prompts, [0, 3], batch_size=2)
    handle.remove()
    assert len(entries(store)) == 2 * 2
    forwards = count_forwards(model)
    result = acts(prompts, [0, 3], batch_size=2)
    assert forwards.rows == len(prompts) - 4
    torch.testing.assert_close(result, Activations(MemoryStore(), model)(prompts, [0, 3]), rtol=1e-4, atol=1e-5)


def test_values_held_back_are_saved_when_the_run_is_interrupted(model, prompts, monkeypatch):
    monkeypatch.setattr(publishing, "_CHECK_SHARE", 1e-9)  # every check looks dear: batches wait for the end
    store = MemoryStore()
    acts = Activations(store, model)
    seen = []

    def interrupt(module, args):
        seen.append(store.events.stats.puts)
        if len(seen) == 3:
            raise KeyboardInterrupt

    interrupt._lmstash = True
    model.model.layers[0].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        acts(prompts, 0, batch_size=1)
    assert len(entries(store)) == 2


def test_refresh_computes_anew_and_replaces(model, prompts, count_forwards):
    store = MemoryStore()
    acts = Activations(store, model)
    cold = acts(prompts, [0, 1])
    created = {entry.key: entry.created for entry in entries(store).values()}
    forwards = count_forwards(model)
    again = acts(prompts, [0, 1], refresh=True)
    assert forwards.rows == len(prompts)
    torch.testing.assert_close(again, cold, rtol=1e-4, atol=1e-5)
    assert entries(store).keys() == set(created)
    assert all(entry.created > created[entry.key] for entry in entries(store).values())
    assert store.events.stats.misses["refresh"] == 7


def test_to_compute_everything_and_nothing_is_refused(model, prompts, count_forwards):
    acts = Activations(MemoryStore(), model)
    acts(prompts, 0)
    forwards = count_forwards(model)
    with pytest.raises(InvalidArgumentError, match=r"refresh=True .* on_miss='error' .* drop one"):
        acts(prompts, 0, refresh=True, on_miss="error")
    with pytest.raises(InvalidArgumentError, match="drop one"):
        next(acts.batches(prompts, 0, refresh=True, on_miss="error"))
    assert forwards.rows == 0


@pytest.mark.parametrize("pool", ["last", None])
def test_summaries_are_info_and_each_hit_and_miss_is_debug(model, prompts, pool, caplog):
    store = MemoryStore()
    acts = Activations(store, model)
    with caplog.at_level(logging.INFO, logger="lmstash"):
        acts(prompts[:2], [0, 3], pool)
    assert caplog.messages == [f"{acts._source.name}: 0 of 2 prompts kept, 2 to compute (layers 0, 3)"]
    caplog.clear()
    with caplog.at_level(logging.DEBUG, logger="lmstash"):
        acts(prompts[:3], [0, 3], pool)
    assert f"{acts._source.name}: 2 of 3 prompts kept, 1 to compute (layers 0, 3)" in caplog.messages
    assert any(line.startswith(f"hit {acts.namespace} ") for line in caplog.messages)
    assert any(line.startswith("miss ") and line.endswith(": absent") for line in caplog.messages)
    caplog.clear()
    with caplog.at_level(logging.DEBUG, logger="lmstash"), pytest.raises(NotFoundError):
        acts(prompts[3:], [0, 3], pool, on_miss="error")
    assert any(line.endswith(": absent") for line in caplog.messages)
    assert not store.events.listening


def test_nobody_listens_to_a_store_for_a_logger_that_is_not_asked(model, prompts, caplog):
    store = MemoryStore()
    acts = Activations(store, model)
    heard = []

    def note(module, args):
        heard.append(store.events.listening)

    note._lmstash = True
    model.model.layers[0].register_forward_pre_hook(note)
    with caplog.at_level(logging.INFO, logger="lmstash"):
        acts(prompts[:1], 0)
    with caplog.at_level(logging.DEBUG, logger="lmstash"):
        acts(prompts[1:2], 0)
    assert heard == [False, True]


@pytest.mark.parametrize("pool", ["mean", None])
def test_cache_only_fills_and_returns_nothing(model, prompts, pool, count_forwards):
    store = MemoryStore()
    acts = Activations(store, model)
    forwards = count_forwards(model)
    assert acts(prompts, [0, 1], pool, cache_only=True) is None
    rows = forwards.rows
    assert acts(prompts, [0, 1], pool, cache_only=True) is None
    assert forwards.rows == rows
    assert len(acts(prompts, [0, 1], pool, on_miss="error")) == len(prompts)


def test_on_miss_error_computes_nothing_and_says_what_is_missing(model, prompts, count_forwards):
    acts = Activations(MemoryStore(), model)
    acts(prompts[:5], 0)
    forwards = count_forwards(model)
    with pytest.raises(NotFoundError, match=r"2 of 7 prompts are not kept \(the first is prompt 5\)"):
        acts(prompts, 0, on_miss="error")
    assert forwards.rows == 0
    with pytest.raises(InvalidArgumentError, match="on_miss"):
        acts(prompts, 0, on_miss="ignore")


@pytest.mark.parametrize("pool", ["last", None])
def test_missing_names_the_prompts_as_given(model, prompts, pool):
    store = MemoryStore()
    acts = Activations(store, model)
    acts(prompts[:2], [0, 1], pool)
    acts(prompts[2:4], [0], pool)
    assert acts.missing([*prompts, prompts[5]], [0], pool) == prompts[4:]
    assert acts.missing(prompts, [0, 1], pool) == prompts[2:]
    assert acts.missing(prompts[:2], [0, 1], pool) == []


def test_a_sorted_series_gets_the_values_of_its_rows_and_misses_them_by_their_texts(model, tokenizer):
    pandas = pytest.importorskip("pandas")
    texts = ["w0 w1", "w2", "w3 w4 w5", "w6 w7"]
    acts = Activations(MemoryStore(), model, tokenizer)
    series = pandas.Series(texts).iloc[[3, 0, 2, 1]]
    assert acts.missing(series, 1) == [texts[3], texts[0], texts[2], texts[1]]
    assert acts(series, 1).equal(acts(list(series), 1))
    assert acts(series, 1, refresh=True).equal(acts([*series], 1))
    assert acts.missing(series[series != "w2"], 2) == [texts[3], texts[0], texts[2]]


@pytest.mark.parametrize("warm", [False, True])
def test_out_is_filled_in_place(model, prompts, tmp_path, warm):
    acts = Activations(MemoryStore(), model)
    expected = Activations(MemoryStore(), model)(prompts, [0, 2])
    if warm:
        acts(prompts, [0, 2])
    asked = [*prompts, prompts[0]]
    expected = torch.cat([expected, expected[:1]])
    targets = [
        np.zeros((8, 2, 32), dtype=np.float32),
        np.zeros((8, 2, 32), dtype=np.float64),
        np.memmap(tmp_path / "out.f32", dtype=np.float32, mode="w+", shape=(8, 2, 32)),
        torch.zeros(8, 2, 32, dtype=torch.bfloat16),
        torch.zeros(2, 8, 32).transpose(0, 1),
        np.zeros((8, 4, 32), dtype=np.float32)[:, ::2],
    ]
    for out in targets:
        assert acts(asked, [0, 2], out=out) is out
        torch.testing.assert_close(torch.as_tensor(out), expected.to(torch.as_tensor(out).dtype), rtol=1e-2, atol=1e-2)
    on_disk = np.fromfile(tmp_path / "out.f32", dtype=np.float32).reshape(8, 2, 32)
    np.testing.assert_allclose(on_disk, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_an_out_that_does_not_fit_is_explained(model, prompts):
    acts = Activations(MemoryStore(), model)
    frozen = np.zeros((7, 2, 32), dtype=np.float32)
    frozen.flags.writeable = False
    wrong = [np.zeros((7, 1, 32)), np.zeros((7, 2, 31)), np.zeros((7, 2, 32), dtype=np.int64), frozen, [0.0], "out"]
    for out in wrong:
        with pytest.raises(InvalidArgumentError, match="out="):
            acts(prompts, [0, 1], out=out)
    for out in (torch.zeros(1, 1, 32).expand(len(prompts), 2, 32), torch.zeros(len(prompts), 2, 32, device="meta")):
        with pytest.raises(InvalidArgumentError, match="memory of its own"):
            acts(prompts, [0, 1], out=out)
    with pytest.raises(InvalidArgumentError, match="out="):
        acts(prompts, [0, 1], None, out=np.zeros((7, 2, 32)))
    with pytest.raises(InvalidArgumentError, match="out="):
        acts(prompts, [0, 1], cache_only=True, out=np.zeros((7, 2, 32)))


@pytest.mark.parametrize("pool", ["last", None])
def test_batches_give_the_whole_in_order(model, prompts, pool):
    acts = Activations(MemoryStore(), model)
    pieces = list(acts.batches(prompts, [1, 2], pool, batch_size=3))
    assert [len(piece) for piece in pieces] == [3, 3, 1]
    whole = acts(prompts, [1, 2], pool)
    joined = torch.cat(pieces) if pool else [each for piece in pieces for each in piece]
    assert same(joined, whole)


def test_batches_complain_before_the_first_one_is_asked_for(model):
    with pytest.raises(InvalidArgumentError, match="prompt 1"):
        Activations(MemoryStore(), model).batches([[1], []], 0)


def test_the_result_has_the_dtype_asked_for(make_model, prompts):
    acts = Activations(MemoryStore(), make_model().to(torch.bfloat16))
    exact = acts(prompts, 1)
    for dtype in ("float32", torch.float32, np.float32, np.dtype("float32")):
        assert same(acts(prompts, 1, dtype=dtype), exact.float())
    assert [each.dtype for each in acts(prompts, 1, None, dtype="float64")] == [torch.float64] * 7
    for dtype in ("int8", "floaty", 32, torch.int64):
        with pytest.raises(InvalidArgumentError, match="dtype="):
            acts(prompts, 1, dtype=dtype)


@pytest.mark.parametrize("pool", ["last", None])
def test_what_the_caller_does_to_a_result_never_reaches_the_cache(model, prompts, pool):
    acts = Activations(MemoryStore(), model)
    for _ in range(2):  # a computed result, then a kept one
        result = acts(prompts, [0, 1], pool)
        expected = [each.clone() for each in result]
        for each in result:
            each.mul_(0.0)
        assert same(list(acts(prompts, [0, 1], pool)), expected)


def test_results_take_part_in_training(model, prompts):
    result = Activations(MemoryStore(), model)(prompts, 1)
    probe = torch.nn.Linear(32, 1)
    probe(result).sum().backward()
    assert probe.weight.grad is not None
    result += 1.0  # no inference tensor


@pytest.mark.parametrize("pool", ["last", None])
def test_a_store_that_keeps_nothing_still_gives_right_results(model, prompts, pool):
    store = MemoryStore(0)
    acts = Activations(store, model)
    expected = Activations(MemoryStore(), model)(prompts, [0, 1], pool)
    for _ in range(2):
        assert same(acts(prompts, [0, 1], pool), expected)
    assert store.events.stats.drops["disabled"] > 0


@pytest.mark.parametrize("pool", ["last", None])
def test_an_unusable_entry_is_a_counted_miss_and_is_replaced(model, prompts, pool):
    store = MemoryStore()
    acts = Activations(store, model)
    expected = acts(prompts, [0, 1], pool)
    listed = list(entries(store).values())
    for index, entry in enumerate(listed):
        whole = store.fetch_many([entry.key])[0]
        damage = [whole.value[:-1], b"no tensors", whole.value[:0], store.get(listed[-index - 1].key)][index % 4]
        store.put(entry.key, bytes(damage), namespace=entry.namespace, meta=entry.meta, parent=whole.parent)
    again = acts(prompts, [0, 1], pool)
    for left, right in zip(again, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)
    assert store.events.stats.misses["mismatch"] > 0
    assert same(acts(prompts, [0, 1], pool, on_miss="error"), again)


def test_private_entries_hold_neither_text_nor_ids(model, tokenizer):
    store = MemoryStore()
    acts = Activations(store, model, tokenizer, private=True)
    words = " ".join(f"w{number}" for number in range(100))
    for pool in ("last", None):
        cold = acts([words, "w7"], 1, pool)
        assert same(acts([words, "w7"], 1, pool, on_miss="error"), cold)
    ids = np.array(tokenizer(words)["input_ids"], dtype=np.uint32)
    for entry in store.entries():
        assert "text" not in entry.meta
        assert ids[:8].tobytes() not in bytes(store.get(entry.key))


@pytest.mark.parametrize("pool", ["last", None])
def test_tenants_with_different_salts_see_nothing_of_each_other(model, prompts, pool):
    store = MemoryStore()
    Activations(store, model, salt="one")(prompts, 0, pool)
    for salt in ("two", None, b"one"):
        with pytest.raises(NotFoundError):
            Activations(store, model, salt=salt)(prompts, 0, pool, on_miss="error")
    Activations(store, model, salt="one")(prompts, 0, pool, on_miss="error")


def test_entries_carry_what_people_look_for(model, tokenizer):
    store = MemoryStore()
    acts = Activations(store, model, tokenizer, ttl_seconds=60)
    acts(["w1 " * 150], [2], "mean", tags=["probe"])
    (entry,) = store.entries(acts.namespace)
    assert entry.kind == "activations"
    assert entry.namespace == f"activations/{acts.fingerprint[:16]}"
    assert entry.n_tokens == 151
    assert entry.compute_seconds > 0
    assert entry.expires is not None
    assert entry.meta["tags"] == ["probe"]
    assert entry.meta["model"] == acts.fingerprint[:16]
    assert len(entry.meta["text"]) == 200
    components = entry.meta["id"]["components"]
    assert (components["site"], components["layers"], components["pool"]) == ("block_out", [2], "mean")


@pytest.mark.parametrize(
    ("given", "kept"), [("probe-7", ["probe-7"]), (None, None), ((), None), (("a", "b"), ["a", "b"])]
)
def test_one_tag_may_be_given_as_a_word(model, given, kept):
    store = MemoryStore()
    acts = Activations(store, model)
    acts([[1, 2, 3]], [2], tags=given)
    (entry,) = store.entries(acts.namespace)
    assert entry.meta.get("tags") == kept


@pytest.mark.parametrize("given", [7, [7], {"a": "b"}, [None]])
def test_tags_that_are_no_words_are_refused(model, given):
    with pytest.raises(InvalidArgumentError, match="such as"):
        Activations(MemoryStore(), model)([[1, 2, 3]], [2], tags=given)


def test_a_model_without_embeddings_of_tokens_is_refused(model, monkeypatch):
    def raises(self):
        raise NotImplementedError("it has characters.")

    monkeypatch.setattr(type(model), "get_input_embeddings", raises)
    with pytest.raises(UnsupportedModelError, match=r"it has characters\. Pass extractor="):
        Activations(MemoryStore(), model)


def test_threads_may_share_it(make_model, prompts):
    acts = Activations(MemoryStore(), make_model())
    expected = Activations(MemoryStore(), make_model())(prompts, "all", "mean")
    results, errors = {}, []

    def work(number):
        try:
            results[number] = acts(prompts[number % 3 :], "all", "mean", batch_size=1 + number)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for number, result in results.items():
        torch.testing.assert_close(result, expected[number % 3 :], rtol=1e-4, atol=1e-5)


def test_a_progress_bar_counts_the_prompts_that_are_computed(model, prompts, capsys):
    acts = Activations(MemoryStore(), model)
    acts(prompts, 0, progress=True)
    assert "7/7" in capsys.readouterr().err
    acts(prompts, 1)
    assert capsys.readouterr().err == ""


def test_a_batch_that_does_not_fit_in_memory_is_halved(model, prompts, count_forwards):
    def too_large(module, args):
        if len(args[0]) > 2:
            raise torch.OutOfMemoryError("no room")

    too_large._lmstash = True
    model.model.layers[1].register_forward_pre_hook(too_large)
    acts = Activations(MemoryStore(), model)
    result = acts(prompts, 3, batch_size=7)
    torch.testing.assert_close(result[4, 0], plain(model, prompts[4], [3])[0, -1], rtol=1e-4, atol=1e-5)


def test_model_and_extractor_are_one_of_the_two(model):
    for options in ({}, {"model": model, "extractor": object()}):
        with pytest.raises(InvalidArgumentError, match="one of the two"):
            Activations(MemoryStore(), **options)


def test_batch_size_is_a_positive_number(model, prompts):
    for batch_size in (0, -1, 2.0, True):
        with pytest.raises(InvalidArgumentError, match="batch_size"):
            Activations(MemoryStore(), model)(prompts, 0, batch_size=batch_size)
