"""Functions that remember: where they are found, and whether what they were handed is plain."""

import functools

import pytest
import torch

from lmstash.identity.code.memos import counts_of, is_handed_plain, memos_among


def remembering(**options):
    return functools.lru_cache(**options)(lambda *args, **kwargs: {"a": {"result": args}})


@pytest.mark.parametrize("options", [{}, {"maxsize": None}, {"typed": True}, {"maxsize": None, "typed": True}])
def test_what_was_handed_is_told_apart(options):
    plain = [(), (1,), ("a", 2.0), ((1, (None, True)), frozenset({b"x"}))]
    for arguments in [*plain, (torch.float32, torch.device("cpu"), torch.Size([1, 2]))]:
        memo = remembering(**options)
        memo(*arguments, x=1)
        memo(*arguments)
        memo(3)
        assert is_handed_plain(memo)
    for odd in (torch.zeros(2), torch.nn.Linear(1, 1), print, torch.nn.Linear, (1, test_what_was_handed_is_told_apart)):
        memo = remembering(**options)
        memo(1)
        memo(2, x=odd)
        assert not is_handed_plain(memo)
        memo.cache_clear()
        memo(1)
        assert is_handed_plain(memo)


def test_they_are_found_in_what_wraps_them():
    memo = remembering()
    outer = functools.wraps(memo)(lambda: memo())
    wrapping = [memo, outer, staticmethod(memo), classmethod(memo), property(memo), property(None, memo)]
    wrapping += [functools.partial(memo, 1), functools.partialmethod(outer), staticmethod(functools.lru_cache(memo))]
    for each in wrapping:
        assert memo in list(memos_among([1, each, "a"]))
    assert list(memos_among([print, 1, None, "a", torch.nn.Linear])) == []


def test_counts_tell_what_is_remembered_anew():
    memo = remembering(maxsize=1)
    before = counts_of(memo)
    memo(1)
    first = counts_of(memo)
    memo(1)
    assert counts_of(memo) == first != before
    memo(2)
    assert counts_of(memo) != first
