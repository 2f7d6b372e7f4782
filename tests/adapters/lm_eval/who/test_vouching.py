"""Answers that were kept within a call are taken back when the model turns out to have changed."""

from __future__ import annotations

import pytest

pytest.importorskip("lm_eval")

import lmstash
from lmstash.adapters.lm_eval.under_way import Call
from lmstash.adapters.lm_eval.who.vouching import Vouched
from lmstash.caches.responses import MISSING
from lmstash.caches.responses.who import named


class Fickle:
    """A model that changes when it is told to."""

    def __init__(self):
        self.now = named("m")

    def look(self):
        return self.now

    def unchanged(self, since):
        return since == self.now


def begun(vouched):
    call = Call(vouched.look())
    vouched.begin(call)
    return call


def answering(stash, answer):
    """Begin a call in which an answer is kept, though nobody was told of it yet."""
    who = Fickle()
    vouched = Vouched(who, stash.store, object())
    responses = stash.responses(vouched)
    call = begun(vouched)
    asked = responses.asker.ask(call.model, "q")
    assert asked is not None
    assert responses.shelf.keep([asked], [answer], [None], 0.0, None)[0] is not None
    return who, vouched, responses, call, asked


@pytest.mark.parametrize("late", [False, True], ids=["before it is seen", "while it is seen"])
def test_what_a_changed_model_answered_is_taken_back(late):
    with lmstash.open("memory://", strict=True) as stash:
        who, vouched, responses, call, asked = answering(stash, "of another")
        who.now = named("n")
        if late:  # another thread has written it, and says so after the change was found
            vouched._check(call)
            vouched.kept(call, [asked])
        else:
            vouched.kept(call, [asked])
            vouched._check(call)
        assert not vouched.end(call)
        assert responses.shelf.read(asked) is MISSING
        assert stash.stats.drops["model_changed"] == 1


@pytest.mark.parametrize("changes", [False, True])
def test_a_call_within_another_leaves_that_one_to_be_judged(changes):
    with lmstash.open("memory://", strict=True) as stash:
        who, vouched, responses, call, asked = answering(stash, "answer")
        vouched.kept(call, [asked])
        if changes:
            who.now = named("n")
        within = begun(vouched)
        assert vouched.unchanged(within.model)
        assert vouched.end(within)
        assert vouched.unchanged(call.model)  # as far as was seen
        assert vouched.end(call) is not changes
        assert (responses.shelf.read(asked) is MISSING) is changes


def test_what_was_kept_before_a_look_that_is_interrupted_is_taken_back_by_the_next(monkeypatch):
    with lmstash.open("memory://", strict=True) as stash:
        who, vouched, responses, call, asked = answering(stash, "of another")
        vouched.kept(call, [asked])
        who.now = named("n")

        def interrupted(since):
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(who, "unchanged", interrupted)
            with pytest.raises(KeyboardInterrupt):
                vouched._check(call)
        assert not vouched.end(call)
        assert responses.shelf.read(asked) is MISSING
