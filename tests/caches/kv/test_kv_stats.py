"""The counters of a `KV`."""

import lmstash
from lmstash.caches.kv.stats import MAX_REASONS, OTHER_REASONS, KVStats
from lmstash.identity.models.sighting import Sighting


def test_reasons_that_are_new_each_time_take_no_more_room():
    stats = KVStats()
    for number in range(10 * MAX_REASONS):
        stats.note(stats.passed_on, f"ValueError: {number}")
    stats.note(stats.passed_on, "ValueError: 0")
    assert len(stats.passed_on) == MAX_REASONS + 1
    assert stats.passed_on["ValueError: 0"] == 2
    assert stats.passed_on.total() == 10 * MAX_REASONS + 1
    assert stats.passed_on[OTHER_REASONS] == 9 * MAX_REASONS


def test_only_what_is_put_counts_as_kept(model, prompt, monkeypatch):
    with lmstash.open("memory://") as stash:
        kv = stash.kv(model)
        ids = prompt(100)
        kv.prefill(ids)
        kept = kv.stats.tokens_kept
        assert kept >= 100
        monkeypatch.setattr(Sighting, "unchanged", lambda self: False)  # as when the model was edited meanwhile
        assert kv.prefill(prompt(90, seed=1)) == 90
        assert kv.put(prompt(90, seed=1), model(prompt(90, seed=1), use_cache=True).past_key_values) == 0
        assert kv.stats.tokens_kept == kept
        monkeypatch.undo()
        assert kv.put(prompt(90, seed=1), model(prompt(90, seed=1), use_cache=True).past_key_values) >= 90
        assert kv.stats.tokens_kept >= kept + 90
