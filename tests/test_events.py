"""Counting and telling: every kind of event, listeners that come, go and fail, and threads."""

from __future__ import annotations

import json
import logging
from concurrent.futures import ThreadPoolExecutor

import pytest

from lmstash.events import Damage, Drop, DropReason, Event, EventLog, Evict, Hit, Miss, MissReason, Put, Stats

KEY = bytes(32)


def one_of_each(log: EventLog) -> list[Event]:
    """Report one of each kind; returns the events that listeners should have heard."""
    log.hit("kind/a", KEY, 10, 1.5)
    log.miss("kind/a", KEY, MissReason.GONE)
    log.put("kind/a", KEY, 20, 2.5)
    log.drop("kind/a", KEY, DropReason.NO_ROOM)
    log.evict("kind/a", 3, 300)
    log.damage("kind/a", None, "a flipped bit")
    return [
        Hit("kind/a", KEY, 10, 1.5),
        Miss("kind/a", KEY, MissReason.GONE),
        Put("kind/a", KEY, 20),
        Drop("kind/a", KEY, DropReason.NO_ROOM),
        Evict("kind/a", 3, 300),
        Damage("kind/a", None, "a flipped bit"),
    ]


def test_each_event_is_counted_and_told():
    log, heard = EventLog(), list[Event]()
    log.listen(heard.append)
    assert heard == [] != one_of_each(log) == heard
    assert log.stats.as_dict() == {
        "hits": 1, "partial_hits": 0, "misses": {"gone": 1}, "puts": 1, "drops": {"no_room": 1}, "evicted_entries": 3,
        "evicted_bytes": 300, "damaged": 1, "bytes_read": 10, "bytes_written": 20, "seconds_saved": 1.5,
        "seconds_computed": 2.5, "overflows": 0,
    }  # fmt: skip


def test_many_at_once_count_as_many():
    log = EventLog()
    log.hits(5, 50, 2.0)
    log.puts(3, 30, 1.0)
    log.overflow(2)
    stats = log.stats
    assert (stats.hits, stats.bytes_read, stats.seconds_saved) == (5, 50, 2.0)
    assert (stats.puts, stats.bytes_written, stats.seconds_computed, stats.overflows) == (3, 30, 1.0, 2)


def test_counters_are_plain_numbers_for_json():
    log = EventLog()
    one_of_each(log)
    assert json.loads(json.dumps(log.stats.as_dict())) == log.stats.as_dict()
    assert Stats().as_dict()["misses"] == {}


def test_listeners_come_and_go():
    log, first, second = EventLog(), list[Event](), list[Event]()
    assert not log.listening
    stop_first, stop_second = log.listen(first.append), log.listen(second.append)
    assert log.listening
    log.miss("", KEY, MissReason.ABSENT)
    stop_first()
    stop_first()
    log.miss("", KEY, MissReason.ABSENT)
    stop_second()
    log.miss("", KEY, MissReason.ABSENT)
    assert (len(first), len(second)) == (1, 2)
    assert not log.listening
    assert log.stats.misses == {MissReason.ABSENT: 3}


def test_a_failing_listener_is_removed_and_the_fault_logged(caplog: pytest.LogCaptureFixture):
    log, heard, calls = EventLog(), list[Event](), list[Event]()

    def fail(event: Event) -> None:
        calls.append(event)
        raise ValueError("my own fault")

    log.listen(fail)
    log.listen(heard.append)
    with caplog.at_level(logging.ERROR, logger="lmstash"):
        log.put("", KEY, 1)
        log.put("", KEY, 1)
    assert (len(calls), len(heard)) == (1, 2)
    assert [each.getMessage() for each in caplog.records] == ["lmstash: an event listener failed and was removed"]
    assert "my own fault" in caplog.text


def test_a_listener_may_stop_itself_and_ask_for_counters():
    log, seen = EventLog(), list[int]()

    def once(event: Event) -> None:
        seen.append(log.stats.puts)
        stop()

    stop = log.listen(once)
    log.put("", KEY, 1)
    log.put("", KEY, 1)
    assert seen == [1]


def test_a_topic_is_warned_of_once(caplog: pytest.LogCaptureFixture):
    log = EventLog()
    with caplog.at_level(logging.WARNING, logger="lmstash"):
        for number in range(3):
            log.warn_once("topic", "number %d", number)
            log.damage("", KEY, f"detail {number}")
    assert [each.getMessage() for each in caplog.records if "number" in each.getMessage()] == ["number 0"]
    assert sum("detail" in each.getMessage() for each in caplog.records) == 1
    assert log.stats.damaged == 3


def test_threads_count_exactly():
    log = EventLog()

    def work(_thread: int) -> None:
        for _ in range(2000):
            log.hit("", KEY, 1, 0.5)
            log.miss("", KEY, MissReason.ABSENT)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert (log.stats.hits, log.stats.bytes_read, log.stats.seconds_saved) == (12_000, 12_000, 6_000.0)
    assert log.stats.misses == {MissReason.ABSENT: 12_000}


def test_a_lock_held_when_the_process_forked_does_not_hang_the_child():
    log = EventLog()
    log._lock.acquire()
    log.after_fork()
    log.hit("", KEY, 1)
    assert log.stats.hits == 1
