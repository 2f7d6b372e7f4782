"""When computed values are saved: at once, or together where they come fast or the check is dear."""

from types import SimpleNamespace

import pytest

from lmstash.caches.activations import publish
from lmstash.caches.activations.publish import Publisher
from lmstash.store.base import Write
from lmstash.store.memory import MemoryStore
from lmstash.testing import sample_bytes, sample_key


class Work:
    """Batches of 400 bytes that come every 10 ms, by a clock of their own; three of them are enough."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, check_seconds: float) -> None:
        self.now = 0.0
        monkeypatch.setattr(publish, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(publish, "TOGETHER_BYTES", 1000)
        self.check_seconds = check_seconds
        self.store = MemoryStore(1 << 20)
        self.publisher = Publisher(self.store, self.check, replace=False)

    def check(self) -> bool:
        self.now += self.check_seconds
        return True

    def kept_after(self, n_batches: int) -> list[int]:
        kept = []
        for number in range(n_batches):
            self.now += 0.01
            write = Write(sample_key(number), sample_bytes(400, number), "activations/publish")
            self.publisher.offer([write])
            kept.append(self.store.info().entries)
        return kept


def test_batches_that_come_fast_are_saved_together(monkeypatch):
    work = Work(monkeypatch, check_seconds=0.0)
    assert work.kept_after(8) == [1, 1, 1, 4, 4, 4, 7, 7]
    work.publisher.flush()
    assert work.store.info().entries == 8


def test_batches_that_come_slowly_are_saved_at_once(monkeypatch):
    monkeypatch.setattr(publish, "TOGETHER_SECONDS", 0.005)
    assert Work(monkeypatch, check_seconds=0.0).kept_after(4) == [1, 2, 3, 4]


def test_a_dear_check_is_not_made_for_a_few_megabytes(monkeypatch):
    work = Work(monkeypatch, check_seconds=0.00095)  # a hundredth of the time: one for ten batches
    assert work.kept_after(22) == [1] * 10 + [11] * 10 + [21] * 2


def test_no_more_is_held_back_than_a_limit(monkeypatch):
    monkeypatch.setattr(publish, "HELD_BYTES", 2000)
    assert Work(monkeypatch, check_seconds=1.0).kept_after(12) == [1] * 5 + [6] * 5 + [11] * 2
