"""Forgetting a prompt's states: none of it is restored any more, and others are as far as they are their own."""

import pytest

from lmstash.caches.forgetting import forget
from lmstash.store.memory import MemoryStore

from .conftest import LAYOUTS, ROWS
from .test_states_cache import keep, restored


@pytest.fixture
def store():
    return MemoryStore()


@pytest.mark.parametrize("options", [{}, {"private": True}, {"salt": "tenant"}], ids=str)
@pytest.mark.parametrize("n_tokens", [20, 64, 100, 150])
@pytest.mark.parametrize("layout", [each for each in LAYOUTS.values() if len(each.parts) == 1])
def test_nothing_of_it_is_restored_any_more(layout, n_tokens, options, states_in, store, tokens):
    ids = tokens(n_tokens)
    keep(states_in(store, **options), ids, layout)
    assert restored(states_in(store, **options), ids)
    would = forget(store, ids, salt=options.get("salt"), dry_run=True)
    removed = forget(store, ids, salt=options.get("salt"))
    assert removed == would
    assert removed.entries
    assert restored(states_in(store, **options), ids) == 0
    assert [entry for entry in store.entries() if entry.namespace != "models/all"] == []


@pytest.mark.parametrize("n_tokens", [20, 64, 100, 150])
def test_others_keep_what_is_their_own(n_tokens, states_in, store, tokens):
    shared = min(n_tokens - 5, 70)
    other, stranger = [*tokens(shared), *tokens(110, seed=1)], tokens(100, seed=2)
    states = states_in(store)
    for ids in (tokens(n_tokens), other, stranger):
        keep(states, ids, ROWS)
    forget(store, tokens(n_tokens))
    states = states_in(store)
    assert restored(states, tokens(n_tokens)) <= shared
    assert restored(states, stranger) == 100
    assert forget(store, other, dry_run=True).entries
    assert restored(states, other) <= len(other)  # what it had by leaning on the prompt's own is gone, and found to be
    keep(states, other)
    assert restored(states_in(store), other) == len(other)


def test_a_system_prompt_does_not_take_every_chat_with_it(states_in, store, tokens):
    states = states_in(store)
    for seed in (1, 2, 3):
        keep(states, [*tokens(64), *tokens(150, seed=seed)], ROWS)
    n_kept = len(list(store.entries()))
    assert 0 < forget(store, tokens(64)).entries < n_kept / 2
