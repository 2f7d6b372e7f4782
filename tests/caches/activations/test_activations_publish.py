"""When computed values are saved: at once, or together where they come fast or the check is dear."""

import time

import pytest

from lmstash.caches.activations import publish
from lmstash.caches.activations.publish import Publisher
from lmstash.store.base import Write
from lmstash.store.memory import MemoryStore
from lmstash.testing import sample_bytes, sample_key


def write(number: int) -> Write:
    return Write(sample_key(number), sample_bytes(400, number), "activations/publish")


@pytest.fixture
def hasty(monkeypatch):
    """Every batch comes soon after the one before it, and three of them are enough."""
    monkeypatch.setattr(publish, "TOGETHER_SECONDS", 1000.0)
    monkeypatch.setattr(publish, "TOGETHER_BYTES", 1000)


def kept(store: MemoryStore) -> int:
    return store.info().entries


def test_batches_that_come_fast_are_saved_together(hasty):
    store = MemoryStore(1 << 20)
    publisher = Publisher(store, lambda: True, replace=False)
    seen = []
    for number in range(8):
        publisher.offer([write(number)])
        seen.append(kept(store))
    assert seen == [1, 1, 1, 4, 4, 4, 7, 7]
    publisher.flush()
    assert kept(store) == 8


def test_a_dear_check_is_not_made_for_a_few_megabytes(hasty, monkeypatch):
    def unchanged() -> bool:
        time.sleep(0.05)  # so that the next one may come in 5 s
        return True

    store = MemoryStore(1 << 20)
    publisher = Publisher(store, unchanged, replace=False)
    for number in range(8):
        publisher.offer([write(number)])
    assert kept(store) == 1
    monkeypatch.setattr(publish, "HELD_BYTES", 1000)
    publisher.offer([write(8)])
    assert kept(store) == 9
