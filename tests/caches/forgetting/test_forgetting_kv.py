"""Forgetting the KV of one prompt: nothing of it is found afterwards, and others stay right."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import lmstash

STEPS = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0}


def answer(asked, ids):
    return asked.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), **STEPS)[0].tolist()


def found(kv, ids):
    """How many tokens of a prompt are restored."""
    return kv.past([*ids, 0])[1]


def starts(stash):
    """Where each kept piece begins, by key."""
    stash.flush()
    return {entry.key: entry.meta["id"]["components"]["start"] for entry in stash.store.entries("kv/")}


@pytest.mark.parametrize("n_tokens", [20, 64, 100, 150])
@pytest.mark.parametrize("storage_dtype", [None, "float16"])
def test_a_prompt_goes_with_what_was_generated_in_its_last_block(stash, model, tokens, n_tokens, storage_dtype):
    kv, ids = stash.kv(model, storage_dtype=storage_dtype), tokens(n_tokens)
    answered = answer(kv, ids)
    stash.flush()
    assert found(kv, answered[:-1]) == n_tokens + 5
    removed = stash.forget(prompt=ids, dry_run=True)
    assert found(kv, answered[:-1]) == n_tokens + 5
    assert stash.forget(prompt=ids) == removed
    assert found(kv, answered[:-1]) == found(kv, ids) == 0
    assert [start for start in starts(stash).values() if start < n_tokens] == []
    assert stash.forget(prompt=ids).entries == 0
    assert answer(kv, ids) == answer(model, ids)


@pytest.mark.parametrize("n_tokens", [20, 64, 100, 150])
@pytest.mark.parametrize("shared", [0, 64])
def test_another_prompt_keeps_its_own_tail_and_is_answered_as_before(stash, model, tokens, n_tokens, shared):
    kv, mine, other = stash.kv(model), tokens(n_tokens), [*tokens(shared), *tokens(12, seed=1)]
    answer(kv, other)
    own = {key for key, start in starts(stash).items() if start >= shared}
    answer(kv, mine)
    stash.forget(prompt=mine)
    assert own <= set(starts(stash))
    assert found(kv, mine) == 0
    for _ in range(2):
        answered = answer(kv, other)
        assert answered == answer(model, other)
    assert found(kv, answered[:-1]) == len(other) + 5


@pytest.mark.parametrize("n_tokens", [70, 100, 130])
def test_blocks_that_part_from_the_prompt_within_its_last_block_stay(tmp_path, model, tokens, n_tokens):
    mine, other = tokens(n_tokens), [*tokens(66), *tokens(200, seed=1)]  # two tokens of the second block are shared
    with lmstash.open(tmp_path / "s") as stash:
        kv = stash.kv(model)
        kv.prefill(other)
        own = {entry.key for entry in stash.store.entries("kv/") if entry.n_tokens and entry.parent}
        kv.prefill(mine)
        stash.forget(prompt=mine)
        assert own
        assert own <= set(starts(stash))
        assert answer(kv, other) == answer(model, other)


def test_a_block_that_leaned_on_one_that_went_is_computed_again(tmp_path, model, tokens):
    mine, other = tokens(128), [*tokens(110), *tokens(90, seed=1)]
    with lmstash.open(tmp_path / "s") as stash:
        kv = stash.kv(model)
        kv.prefill(mine)
        kv.prefill(other)
        assert any(entry.meta["id"]["components"]["skip"] == 46 for entry in stash.store.entries("kv/"))
        stash.forget(prompt=mine)
        for _ in range(2):
            assert answer(kv, other) == answer(model, other)
        assert found(kv, other) == len(other)


def test_longer_prompts_that_begin_with_it_lose_the_block_in_which_it_ends_and_no_more(stash, model, tokens):
    kv, longer = stash.kv(model), tokens(300)
    kv.prefill(longer)
    before = starts(stash)
    stash.forget(prompt=longer[:20])
    assert set(starts(stash)) == {key for key, start in before.items() if start >= 64}
    kv.prefill(longer)
    assert found(kv, longer) == 300


def test_a_prompt_of_other_tokens_removes_nothing(stash, model, tokens):
    kv = stash.kv(model)
    kv.prefill(tokens(150))
    before = starts(stash)
    for n_tokens in (20, 64, 100, 150):
        stash.forget(prompt=tokens(n_tokens, seed=1)[::-1])
    if stash.private:  # whole blocks of which nobody can tell how they begin
        before = {key: start for key, start in before.items() if start != 0}
    assert set(starts(stash)) == before.keys()


def test_another_salt_is_left_alone_and_needs_its_own(tmp_path, model, tokens):
    for salt in (None, "a", "b"):
        with lmstash.open(tmp_path / "s", salt=salt) as stash:
            stash.kv(model).prefill(tokens(100))
    with lmstash.open(tmp_path / "s", salt="a") as stash:
        assert stash.forget(prompt=tokens(100)).entries == 3
        assert found(stash.kv(model), tokens(100)) == 0
    for salt in (None, "b"):
        with lmstash.open(tmp_path / "s", salt=salt) as stash:
            assert found(stash.kv(model), tokens(100)) == 100


def test_kv_of_a_model_that_is_not_described_any_more_goes_too(stash, model, tokens):
    kv = stash.kv(model)
    kv.prefill(tokens(100))
    stash.prune(kind="models")
    stash.forget(prompt=tokens(100))
    assert starts(stash) == {}


def test_kv_on_its_way_to_the_store_does_not_come_back(model, tokens):
    with lmstash.open("memory://") as stash:
        kv = stash.kv(model)
        answer(kv, tokens(100))  # nobody waits for it
        stash.forget(prompt=tokens(100))
        stash.flush()
        assert found(kv, tokens(100)) == 0


def test_states_of_recurrent_layers_go_with_their_blocks(stash, tokens):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    layers = {"num_key_value_heads": 2, "layer_types": ["conv", "full_attention", "conv"]}
    config = AutoConfig.for_model("lfm2", vocab_size=120, max_position_embeddings=512, **shape, **ends, **layers)
    kv = stash.kv(AutoModelForCausalLM.from_config(config).eval())
    assert not kv.reason
    longer = [*tokens(140), *tokens(100, seed=1)]
    for ids in (tokens(150), longer, tokens(90, seed=2)):
        answer(kv, ids)
    stash.flush()
    assert found(kv, tokens(150)) == 128
    other = {entry.key for entry in stash.store.entries("kv/")}
    stash.forget(prompt=tokens(140))
    left = {entry.key for entry in stash.store.entries("kv/")}
    assert 0 < len(left) < len(other)
    assert found(kv, tokens(150)) == found(kv, longer) == 0
    assert found(kv, tokens(90, seed=2)) == 64
    states = [entry for entry in stash.store.entries("kv/") if entry.meta["id"].get("site") == "state"]
    assert len(states) == 1  # of the third prompt
