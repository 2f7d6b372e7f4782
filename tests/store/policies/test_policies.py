"""What goes first: least recently used; and clear words for what is not there yet."""

from __future__ import annotations

import pytest

from lmstash.errors import InvalidArgumentError
from lmstash.store.disk.store import DiskStore
from lmstash.store.policies import LeastRecentlyUsed, policy_named


def test_what_was_used_longest_ago_is_worth_least():
    policy = policy_named("lru")
    assert isinstance(policy, LeastRecentlyUsed)
    used = [(1_700_000_000_000 + each, hits) for each, hits in [(5, 0), (1, 900), (3, 1), (2, 65_535), (4, 7)]]
    assert [ms % 10 for ms, _hits in sorted(used, key=lambda each: policy.value(*each))] == [1, 2, 3, 4, 5]


def test_what_is_known_is_worth_more_than_nothing():
    assert policy_named("lru").value(1, 0) > 0


@pytest.mark.parametrize("name", ["arc", "gdsf"])
def test_a_policy_that_comes_later_says_so(name: str):
    with pytest.raises(InvalidArgumentError, match=r"later release.*policy='lru'"):
        policy_named(name)


@pytest.mark.parametrize("name", ["", "LRU", "fifo"])
def test_an_unknown_policy_names_one_that_is_known(name: str):
    with pytest.raises(InvalidArgumentError, match=r"policy='lru'"):
        policy_named(name)


def test_a_wrong_policy_is_refused_before_the_folder_is_made(tmp_path):
    with pytest.raises(InvalidArgumentError):
        DiskStore(tmp_path / "stash", policy="fifo")
    assert not (tmp_path / "stash").exists()
