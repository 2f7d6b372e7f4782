"""`TokenTrie`: both constructors, no lost subtrees, no recursion, no shared memory."""

import copy
import pickle
import random
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmstash.adapters.genlm import DynamicTokenTrie, TokenTrie

DEPTH = 100_000


def chain(kind=TokenTrie, depth=DEPTH):
    root = node = kind()
    for index in range(depth):
        node = node.add_token(index % 7)
    node.past_key_values = "deepest"
    return root, node


def test_a_tensor_as_first_argument_is_logprobs_and_anything_else_the_parent():
    row, parent = torch.rand(3), TokenTrie()
    assert TokenTrie(row).logprobs is row
    assert TokenTrie(parent, row).logprobs is row
    assert TokenTrie(logprobs=row).logprobs is row
    assert TokenTrie(parent).logprobs is None
    assert TokenTrie(None, None).logprobs is None
    assert DynamicTokenTrie(row).logprobs is row
    assert DynamicTokenTrie(row).parent is None


@pytest.mark.parametrize("kind", [TokenTrie, DynamicTokenTrie])
def test_attributes_are_live_and_can_be_written(kind):
    root, child = kind(), kind()
    root.children[5] = child
    assert root.get_token(5) is child
    assert root.has_token(5)
    child.logprobs = row = torch.rand(3)
    child.past_key_values = kv = object()
    assert (child.logprobs is row, child.past_key_values is kv) == (True, True)
    del root.children[5]
    assert not root.has_token(5)
    with pytest.raises(KeyError):
        root.get_token(5)
    root.children = {9: child}
    assert root.get_token(9) is child


def test_adding_a_token_that_is_there_keeps_what_lies_below_and_takes_the_new_logprobs():
    root = TokenTrie()
    first = root.add_token(1, torch.zeros(3))
    below = first.add_token(2, torch.ones(3))
    first.past_key_values = below.past_key_values = "kv"
    again = root.add_token(1, torch.full((3,), 2.0))
    assert again is first
    assert torch.equal(again.logprobs, torch.full((3,), 2.0))
    assert again.get_token(2) is below
    assert (again.past_key_values, below.past_key_values) == ("kv", "kv")
    assert torch.equal(root.add_token(1).logprobs, torch.full((3,), 2.0))


def test_queries_over_a_shared_prefix_all_stay():
    """8 concurrent queries that began before any was answered: genlm-backend keeps one of them."""
    root = TokenTrie()
    for last in range(8):
        root.extend_cache(0, [1, 2, 3, last], torch.rand(4, 5), 0)
    node = root.get_token(1).get_token(2).get_token(3)
    assert sorted(node.children) == list(range(8))


def test_a_second_prompt_that_begins_alike_does_not_take_the_first_ones_kv():
    root = TokenTrie()
    root.extend_cache(0, [0, 1, 2], torch.rand(3, 5), 0).past_key_values = "kv"
    root.extend_cache(0, [0, 8, 9], torch.rand(3, 5), 0).past_key_values = "other"
    assert root.get_token(0).get_token(1).get_token(2).past_key_values == "kv"


def test_logits_that_begin_too_late_are_refused_and_nothing_is_added():
    root = TokenTrie()
    with pytest.raises(ValueError, match="begin at token 2"):
        root.extend_cache(1, [1, 2, 3], torch.rand(5, 4), 2)
    with pytest.raises(IndexError, match="only 1 rows"):
        root.extend_cache(0, [1, 2], torch.rand(1, 4), 0)
    assert root.children == {}
    assert root.extend_cache(2, [1, 2], None, 5) is root


def test_added_rows_share_memory_with_nobody():
    batch = torch.rand(20, 1000)
    root = TokenTrie()
    node = root.add_token(1, batch[3])
    expected = batch[3].clone()
    batch.zero_()
    assert torch.equal(node.logprobs, expected)
    assert node.logprobs.untyped_storage().nbytes() == 4000
    last = root.extend_cache(0, [2, 3], torch.rand(2, 1000), 0)
    assert last.logprobs.untyped_storage().nbytes() == 4000


def test_logprobs_are_float32_whatever_the_model_computes_in(latest):
    logits = torch.randn(2, 50).bfloat16()
    ours = TokenTrie().extend_cache(0, [1, 2], logits, 0).logprobs
    theirs = latest.TokenTrie().extend_cache(0, [1, 2], logits, 0).logprobs
    assert ours.dtype == torch.float32
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", [TokenTrie, DynamicTokenTrie])
def test_no_depth_is_too_deep(kind):
    assert sys.getrecursionlimit() < DEPTH
    root, last = chain(kind)
    assert repr(root).startswith("[0: [1: [2: ")
    assert repr(root).endswith("*[]" + "]" * DEPTH)
    copied = copy.deepcopy(root)
    assert repr(copied) == repr(root)
    assert repr(pickle.loads(pickle.dumps(root))) == repr(root)  # noqa: S301
    if kind is DynamicTokenTrie:
        assert root.count_kv_size() == 1
        assert root.collect_nodes_with_kv() == [last]
        root.evict_lru_kv(0)
        assert last.past_key_values is None
        assert last.last_access == root.last_access
    last.past_key_values = "again"
    root.clear_kv_cache()
    assert last.past_key_values is None


def test_copies_keep_values_and_share_none():
    root = DynamicTokenTrie()
    root.extend_cache(0, [1, 2], torch.rand(3), torch.rand(2, 1, 1, 2, 4))
    root.add_token(9)
    copied = copy.deepcopy(root)
    first, second = root.get_token(1), copied.get_token(1)
    assert type(copied) is type(second) is DynamicTokenTrie
    assert torch.equal(first.past_key_values, second.past_key_values)
    second.past_key_values.zero_()
    assert first.past_key_values.any()
    assert second.parent is copied
    assert second.get_token(2).depth == 2
    assert second.last_access < copied.get_token(9).last_access
    copied.evict_lru_kv(1)
    assert (root.count_kv_size(), copied.kv_size) == (2, 1)


@pytest.mark.parametrize("version", ["seed", "latest"])
@settings(max_examples=40)
@given(st.integers(0, 2**32))
def test_fresh_sequences_behave_as_in_the_releases(request, version, number):
    theirs, ours = request.getfixturevalue(version).TokenTrie(), TokenTrie()
    rng = random.Random(number)
    for _ in range(rng.randrange(1, 12)):
        ids = [rng.randrange(3) for _ in range(rng.randrange(1, 6))]
        node, mine, matched = theirs, ours, 0
        while matched < len(ids) and node.has_token(ids[matched]):
            assert mine.has_token(ids[matched])
            node, mine = node.get_token(ids[matched]), mine.get_token(ids[matched])
            matched += 1
        base = rng.randrange(matched + 1)
        logits = torch.randn(len(ids) - base, 6)
        node, mine = node.extend_cache(matched, ids, logits, base), mine.extend_cache(matched, ids, logits, base)
        assert (node.logprobs is None) == (mine.logprobs is None)
        if node.logprobs is not None:
            assert torch.equal(node.logprobs, mine.logprobs)
        if rng.random() < 0.4:
            node.past_key_values = mine.past_key_values = "kv"
        assert repr(theirs) == repr(ours)
    theirs.clear_kv_cache(), ours.clear_kv_cache()
    assert repr(theirs) == repr(ours)
