"""The queue through which caches write."""

import os
import subprocess
import sys
import textwrap
import threading

import pytest

from lmstash.caches.writing import WriteBehind
from lmstash.store.base import Write
from lmstash.store.memory import MemoryStore
from lmstash.testing import sample_key

NAMESPACE = "kv/test"


def write(number, n_bytes=1000):
    return Write(sample_key(number), bytes([number % 256]) * n_bytes, namespace=NAMESPACE, meta={"number": number})


class Slow(MemoryStore):
    """Puts only while its gate is open."""

    def __init__(self):
        super().__init__()
        self.gate = threading.Event()
        self.calls = []

    def put_many(self, writes, *, replace=True):
        self.gate.wait(20)
        writes = list(writes)
        self.calls.append(([each.key for each in writes], replace))
        return super().put_many(writes, replace=replace)


@pytest.fixture
def slow():
    store = Slow()
    yield store
    store.gate.set()


def test_what_is_offered_is_put(slow):
    queue = WriteBehind(slow)
    assert queue.offer([write(1), write(2)]) == 2
    assert not slow.contains(sample_key(1))
    slow.gate.set()
    queue.flush()
    assert slow.contains_many([sample_key(1), sample_key(2)]) == [True, True]
    assert queue.waiting_bytes == 0
    assert threading.active_count() == 1 or not any("lmstash-write" in each.name for each in threading.enumerate())


def test_a_flush_ends_with_patience(slow):
    queue = WriteBehind(slow)
    queue.offer([write(1)])
    assert not queue.flush(0.01)
    assert queue.waits([sample_key(1)]) == [True]
    slow.gate.set()
    assert queue.flush(20)
    assert slow.contains(sample_key(1))


def test_what_waits_is_found(slow):
    queue = WriteBehind(slow)
    queue.offer([Write(sample_key(1), [b"one ", b"two"], namespace=NAMESPACE, parent=sample_key(9), n_tokens=7)])
    found, missing = queue.waiting([sample_key(1), sample_key(2)])
    assert missing is None
    assert (bytes(found.value), found.parent, found.n_tokens) == (b"one two", sample_key(9), 7)
    found.value[:3] = b"ONE"  # a copy
    assert bytes(queue.waiting([sample_key(1)])[0].value) == b"one two"
    assert queue.waits([sample_key(2), sample_key(1)]) == [False, True]
    slow.gate.set()
    queue.flush()
    assert queue.waiting([sample_key(1)]) == [None]
    assert bytes(slow.get(sample_key(1))) == b"one two"


def test_more_than_there_is_room_for_is_dropped_from_the_end(slow):
    queue = WriteBehind(slow, capacity_bytes=100 << 20)
    first = [write(number, 30 << 20) for number in range(3)]
    assert queue.offer(first, patience_seconds=0.0) == 3
    assert queue.offer([write(4, 30 << 20)], patience_seconds=0.0) == 0
    assert slow.events.stats.drops == {"busy": 1}
    slow.gate.set()
    queue.flush()
    assert slow.contains_many([sample_key(2), sample_key(4)]) == [True, False]


def test_one_that_is_larger_than_the_queue_is_taken_when_it_is_empty(slow):
    queue = WriteBehind(slow, capacity_bytes=1000)
    slow.gate.set()
    assert queue.offer([write(1, 5000)], patience_seconds=0.0) == 1
    queue.flush()
    assert slow.contains(sample_key(1))


def test_waiting_for_room(slow):
    queue = WriteBehind(slow, capacity_bytes=10_000)
    queue.offer([write(1, 8000)])
    threading.Timer(0.05, slow.gate.set).start()
    assert queue.offer([write(2, 8000)]) == 1
    queue.flush()
    assert slow.contains(sample_key(2))


def test_what_is_not_confirmed_is_dropped(slow):
    queue, asked = WriteBehind(slow), []

    def confirm():
        asked.append(threading.current_thread() is not threading.main_thread())
        return False

    queue.offer([write(number, 20 << 20) for number in range(4)], confirm=confirm)
    slow.gate.set()
    queue.flush()
    assert asked == [True]  # once for all
    assert slow.calls == []
    assert slow.events.stats.drops == {"model_changed": 4}


def test_replacing_or_not(slow):
    slow.gate.set()
    queue = WriteBehind(slow)
    queue.offer([write(1)])
    queue.offer([Write(sample_key(1), b"new", namespace=NAMESPACE)])
    queue.flush()
    assert bytes(slow.get(sample_key(1))) != b"new"
    queue.offer([Write(sample_key(1), b"new", namespace=NAMESPACE)], replace=True)
    queue.flush()
    assert bytes(slow.get(sample_key(1))) == b"new"


def test_a_store_that_raises_loses_only_that(slow, caplog):
    queue = WriteBehind(slow)
    usual = slow.put_many
    slow.put_many = lambda writes, replace=True: (_ for _ in ()).throw(OSError("no"))
    queue.offer([write(1)])
    queue.flush()
    assert "could not be kept: no" in caplog.text
    assert queue.waiting_bytes == 0
    slow.put_many = usual
    slow.gate.set()
    queue.offer([write(2)])
    queue.flush()
    assert slow.contains_many([sample_key(1), sample_key(2)]) == [False, True]


def test_a_confirmation_that_raises_drops(slow, caplog):
    slow.gate.set()
    queue = WriteBehind(slow)
    queue.offer([write(1)], confirm=lambda: 1 / 0)
    queue.flush()
    assert not slow.contains(sample_key(1))
    assert "could not be kept" in caplog.text


def test_a_process_that_ends_writes_what_waits(tmp_path):
    script = textwrap.dedent(
        """
        import sys, time
        from lmstash.caches.writing import WriteBehind
        from lmstash.store.base import Write
        from lmstash.store.disk.store import DiskStore

        class Slow(DiskStore):
            def put_many(self, writes, *, replace=True):
                time.sleep(0.2)
                return super().put_many(writes, replace=replace)

        queue = WriteBehind(Slow(sys.argv[1]))
        for number in range(4):
            queue.offer([Write(bytes([number]) * 32, b"x" * 1000, namespace="kv/test")])
        if sys.argv[2] == "error":
            raise SystemExit(3)
        """
    )
    from lmstash.store.disk.store import DiskStore

    for ending, code in (("plain", 0), ("error", 3)):
        folder = tmp_path / ending
        done = subprocess.run([sys.executable, "-c", script, folder, ending], timeout=60, check=False, env=os.environ)
        assert done.returncode == code
        store = DiskStore(folder)
        assert all(store.contains_many([bytes([number]) * 32 for number in range(4)]))
        store.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_starts_with_an_empty_queue(slow):
    queue = WriteBehind(slow)
    queue.offer([write(1)])
    child = os.fork()
    if child == 0:
        queue.flush()  # does not wait for what is the parent's
        os._exit(0 if queue.waiting_bytes == 0 and not queue.waits([sample_key(1)])[0] else 1)
    assert os.waitpid(child, 0)[1] == 0
    slow.gate.set()
    queue.flush()
    assert slow.contains(sample_key(1))


def test_many_threads(slow):
    slow.gate.set()
    queue = WriteBehind(slow, capacity_bytes=20_000)

    def work(start):
        for number in range(start, start + 50):
            queue.offer([write(number)])

    threads = [threading.Thread(target=work, args=(50 * each,)) for each in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    queue.flush()
    assert all(slow.contains_many([sample_key(number) for number in range(200)]))
