"""Models of which all logits are asked for: their scores come back with the state, bit for bit, or nothing does."""

import llama_cpp
import numpy as np
import pytest
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

import lmstash
from lmstash.adapters.llama_cpp import LlamaDiskCache, LlamaRAMCache, LlamaStashCache, attach
from lmstash.caches.states.scores import RUN_TOKENS
from lmstash.store.memory import MemoryStore

from .conftest import SETTINGS, STORY, say

pytestmark = pytest.mark.model

PROMPT = STORY[:150]
ASKED = {"max_tokens": 4, "temperature": 0.0, "logprobs": 5, "echo": True}


def ask(llm, prompt, **options):
    return llm.create_completion(prompt, **{**ASKED, **options})["choices"][0]


@pytest.fixture(scope="module")
def fresh(gguf):
    """What llama-cpp-python itself says of a prompt, without a cache, and the scores of all of it."""
    opened, said = {}, {}

    def make(prompt, *, flash_attn=False, **options):
        if flash_attn not in opened:
            opened[flash_attn] = llama_cpp.Llama(str(gguf), **SETTINGS, flash_attn=flash_attn, logits_all=True)
        llm = opened[flash_attn]
        key = flash_attn, prompt, repr(sorted(options.items()))
        if key not in said:
            llm.reset()
            llm._ctx.kv_cache_clear()
            said[key] = ask(llm, prompt, **options), llm._scores.copy()
        return said[key]

    yield make
    for llm in opened.values():
        llm.close()


def close_to(said, wanted):
    """Whether two answers are the same but for the last bits of the log-probabilities."""
    ours, theirs = said["logprobs"], wanted["logprobs"]
    assert said["text"] == wanted["text"]
    assert ours["tokens"] == theirs["tokens"]
    assert ours["text_offset"] == theirs["text_offset"]
    assert ours["token_logprobs"][0] is theirs["token_logprobs"][0] is None
    np.testing.assert_allclose(ours["token_logprobs"][1:], theirs["token_logprobs"][1:], atol=0.6)
    return True


@pytest.mark.slow  # llama-cpp-python sorts the vocabulary for each token
def test_logprobs_of_a_restored_prompt_are_those_of_a_fresh_run_across_a_restart(load, fresh, tmp_path):
    wanted, scores = fresh(PROMPT)
    for number in range(2):
        cache = LlamaDiskCache(str(tmp_path / "cache"))
        llm = load(cache, logits_all=True)
        kept = len(llm.tokenize(PROMPT.encode())) - 1  # the last one is evaluated again
        said = ask(llm, PROMPT)
        if number == 0:
            assert said == wanted  # bit for bit: nothing was restored
            assert np.array_equal(llm._scores, scores)
        else:
            assert llm._eval_tokens <= 1 + 4
            assert np.array_equal(llm._scores[:kept], scores[:kept])
            for each in ("token_logprobs", "top_logprobs"):
                assert said["logprobs"][each][:kept] == wanted["logprobs"][each][:kept]
            assert close_to(said, wanted)
        cache.store.close()
        llm.close()


def test_a_longer_prompt_takes_the_scores_of_its_beginning(load):
    llm = load(LlamaRAMCache(), logits_all=True)
    say(llm, PROMPT)
    before = llm._scores.copy()
    say(llm, "Something else")
    fed = llm._eval_tokens
    ids = [*llm.tokenize(PROMPT.encode()), *llm.tokenize(b" and the lamp", add_bos=False)]
    list(zip(range(2), llm.generate(ids, temp=0.0), strict=False))  # looks at no cache
    assert llm._eval_tokens - fed > len(ids)
    say(llm, "Something else")
    fed = llm._eval_tokens
    say(llm, ids, 2)
    assert llm._eval_tokens - fed < 2 + 3 + RUN_TOKENS
    kept = (len(ids) - 3) // RUN_TOKENS * RUN_TOKENS
    assert np.array_equal(llm._scores[:kept], before[:kept])
    assert np.array_equal(np.asarray(llm.eval_logits, np.float32), llm._scores)


def test_states_without_scores_are_not_served_to_a_model_that_needs_them(load, fresh):
    cache = LlamaRAMCache()
    say(load(cache), PROMPT)
    llm = load(cache, logits_all=True)
    ids = llm.tokenize(PROMPT.encode())
    assert ids not in llm.cache
    with pytest.raises(KeyError):
        _ = llm.cache[ids]
    assert ask(llm, PROMPT) == fresh(PROMPT)[0]
    assert ids in llm.cache  # what was missing was added
    state = llm.cache[ids]
    assert len(ids) - RUN_TOKENS < state.n_tokens == len(state.scores)
    assert state.scores.any(axis=1).all()


def test_states_with_scores_serve_models_that_do_not_need_them(load, plain):
    cache = LlamaRAMCache()
    say(load(cache, logits_all=True), PROMPT)
    llm = load(cache)
    assert say(llm, PROMPT) == say(plain(), PROMPT)
    assert llm._eval_tokens <= 13
    state = llm.cache[llm.tokenize(PROMPT.encode())]
    assert not state.scores.any()
    assert not state.has_scores


def test_zeros_are_never_taken_for_scores(load):
    other, llm = load(), load(logits_all=True)
    say(other, "A short one", 1)
    with pytest.raises(RuntimeError, match="scores"):
        llm.load_state(other.save_state())
    assert llm.n_tokens == 0


def test_plain_llama_takes_the_state_that_is_handed_out(load, gguf):
    cache = LlamaRAMCache()
    llm = load(cache, logits_all=True)
    say(llm, PROMPT)
    state = llm.cache[llm.tokenize(PROMPT.encode())]
    theirs = llama_cpp.Llama(str(gguf), **SETTINGS, logits_all=True)
    theirs.load_state(state)
    assert np.array_equal(theirs._scores, llm._scores[: state.n_tokens])
    theirs.close()


def test_scores_that_were_written_over_are_not_kept(load, fresh):
    cache = LlamaRAMCache()
    llm = load(cache, logits_all=True)
    ids = llm.tokenize(PROMPT.encode())
    calls = []

    def scribbling(_ids, scores):
        calls.append(scores)
        llm.scores[20] = -1.0
        return False

    say(llm, PROMPT, 4, stopping_criteria=llama_cpp.StoppingCriteriaList([scribbling]))
    other = load(cache, logits_all=True)
    assert other.cache[ids].n_tokens == RUN_TOKENS
    calls[0][:] = 0.0  # what a program is handed is its own
    say(llm, "Something else")
    assert np.array_equal(other.cache[ids].scores, fresh(PROMPT)[1][:RUN_TOKENS])
    assert close_to(ask(other, PROMPT), fresh(PROMPT)[0])


def test_a_saved_state_that_was_written_over_is_not_kept(load):
    llm = load(LlamaRAMCache(), logits_all=True)
    ids = llm.tokenize(PROMPT.encode())
    llm.eval(ids)
    state = llm.save_state()
    state.scores[3] = 0
    llm.load_state(state)
    llm.cache[ids] = llm.save_state()
    assert ids not in llm.cache
    llm.set_cache(LlamaRAMCache())
    llm.cache[ids] = state
    assert ids not in llm.cache


def test_speculative_decoding_says_the_same_from_a_restored_state(load, gguf, tmp_path):
    prompt = "one two three four one two three four one two three four one two"
    texts = []
    for number in range(2):
        with lmstash.open(tmp_path) as stash:
            llm = load(LlamaStashCache(stash), draft_model=LlamaPromptLookupDecoding(num_pred_tokens=4), n_batch=512)
            texts.append(say(llm, prompt, 16))
            assert (llm.cache.events.stats.hits > 0) == (number > 0)
            assert (llm.cache.events.stats.misses["absent"] > 0) == (number == 0)
            assert ask(llm, prompt)["text"].startswith(prompt)
    theirs = llama_cpp.Llama(
        str(gguf), **{**SETTINGS, "n_batch": 512}, draft_model=LlamaPromptLookupDecoding(num_pred_tokens=4)
    )
    texts.append(say(theirs, prompt, 16))
    theirs.close()
    assert texts[0] == texts[1] == texts[2]


def test_streams_tell_logprobs(load, fresh):
    cache = LlamaRAMCache()
    llm = load(cache, logits_all=True)
    say(llm, PROMPT)
    say(llm, "Something else")
    chunks = llm.create_completion(PROMPT, max_tokens=4, temperature=0.0, logprobs=5, stream=True)
    said = [value for chunk in chunks for value in (chunk["choices"][0]["logprobs"] or {}).get("token_logprobs", [])]
    np.testing.assert_allclose(said, fresh(PROMPT, echo=False)[0]["logprobs"]["token_logprobs"], atol=0.6)


@pytest.mark.parametrize("flash", [False, True])
def test_attached_in_exact_mode_every_bit_is_that_of_a_fresh_run(load, fresh, flash):
    store = MemoryStore()
    prompts = [STORY * 2 + "The librarian", STORY * 2 + "The lamp was"]
    for number, prompt in enumerate([*prompts, *prompts]):
        llm = load(logits_all=True, flash_attn=flash)
        attach(llm, store, exact=True)
        text = say(llm, prompt, 4)
        wanted, scores = fresh(prompt, flash_attn=flash, logprobs=None, echo=False)
        assert text == wanted["text"]
        assert np.array_equal(llm._scores, scores)
        assert (llm._eval_tokens < len(llm.tokenize(prompt.encode()))) == (number > 0)
        llm.close()


def test_attached_it_restores_scores(load, fresh, tmp_path):
    for number in range(2):
        with lmstash.open(tmp_path) as stash:
            llm = load(logits_all=True)
            attach(llm, stash)
            text = say(llm, PROMPT, 4)
            wanted, scores = fresh(PROMPT)
            assert wanted["text"].endswith(text)
            assert np.array_equal(llm._scores[:RUN_TOKENS], scores[:RUN_TOKENS])
            assert (llm._eval_tokens <= 1 + 4) == (number > 0)


def test_scores_are_smaller_than_they_were(load):
    cache = LlamaRAMCache()
    llm = load(cache, logits_all=True)
    say(llm, PROMPT)
    kept = sum(entry.nbytes for entry in cache.store.entries("scores/"))
    assert 0 < kept < 0.85 * llm._scores.nbytes
