"""Completions over our caches: what llama-cpp-python says without one, and fewer tokens evaluated."""

import gc
import logging
import weakref

import llama_cpp
import numpy as np
import pytest

import lmstash
from lmstash.adapters.llama_cpp import (
    BaseLlamaCache,
    Llama,
    LlamaCache,
    LlamaDiskCache,
    LlamaRAMCache,
    LlamaStashCache,
    LlamaState,
    bind,
)
from lmstash.store.memory import MemoryStore

from .conftest import STORY, say

pytestmark = pytest.mark.model


class Counted:
    """How many tokens an object evaluates."""

    def __init__(self, llm):
        self.n = 0
        evaluate = llm.eval

        def counting(tokens):
            self.n += len(tokens)
            evaluate(tokens)

        llm.eval = counting


@pytest.fixture(params=["ram", "disk", "stash", "memory store"])
def cache(request, tmp_path):
    if request.param == "ram":
        yield LlamaRAMCache()
    elif request.param == "disk":
        yield LlamaDiskCache(str(tmp_path / "cache"))
    elif request.param == "memory store":
        yield LlamaStashCache(MemoryStore())
    else:
        with lmstash.open(tmp_path / "stash", memory_bytes="64MB") as stash:
            yield LlamaStashCache(stash)


def test_a_shared_prefix_is_restored_after_another_prompt(load, cache, plain):
    llm = load(cache)
    fed = Counted(llm)
    questions = [STORY + "The librarian", "Rain is water that", STORY + "The lamp"]
    texts = [say(llm, each) for each in questions]
    assert texts == [say(plain(), each) for each in questions]
    before = fed.n
    again = say(llm, questions[0])
    n_prompt = len(llm.tokenize(questions[0].encode()))
    assert fed.n - before < 12 + 2 < n_prompt
    assert again == texts[0]


def test_a_restarted_program_finds_it(load, tmp_path, plain):
    for number in range(2):
        cache = LlamaDiskCache(cache_dir=str(tmp_path / "cache"))
        llm = load(cache)
        fed = Counted(llm)
        assert say(llm, STORY + "The librarian") == say(plain(), STORY + "The librarian")
        assert (fed.n > 50) == (number == 0)
        assert len(cache) == 1
        assert cache.cache_dir == str(tmp_path / "cache")
        cache.store.close()


@pytest.mark.parametrize("prompt", ["Hi", "The", [1], [1, 2]])
def test_short_prompts_are_kept_and_matched(load, plain, prompt):
    cache = LlamaRAMCache()
    llm = load(cache)
    text = say(llm, prompt, 3)
    ids = prompt if isinstance(prompt, list) else llm.tokenize(prompt.encode())
    assert list(ids) in llm.cache
    assert llm.cache[list(ids)].n_tokens == len(ids)
    assert text == say(plain(), prompt, 3)


def test_it_acts_as_a_cache_of_llama_cpp_python(load):
    cache = LlamaRAMCache(capacity_bytes=1 << 28)
    llm = load(cache)
    assert isinstance(cache, llama_cpp.llama_cache.BaseLlamaCache)
    assert isinstance(cache, BaseLlamaCache)
    assert isinstance(llm.cache, BaseLlamaCache)
    assert isinstance(llm, llama_cpp.Llama)
    assert LlamaCache is LlamaRAMCache
    assert bool(cache)
    assert bool(llm.cache)
    assert (len(cache), cache.cache_size, cache.capacity_bytes) == (0, 0, 1 << 28)
    say(llm, STORY)
    ids = llm.tokenize(STORY.encode())
    assert ids in llm.cache
    assert tuple(ids) in llm.cache
    state = llm.cache[tuple(ids)]
    assert isinstance(state, llama_cpp.LlamaState)
    assert isinstance(state, LlamaState)
    assert isinstance(state.llama_state, bytes)
    assert state.llama_state_size == len(state.llama_state)
    assert state.n_tokens == len(ids)
    assert state.input_ids[: len(ids)].tolist() == ids
    assert len(llm.cache) == len(cache) == 1
    assert 0 < cache.cache_size < 1 << 28
    assert llm.cache.capacity_bytes == 1 << 28


def test_a_miss_is_a_key_error_and_not_in(load):
    cache = LlamaRAMCache()
    llm = load(cache)
    assert [1, 2, 3] not in llm.cache
    with pytest.raises(KeyError):
        _ = llm.cache[[1, 2, 3]]
    say(llm, STORY)
    assert [5, 6] not in llm.cache
    assert [-1, 5] not in llm.cache
    with pytest.raises(KeyError):
        _ = llm.cache[[-1, 5]]


def test_a_cache_that_does_not_know_who_asks_misses(load, caplog):
    cache = LlamaRAMCache()
    llm = load(cache)
    say(llm, STORY)
    ids = llm.tokenize(STORY.encode())
    assert ids not in cache
    with caplog.at_level(logging.WARNING), pytest.raises(KeyError):
        _ = cache[ids]
    assert "bind(llm)" in caplog.text
    cache[ids] = llm.save_state()
    assert len(cache) == 1


def test_a_foreign_object_over_our_cache_only_misses(load, plain):
    cache = LlamaRAMCache()
    foreign = plain()
    llama_cpp.Llama.set_cache(foreign, cache)
    try:
        assert say(foreign, STORY) == say(foreign, STORY)
        assert len(cache) == 0
    finally:
        foreign.cache = None


def test_an_object_that_is_bound_is_served(load, plain):
    cache = LlamaRAMCache()
    text = say(load(cache), STORY)
    foreign = load(kind=llama_cpp.Llama)
    assert bind(foreign) is foreign
    assert isinstance(foreign, llama_cpp.Llama)
    foreign.set_cache(cache)
    fed = Counted(foreign)
    assert say(foreign, STORY) == text
    assert fed.n <= 13
    assert bind(foreign) is foreign


def test_what_an_object_holds_when_it_is_bound_is_not_kept(load):
    foreign = load(kind=llama_cpp.Llama)
    say(foreign, STORY)
    cache = LlamaRAMCache()
    bind(foreign).set_cache(cache)
    say(foreign, STORY + "Then")
    assert len(cache) == 0
    say(foreign, "Otherwise")
    foreign.reset()
    say(foreign, "Otherwise")
    assert len(cache) == 1


def test_no_cache_is_no_cache(load):
    llm = load(LlamaRAMCache())
    llm.set_cache(None)
    assert llm.cache is None
    say(llm, "Hi", 1)


def test_chat_completions_share_the_system_prompt(load, plain):
    cache = LlamaRAMCache()
    llm, reference = load(cache), plain()
    system = {"role": "system", "content": STORY}
    for question in ("Who lit the lamp?", "What was missing?"):
        messages = [system, {"role": "user", "content": question}]
        wanted = reference.create_chat_completion(messages, max_tokens=8, temperature=0.0)
        fed = Counted(llm)
        said = llm.create_chat_completion(messages, max_tokens=8, temperature=0.0)
        assert said["choices"][0]["message"] == wanted["choices"][0]["message"]
        say(llm, "Something else", 1)
    assert fed.n < 50
    assert len(cache) == 4 - 1  # "Something else" twice


def test_streams_are_kept_when_they_end_and_may_be_closed_early(load, plain):
    cache = LlamaRAMCache()
    llm = load(cache)
    chunks = llm.create_completion(STORY, max_tokens=8, temperature=0.0, stream=True)
    text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
    assert text == say(plain(), STORY, 8)
    assert len(cache) == 1
    stream = llm.create_completion("The sea is", max_tokens=8, temperature=0.0, stream=True)
    next(stream)
    stream.close()
    assert len(cache) == 1
    assert say(llm, STORY, 8) == text
    assert say(llm, "The sea is", 8) == say(plain(), "The sea is", 8)


def test_objects_of_different_settings_share_one_cache(load, plain):
    cache = LlamaRAMCache()
    text = say(load(cache), STORY)
    for options in ({"n_ctx": 1024}, {"n_ctx": 256}, {"n_batch": 64}, {"n_threads": 2}, {"n_ctx": 300, "n_batch": 32}):
        llm = load(cache, **options)
        fed = Counted(llm)
        assert say(llm, STORY) == text
        assert fed.n <= 13, options
        assert len(llm.input_ids) == options.get("n_ctx", 512)


def test_a_longer_prompt_after_a_short_context(load, plain):
    cache = LlamaRAMCache()
    say(load(cache, n_ctx=128), STORY)
    llm = load(cache, n_ctx=1024)
    say(llm, STORY)
    assert say(llm, STORY * 10) == say(plain(n_ctx=1024), STORY * 10)


def test_a_shorter_context_takes_only_what_fits(load, plain):
    cache = LlamaRAMCache()
    say(load(cache), STORY * 6)
    llm = load(cache, n_ctx=64)
    ids = llm.tokenize((STORY * 6).encode())
    state = llm.cache[ids]
    assert state.n_tokens == len(state.input_ids)
    llm.load_state(state)
    assert say(llm, ids[:40]) == say(plain(n_ctx=64), ids[:40])


def test_many_prompts_share_one_prefix_in_little_room(load):
    cache = LlamaRAMCache()
    llm = load(cache)
    say(llm, STORY * 5, 1)
    before = cache.cache_size
    ids = llm.tokenize((STORY * 5).encode())
    per_token = before / len(ids)
    for number in range(5):
        say(llm, f"{STORY * 5}Number {number} of", 2)
    assert cache.cache_size - before < 1.5 * per_token * 5 * 8


def test_the_seed_is_left_alone(load):
    cache = LlamaRAMCache()
    llm = load(cache, seed=7)
    say(llm, STORY)
    other = load(cache, seed=11)
    state = other.cache[other.tokenize(STORY.encode())]
    assert state.seed == 11


def test_a_saved_state_holds_no_zeros_and_comes_back(load, plain):
    llm = load()
    say(llm, STORY)
    state = llm.save_state()
    assert state.scores.shape == (min(state.n_tokens, 256), llm.n_vocab())
    assert not state.scores.any()
    theirs = plain()
    say(theirs, STORY)
    wanted = theirs.save_state()
    assert state.llama_state == wanted.llama_state
    assert state.llama_state_size == wanted.llama_state_size
    assert state.n_tokens == wanted.n_tokens
    say(llm, "Another one")
    llm.load_state(wanted)
    assert llm.n_tokens == wanted.n_tokens
    theirs.load_state(state)
    assert say(theirs, STORY) == say(llm, STORY)


def test_a_state_that_does_not_fit_leaves_the_object_as_it_was(load, plain):
    llm, other = load(), load(flash_attn=True)
    say(llm, STORY)
    say(other, STORY)
    before = llm.save_state()
    with pytest.raises(RuntimeError):
        llm.load_state(other.save_state())
    after = llm.save_state()
    assert after.llama_state == before.llama_state
    assert after.n_tokens == before.n_tokens
    assert np.array_equal(after.input_ids[: after.n_tokens], before.input_ids[: before.n_tokens])
    cut_short = llm.save_state()
    cut_short._blob = cut_short._blob[:1000]
    with pytest.raises(RuntimeError):
        llm.load_state(cut_short)
    assert llm.save_state().llama_state == before.llama_state
    assert say(llm, STORY) == say(plain(), STORY)


def test_an_object_that_is_gone_is_not_held(load, gguf):
    from .conftest import SETTINGS

    llm = Llama(str(gguf), **SETTINGS)
    llm.set_cache(LlamaRAMCache())
    say(llm, "Hi", 1)
    reference, view = weakref.ref(llm), llm.cache
    llm.close()
    del llm
    gc.collect()
    assert reference() is None
    with pytest.raises(KeyError):
        _ = view[[1]]
    assert [1] not in view
