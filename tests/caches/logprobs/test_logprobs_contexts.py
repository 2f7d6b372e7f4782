"""Contexts that are extended and forked, and scores."""

import random

import pytest
import torch

import lmstash

from .conftest import VOCABULARY


@pytest.fixture
def lp(model):
    with lmstash.open("memory://") as stash:
        yield stash.logprobs(model)


def test_extend_and_fork_leave_the_one_they_come_from(lp, model, plain):
    first = lp.start([1, 2, 3])
    second = first.extend(7)
    third = second.fork()
    fourth = third.extend([8, 9])
    assert [list(each.ids) for each in (first, second, third, fourth)] == [
        [1, 2, 3],
        [1, 2, 3, 7],
        [1, 2, 3, 7],
        [1, 2, 3, 7, 8, 9],
    ]
    assert [len(each) for each in (first, fourth)] == [3, 6]
    for each in (fourth, first, third, second):
        assert (each.logprobs() - plain(model, each.ids)).abs().max() < 1e-5
    assert second.logprobs().equal(third.logprobs())


def test_particles_by_contexts_feed_one_token_a_step(lp, model, plain, count_fed):
    generator = random.Random(0)
    particles = [lp.start(range(30))] * 6
    lp.batch_next_token_logprobs(particles)
    fed = count_fed(model)
    for step in range(12):
        if step % 4 == 3:
            particles = [generator.choice(particles).fork() for _ in particles]
        particles = [each.extend(generator.randrange(VOCABULARY)) for each in particles]
        rows = lp.batch_next_token_logprobs(particles)
        distinct = len({tuple(each.ids) for each in particles})
        assert fed.take() == (1, distinct)
        assert (rows[2] - plain(model, particles[2].ids)).abs().max() < 1e-5
        fed.take()


def test_the_index_forgets_contexts_that_nobody_holds(lp):
    empty = lp._places.info().n_tokens
    held = [lp.start([50, 51, each]) for each in range(20)]
    assert lp._places.info().n_tokens > empty
    held.clear()
    assert lp._places.info().n_tokens == empty


def test_scores_of_texts_of_all_lengths(lp, model):
    for length in (1, 2, 3, 63, 64, 65, 66, 128, 129, 200):
        ids = [_token(length * 1000 + place) for place in range(length)]
        scores = lp.score(ids)
        assert scores.shape == (length - 1,)
        if length > 1:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].float()
            expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
            assert (scores - expected).abs().max() < 1e-5
            assert lp.score(ids).equal(scores)


def test_a_text_is_scored_in_one_pass_and_known_then(lp, model, count_fed):
    fed = count_fed(model)
    ids = [_token(place) for place in range(150)]
    scores = lp.score(ids)
    assert fed.take() == (1, 149)
    lp.flush()
    lp.clear()
    assert lp.score(ids).equal(scores)
    assert fed.take()[1] <= 4 * 22  # the probe alone


def test_texts_that_begin_alike_share_the_blocks_of_their_beginning(lp, model, count_fed):
    shared = [_token(-place) for place in range(130)]
    first = lp.score([*shared, 1, 2, 3])
    fed = count_fed(model)
    second = lp.score([*shared, 4, 5])
    assert second[:128].allclose(first[:128], atol=1e-5)
    assert fed.take() == (1, 131 - 127)  # from the last token of the block before on
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*shared, 4, 5]])).logits[0, :-1].float()
    expected = torch.log_softmax(logits, -1).gather(1, torch.tensor([*shared[1:], 4, 5])[:, None])[:, 0]
    assert (second - expected).abs().max() < 1e-5


def test_scores_agree_with_rows(lp):
    ids = [5, 6, 7, 8]
    scores = lp.score(ids)
    rows = lp.batch_next_token_logprobs([ids[:length] for length in (1, 2, 3)])
    picked = rows.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    assert (scores - picked).abs().max() < 1e-5


def test_scores_are_the_callers_own(lp):
    first = lp.score([1, 2, 3])
    kept = first.clone()
    first.zero_()
    assert lp.score([1, 2, 3]).equal(kept)


def _token(seed):
    return random.Random(seed).randrange(VOCABULARY)
