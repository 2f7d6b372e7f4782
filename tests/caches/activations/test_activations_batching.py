import pytest

from lmstash.caches.activations import Activations
from lmstash.caches.activations.batching import BATCH_PROMPTS, plan_batches
from lmstash.store.memory import MemoryStore


def test_every_prompt_runs_once_beside_others_of_like_length():
    lengths = [3, 50, 4, 49, 3, 48, 51]
    batches = plan_batches(lengths, 3)
    assert sorted(index for batch in batches for index in batch) == list(range(7))
    assert [[lengths[index] for index in batch] for batch in batches] == [[51, 50, 49], [48, 4, 3], [3]]


def test_batches_stay_within_the_budget_with_padding_counted():
    lengths = [1000, 600, 300, 300, 5, 5000]
    for batch in plan_batches(lengths, None, batch_tokens=1200):
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= 1200


def test_short_prompts_do_not_pile_up_without_end():
    assert max(map(len, plan_batches([1] * 1000, None))) == BATCH_PROMPTS


def test_prompts_longer_than_may_be_padded_run_beside_their_like_only():
    lengths = [3, 9, 5, 9, 2, 5, 12, 1]
    alike = [[lengths[index] for index in batch] for batch in plan_batches(lengths, None, padded_tokens=0)]
    assert alike == [[12], [9, 9], [5, 5], [3], [2], [1]]
    some = [[lengths[index] for index in batch] for batch in plan_batches(lengths, None, padded_tokens=5)]
    assert some == [[12], [9, 9], [5, 5, 3, 2, 1]]
    assert [len(batch) for batch in plan_batches([4] * 5, 2, padded_tokens=0)] == [2, 2, 1]


def test_no_prompts_make_no_batches():
    assert plan_batches([], None) == []


@pytest.mark.parametrize(("pool", "batches"), [("last", 1), (None, 4)])
def test_raw_values_of_many_layers_make_smaller_batches(monkeypatch, model, pool, batches, count_forwards):
    from lmstash.caches.activations import running

    acts = Activations(MemoryStore(), model)
    acts([[5]], "all", None)  # the probe for causality is over
    monkeypatch.setattr(running, "_RAW_BATCH_BYTES", 20 * 4 * 32 * 4)  # 20 tokens of 4 layers, 32 wide
    forwards = count_forwards(model)
    acts([[number] * 10 for number in range(8)], "all", pool)
    assert forwards.batches == batches
