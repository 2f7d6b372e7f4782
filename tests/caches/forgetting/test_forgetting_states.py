"""Forgetting the llama.cpp states of one prompt. The states are toys, of which every byte depends on all tokens."""

import numpy as np
import pytest

import lmstash
from lmstash.caches.states.cache import Memory, States
from lmstash.identity.fingerprint import Fingerprint
from lmstash.identity.keys import Key

from ..states.conftest import ROWS, toy_blob

VOCABULARY = 19
REST = b"all that cannot be cut"
WITH_REST, ALL_REST = Memory(1, has_rest=True), Memory(0, has_rest=True)
MEMORIES = {"plain": Memory(), "with a rest": WITH_REST, "all rest": ALL_REST}


def states_in(stash, memory=None):
    fingerprint = Fingerprint(Key({"kind": "toy", "name": "toy"}), {"name": "toy"})
    return States(stash.store, fingerprint, memory, salt=stash.salt, private=stash.private)


def keep(states, ids, *, scores=True):
    rows = np.arange(len(ids) * VOCABULARY, dtype=np.float32).reshape(len(ids), VOCABULARY)
    memory = states.memory
    if memory.n_parts:
        blob = toy_blob(ROWS, states.fingerprint.hex, ids)
    else:
        blob = (3).to_bytes(4, "little") + b"toy"
    if memory.has_rest:
        blob += REST + bytes(str(ids), "utf-8")
    return states.put(ids, blob, scores=(lambda first, last: rows[first:last]) if scores else None)


def found(states, ids, **options):
    loaded = states.load(states.match(ids), **options)
    if loaded is None:
        return 0
    if states.memory == Memory():
        assert loaded.blob.tobytes() == toy_blob(ROWS, states.fingerprint.hex, ids[: loaded.n_tokens])
    return loaded.n_tokens


def kept(stash):
    return {entry.key: entry for entry in stash.store.entries() if entry.kind != "models"}


@pytest.mark.parametrize("n_tokens", [20, 64, 100, 150])
@pytest.mark.parametrize("memory", MEMORIES.values(), ids=MEMORIES)
def test_a_prompt_goes_with_its_beginnings_ends_rests_and_scores(stash, tokens, n_tokens, memory):
    states, ids = states_in(stash, memory), tokens(n_tokens)
    for each in (ids[:9], ids[:-3], ids):
        assert keep(states, each)
    reach = n_tokens // 64 * 64 if stash.private and memory.has_rest else n_tokens
    assert found(states, ids, n_vocab=VOCABULARY) == (n_tokens if reach == n_tokens else 0)
    removed = stash.forget(prompt=ids, dry_run=True)
    assert removed.entries == len(kept(stash))
    assert stash.forget(prompt=ids) == removed
    assert kept(stash) == {}
    assert found(states, ids) == found(states, ids, n_vocab=VOCABULARY) == 0
    assert keep(states, ids)
    assert found(states, ids, n_vocab=VOCABULARY) == (n_tokens if reach == n_tokens else 0)


@pytest.mark.parametrize(("n_tokens", "more"), [(20, 12), (20, 44), (100, 12), (100, 28), (150, 12)])
@pytest.mark.parametrize("memory", MEMORIES.values(), ids=MEMORIES)
def test_what_was_generated_in_its_last_block_goes_with_it(stash, tokens, n_tokens, more, memory):
    states, ids = states_in(stash, memory), tokens(n_tokens)
    longer = [*ids, *tokens(more, seed=1)]
    keep(states, longer)
    stash.forget(prompt=ids)
    assert kept(stash) == {}
    assert found(states, longer) == 0


@pytest.mark.parametrize("n_tokens", [20, 64, 100, 150])
@pytest.mark.parametrize("shared", [0, 64])
@pytest.mark.parametrize("memory", MEMORIES.values(), ids=MEMORIES)
def test_another_prompt_keeps_what_follows_what_it_shares(stash, tokens, n_tokens, shared, memory):
    states, mine, other = states_in(stash, memory), tokens(n_tokens), [*tokens(shared), *tokens(12, seed=1)]
    keep(states, tokens(shared) or other)
    begun = {*kept(stash)} if shared else set()
    keep(states, other)
    own = {*kept(stash)} - begun
    keep(states, mine)
    stash.forget(prompt=mine)
    assert own
    assert own <= {*kept(stash)}
    assert found(states, mine) == 0
    keep(states, other)
    reach = not (stash.private and memory.has_rest)
    assert found(states, other, n_vocab=VOCABULARY) == (len(other) if reach else 0)


@pytest.mark.parametrize("memory", MEMORIES.values(), ids=MEMORIES)
def test_what_parts_from_the_prompt_within_its_last_block_stays(tmp_path, tokens, memory):
    with lmstash.open(tmp_path / "s") as stash:
        states, other = states_in(stash, memory), [*tokens(70), *tokens(40, seed=1)]
        keep(states, tokens(64))
        begun = {*kept(stash)}
        keep(states, other)
        own = {*kept(stash)} - begun
        assert stash.forget(prompt=tokens(90)).entries == len(begun)
        assert {*kept(stash)} == own


def test_a_prompt_of_other_tokens_removes_nothing(tmp_path, tokens):
    with lmstash.open(tmp_path / "s") as stash:
        states = states_in(stash, WITH_REST)
        keep(states, tokens(150))
        for n_tokens in (20, 64, 100, 150):
            assert stash.forget(prompt=tokens(n_tokens, seed=1)).entries == 0


def test_another_salt_is_left_alone_and_needs_its_own(tmp_path, tokens):
    for salt in (None, "a", "b"):
        with lmstash.open(tmp_path / "s", salt=salt) as stash:
            keep(states_in(stash), tokens(100))
    with lmstash.open(tmp_path / "s", salt="a") as stash:
        n_entries = len(kept(stash))
        assert stash.forget(prompt=tokens(100)).entries == n_entries / 3
        assert found(states_in(stash), tokens(100)) == 0
    with lmstash.open(tmp_path / "s", salt="b") as stash:
        assert found(states_in(stash), tokens(100)) == 100


def test_states_of_a_model_that_is_not_described_any_more_go_too(stash, tokens):
    keep(states_in(stash), tokens(100))
    stash.prune(kind="models")
    stash.forget(prompt=tokens(100))
    assert kept(stash) == {}


def test_damaged_pieces_that_may_be_of_the_prompt_go(tmp_path, tokens):
    with lmstash.open(tmp_path / "s") as stash:
        states = states_in(stash)
        keep(states, tokens(100))
        [tail] = [entry for entry in stash.store.entries("states/") if entry.parent and entry.n_tokens]
        facts = {"namespace": tail.namespace, "meta": tail.meta, "parent": tail.parent, "n_tokens": tail.n_tokens}
        stash.store.put(tail.key, b"rubbish", **facts)
        stash.forget(prompt=tokens(90))
        assert tail.key not in kept(stash)
