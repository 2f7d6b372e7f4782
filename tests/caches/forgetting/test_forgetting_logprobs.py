"""Forgetting the log-probabilities of one prompt, in the store and in RAM."""

import pytest
import torch

import lmstash


def rows(stash):
    """How many tokens each kept answer is after, by key."""
    stash.flush()
    return {entry.key: entry.n_tokens for entry in stash.store.entries("logprobs/")}


@pytest.mark.parametrize("n_tokens", [20, 64, 100, 150])
@pytest.mark.parametrize("keep", ["hidden", "exact", "uint16"])
def test_a_prompt_goes_with_its_beginnings_and_what_goes_on_in_its_last_block(stash, model, tokens, n_tokens, keep):
    lp, ids = stash.logprobs(model, keep=keep), tokens(n_tokens)
    row = lp.next_token_logprobs(ids)
    lp.batch_next_token_logprobs([ids[:-1], [*ids, 1], [*ids, 1, 2], ids[:3]])
    scores = lp.score(ids)
    removed = stash.forget(prompt=ids, dry_run=True)
    assert removed.entries == len([n for n in rows(stash).values() if n_tokens % 64 or n <= n_tokens])
    assert stash.forget(prompt=ids) == removed
    assert all(n > n_tokens and n_tokens % 64 == 0 for n in rows(stash).values())
    before = lp.fed_tokens
    assert torch.allclose(lp.next_token_logprobs(ids), row, atol=1e-5)
    assert torch.allclose(lp.score(ids), scores, atol=1e-5)
    assert lp.fed_tokens - before >= 2 * n_tokens - 2


@pytest.mark.parametrize("n_tokens", [20, 64, 100, 150])
@pytest.mark.parametrize("shared", [0, 64])
def test_another_prompt_keeps_its_own_rows_and_is_answered_as_before(stash, model, tokens, n_tokens, shared):
    lp = stash.logprobs(model, keep="exact")
    mine, other = tokens(n_tokens), [*tokens(shared), *tokens(12, seed=1)]
    row, scores = lp.next_token_logprobs(other), lp.score(other)
    own = {key for key, n in rows(stash).items() if n > shared}
    lp.next_token_logprobs(mine)
    lp.score(mine)
    stash.forget(prompt=mine)
    assert own <= set(rows(stash))
    before = stash.stats.hits
    assert torch.equal(lp.next_token_logprobs(other), row)
    assert torch.allclose(lp.score(other), scores, atol=1e-5)
    assert stash.stats.hits > before


def test_rows_that_part_from_the_prompt_within_its_last_block_stay(tmp_path, model, tokens):
    with lmstash.open(tmp_path / "s") as stash:
        lp, longer = stash.logprobs(model), [*tokens(90), *tokens(40, seed=1)]
        lp.batch_next_token_logprobs([longer[:n] for n in range(1, 131)])
        stash.forget(prompt=tokens(100))
        assert sorted(rows(stash).values()) == list(range(91, 131))
        stash.forget(prompt=tokens(90))
        assert sorted(rows(stash).values()) == [129, 130]


def test_another_salt_is_left_alone_and_needs_its_own(tmp_path, model, tokens):
    for salt in (None, "a", "b"):
        with lmstash.open(tmp_path / "s", salt=salt) as stash:
            stash.logprobs(model).next_token_logprobs(tokens(100))
    with lmstash.open(tmp_path / "s", salt="a") as stash:
        assert stash.forget(prompt=tokens(100)).entries == 1
        assert len(rows(stash)) == 2


def test_rows_of_a_model_that_is_not_described_any_more_go_too(stash, model, tokens):
    lp = stash.logprobs(model)
    lp.batch_next_token_logprobs([tokens(n) for n in (7, 70, 100)])
    stash.flush()
    stash.prune(kind="models")
    stash.forget(prompt=tokens(100))
    assert rows(stash) == {}


def test_rows_in_ram_that_no_store_holds_go_too(model, tokens):
    with lmstash.open("memory://") as stash:
        lp = stash.logprobs(model)
        lp.next_token_logprobs(tokens(100))
        stash.flush()
        stash.store.prune(namespace="logprobs/")
        stash.forget(prompt=tokens(100), dry_run=True)
        fed = lp.fed_tokens
        lp.next_token_logprobs(tokens(100))
        assert lp.fed_tokens == fed  # to count takes nothing away
        stash.forget(prompt=tokens(100))
        assert lp.held_bytes == 0
        lp.next_token_logprobs(tokens(100))
        assert lp.fed_tokens >= 100
