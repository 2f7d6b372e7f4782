"""`attach`: as the drop-in caches, and in exact mode bit for bit what a fresh run says."""

import random

import llama_cpp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lmstash
from lmstash.adapters.llama_cpp import LlamaRAMCache, attach
from lmstash.adapters.llama_cpp.exactness import Exactness

from .conftest import STORY, say
from .toys import VOCABULARY, write_toy


@pytest.fixture
def stash(tmp_path):
    with lmstash.open(tmp_path / "stash") as opened:
        yield opened


@pytest.mark.model
def test_a_model_that_exists_is_attached_and_detached(load, plain, stash):
    llm, other = load(kind=llama_cpp.Llama), load(kind=llama_cpp.Llama)
    own = LlamaRAMCache()
    llm.set_cache(own)
    attachment = attach(llm, stash)
    text = say(llm, STORY)
    assert text == say(plain(), STORY)
    attach(other, stash)
    assert other.tokenize(STORY.encode()) in other.cache
    assert say(other, STORY) == text
    n = len(attachment.cache)
    with attachment.paused():
        say(llm, "A secret is", 2)
        assert llm.cache is None
    assert len(attachment.cache) == n
    attachment.detach()
    say(llm, "Another one", 2)
    assert len(attachment.cache) == n


OPTIONS = {
    "flash attention off": {},
    "flash attention on": {"flash_attn": True},
    "q8_0": {"flash_attn": True, "type_k": 8, "type_v": 8},
}


def logits(llm):
    """Return the logits of the last token evaluated."""
    return np.ctypeslib.as_array(llm._ctx.get_logits(), (llm.n_vocab(),)).copy()


def first_logits(llm, ids):
    next(iter(llm.generate(ids, temp=0.0)))
    return logits(llm)


def compare_texts(llm, reference, stash, n_prompts, n_new):
    """Ask both the same prompts, which begin alike; the reference starts afresh each time."""
    attachment = attach(llm, stash, exact=True)
    story = llm.tokenize((STORY * 4).encode())
    draw = random.Random(0)
    cached = 0
    for number in range(n_prompts):
        ids = story[: draw.randrange(60, len(story))] + llm.tokenize(f"Number {number} says".encode())
        cached = attachment.cache.store.events.stats.hits
        reference.reset()
        assert say(llm, ids, n_new) == say(reference, ids, n_new), (number, len(ids))
    assert cached > 0


@pytest.mark.model
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_exact_mode_on_the_real_model_is_a_fresh_run(load, plain, stash, options):
    compare_texts(load(**options), plain(**options), stash, 4, 4)


@pytest.mark.campaign
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_exact_mode_over_200_prompts(load, plain, stash, options):
    compare_texts(load(**options), plain(**options), stash, 200, 8)


@pytest.mark.parametrize("options", [{}, {"flash_attn": True}], ids=["off", "on"])
@pytest.mark.parametrize("seed", range(3))
def test_exact_mode_says_every_bit_of_a_fresh_run(load, tmp_path, stash, options, seed):
    path = write_toy(tmp_path / "toy.gguf", "llama", seed=seed)
    options = {"n_ctx": 1024, "n_batch": 128, "n_ubatch": 128, **options}
    llm, reference = load(path=path, **options), load(path=path, kind=llama_cpp.Llama, **options)
    attach(llm, stash, exact=True)
    draw = random.Random(seed)
    branches = [np.random.default_rng(each).integers(3, VOCABULARY - 1, 500).tolist() for each in range(3)]
    for _ in range(25):
        ids = branches[draw.randrange(2)][: draw.randrange(1, 400)] + branches[2][: draw.randrange(100)]
        reference.reset()
        reference._ctx.kv_cache_clear()
        assert say(llm, ids, 3) == say(reference, ids, 3)
        reference.reset()
        assert np.array_equal(first_logits(llm, ids), first_logits(reference, ids))
    assert stash.stats.partial_hits > 10


@given(st.integers(1, 600), st.integers(0, 600), st.sampled_from([(128, 64), (512, 64), (128, 2), (64, 64), (0, 64)]))
def test_a_prompt_goes_on_only_where_a_batch_is_large_enough(n_tokens, most, batches):
    exactness = Exactness(*batches)
    point = exactness.point(most, n_tokens)
    assert 0 <= point <= most
    assert point < n_tokens
    if point and exactness.step:
        end = min(n_tokens, (point // exactness.step + 1) * exactness.step)
        assert point % exactness.step == 0 or end - point >= exactness.least


@pytest.mark.parametrize(
    ("settings", "n_batch", "expected"),
    [
        ({"flash_attn_type": 1, "n_ubatch": 512}, 512, (512, 64)),
        ({"flash_attn_type": 0, "n_ubatch": 128}, 512, (128, 2)),
        ({"flash_attn_type": 1, "n_ubatch": 32}, 512, (0, 64)),
        ({"flash_attn_type": 0, "n_ubatch": 100}, 512, (0, 2)),
    ],
)
def test_the_batches_of_a_context(settings, n_batch, expected):
    assert Exactness.of(settings, n_batch) == Exactness(*expected)
