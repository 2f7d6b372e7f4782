"""Every family gives what its own plain forward gives: cut KV where that is right, whole passes where not."""

import copy
import random

import pytest
import torch

import lmstash
from lmstash.caches.logprobs.language_model import LanguageModel, Reuse

from .conftest import FAMILIES, VOCABULARY

WHOLE = {"llama4_text", "mamba", "mamba2", "bamba", "granitemoehybrid", "recurrent_gemma", "qwen3_next", "lfm2", "rwkv"}
NOTHING = {"llama, dynamic rope"}
WITHOUT_HEAD = {"llama4_text"}
TOLERANCE = 2e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_family_bears(build_family, family):
    found = LanguageModel(build_family(family))
    expected = Reuse.INSIDE if family in WHOLE else Reuse.NOTHING if family in NOTHING else Reuse.KV
    assert found.reuse is expected
    assert (found.head is None) == (family in WITHOUT_HEAD)


@pytest.mark.parametrize("family", FAMILIES)
def test_contexts_of_all_kinds_at_once(build_family, plain, contexts, family):
    model = build_family(family)
    with lmstash.open("memory://") as stash:
        lp = stash.logprobs(model)
        rows = lp.batch_next_token_logprobs(contexts)
        for context, row in zip(contexts, rows, strict=True):
            assert (row - plain(model, context)).abs().max() < TOLERANCE, len(context)


@pytest.mark.parametrize("family", FAMILIES)
def test_particles_that_grow_fork_and_fall_behind(build_family, plain, family):
    """More steps than any window is long, so that what has left it is masked, not attended to."""
    generator = random.Random(1)
    model = build_family(family)
    with lmstash.open("memory://") as stash:
        lp = stash.logprobs(model)
        particles = [[generator.randrange(VOCABULARY) for _ in range(5)]] * 4
        seen = []
        for step in range(16):
            rows = lp.batch_next_token_logprobs(particles)
            expected = torch.stack([plain(model, particle) for particle in particles])
            assert (rows - expected).abs().max() < TOLERANCE, step
            seen.append(rows.std(0).mean())
            grown = [generator.choice(particles) if step % 5 == 4 else particle for particle in particles]
            counts = [generator.choice((0, 1, 1, 1, 3)) if step % 3 == 2 else 1 for _ in particles]
            particles = [
                [*each, *[generator.randrange(VOCABULARY) for _ in range(count)]]
                for each, count in zip(grown, counts, strict=True)
            ]
        assert max(seen) > 0.01  # they differ, so that a mistaken row shows


@pytest.mark.parametrize(
    "family", ["llama", "gpt2", "gemma2", "gemma3_text", "mamba", "llama4_text", "llama, dynamic rope"]
)
def test_score_is_what_one_plain_pass_gives(build_family, family):
    model = build_family(family)
    generator = random.Random(3)
    ids = [generator.randrange(VOCABULARY) for _ in range(150)]
    with torch.no_grad():
        logits = copy.deepcopy(model)(input_ids=torch.tensor([ids])).logits[0, :-1].float()
    expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    with lmstash.open("memory://") as stash:
        scores = stash.logprobs(model).score(ids)
        assert scores.shape == (149,)
        assert (scores - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("family", ["gemma2", "granite", "cohere", "opt", "bloom"])
def test_a_row_made_of_its_hidden_state_goes_through_the_familys_own_head(build_family, plain, contexts, family):
    """Soft caps and scales: without room for hot rows, every row is made of a hidden state anew."""
    model = build_family(family)
    with lmstash.open("memory://") as stash:
        lp = stash.logprobs(model, row_bytes=0)
        first = lp.batch_next_token_logprobs(contexts)
        again = lp.batch_next_token_logprobs(contexts)
        assert (first - again).abs().max() < 4e-5
        for context, row in zip(contexts, again, strict=True):
            assert (row - plain(model, context)).abs().max() < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(make_model, plain, contexts, dtype):
    model = make_model().to(dtype)
    with lmstash.open("memory://") as stash:
        lp = stash.logprobs(model)
        rows = lp.batch_next_token_logprobs(contexts)
        assert rows.dtype is torch.float32
        for context, row in zip(contexts, rows, strict=True):
            assert (row - plain(model, context)).abs().max() < 0.05
        assert lp.batch_next_token_logprobs(contexts).equal(rows)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_implementations(make_model, plain, contexts, attention):
    model = make_model(attn_implementation=attention)
    with lmstash.open("memory://") as stash:
        rows = stash.logprobs(model).batch_next_token_logprobs(contexts)
        for context, row in zip(contexts, rows, strict=True):
            assert (row - plain(model, context)).abs().max() < TOLERANCE
