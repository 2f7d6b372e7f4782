"""`attach`: as the drop-in caches, and in exact mode bit for bit what a fresh run says."""

import random
import threading

import llama_cpp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lmstash
from lmstash.adapters.llama_cpp import LlamaRAMCache, attach, attaching
from lmstash.adapters.llama_cpp.exactness import Exactness
from lmstash.caches.models import read_models

from .conftest import STORY, say
from .toys import KINDS, VOCABULARY, write_toy


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
    attachment.flush()
    again = attach(other, stash)
    ids = other.tokenize(STORY.encode())
    assert again.kept_tokens(ids) == len(ids)
    before = stash.stats.hits
    assert say(other, STORY) == text
    assert stash.stats.hits > before
    assert len(own) == 0
    attachment.detach()
    say(llm, "Another one", 2)
    assert len(own) == 1
    assert len(attachment.cache) == 1


LLAMA = {"n_ctx": 1024, "n_batch": 128, "n_ubatch": 128}


@pytest.fixture
def toy(load, tmp_path):
    def make(kind="llama", loaded_by=llama_cpp.Llama, **options):
        path = tmp_path / f"{kind}.gguf"
        if not path.exists():
            write_toy(path, kind)
        return load(path=path, kind=loaded_by, **(LLAMA | options))

    return make


def ids_of(n_tokens, seed=0):
    return np.random.default_rng(seed).integers(3, VOCABULARY - 2, 1000)[:n_tokens].tolist()


def test_what_is_asked_while_paused_is_not_kept(toy, stash):
    llm = toy()
    attachment = attach(llm, stash)
    secret, public = ids_of(100), ids_of(100, 1)
    with attachment.paused():
        say(llm, secret, 2)
        stream = llm.create_completion(secret, max_tokens=4, temperature=0.0, stream=True)
    assert len(list(stream)) > 1  # taken later, and begun while paused
    with attachment.paused():
        stream = llm.create_completion(secret, max_tokens=4, temperature=0.0, stream=True)
        next(stream)
    stream.close()
    attachment.flush()
    assert attachment.kept_tokens(secret) == 0
    assert len(attachment.cache) == 0
    assert not attachment.is_paused
    say(llm, public, 2)
    attachment.flush()
    assert attachment.kept_tokens(public) == 100
    assert attachment.kept_tokens(secret) == 0


def test_a_stream_that_is_closed_early_is_kept_and_so_is_generate_itself(toy, stash):
    llm = toy()
    attachment = attach(llm, stash)
    stream = llm.create_completion(ids_of(100), max_tokens=20, temperature=0.0, stream=True)
    next(stream)
    stream.close()
    for number, _ in enumerate(llm.generate(ids_of(90, 1), temp=0.0)):
        if number == 3:
            break
    attachment.flush()
    assert attachment.kept_tokens(ids_of(100)) == 100
    assert attachment.kept_tokens(ids_of(90, 1)) == 90


def test_nothing_is_read_out_where_nothing_is_new(toy, stash, monkeypatch):
    llm = toy()
    attachment = attach(llm, stash)
    read_out = llm.read_out
    reads = []
    llm.read_out = lambda room: reads.append(llm.n_tokens) or read_out(room)
    say(llm, ids_of(200), 5)
    say(llm, ids_of(80, 1), 2)
    attachment.flush()
    n = len(reads)
    puts = stash.stats.puts
    assert n == 2
    assert say(llm, ids_of(200), 5) == say(llm, ids_of(200), 5)
    attachment.flush()
    assert len(reads) == n
    assert stash.stats.puts == puts
    say(llm, [*ids_of(200), *ids_of(30, 2)], 2)
    assert len(reads) == n + 1


def test_the_next_prompt_finds_what_is_still_being_written(toy, stash, monkeypatch):
    llm = toy()
    attachment = attach(llm, stash)
    put_many, gate = stash.store.put_many, threading.Event()

    def slow(writes, **options):
        gate.wait(10)
        return put_many(writes, **options)

    monkeypatch.setattr(attaching, "_PATIENCE_SECONDS", 20)  # a busy machine writes slowly
    monkeypatch.setattr(stash.store, "put_many", slow)
    first = say(llm, ids_of(300), 3)
    assert stash.writes.waiting_bytes
    with attachment.paused():
        say(llm, ids_of(100, 1), 1)
    threading.Timer(0.05, gate.set).start()
    before = stash.stats.hits
    assert say(llm, ids_of(300), 3) == first
    assert stash.stats.hits > before


def test_a_prompt_is_computed_where_the_store_takes_too_long(toy, stash, monkeypatch):
    llm = toy()
    attachment = attach(llm, stash)
    put_many, gate = stash.store.put_many, threading.Event()

    def stuck(writes, **options):
        gate.wait(10)
        return put_many(writes, **options)

    monkeypatch.setattr(stash.store, "put_many", stuck)
    first = say(llm, ids_of(300), 3)
    with attachment.paused():
        say(llm, ids_of(100, 1), 1)
    assert say(llm, ids_of(300), 3) == first
    assert stash.writes.waiting_bytes, "it waited for the store"
    gate.set()
    attachment.flush()
    assert attachment.kept_tokens(ids_of(300)) == 300


def test_what_a_model_is_made_of_is_kept_beside_its_states(toy, stash):
    llm = toy()
    attachment = attach(llm, stash)
    say(llm, ids_of(40), 1)
    attachment.flush()
    states = attachment.view.states_now()
    assert states is not None
    assert read_models(stash.store)[states.fingerprint.hex[:16]] == states.fingerprint


def test_the_context_may_change_before_anything_is_written(toy, stash, monkeypatch):
    llm, reference = toy(), toy()
    attachment = attach(llm, stash)
    put_many, gate = stash.store.put_many, threading.Event()

    def slow(writes, **options):
        gate.wait(10)
        return put_many(writes, **options)

    monkeypatch.setattr(stash.store, "put_many", slow)
    said = [say(llm, ids_of(150, seed), 4) for seed in range(5)]
    assert stash.writes.waiting_bytes, "it waited for the store"
    gate.set()
    attachment.flush()
    for seed in range(5):
        assert attachment.kept_tokens(ids_of(150, seed)) == 150
        assert say(llm, ids_of(150, seed), 4) == said[seed]
        reference.reset()
        assert say(reference, ids_of(150, seed), 4) == said[seed]


def test_a_generator_that_is_given_up_keeps_nothing_of_another_prompt(toy, stash):
    llm = toy()
    attachment = attach(llm, stash)
    old = llm.generate(ids_of(100), temp=0.0)
    next(old)
    new = llm.generate(ids_of(100, 1), temp=0.0)
    next(new)
    attachment.flush()
    old.close()
    attachment.flush()
    assert len(attachment.cache) == 0
    new.close()
    attachment.flush()
    assert attachment.kept_tokens(ids_of(100, 1)) == 100


def test_a_store_that_fails_ends_no_completion(toy, stash, monkeypatch):
    llm, reference = toy(), toy()
    attach(llm, stash)

    def broken(*arguments, **named):
        raise OSError("no such disk")

    say(llm, ids_of(200), 2)
    stash.flush()
    llm.reset()
    llm._ctx.kv_cache_clear()
    monkeypatch.setattr(stash.store, "borrow_many", broken)
    monkeypatch.setattr(stash.store, "put_many", broken)
    for seed in range(2):
        reference.reset()
        assert say(llm, ids_of(200, seed), 4) == say(reference, ids_of(200, seed), 4)
    stash.flush()
    assert stash.stats.misses["unavailable"] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_attached_models_of_every_family_say_what_they_say_alone(toy, stash, kind):
    llm, reference = toy(kind), toy(kind)
    attachment = attach(llm, stash)
    draw = random.Random(0)
    for _ in range(14):
        ids = [*ids_of(draw.randrange(1, 300), draw.randrange(2)), *ids_of(draw.randrange(3, 80), draw.randrange(2, 4))]
        n_tokens = draw.randrange(1, 4)
        attachment.flush()
        reference.reset()
        reference._ctx.kv_cache_clear()
        assert say(llm, ids, n_tokens) == say(reference, ids, n_tokens)
    assert stash.stats.hits > 0


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
        attachment.flush()
        ids = story[: draw.randrange(60, len(story))] + llm.tokenize(f"Number {number} says".encode())
        cached = attachment.cache.store.events.stats.hits
        reference.reset()
        assert say(llm, ids, n_new) == say(reference, ids, n_new), (number, len(ids))
    assert cached > 0


@pytest.mark.model
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(OPTIONS[each], marks=() if each == "flash attention on" else pytest.mark.campaign, id=each)
        for each in OPTIONS
    ],
)
def test_exact_mode_on_the_real_model_is_a_fresh_run(load, plain, stash, options):
    compare_texts(load(**options), plain(**options), stash, 4, 4)


@pytest.mark.campaign
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_exact_mode_over_200_prompts(load, plain, stash, options):
    compare_texts(load(**options), plain(**options), stash, 200, 8)


EXACT = [(kind, {"flash_attn": True} if on else {}) for kind in KINDS for on in (False, True)]


@pytest.mark.parametrize(("kind", "options"), EXACT)
@pytest.mark.parametrize("seed", range(2))
def test_exact_mode_says_every_bit_of_a_fresh_run(load, tmp_path, stash, kind, options, seed):
    path = write_toy(tmp_path / "toy.gguf", kind, seed=seed)
    options = LLAMA | options
    llm, reference = load(path=path, **options), load(path=path, kind=llama_cpp.Llama, **options)
    attachment = attach(llm, stash, exact=True)
    draw = random.Random(seed)
    branches = [np.random.default_rng(each).integers(3, VOCABULARY - 1, 500).tolist() for each in range(3)]
    for _ in range(25):
        ids = branches[draw.randrange(2)][: draw.randrange(1, 400)] + branches[2][: draw.randrange(100)]
        reference.reset()
        reference._ctx.kv_cache_clear()
        attachment.flush()
        assert say(llm, ids, 3) == say(reference, ids, 3)
        reference.reset()
        reference._ctx.kv_cache_clear()
        assert np.array_equal(first_logits(llm, ids), first_logits(reference, ids))
    assert stash.stats.partial_hits > 10


def test_exact_mode_refuses_a_small_window(toy, stash):
    options = {"swa_full": False}
    llm, reference = toy("gemma3", **options), toy("gemma3", **options)
    attachment = attach(llm, stash, exact=True)
    for _ in range(2):
        for seed in range(2):
            reference.reset()
            assert say(llm, ids_of(200, seed), 3) == say(reference, ids_of(200, seed), 3)
    attachment.flush()
    assert len(attachment.cache) == 0
    assert stash.stats.misses["disabled"] >= 4
    attachment.detach()
    attachment = attach(llm, stash)
    say(llm, ids_of(100, 2), 3)
    attachment.flush()
    assert len(attachment.cache) > 0


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
