"""Promises about what goes wrong: bad arguments, a closed store, and many threads at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from lmstash.errors import InvalidArgumentError, StoreError
from lmstash.events import DropReason, MissReason
from lmstash.store.base import Removed, Write
from lmstash.testing.samples import OpenStore, sample_bytes, sample_key

_BAD_KEYS: list[Any] = [b"", b"short", bytes(31), bytes(33), bytes(64), "text", None, 7]
BAD_FIELDS: dict[str, dict[str, Any]] = {
    "facts that are not JSON": {"meta": {"a": object()}},
    "encoded facts that are not JSON": {"meta": b"{nope"},
    "encoded facts that are not an object": {"meta": b"[1]"},
    "a parent that is no key": {"parent": b"short"},
    "a parent that is too long": {"parent": bytes(33)},
    "fewer than no tokens": {"n_tokens": -1},
    "no namespace": {"namespace": ""},
    "a namespace that cannot be written": {"namespace": "kind/\ud800"},
    "a deadline that is no number": {"ttl_seconds": float("nan")},
}


class FaultsContract:
    """A fault is a counted miss or drop; only a wrong call raises, unless the store is strict."""

    @pytest.mark.parametrize("key", _BAD_KEYS, ids=repr)
    def test_a_value_under_no_key_is_refused(self, open_store: OpenStore, key: Any) -> None:
        """A key is 32 bytes."""
        store = open_store()
        with pytest.raises(InvalidArgumentError):
            store.put(key, b"value")
        with pytest.raises(InvalidArgumentError):
            store.put_many([Write(sample_key(1), b"value"), Write(key, b"value")])
        assert not any(len(each.key) != 32 for each in store.entries())

    @pytest.mark.parametrize("key", _BAD_KEYS[:5], ids=repr)
    def test_bytes_that_are_no_key_are_not_found(self, open_store: OpenStore, key: bytes) -> None:
        """Asking for them gives nothing, or says that they are no key; no other error comes out."""
        store = open_store()
        store.put(sample_key(1), b"value")
        keys = [key, sample_key(1), key, key, key]
        for call, nothing in (
            (lambda: store.get(key), None),
            (lambda: store.get_many([key]), [None]),
            (lambda: [each if each is None else bytes(each) for each in store.get_many(keys)][:2], [None, b"value"]),
            (lambda: store.fetch_many([key, key]), [None, None]),
            (lambda: store.contains(key), False),
            (lambda: store.contains_many(keys), [False, True, False, False, False]),
            (lambda: store.delete_many([key] * 2), 0),
            (lambda: store.pin_many([key] * 2), 0),
        ):
            try:
                found = call()
            except InvalidArgumentError:
                continue
            assert found == nothing
        assert store.contains(sample_key(1))

    def test_a_pair_is_no_write(self, open_store: OpenStore) -> None:
        """What `put_many` takes is said to whoever gives it something else, and what came before it is all there is."""
        store = open_store()
        pair: Any = (sample_key(2), b"value")
        with pytest.raises(InvalidArgumentError, match="Write"):
            store.put_many([Write(sample_key(1), b"value"), pair])
        assert not store.contains(sample_key(2))

    @pytest.mark.parametrize("kind", BAD_FIELDS)
    def test_a_write_that_cannot_be_honoured_is_refused(self, open_store: OpenStore, kind: str) -> None:
        """Rather than kept changed, and the store stays usable."""
        store = open_store()
        with pytest.raises(InvalidArgumentError):
            store.put(sample_key(1), b"value", **BAD_FIELDS[kind])
        assert not store.contains(sample_key(1))
        assert store.put(sample_key(2), b"value") is True
        assert [each.key for each in store.entries()] == [sample_key(2)]

    def test_a_closed_store_misses_and_drops(self, open_store: OpenStore) -> None:
        """Every call still answers, and says why in the counters."""
        store, key = open_store(), sample_key(1)
        store.put(key, b"value")
        store.close()
        store.close()
        assert store.get(key) is None
        assert store.get_many([key] * 5) == [None] * 5
        assert store.fetch_many([key]) == [None]
        assert store.events.stats.misses == {MissReason.UNAVAILABLE: 7}
        assert store.put(key, b"value") is False
        assert store.put_many([Write(key, b"value"), Write(sample_key(2), b"value")]) == 0
        assert store.put_many([Write(key, b"value")], replace=False) == 0
        assert store.events.stats.drops == {DropReason.UNAVAILABLE: 4}
        assert store.contains(key) is False
        assert store.contains_many([key, key]) == [False, False]
        assert store.delete(key) is False
        assert store.pin_many([key]) == 0
        assert list(store.entries()) == []
        assert store.evict(0) == Removed(0, 0)
        assert store.verify().entries == store.info().entries == 0
        store.set_capacity(1 << 30)
        store.flush()

    def test_a_closed_strict_store_raises(self, open_store: OpenStore) -> None:
        """Reads and writes alike."""
        store, key = open_store(strict=True), sample_key(1)
        store.put(key, b"value")
        store.close()
        with pytest.raises(StoreError):
            store.get(key)
        with pytest.raises(StoreError):
            store.get_many([key] * 5)
        with pytest.raises(StoreError):
            store.put(key, b"value")

    def test_a_miss_is_no_fault(self, open_store: OpenStore) -> None:
        """A strict store misses as any other does."""
        store = open_store(strict=True)
        store.put(sample_key(1), b"value", ttl_seconds=0)
        assert store.get_many([sample_key(number) for number in range(6)]) == [None] * 6
        assert store.delete(sample_key(9)) is False

    def test_the_caller_s_own_error_comes_through(self, open_store: OpenStore) -> None:
        """A selector or an iterable that raises is the caller's, and leaves the store whole."""
        store = open_store()
        store.put(sample_key(1), b"value")

        def writes() -> Any:
            yield Write(sample_key(2), b"value")
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            store.put_many(writes())
        with pytest.raises(ZeroDivisionError):
            store.prune(lambda info: bool(1 // 0))
        assert store.contains(sample_key(1))
        assert store.put(sample_key(3), b"value") is True

    def test_threads_may_share_a_store(self, open_store: OpenStore) -> None:
        """Each value read is one that was put under its key, and the counters add up."""
        store, n_keys, rounds, n_threads = open_store(), 40, 60, 6
        start = threading.Barrier(n_threads)

        def value(number: int, version: int) -> bytes:
            return b"%d %d " % (number, version) + sample_bytes((number * 997) % 9000, number)

        def work(thread: int) -> tuple[int, int]:
            start.wait()
            asked = wrong = 0
            for turn in range(rounds):
                number = (turn * 7 + thread * 11) % n_keys
                if turn % 4 == 0:
                    numbers = [(number + each) % n_keys for each in range(5)]
                    store.put_many([Write(sample_key(each), value(each, thread)) for each in numbers])
                elif turn % 29 == 0:
                    store.delete(sample_key(number))
                elif turn % 13 == 0:
                    assert all(each.nbytes > 3 for each in store.entries())
                else:
                    numbers = [(number + each) % n_keys for each in range(6)]
                    found = store.get_many([sample_key(each) for each in numbers])
                    asked += len(numbers)
                    for each, view in zip(numbers, found, strict=True):
                        wrong += view is not None and bytes(view) not in {value(each, t) for t in range(n_threads)}
            return asked, wrong

        with ThreadPoolExecutor(n_threads) as pool:
            done = list(pool.map(work, range(n_threads)))
        assert sum(wrong for _asked, wrong in done) == 0
        stats = store.events.stats
        assert stats.hits + sum(stats.misses.values()) == sum(asked for asked, _wrong in done)
        assert set(stats.misses) <= {MissReason.ABSENT}
        assert not stats.drops
        assert stats.damaged == 0
        assert store.verify().ok
        assert store.info().entries == len(list(store.entries()))

    def test_clearing_while_others_write_and_read_is_safe(self, open_store: OpenStore) -> None:
        """Values vanish, and none is wrong."""
        store, stop = open_store(), threading.Event()
        keys = [sample_key(number) for number in range(20)]
        faults: list[BaseException] = []

        def write_and_read() -> None:
            try:
                while not stop.is_set():
                    store.put_many([Write(key, sample_bytes(3000, n)) for n, key in enumerate(keys)])
                    for number, view in enumerate(store.get_many(keys)):
                        assert view is None or bytes(view) == sample_bytes(3000, number)
            except BaseException as error:
                faults.append(error)

        threads = [threading.Thread(target=write_and_read) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(15):
            store.clear()
            store.prune(lambda info: True)
            store.evict(0)
        stop.set()
        for thread in threads:
            thread.join()
        assert not faults
        store.clear()
        assert store.info().entries == len(list(store.entries())) == 0
        assert store.put(keys[0], b"value") is True
        assert store.contains(keys[0])
