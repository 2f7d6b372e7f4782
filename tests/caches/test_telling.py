"""What the logger is told of what happens in a store."""

import logging

from lmstash.caches.telling import tell_summary, told
from lmstash.events import DropReason, EventLog, MissReason

KEY = bytes(range(32))


def happen(events: EventLog) -> None:
    events.hit("activations/a", KEY, 12)
    events.miss("", KEY, MissReason.DAMAGED)
    events.misses([KEY], MissReason.ABSENT)
    events.drop("activations/a", KEY, DropReason.MODEL_CHANGED)


def test_each_hit_miss_and_drop_is_told_with_its_reason_while_it_lasts(caplog):
    events = EventLog()
    with caplog.at_level(logging.DEBUG, logger="lmstash"):
        with told(events):
            happen(events)
        happen(events)
    start = "0001020304050607"
    assert caplog.messages == [
        f"hit activations/a {start} (12 bytes)",
        f"miss  {start}: damaged",
        f"miss  {start}: absent",
        f"not kept activations/a {start}: model_changed",
    ]


def test_nobody_listens_above_debug(caplog):
    events = EventLog()
    with caplog.at_level(logging.INFO, logger="lmstash"), told(events):
        assert not events.listening
        happen(events)
    assert caplog.messages == []


def test_a_summary_says_what_is_kept_and_what_is_not(caplog):
    with caplog.at_level(logging.INFO, logger="lmstash"):
        tell_summary("bert", n_absent=3, n_prompts=10, layers=range(2, 4))
    assert caplog.messages == ["bert: 7 of 10 prompts kept, 3 to compute (layers 2, 3)"]
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="lmstash"):
        tell_summary("bert", n_absent=3, n_prompts=10, layers=range(2, 4))
    assert caplog.messages == []
