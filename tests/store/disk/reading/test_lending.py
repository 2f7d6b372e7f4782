"""Values that are lent instead of read: the same bytes, the same counts, and damage found when it is asked for."""

import gc
import os
import threading
import types

import pytest

from lmstash.events import MissReason
from lmstash.store.base import Write
from lmstash.store.disk.reading import lending
from lmstash.store.disk.store import DiskStore
from lmstash.store.loans import borrow_many
from lmstash.store.memory import MemoryStore
from lmstash.store.tiered import TieredStore
from lmstash.testing import sample_bytes, sample_key

LARGE = 3 << 20


@pytest.fixture
def store(tmp_path):
    opened = DiskStore(tmp_path / "kept", capacity_bytes=32 << 30)
    yield opened
    opened.close()


def put(store, numbers, n_bytes=LARGE, **fields):
    writes = [Write(sample_key(n), sample_bytes(n_bytes, n), namespace="kv/test", **fields) for n in numbers]
    assert store.put_many(writes) == len(writes)


def segment_of(store, needle):
    for path in store._folder.path.rglob("*.seg"):
        if needle in path.read_bytes():
            return path
    raise AssertionError("in no segment")


def drop_pages(store):
    store.flush()
    for path in store._folder.path.rglob("*.seg"):
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


@pytest.mark.parametrize("cold", [False, True])
def test_what_is_lent_is_what_was_put(store, cold):
    put(store, range(5), parent=sample_key(99), n_tokens=64, compute_seconds=0.5, meta={"a": 1})
    put(store, [5], n_bytes=1000)
    if cold:
        drop_pages(store)
    keys = [sample_key(n) for n in (3, 0, 5, 77, 4)]
    loans = borrow_many(store, keys)
    assert loans[3] is None
    for key, n, loan in zip(keys, (3, 0, 5, 77, 4), loans, strict=True):
        if loan is not None:
            assert loan.check is None or loan.check()
            assert bytes(loan.entry.value) == sample_bytes(1000 if n == 5 else LARGE, n)
            assert loan.entry.key == key
    first = loans[0].entry
    assert (first.parent, first.n_tokens, first.compute_seconds, first.meta) == (sample_key(99), 64, 0.5, {"a": 1})
    assert first.value.readonly
    stats = store.events.stats
    assert (stats.hits, stats.misses) == (4, {MissReason.ABSENT: 1})
    assert stats.bytes_read == 3 * LARGE + 1000


def test_a_lent_value_outlives_its_segment(store):
    put(store, range(3))
    loan = borrow_many(store, [sample_key(1)])[0]
    store.clear()
    assert loan.check()
    assert bytes(loan.entry.value) == sample_bytes(LARGE, 1)


def test_a_lent_value_outlives_its_store(tmp_path):
    store = DiskStore(tmp_path / "kept")
    put(store, range(3))
    loan = borrow_many(store, [sample_key(1)])[0]
    store.close()
    del store
    gc.collect()
    assert bytes(loan.entry.value) == sample_bytes(LARGE, 1)


def test_descriptors_are_given_back(store):
    put(store, range(20))
    open_before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        loans = borrow_many(store, [sample_key(n) for n in range(20)])
        assert len(os.listdir("/proc/self/fd")) <= open_before + 3
        del loans
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= open_before + 1


def flip(path, needle):
    data = path.read_bytes()
    at = data.index(needle)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes([data[at] ^ 1]))


@pytest.mark.parametrize("cold", [False, True])
def test_damage_is_found_when_it_is_asked_for(store, cold, caplog):
    put(store, range(3))
    store.flush()
    needle = sample_bytes(LARGE, 1)[2_500_000:2_500_064]
    flip(segment_of(store, needle), needle)
    if cold:
        drop_pages(store)
    loans = borrow_many(store, [sample_key(n) for n in range(3)])
    if loans[1] is None:  # was checked on its way into the page cache, and is not lent
        assert cold
    else:  # the system may have read ahead that far
        assert not loans[1].check()
    assert loans[0].check is None or loans[0].check()
    assert store.events.stats.damaged == 1
    assert borrow_many(store, [sample_key(1)]) == [None]
    assert store.get(sample_key(0)) is not None


def test_a_damaged_header_is_not_lent(store, caplog):
    put(store, range(3), meta={"some": "facts of number"})
    store.flush()
    path = segment_of(store, b"facts of number")
    flip(path, b"facts of number")
    loans = borrow_many(store, [sample_key(n) for n in range(3)])
    assert [loan is None for loan in loans] == [True, False, False]
    assert store.events.stats.damaged == 1


def test_a_file_that_was_cut_is_not_mapped(store, caplog):
    """What lies beyond a file's end would end the process, so it is read, which says so."""
    put(store, range(3))
    store.flush()
    needle = sample_bytes(LARGE, 2)[-64:]
    path = segment_of(store, needle)
    os.truncate(path, path.read_bytes().index(needle))
    loans = borrow_many(store, [sample_key(n) for n in range(3)])
    assert loans[2] is None
    assert bytes(loans[0].entry.value) == sample_bytes(LARGE, 0)


def test_expired_values_are_not_lent(store):
    put(store, [1], ttl_seconds=-1.0)
    assert borrow_many(store, [sample_key(1)]) == [None]
    assert store.events.stats.misses == {MissReason.EXPIRED: 1}


def test_lending_counts_as_use(store):
    put(store, range(3))
    before = {entry.key: entry.hits for entry in store.entries()}
    borrow_many(store, [sample_key(1)])
    after = {entry.key: entry.hits for entry in store.entries()}
    assert [after[sample_key(n)] - before[sample_key(n)] for n in range(3)] == [0, 1, 0]


def test_a_closed_store_lends_nothing(tmp_path, caplog):
    store = DiskStore(tmp_path / "kept")
    put(store, [1])
    store.close()
    assert borrow_many(store, [sample_key(1)]) == [None]
    assert store.events.stats.misses == {MissReason.UNAVAILABLE: 1}


def test_threads_borrow_while_others_put_and_clear(store):
    put(store, range(4))
    stop, wrong = threading.Event(), []

    def borrow():
        while not stop.is_set():
            for n, loan in enumerate(borrow_many(store, [sample_key(n) for n in range(4)])):
                good = loan is None or bytes(loan.entry.value[:64]) == sample_bytes(LARGE, n)[:64]
                if not good or (loan is not None and loan.check is not None and not loan.check()):
                    wrong.append(n)

    threads = [threading.Thread(target=borrow) for _ in range(2)]
    for each in threads:
        each.start()
    for _ in range(15):
        store.clear()
        put(store, range(4))
    stop.set()
    for each in threads:
        each.join()
    assert wrong == []
    assert store.events.stats.damaged == 0


def test_neighbours_share_a_map(store, monkeypatch):
    put(store, range(12))
    maps = []
    usual = lending.mmap
    counting = types.SimpleNamespace(**vars(usual))
    counting.mmap = lambda *given, **named: maps.append(given[1]) or usual.mmap(*given, **named)
    monkeypatch.setattr(lending, "mmap", counting)
    borrow_many(store, [sample_key(n) for n in range(12)])
    assert len(maps) == 1
    maps.clear()
    borrow_many(store, [sample_key(n) for n in (0, 6, 7, 11)])
    assert len(maps) == 3


@pytest.mark.parametrize("kind", ["memory", "tiered"])
def test_other_stores_lend_what_they_have(tmp_path, kind):
    if kind == "memory":
        store = MemoryStore()
    else:
        store = TieredStore(MemoryStore(), DiskStore(tmp_path / "slow"))
    put(store, range(2))
    for _ in range(2):
        loans = borrow_many(store, [sample_key(1), sample_key(5)])
        assert loans[1] is None
        assert loans[0].check is None
        assert bytes(loans[0].entry.value) == sample_bytes(LARGE, 1)
    store.close()
