"""Scores beside K/V: bit for bit, of as many tokens as are kept, or none."""

import sys

import numpy as np
import pytest

from lmstash.caches.states.cache import Memory
from lmstash.caches.states.scores import RUN_TOKENS
from lmstash.store.memory import MemoryStore
from lmstash.testing.faulty import FaultyStore

from .conftest import ROWS, token_values, toy_blob

VOCABULARY = 19


@pytest.fixture
def store():
    return MemoryStore()


def toy_scores(states, ids):
    """Rows of noise, NaN and infinities among it, that depend on all tokens before."""
    values = token_values(states.fingerprint.hex, ids)
    rows = np.array([np.frombuffer((value * 3)[: 4 * VOCABULARY], "<f4") for value in values], "<f4")
    return rows.reshape(len(ids), VOCABULARY)


def keep(states, ids, *, scores=True, sound=None):
    rows = toy_scores(states, ids)

    def take(first, last):
        return rows[first:last] if sound is None or last <= sound else None

    return states.put(ids, toy_blob(ROWS, states.fingerprint.hex, ids), scores=take if scores else None)


def restored(states, ids, at_most=None, n_vocab=VOCABULARY):
    match = states.match(ids)
    loaded = states.load(match, at_most, n_vocab=n_vocab)
    if loaded is None:
        return 0
    assert loaded.blob.tobytes() == toy_blob(ROWS, states.fingerprint.hex, ids[: loaded.n_tokens])
    if n_vocab:
        assert loaded.scores.tobytes() == toy_scores(states, ids[: loaded.n_tokens]).tobytes()
    else:
        assert loaded.scores is None
    assert states.usable(match, at_most or len(ids), scores=bool(n_vocab)) == loaded.n_tokens
    return loaded.n_tokens


@pytest.mark.parametrize("n_tokens", [1, 15, 16, 63, 64, 65, 150, 200])
def test_scores_come_back_with_the_state(states_in, store, tokens, n_tokens):
    states = states_in(store)
    keep(states, tokens(n_tokens))
    assert restored(states, tokens(n_tokens)) == n_tokens
    assert restored(states, [*tokens(n_tokens), 1, 2]) == n_tokens
    for less in {1, n_tokens // 2, n_tokens - 1} - {0}:
        assert restored(states, tokens(less)) == less
        assert restored(states, tokens(n_tokens), less) == less
    assert keep(states, tokens(n_tokens)) == 0


def test_without_zstandard_they_are_kept_as_they_are(states_in, store, tokens, monkeypatch):
    states = states_in(store)
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "zstandard", None)
        keep(states, tokens(50))
        assert restored(states, tokens(50)) == 50
    assert restored(states, tokens(50)) == 50
    keep(states, tokens(50, seed=1))
    assert restored(states, tokens(50, seed=1)) == 50
    monkeypatch.setitem(sys.modules, "zstandard", None)
    assert restored(states, tokens(50, seed=1)) == 0
    assert store.events.stats.misses["unavailable"] > 0
    assert restored(states, tokens(50)) == 50


def test_a_state_without_scores_is_only_for_those_who_need_none(states_in, store, tokens):
    states = states_in(store)
    keep(states, tokens(200), scores=False)
    assert restored(states, tokens(200)) == 0
    assert restored(states, tokens(200), n_vocab=0) == 200
    keep(states, tokens(100))
    assert restored(states, tokens(200)) == 96
    assert restored(states, tokens(100)) in (96, 100)
    keep(states, tokens(200))
    assert restored(states, tokens(200)) == 200


def test_a_prompt_within_a_run_of_another_finds_it(states_in, store, tokens):
    states = states_in(store)
    keep(states, tokens(14))
    other = [*tokens(10), *tokens(80, seed=1)]
    assert restored(states, other) == 10
    keep(states, other)
    for asked in (other[:12], other[:33], other[:77], [*other[:77], 5]):
        assert restored(states, asked) == restored(states, asked, n_vocab=0) > 0


def test_shared_runs_are_kept_once(states_in, store, tokens):
    states = states_in(store)
    keep(states, tokens(1000))
    before = len(list(store.entries("scores/")))
    for seed in range(1, 10):
        keep(states, [*tokens(1000), *tokens(20, seed=seed)])
    assert len(list(store.entries("scores/"))) - before == 9 * 2


def test_what_is_not_sound_is_not_kept_nor_what_follows(states_in, store, tokens):
    states = states_in(store)
    keep(states, tokens(100), sound=40)
    assert restored(states, tokens(100)) == 32
    keep(states, tokens(100))
    assert restored(states, tokens(100)) == 100


def test_another_vocabulary_finds_nothing(states_in, store, tokens):
    states = states_in(store)
    keep(states, tokens(100))
    assert states.load(states.match(tokens(100)), n_vocab=VOCABULARY + 1) is None
    assert store.events.stats.misses["damaged"] == 1


@pytest.mark.parametrize("spoil", ["lost", "empty", "cut", "header", "another's", "zstd"])
def test_a_damaged_run_shortens_what_is_restored(states_in, store, tokens, spoil):
    states = states_in(store)
    keep(states, tokens(100))
    path = states.names.path(tokens(100))
    key = path.scores(3 * RUN_TOKENS)
    entry = store.fetch_many([key])[0]
    value = bytes(entry.value)
    if spoil == "lost":
        store.delete(key)
    else:
        other = bytes(store.fetch_many([path.scores(2 * RUN_TOKENS)])[0].value)
        spoiled = {
            "empty": b"",
            "cut": value[:-1],
            "header": b"x" + value[1:],
            "another's": other,
            "zstd": value[:100] + bytes(len(value) - 100),
        }
        store.put(key, spoiled[spoil], namespace=entry.namespace, parent=entry.parent)
    match = states.match(tokens(100))
    loaded = states.load(match, n_vocab=VOCABULARY)
    assert loaded.n_tokens == len(loaded.scores) == 2 * RUN_TOKENS
    assert loaded.scores.tobytes() == toy_scores(states, tokens(2 * RUN_TOKENS)).tobytes()
    assert restored(states, tokens(100), n_vocab=0) == 100


@pytest.mark.parametrize("seed", range(3))
def test_a_faulty_store_costs_only_time(states_in, tokens, seed):
    states = states_in(FaultyStore(MemoryStore(), miss_rate=0.1, drop_rate=0.1, seed=seed))
    for number in range(30):
        ids = tokens(20 + 5 * number)
        loaded = states.load(states.match(ids), n_vocab=VOCABULARY)
        if loaded is not None:
            assert loaded.scores.tobytes() == toy_scores(states, ids[: loaded.n_tokens]).tobytes()
            assert loaded.blob.tobytes() == toy_blob(ROWS, states.fingerprint.hex, ids[: loaded.n_tokens])
        keep(states, ids)


@pytest.mark.parametrize("n_parts", [0, 1])
def test_a_state_that_cannot_be_cut_has_scores_at_its_places(states_in, store, tokens, n_parts):
    states = states_in(store, memory=Memory(n_parts=n_parts, has_rest=True))

    def blob(n_tokens):
        head = toy_blob(ROWS, states.fingerprint.hex, tokens(n_tokens)) if n_parts else toy_blob(ROWS, 0, [])[:7]
        return head + b"rest" * n_tokens

    for n_tokens, scored in ((64, True), (90, True), (150, False)):
        rows = toy_scores(states, tokens(n_tokens))
        states.put(tokens(n_tokens), blob(n_tokens), scores=(lambda a, b, rows=rows: rows[a:b]) if scored else None)
    for asked, wanted in ((200, 90), (107, 90), (90, 90), (89, 64), (63, 0)):
        loaded = states.load(states.match(tokens(asked)), n_vocab=VOCABULARY)
        assert (0 if loaded is None else loaded.n_tokens) == wanted
        if loaded is not None:
            assert loaded.blob.tobytes() == blob(wanted)
            assert loaded.scores.tobytes() == toy_scores(states, tokens(wanted)).tobytes()
    assert states.load(states.match(tokens(200))).n_tokens == 150


def test_something_is_missing_where_only_scores_are(states_in, store, tokens):
    states, ids = states_in(store), tokens(100)
    blob, rows = toy_blob(ROWS, states.fingerprint.hex, ids), toy_scores(states, ids)
    keep(states, ids, scores=False)
    assert states.missing(ids) is None
    for most in (100, 70):
        match = states.missing(ids, most, scores=True)
        assert match is not None
        assert match.path.n_tokens == most
    writes = states.cut(states.missing(ids, scores=True), blob, 100, scores=lambda a, b: rows[a:b])
    assert {each.namespace for each in writes} == {states.names.scores}
    assert len(writes) == -(-100 // RUN_TOKENS)
    store.put_many(writes)
    assert states.missing(ids, scores=True) is None
    assert restored(states, ids) == 100
    store.delete(states.names.path(ids).scores(2 * RUN_TOKENS))
    assert states.missing(ids, scores=True) is not None


@pytest.mark.parametrize("compressed", [True, False])
def test_what_is_cut_is_a_copy(states_in, store, tokens, monkeypatch, compressed):
    if not compressed:
        monkeypatch.setitem(sys.modules, "zstandard", None)
    states, ids = states_in(store), tokens(100)
    blob, rows = bytearray(toy_blob(ROWS, states.fingerprint.hex, ids)), toy_scores(states, ids)
    writes = states.cut(states.missing(ids, scores=True), blob, 100, scores=lambda a, b: rows[a:b])
    rows[:] = 0
    blob[:] = bytes(len(blob))
    store.put_many(writes)
    assert restored(states, ids) == 100


def test_the_sequence_form_comes_with_scores_in_the_memory_that_is_given(states_in, store, tokens):
    states, ids = states_in(store), tokens(100)
    keep(states, ids)
    memory = np.empty(1 << 16, np.uint8)
    loaded = states.load(states.match(ids), 90, sequence=True, room=lambda n: memory[:n], n_vocab=VOCABULARY)
    assert np.shares_memory(loaded.blob, memory)
    assert loaded.blob.tobytes() == toy_blob(ROWS, states.fingerprint.hex, ids[:90], sequence=0)
    assert loaded.scores.tobytes() == toy_scores(states, ids[:90]).tobytes()
