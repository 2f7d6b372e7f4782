"""Forgetting the activations of one prompt, given as token ids."""

import pytest
import torch
from transformers import BertConfig, BertModel

import lmstash


def places(stash):
    """Where each kept value begins, by key: None for pooled ones."""
    entries = stash.store.entries("activations/")
    return {entry.key: entry.meta["id"]["components"].get("start") for entry in entries}


@pytest.mark.parametrize("n_tokens", [20, 64, 100, 150])
@pytest.mark.parametrize("storage_dtype", [None, "float16"])
def test_a_prompt_goes_pooled_and_raw_in_every_layer(stash, model, tokens, n_tokens, storage_dtype):
    acts, ids = stash.activations(model, storage_dtype=storage_dtype), tokens(n_tokens)
    acts([ids], [0, 1])
    acts([ids], [2], pool="mean")
    raw = acts([ids], [0, 2], pool=None)[0]
    acts([ids], [1], pool=None)
    removed = stash.forget(prompt=torch.tensor([ids]), dry_run=True)
    assert removed.entries == len(places(stash))
    assert stash.forget(prompt=torch.tensor([ids])) == removed
    assert places(stash) == {}
    assert acts.missing([ids], [0], pool=None) == acts.missing([ids], [0]) == [ids]
    assert torch.equal(acts([ids], [0, 2], pool=None)[0], raw)


@pytest.mark.parametrize("n_tokens", [20, 64, 100, 150])
@pytest.mark.parametrize("shared", [0, 64])
def test_another_prompt_keeps_its_own_values_and_gets_them_as_before(stash, model, tokens, n_tokens, shared):
    acts = stash.activations(model)
    mine, other = tokens(n_tokens), [*tokens(shared), *tokens(12, seed=1)]
    pooled, raw = acts([other], [0, 1]), acts([other], [0, 1], pool=None)[0]
    own = {key for key, start in places(stash).items() if start is None or start >= shared}
    acts([mine], [0, 1])
    acts([mine], [0, 1], pool=None)
    stash.forget(prompt=mine)
    assert own <= set(places(stash))
    assert torch.equal(acts([other], [0, 1]), pooled)
    assert torch.equal(acts([other], [0, 1], pool=None)[0], raw)


def test_longer_prompts_that_begin_with_it_lose_the_block_in_which_it_ends_and_no_more(stash, model, tokens):
    acts = stash.activations(model)
    acts([tokens(300)], [0], pool=None)
    acts([tokens(300)], [0])
    before = places(stash)
    stash.forget(prompt=tokens(100))
    assert places(stash) == {key: start for key, start in before.items() if start is None or start >= 128}


def test_the_same_tokens_after_others_stay(tmp_path, model, tokens):
    with lmstash.open(tmp_path / "s") as stash:
        acts = stash.activations(model)
        mine, other = tokens(100), [*tokens(64, seed=1), *tokens(100)[64:], *tokens(200)[128:]]
        acts([mine, other], [0], pool=None)
        before = places(stash)
        assert stash.forget(prompt=mine).entries == 2
        assert len(before) - len(places(stash)) == 2
        assert acts.missing([other], [0], pool=None) == []


def test_pieces_of_which_the_first_were_evicted_go_too(tmp_path, model, tokens):
    with lmstash.open(tmp_path / "s") as stash:
        acts = stash.activations(model)
        acts([tokens(150)], [0], pool=None)
        stash.store.delete_many([key for key, start in places(stash).items() if start == 0])
        assert stash.forget(prompt=tokens(150)).entries == 2
        assert places(stash) == {}


def test_models_that_see_the_future_are_forgotten_by_the_whole_prompt(tmp_path, tokens):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    encoder = BertModel(BertConfig(**shape, vocab_size=120)).eval()
    with lmstash.open(tmp_path / "s") as stash:
        acts = stash.activations(encoder)
        acts([tokens(100), tokens(150)], [0], pool=None)
        assert stash.forget(prompt=tokens(100)).entries == 1
        assert acts.missing([tokens(100), tokens(150)], [0], pool=None) == [tokens(100)]
