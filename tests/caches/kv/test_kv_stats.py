"""The counters of a `KV`."""

from lmstash.caches.kv.stats import MAX_REASONS, OTHER_REASONS, KVStats


def test_reasons_that_are_new_each_time_take_no_more_room():
    stats = KVStats()
    for number in range(10 * MAX_REASONS):
        stats.note(stats.passed_on, f"ValueError: {number}")
    stats.note(stats.passed_on, "ValueError: 0")
    assert len(stats.passed_on) == MAX_REASONS + 1
    assert stats.passed_on["ValueError: 0"] == 2
    assert stats.passed_on.total() == 10 * MAX_REASONS + 1
    assert stats.passed_on[OTHER_REASONS] == 9 * MAX_REASONS
