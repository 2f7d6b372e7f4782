"""`attach` to models of which all logits are asked for: the scores of restored tokens are theirs, bit for bit."""

import random
import sys
import threading

import llama_cpp
import numpy as np
import pytest
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

import lmstash
from lmstash.adapters.llama_cpp import Llama, attach
from lmstash.caches.states.cache import Loaded
from lmstash.caches.states.scores import RUN_TOKENS
from lmstash.store.memory import MemoryStore

from .conftest import say
from .toys import KINDS, VOCABULARY, write_toy

OPTIONS = {"n_ctx": 1024, "n_batch": 128, "n_ubatch": 128, "logits_all": True}


@pytest.fixture
def stash(tmp_path):
    with lmstash.open(tmp_path / "stash") as opened:
        yield opened


@pytest.fixture
def toy(load, tmp_path):
    def make(kind="llama", loaded_by=llama_cpp.Llama, **options):
        path = tmp_path / f"{kind}.gguf"
        if not path.exists():
            write_toy(path, kind)
        return load(path=path, kind=loaded_by, **(OPTIONS | options))

    return make


def ids_of(n_tokens, seed=0):
    return np.random.default_rng(seed).integers(3, VOCABULARY - 2, 1000)[:n_tokens].tolist()


def fresh_scores(llm, ids, n_new):
    llm.reset()
    llm._ctx.kv_cache_clear()
    text = say(llm, ids, n_new)
    return text, llm._scores.copy()


def test_a_prompt_kept_without_scores_is_computed_and_then_kept_with_them(toy, stash):
    ids = ids_of(100)
    bare = attach(toy(logits_all=False), stash)
    say(bare._llm(), ids, 2)
    bare.flush()
    llm = toy()
    attachment = attach(llm, stash)
    assert attachment.kept_tokens(ids) == 0
    said = say(llm, ids, 2)
    assert llm._eval_tokens >= len(ids)
    wanted, scores = fresh_scores(toy(), ids, 2)
    assert said == wanted
    assert np.array_equal(llm._scores, scores)
    attachment.flush()
    assert attachment.kept_tokens(ids) == len(ids)
    say(llm, ids_of(100, 1), 1)
    attachment.flush()
    puts, fed = stash.stats.puts, llm._eval_tokens
    say(llm, ids, 2)
    attachment.flush()
    assert llm._eval_tokens - fed <= 3
    assert stash.stats.puts == puts  # all of it is kept


def test_a_state_without_its_scores_is_not_taken_in(toy, stash):
    llm = toy(loaded_by=Llama)
    say(llm, ids_of(40), 1)
    blob, before, n_tokens = llm.save_state().blob, llm._scores.copy(), llm.n_tokens
    origin = llm.identity_now()
    for scores in (None, before[:-1], before[:, :-1]):
        taken = llm.take_in(Loaded(blob, n_tokens, 0.0, scores), llm.input_ids[:n_tokens], origin, sequence=False)
        assert not taken
        assert llm.n_tokens == n_tokens
        assert np.array_equal(llm._scores, before)
    assert llm.take_in(Loaded(blob, n_tokens, 0.0, before), llm.input_ids[:n_tokens], origin, sequence=False)


@pytest.mark.parametrize("compressed", [True, False])
def test_scores_that_wait_to_be_written_do_not_change_with_the_context(toy, stash, monkeypatch, compressed):
    if not compressed:
        monkeypatch.setitem(sys.modules, "zstandard", None)
    llm, reference = toy(), toy()
    attachment = attach(llm, stash)
    put_many, gate = stash.store.put_many, threading.Event()

    def slow(writes, **options):
        gate.wait(20)
        return put_many(writes, **options)

    monkeypatch.setattr(stash.store, "put_many", slow)
    for seed in range(3):
        say(llm, ids_of(150, seed), 1)
    assert stash.writes.waiting_bytes, "it waited for the store"
    gate.set()
    attachment.flush()
    for seed in range(3):
        ids = ids_of(150, seed)
        assert attachment.kept_tokens(ids) == 150
        fed = llm._eval_tokens
        text = say(llm, ids, 2)
        assert llm._eval_tokens - fed <= 3
        wanted, scores = fresh_scores(reference, ids, 2)
        assert text == wanted
        assert np.array_equal(llm._scores[:149], scores[:149])


def test_restored_scores_are_kept_with_what_goes_on_from_them(toy, stash):
    short, long = ids_of(96), ids_of(200)
    first = attach(toy(), stash)
    say(first._llm(), short, 1)
    first.flush()
    llm, elsewhere = toy(), MemoryStore()
    attach(llm, stash)
    say(llm, short, 1)
    assert llm._eval_tokens <= 2
    attachment = attach(llm, elsewhere)  # where nothing is kept: it comes from the context
    say(llm, long, 1)
    assert llm._eval_tokens < 110
    attachment.flush()
    other = toy()
    assert attach(other, elsewhere).kept_tokens(long) == len(long)
    say(other, long, 1)
    _, scores = fresh_scores(toy(), short, 1)
    assert np.array_equal(other._scores[:95], scores[:95])


def test_scores_that_a_program_wrote_over_are_not_kept(toy, stash):
    ids = ids_of(100)
    llm = toy()
    attachment = attach(llm, stash)

    def scribbling(_ids, _scores):
        llm.scores[40] = -1.0
        return False

    say(llm, ids, 2, stopping_criteria=llama_cpp.StoppingCriteriaList([scribbling]))
    attachment.flush()
    other = attach(toy(), stash)
    assert other.kept_tokens(ids) == 40 // RUN_TOKENS * RUN_TOKENS
    bare = attach(toy(logits_all=False), stash)
    assert bare.kept_tokens(ids) == len(ids)


def test_speculative_decoding_says_the_same_from_a_restored_prompt(toy, stash):
    ids = ids_of(20) * 6
    draft = {"draft_model": LlamaPromptLookupDecoding(num_pred_tokens=4)}
    wanted = say(toy(**draft), ids, 16)
    for number in range(2):
        llm = toy(**draft)
        attachment = attach(llm, stash)
        assert say(llm, ids, 16) == wanted
        assert (llm._eval_tokens < len(ids)) == (number > 0)
        attachment.flush()


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_every_family_are_those_of_a_fresh_run(toy, stash, kind, exact):
    llm, reference = toy(kind), toy(kind)
    attachment = attach(llm, stash, exact=exact)
    draw = random.Random(0)
    for _ in range(12):
        ids = [*ids_of(draw.randrange(1, 300), draw.randrange(2)), *ids_of(draw.randrange(3, 80), draw.randrange(2, 4))]
        attachment.flush()
        text = say(llm, ids, 3)
        wanted, scores = fresh_scores(reference, ids, 3)
        assert text == wanted
        if exact:
            assert np.array_equal(llm._scores, scores)
        else:
            np.testing.assert_allclose(llm._scores, scores, atol=0.2)
    assert stash.stats.hits > 0
