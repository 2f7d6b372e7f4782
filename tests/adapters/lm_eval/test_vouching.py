"""Answers that were kept within a call are taken back when the model turns out to have changed."""

from __future__ import annotations

import pytest

pytest.importorskip("lm_eval")

import lmstash
from lmstash.adapters.lm_eval.vouching import Vouched
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


@pytest.mark.parametrize("late", [False, True], ids=["before it is seen", "while it is seen"])
def test_what_a_changed_model_answered_is_taken_back(late):
    with lmstash.open("memory://", strict=True) as stash:
        who = Fickle()
        vouched = Vouched(who, stash.store, object())
        responses = stash.responses(vouched)
        model = vouched.look()
        vouched.begin(model)
        asked = responses.asker.ask(model, "q")
        assert asked is not None
        assert responses.shelf.keep([asked], ["of another"], [None], 0.0, None)[0] is not None
        who.now = named("n")
        if late:  # another thread has written it, and says so after the change was found
            vouched._check()
            vouched.kept([asked])
        else:
            vouched.kept([asked])
            vouched._check()
        assert not vouched.end()
        assert responses.shelf.read(asked) is MISSING
        assert stash.stats.drops["model_changed"] == 1
