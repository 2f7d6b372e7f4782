"""States over a store: the longest kept prefix, byte for byte, and never anybody else's."""

import random

import numpy as np
import pytest

import lmstash
from lmstash.caches.states.blob import parse
from lmstash.caches.states.cache import States
from lmstash.store.memory import MemoryStore
from lmstash.testing.faulty import FaultyStore

from .conftest import LAYOUTS, ROWS, TRANSPOSED, toy_blob


@pytest.fixture
def store():
    return MemoryStore()


def restored(states, ids, at_most=None):
    """Return how many tokens of a prompt are restored, after checking every byte."""
    match = states.match(ids)
    loaded = states.load(match, at_most)
    if loaded is None:
        return 0
    layout = parse(loaded.blob).layout
    assert loaded.blob.tobytes() == toy_blob(layout, states.fingerprint.hex, ids[: loaded.n_tokens])
    return loaded.n_tokens


def keep(states, ids, layout=ROWS):
    return states.put(ids, toy_blob(layout, states.fingerprint.hex, ids))


@pytest.mark.parametrize("layout", [each for each in LAYOUTS.values() if len(each.parts) == 1])
def test_a_prefix_of_any_length_is_restored(states_in, store, tokens, layout):
    states = states_in(store)
    keep(states, tokens(200), layout)
    for n_tokens in (1, 15, 63, 64, 65, 127, 128, 130, 199, 200):
        assert restored(states, tokens(n_tokens)) == n_tokens
    assert restored(states, tokens(300)) == 200
    for at_most in (1, 64, 100, 199):
        assert restored(states, tokens(300), at_most) == at_most


def test_nothing_is_restored_of_what_was_never_kept(states_in, store, tokens):
    states = states_in(store)
    assert restored(states, tokens(100)) == 0
    keep(states, tokens(100))
    assert restored(states, tokens(100, seed=1)) == 0
    assert store.events.stats.misses == {"absent": 2}


@pytest.mark.parametrize("shared", [1, 17, 40, 64, 100, 127])
def test_prompts_that_part_in_the_middle_of_a_block_are_matched_to_the_token(states_in, store, tokens, shared):
    states = states_in(store)
    one, other = tokens(150), [*tokens(shared), *tokens(100, seed=1)]
    keep(states, one)
    assert restored(states, other) == shared
    keep(states, other)
    for ids in (one, other):
        assert restored(states, ids) == len(ids)


def test_short_prompts_with_one_beginning_do_not_lose_each_other(states_in, store, tokens):
    states = states_in(store)
    prompts = [[*tokens(20), *tokens(15, seed=seed)] for seed in range(1, 30)]
    for ids in prompts:
        keep(states, ids)
    for ids in prompts:
        assert restored(states, ids) == 35
        assert restored(states, [*ids, 1, 2, 3]) >= 32


def test_a_shared_prefix_is_stored_once_and_suffixes_without_it(states_in, store, tokens):
    states = states_in(store)
    keep(states, tokens(1000), ROWS)
    before = sum(entry.nbytes for entry in store.entries("states/"))
    users = [[*tokens(1000), *tokens(20, seed=seed)] for seed in range(1, 51)]
    for ids in users:
        keep(states, ids, ROWS)
    added = sum(entry.n_tokens for entry in store.entries("states/")) - 1000
    assert added == 50 * 20
    assert before
    for ids in users:
        assert restored(states, ids) == 1020


def test_a_conversation_that_grows_is_stored_once(states_in, store, tokens):
    states = states_in(store)
    for n_tokens in range(30, 600, 37):
        keep(states, tokens(n_tokens))
        assert restored(states, tokens(n_tokens)) == n_tokens
    assert sum(entry.n_tokens for entry in store.entries("states/")) < 1.3 * 600


def test_what_is_kept_is_not_written_again(states_in, store, tokens):
    states = states_in(store)
    assert keep(states, tokens(150)) > 0
    assert keep(states, tokens(150)) == 0
    assert keep(states, tokens(140)) == 1  # that it is a sequence of its own


def test_distinct_sequences_are_counted(states_in, store, tokens):
    states = states_in(store)
    for n_tokens in (10, 64, 100, 128, 150):
        for _ in range(2):
            keep(states, tokens(n_tokens))
    assert states.n_sequences() == 5
    keep(states_in(store, "another"), tokens(10))
    assert states.n_sequences() == 5


def test_models_and_salts_do_not_share(states_in, store, tokens):
    ids = tokens(150)
    variants = [{}, {"salt": "a"}, {"salt": b"a"}, {"salt": ""}, {"name": "other"}]
    for number, options in enumerate(variants):
        assert restored(states_in(store, **options), ids) == 0, number
        keep(states_in(store, **options), ids)
    for options in variants:
        assert restored(states_in(store, **options), ids) == 150


def test_private_states_keep_no_tokens(states_in, tmp_path, tokens):
    ids = tokens(150)
    with lmstash.open(tmp_path) as stash:
        states = states_in(stash.store, private=True)
        keep(states, ids)
        assert restored(states, ids) == 150
        assert restored(states, [*ids, 5, 6]) == 150
        assert restored(states, ids[:140]) == 128
        assert restored(states, [*ids[:140], 1, 2]) == 128
        keep(states, [*ids, *tokens(40, seed=4)])
        assert restored(states, [*ids, *tokens(40, seed=4)]) == 190
    spelled = np.asarray(ids[:8], "<u4").tobytes()
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert spelled not in path.read_bytes()


def test_a_new_process_finds_what_an_old_one_kept(states_in, tmp_path, tokens):
    with lmstash.open(tmp_path) as stash:
        keep(states_in(stash.store), tokens(300))
    with lmstash.open(tmp_path) as stash:
        states = states_in(stash.store)
        assert restored(states, [*tokens(290), 1]) == 290
        assert states.n_sequences() == 1


def test_two_openers_of_a_folder_see_each_other(states_in, tmp_path, tokens):
    with lmstash.open(tmp_path) as one, lmstash.open(tmp_path) as other:
        ours, theirs = states_in(one.store), states_in(other.store)
        assert restored(theirs, tokens(300)) == 0
        keep(ours, tokens(300))
        assert restored(theirs, tokens(300)) == 300
        one.clear()
        assert restored(theirs, tokens(300)) == 0
        keep(theirs, tokens(200))
        assert restored(ours, tokens(300)) == 200


@pytest.mark.parametrize("kind", ["block", "tail", "pointer", "base"])
def test_a_lost_entry_shortens_what_is_restored(states_in, store, tokens, kind):
    states = states_in(store)
    keep(states, tokens(150))
    keep(states, [*tokens(140), *tokens(10, seed=1)])
    asked = [*tokens(140), *tokens(10, seed=1), 1, 2, 3]
    path = states.names.path(tokens(150))
    key, left = {
        "block": (path.blocks[1], 64),
        "tail": (states.names.path(asked[:150]).tail(2), 140),
        "pointer": (path.pointers(2)[1], 150),
        "base": (path.tail(2), 128),
    }[kind]
    assert store.delete(key)
    assert restored(states, asked) <= 150
    assert restored(states, asked) >= min(left, 128)
    keep(states, asked)
    assert restored(states, asked) == len(asked)


def test_what_leans_on_a_lost_entry_is_not_promised_again(states_in, store, tokens):
    states = states_in(store)
    keep(states, tokens(150))
    asked = [*tokens(140), *tokens(10, seed=1)]
    keep(states, asked)
    assert store.delete(states.names.path(tokens(150)).tail(2))
    assert restored(states, asked) == 128  # what it leans on is found to be gone
    assert states.match(asked).n_tokens == 128


def test_an_entry_found_damaged_by_one_opener_is_kept_anew_by_another(states_in, tmp_path, tokens):
    with lmstash.open(tmp_path) as one, lmstash.open(tmp_path) as other:
        ours, theirs = states_in(one.store), states_in(other.store)
        keep(ours, tokens(300))
        assert restored(theirs, tokens(300)) == 300
        (path,) = [path for path in (tmp_path / "segments").iterdir() if b"states/" in path.read_bytes()[:200]]
        block = one.store.get(theirs.names.path(tokens(300)).blocks[1])
        data = bytearray(path.read_bytes())
        data[data.index(bytes(block)) + len(block) // 2] ^= 1
        path.write_bytes(data)
        assert restored(ours, tokens(300)) == 64
        keep(theirs, tokens(300))
        assert restored(ours, tokens(300)) == restored(theirs, tokens(300)) == 300


def test_eviction_keeps_beginnings(states_in, tokens):
    store = MemoryStore(200_000)
    states = states_in(store)
    for seed in range(1, 100):
        keep(states, [*tokens(512), *tokens(300, seed=seed)])
        assert restored(states, [*tokens(512), *tokens(300, seed=seed)]) >= 512
    assert store.events.stats.evicted_entries > 0


def test_a_state_larger_than_the_limit_leaves_the_cache_usable(states_in, tokens):
    states = states_in(MemoryStore(8_000))
    keep(states, tokens(2000))
    assert restored(states, tokens(2000)) < 2000
    keep(states, tokens(30, seed=1))
    assert restored(states, tokens(30, seed=1)) == 30


@pytest.mark.parametrize(
    ("ids", "blob"),
    [
        (range(10), b""),
        (range(10), b"noise" * 100),
        (range(10), toy_blob(ROWS, 0, range(9))),
        (range(10), toy_blob(ROWS, 0, range(11))),
        (range(10), toy_blob(ROWS, 0, range(10))[:-1]),
    ],
)
def test_a_state_that_is_not_of_these_tokens_is_not_kept(states_in, store, ids, blob):
    states = states_in(store)
    assert states.put(list(ids), blob) == 0
    assert restored(states, list(ids)) == 0
    assert store.events.stats.drops == {"unsupported": 1}


def test_no_tokens_are_nothing(states_in, store):
    states = states_in(store)
    assert states.put([], toy_blob(ROWS, 0, [])) == 0
    assert restored(states, []) == 0


def test_layouts_are_never_mixed(states_in, store, tokens):
    """One identity has one layout; should that ever fail, what is served is still of one."""
    states = states_in(store)
    keep(states, tokens(100), ROWS)
    keep(states, tokens(200), TRANSPOSED)
    assert restored(states, tokens(200)) in (64, 100)


def test_garbage_under_the_key_is_not_used(states_in, store, tokens):
    states = states_in(store)
    keep(states, tokens(200))
    path = states.names.path(tokens(200))
    entry = store.fetch_many([path.blocks[1]])[0]
    for value in (b"", b"x" * len(entry.value), bytes(entry.value[:-1]), bytes(entry.value)[:8] + bytes(200)):
        store.put(path.blocks[1], value, namespace=entry.namespace, parent=entry.parent)
        assert restored(states, tokens(200)) == 64


def test_another_entry_under_the_key_is_not_used(states_in, store, tokens):
    states = states_in(store)
    keep(states, tokens(200))
    keep(states, tokens(200, seed=1))
    ours, theirs = (states.names.path(tokens(200, seed=seed)) for seed in (0, 1))
    for at in (0, 1):
        entry = store.fetch_many([theirs.blocks[at]])[0]
        store.put(ours.blocks[at], bytes(entry.value), namespace=entry.namespace, parent=ours.parent(at))
        assert restored(states, tokens(200)) <= 64 * at


@pytest.mark.parametrize("seed", range(5))
def test_a_faulty_store_costs_only_time(states_in, tokens, seed):
    store = FaultyStore(MemoryStore(), miss_rate=0.1, drop_rate=0.1, seed=seed)
    states = states_in(store)
    draw = random.Random(seed)
    for _ in range(60):
        ids = [*tokens(draw.randrange(1, 200)), *tokens(draw.randrange(1, 100), seed=draw.randrange(3))]
        restored(states, ids)
        keep(states, ids)


def test_hits_are_told(states_in, store, tokens):
    told = []
    store.events.listen(told.append)
    states = states_in(store)
    keep(states, tokens(200))
    told.clear()
    restored(states, tokens(150))
    restored(states, tokens(300))
    kinds = [type(event).__name__ for event in told]
    assert kinds.count("PartialHit") == 1
    assert kinds.count("Hit") == (2 + 2) + (3 + 2)  # blocks, and a pointer with its piece
    assert store.events.stats.partial_hits == 1


def test_the_model_is_described(states_in, store, tokens):
    keep(states_in(store, "toy"), tokens(10))
    (entry,) = store.entries("models/")
    assert entry.meta["name"] == "toy"


def test_states_is_there_by_name():
    from lmstash.caches import states

    assert states.States is States
    with pytest.raises(AttributeError):
        _ = states.Nothing
