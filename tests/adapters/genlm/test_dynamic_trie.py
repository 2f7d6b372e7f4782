"""`DynamicTokenTrie`: evicts as genlm-backend 0.2.2 does, at a cost that does not grow with the tree."""

import gc
import random
import time
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmstash.adapters.genlm import DynamicTokenTrie
from lmstash.adapters.genlm.token_trie import nodes_of


def kv_of(n_tokens: int) -> torch.Tensor:
    return torch.rand(2, 2, 1, n_tokens, 4)


class Token:
    """An array as cheap as can be: what is measured is the tree, not torch."""

    shape, dtype = (2, 1, 1, 1, 1), "none"

    def clone(self):
        return self


class Tokens:
    def __init__(self, n_tokens):
        self.shape, self.dtype = (2, 1, 1, n_tokens, 1), "none"

    def __getitem__(self, index):
        return Token()


def tree_of(n_nodes: int, length: int = 250, shared: int = 50, seed: int = 0) -> DynamicTokenTrie:
    """`n_nodes` nodes in sequences of `length` tokens, which share `shared` with another one."""
    rng, root = random.Random(seed), DynamicTokenTrie()
    stems = [[rng.randrange(50_000) for _ in range(shared)] for _ in range(40)]
    made = 0
    while made < n_nodes:
        ids = rng.choice(stems) + [rng.randrange(50_000) for _ in range(length - shared)]
        node, matched = root, 0
        while matched < length and node.has_token(ids[matched]):
            node, matched = node.get_token(ids[matched]), matched + 1
        ids = ids[: matched + n_nodes - made]
        node.extend_cache(matched, ids, None, Tokens(len(ids) - matched))
        made += len(ids) - matched
    return root


def seconds(work) -> float:
    started = time.thread_time()
    work()
    return time.thread_time() - started


def test_evicting_half_of_100_000_nodes_takes_no_seconds():
    taken = []
    for _ in range(3):
        root = tree_of(100_000)
        gc.collect()
        taken.append(seconds(lambda root=root: root.evict_lru_kv(50_000)))
        assert root.kv_size == root.count_kv_size() == 50_000
    assert min(taken) <= 0.2  # 0.02 here; the benchmark holds the goal of 0.05, this only what is not linear


def test_adding_a_token_costs_the_same_at_any_depth():
    def grow(node, n_tokens):
        for index in range(n_tokens):
            node = node.add_token(index)
        return node

    grow(DynamicTokenTrie(), 3000)
    shallow = min(seconds(lambda: [grow(DynamicTokenTrie(), 100) for _ in range(30)]) for _ in range(3))
    deep = min(seconds(lambda: grow(DynamicTokenTrie(), 3000)) for _ in range(3))
    assert deep < 3 * shallow  # theirs: 12 times as much


def test_evicting_little_costs_little_however_many_nodes_there_are():
    def step(root, index):
        root.extend_cache(0, [index, index + 1], None, Tokens(2))
        root.evict_lru_kv(400)

    small, large = tree_of(500), tree_of(60_000)
    for root in (small, large):
        step(root, 60_000)

    def hundred_steps(root):
        return min(seconds(lambda: [step(root, 70_000 + index) for index in range(100)]) for _ in range(3))

    assert hundred_steps(large) < 5 * hundred_steps(small)


def test_the_least_recently_extended_goes_first_and_the_deepest_of_those():
    root = DynamicTokenTrie()
    old = root.extend_cache(0, [1, 2, 3], None, kv_of(3))
    new = root.extend_cache(0, [1, 7], None, kv_of(2))
    root.evict_lru_kv(2)
    assert root.collect_nodes_with_kv() == [root.get_token(1), new]
    assert old.past_key_values is old.parent.past_key_values is None
    assert root.kv_size == 2
    root.evict_lru_kv(0)
    assert root.collect_nodes_with_kv() == []


def test_evicting_kv_frees_it():
    whole = kv_of(200)
    root = DynamicTokenTrie()
    root.extend_cache(0, list(range(200)), None, whole)
    root.evict_lru_kv(1)
    (left,) = root.collect_nodes_with_kv()
    assert left.past_key_values.untyped_storage().nbytes() == whole.nbytes // 200
    assert torch.equal(left.past_key_values, whole[:, :, :, :1])


def test_kv_that_ends_before_the_tokens_leaves_the_rest_without():
    root = DynamicTokenTrie()
    last = root.extend_cache(0, [1, 2, 3, 4], None, kv_of(2))
    assert root.count_kv_size() == 2
    assert last.past_key_values is None
    last.store_kv(kv_of(1))
    assert root.count_kv_size() == 3


def test_kv_of_numpy_is_cut_and_owned_too():
    whole = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 1, 1, 3, 4)
    root = DynamicTokenTrie()
    root.extend_cache(0, [5, 6, 7], np.zeros(9), whole)
    kept = root.get_token(5).get_token(6).past_key_values
    assert kept.base is None
    assert np.array_equal(kept, whole[:, :, :, 1:2])


def test_kv_of_mlx_is_cut_and_owned_too():
    mx = pytest.importorskip("mlx.core", reason="needs mlx: pip install 'mlx[cpu]'")
    root, row = DynamicTokenTrie(), mx.random.normal((7,))
    whole = mx.random.normal((2, 8, 4, 500, 64))
    expected = whole[:, :, :, 1:2] + 0
    mx.eval(whole, expected, row)
    assert DynamicTokenTrie(row).logprobs is row
    last = root.extend_cache(0, list(range(500)), row, whole)
    assert mx.array_equal(root.get_token(0).get_token(1).past_key_values, expected)
    row[0] = 1000.0
    assert float(last.logprobs[0]) != 1000.0
    held = mx.get_active_memory()
    n_bytes = whole.nbytes
    del whole
    assert held - mx.get_active_memory() >= n_bytes
    root.evict_lru_kv(1)
    assert held - mx.get_active_memory() >= 1.9 * n_bytes


def test_what_callers_write_to_does_not_reach_the_tree():
    root, kv, row = DynamicTokenTrie(), kv_of(1), torch.rand(5)
    node = root.add_token(1, row, kv)
    expected = kv.clone(), row.clone()
    kv.zero_(), row.zero_()
    assert torch.equal(node.past_key_values, expected[0])
    assert torch.equal(node.logprobs, expected[1])


def test_a_dropped_tree_is_freed_at_once():
    gc.disable()
    try:
        root = tree_of(2000)
        root.touch()
        root.evict_lru_kv(1000)
        assert root.last_access
        watched = [weakref.ref(node) for node in nodes_of(root)]
        del root
        assert [each for each in watched if each() is not None] == []
    finally:
        gc.enable()


def test_a_node_outlives_its_tree_without_a_parent():
    root = DynamicTokenTrie()
    node = root.extend_cache(0, [1, 2], None, kv_of(2))
    del root
    assert node.parent is None
    assert node.depth == 2
    node.touch()
    node.add_token(3, None, kv_of(1))
    node.evict_lru_kv(0)
    assert node.collect_nodes_with_kv() == []


def test_times_never_stand_still_or_go_back(monkeypatch):
    import lmstash.adapters.genlm.recency as recency

    root = DynamicTokenTrie()
    first = root.add_token(1)
    monkeypatch.setattr(recency.time, "time", lambda: 5.0)
    second = root.add_token(2)
    third = root.add_token(3)
    assert first.last_access < second.last_access < third.last_access == root.last_access


def test_a_subtree_that_is_taken_out_is_neither_counted_nor_held():
    root = DynamicTokenTrie()
    root.extend_cache(0, [1, 2, 3], None, kv_of(3))
    root.extend_cache(0, [4], None, kv_of(1))
    gone = weakref.ref(root.get_token(1))
    del root.children[1]
    gc.collect()
    assert gone() is None
    root.evict_lru_kv(0)
    assert root.count_kv_size() == 0


def test_another_tree_that_is_put_in_is_evicted_from_too():
    root, other = DynamicTokenTrie(), DynamicTokenTrie()
    root.add_token(1, None, kv_of(1))
    other.extend_cache(0, [7, 8], None, kv_of(2))
    root.children[2] = other
    root.evict_lru_kv(2)
    assert root.kv_size == 2
    other.add_token(9, None, kv_of(1))
    root.evict_lru_kv(1)
    assert len(root.collect_nodes_with_kv()) == root.kv_size == 1


class Both:
    """Theirs and ours, given the same work."""

    def __init__(self, seed):
        self.trees = seed.DynamicTokenTrie(), DynamicTokenTrie()
        self.n_rows = 0

    def pairs(self):
        theirs, ours = ([*self.walk(tree)] for tree in self.trees)
        assert [path for path, _ in theirs] == [path for path, _ in ours]
        return [(mine, other) for (_, other), (_, mine) in zip(theirs, ours, strict=True)]

    def walk(self, tree):
        pending = [((), tree)]
        while pending:
            path, node = pending.pop()
            yield path, node
            pending.extend(((*path, token), child) for token, child in node.children.items())

    def check(self):
        assert repr(self.trees[0]) == repr(self.trees[1])
        pairs = self.pairs()
        times = [sorted({node.last_access for node in side}) for side in zip(*pairs, strict=True)]
        for ours, theirs in pairs:
            assert (ours.past_key_values is None) == (theirs.past_key_values is None)
            assert (ours.logprobs is None) == (theirs.logprobs is None)
            assert (ours.logprobs is None) or torch.equal(ours.logprobs, theirs.logprobs)
            assert ours.depth == theirs.depth
            assert (ours.parent is None) == (theirs.parent is None)
            assert times[0].index(ours.last_access) == times[1].index(theirs.last_access)

    def sizes(self):
        for ours, theirs in self.pairs():
            assert ours.kv_size == theirs.kv_size


def one_step(both: Both, rng: random.Random, *, wild: bool) -> None:
    ours, theirs = rng.choice(both.pairs())
    row = torch.full((2,), float(rng.randrange(1000)))
    what = rng.randrange(13 if wild else 8)
    if what == 0:
        token, kv = rng.randrange(3), kv_of(1) if rng.random() < 0.7 else None
        given_row = row if rng.random() < 0.7 else None
        for node in (ours, theirs):
            node.add_token(token, given_row, kv)
    elif what in (1, 2, 3):
        tokens = [rng.randrange(3) for _ in range(rng.randrange(5))]
        kv = kv_of(len(tokens)) if rng.random() < 0.8 else None
        for node in (ours, theirs):
            node.extend_cache(0, tokens, row, kv)
    elif what == 4:
        ours.touch(), theirs.touch()
    elif what == 5:
        assert ours.count_kv_size() == theirs.count_kv_size()
    elif what in (6, 7):
        n_left = rng.randrange(8)
        for tree in both.trees:
            tree.evict_lru_kv(n_left)
        both.sizes()
    elif what == 8:
        kv = rng.choice([None, kv_of(1)])
        ours.past_key_values = theirs.past_key_values = kv
    elif what == 9:
        kv = kv_of(1)
        ours.store_kv(kv), theirs.store_kv(kv)
    elif what == 10:
        other, their_other = rng.choice(both.pairs())
        ours.last_access, theirs.last_access = other.last_access, their_other.last_access
    elif what == 11:
        n_left = rng.randrange(4)
        ours.evict_lru_kv(n_left), theirs.evict_lru_kv(n_left)
    elif ours.children:
        token = rng.choice(list(ours.children))
        del ours.children[token], theirs.children[token]


@pytest.mark.parametrize("wild", [False, True], ids=["methods", "attributes"])
@settings(max_examples=60)
@given(number=st.integers(0, 2**32))
def test_any_course_of_work_ends_as_in_the_release(seed, wild, number):
    """Same tree, same KV, same order of times, whatever is done to it by methods or by writing to its attributes."""
    both, rng = Both(seed), random.Random(number)
    for _ in range(rng.randrange(1, 60)):
        one_step(both, rng, wild=wild)
        if rng.random() < 0.3:
            both.check()
    both.check()
    n_left = rng.randrange(6)
    for tree in both.trees:
        tree.evict_lru_kv(n_left)
    both.check()
    both.sizes()
