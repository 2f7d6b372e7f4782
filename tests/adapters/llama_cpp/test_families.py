"""Models whose memory is not a plain KV cache: restored where that is right, computed where it is not."""

import random

import llama_cpp
import numpy as np
import pytest

from lmstash.adapters.llama_cpp import Llama, LlamaDiskCache, LlamaRAMCache
from lmstash.caches.states.blob import extensions, parse

from .conftest import SETTINGS, say
from .toys import KINDS, VOCABULARY, write_toy

CASES = {kind: (kind, {}) for kind in KINDS} | {
    "gemma3, small window cache": ("gemma3", {"swa_full": False}),
    "gemma3, flash attention": ("gemma3", {"flash_attn": True}),
    "gemma3, small, flash attention": ("gemma3", {"swa_full": False, "flash_attn": True}),
    "lfm2, flash attention": ("lfm2", {"flash_attn": True}),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
CUT = {"llama", "qwen2vl"}


def ids_of(n_tokens, seed=0):
    return np.random.default_rng(seed).integers(3, VOCABULARY - 2, 1000)[:n_tokens].tolist()


@pytest.fixture
def toy(tmp_path):
    opened = []

    def make(case, kind=Llama, **more):
        name, options = case
        path = tmp_path / f"{name}.gguf"
        if not path.exists():
            write_toy(path, name)
        llm = kind(str(path), **{**SETTINGS, "n_ctx": 1024, **options, **more})
        opened.append(llm)
        return llm

    yield make
    for llm in opened:
        llm.close()


class Fed:
    def __init__(self, llm):
        self.n = 0

        def counting(batch):
            self.n += batch.batch.n_tokens
            decode(batch)

        decode = llm._ctx.decode
        llm._ctx.decode = counting


@cases
def test_a_conversation_goes_on_after_another_one(toy, case):
    llm, reference = toy(case), toy(case, llama_cpp.Llama)
    llm.set_cache(LlamaRAMCache())
    fed = Fed(llm)
    first, intruder = ids_of(300), ids_of(120, seed=1)

    def both(ids):
        reference.reset()
        text = say(llm, ids, 6)
        assert text == say(reference, ids, 6)

    both(first)
    both(intruder)
    before = fed.n
    both([*first, *ids_of(40, seed=2)])
    assert fed.n - before <= 40 + 64 + 6  # goes on from the end, or the last whole block
    both(intruder)
    before = fed.n
    both([*first[:250], *ids_of(30, seed=3)])
    if case[0] in CUT:
        assert fed.n - before <= 30 + 6
    both(intruder)
    before = fed.n
    both([*first[:250], *ids_of(30, seed=4)])
    if case[0] != "mamba":  # has no rows that say where others left
        assert fed.n - before <= 30 + 64 + 6


@cases
def test_the_same_prompt_again(toy, case):
    llm, reference = toy(case), toy(case, llama_cpp.Llama)
    llm.set_cache(LlamaRAMCache())
    fed = Fed(llm)
    for _ in range(3):
        reference.reset()
        before = fed.n
        assert say(llm, ids_of(200), 5) == say(reference, ids_of(200), 5)
        say(llm, ids_of(50, seed=9), 2)
    assert fed.n - before <= 64 + 64 + 10


@cases
def test_a_restart(toy, case, tmp_path):
    texts = []
    for number in range(2):
        cache = LlamaDiskCache(str(tmp_path / "cache"))
        llm = toy(case)
        llm.set_cache(cache)
        fed = Fed(llm)
        texts.append(say(llm, ids_of(300), 5))
        assert (fed.n < 100) == (number == 1)
        cache.store.close()
    assert texts[0] == texts[1]


@cases
@pytest.mark.parametrize("seed", range(2))
def test_any_prompts_in_any_order_say_what_they_say_alone(toy, case, seed):
    draw = random.Random(seed)
    llm, reference = toy(case), toy(case, llama_cpp.Llama)
    cache = LlamaRAMCache(3 << 20)
    llm.set_cache(cache)
    for _ in range(12):
        ids = [*ids_of(draw.randrange(1, 300), draw.randrange(2)), *ids_of(draw.randrange(3, 80), draw.randrange(2, 4))]
        n_tokens = draw.randrange(1, 4)
        reference.reset()
        reference._ctx.kv_cache_clear()
        assert say(llm, ids, n_tokens) == say(reference, ids, n_tokens)


def first_kept(llm):
    return llama_cpp.llama_cpp.llama_memory_seq_pos_min(llama_cpp.llama_cpp.llama_get_memory(llm._ctx.ctx), 0)


@pytest.mark.parametrize("options", [{}, {"flash_attn": True}], ids=["off", "on"])
def test_a_restored_window_goes_on_whole_and_is_kept_on(toy, options):
    llm = toy(("gemma3", options))
    llm.set_cache(LlamaRAMCache())
    say(llm, ids_of(300), 3)
    say(llm, ids_of(100, 1), 3)
    longer = [*ids_of(300), *ids_of(200, 2)]
    say(llm, longer, 3)
    assert first_kept(llm) == 0
    assert llm.cache[longer].n_tokens == len(longer)


def test_a_window_that_was_written_over_is_not_continued_from_its_middle(toy):
    llm, reference = toy(("gemma3", {})), toy(("gemma3", {}), llama_cpp.Llama)
    llm.eval(ids_of(300))
    state = llm.save_state()
    llm.reset()
    llm.load_state(state)  # as a whole: llama.cpp goes on over its beginning
    assert llm.can_trim()
    say(llm, [*ids_of(300), *ids_of(200, 2)], 3)
    assert not llm.can_trim()
    fed = Fed(llm)
    short = ids_of(120)
    assert say(llm, short, 3) == say(reference, short, 3)
    assert fed.n >= 120
    reference.reset()
    reference._ctx.kv_cache_clear()


def test_extensions_say_which_tokens_they_are_of(toy):
    llm = toy(("qwen2vl", {}))
    llm.eval(ids_of(100))
    (numbers,) = extensions(parse(llm.save_state().blob))
    assert numbers.shape == (100, 3)
    assert numbers[:, :2].tolist() == [[n, n] for n in range(100)] or (numbers[:, :2] == 0).all()


def test_a_window_that_was_trimmed_by_hand_is_not_kept(toy):
    llm = toy(("gemma3", {"swa_full": False}))
    cache = LlamaRAMCache()
    llm.set_cache(cache)
    llm.eval(ids_of(300))
    n = len(cache)
    llm._ctx.kv_cache_seq_rm(-1, 100, -1)
    llm.n_tokens = 100
    llm.eval(ids_of(20, seed=5))
    llm.cache[llm.input_ids[: llm.n_tokens].tolist()] = llm.save_state()
    assert len(cache) == n
