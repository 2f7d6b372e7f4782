"""A user's own backend serves as a store: framed, checked, bounded, and never emptied of other people's blobs."""

import hashlib
import time

import pytest

from lmstash.adapters.lmprobe.backend_store import BackendStore
from lmstash.adapters.lmprobe.backends import CacheBackend, blob_path
from lmstash.errors import CapacityError, StoreUnavailableError
from lmstash.store.base import Write


class DictBackend(CacheBackend):
    def __init__(self):
        self.blobs: dict[str, bytes] = {}
        self.times: dict[str, float] = {}
        self.broken = False

    def exists(self, key):
        if self.broken:
            raise ConnectionError("gone")
        return key in self.blobs

    def read_bytes(self, key):
        return self.blobs[key]

    def write_bytes(self, key, data):
        if self.broken:
            raise ConnectionError("gone")
        self.blobs[key] = data
        self.touch(key)

    def delete(self, key):
        self.blobs.pop(key, None)

    def list_keys(self, prefix=""):
        return [key for key in self.blobs if key.startswith(prefix)]

    def size(self, key):
        return len(self.blobs[key])

    def mtime(self, key):
        return self.times[key]

    def touch(self, key):
        self.times[key] = time.monotonic()


def key(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


@pytest.fixture
def backend() -> DictBackend:
    backend = DictBackend()
    backend.write_bytes("photos/cat.jpg", b"meow")
    return backend


def test_what_is_put_comes_back_with_its_facts(backend):
    store = BackendStore(backend)
    assert store.put(key(1), [b"ab", b"cd"], namespace="activations/x", meta={"text": "hi"}, n_tokens=3, parent=key(9))
    assert bytes(store.get(key(1)) or b"") == b"abcd"
    [entry] = store.fetch_many([key(1)])
    assert entry is not None
    assert (entry.meta, entry.n_tokens, entry.parent, entry.namespace) == ({"text": "hi"}, 3, key(9), "activations/x")
    entry.value[:2] = b"XX"
    assert bytes(store.get(key(1)) or b"") == b"abcd"
    [info] = BackendStore(backend).entries("activations/")
    assert (info.nbytes, info.meta) == (4, {"text": "hi"})


def test_chosen_entries_are_described_without_their_values(backend):
    store = BackendStore(backend)
    store.put(key(1), b"one", meta={"text": "hi"}, n_tokens=3)
    store.put(key(2), b"two")
    store.put(key(3), b"gone", ttl_seconds=0.001)
    time.sleep(0.01)
    backend.blobs[blob_path(key(4))] = backend.blobs[blob_path(key(2))]  # another one's blob
    infos = {info.key: info for info in store.entries()}
    asked = [key(2), key(1), key(3), key(4), key(5), key(1)]
    assert store.describe_many(asked) == [infos[key(2)], infos[key(1)], None, None, None, infos[key(1)]]
    assert store.events.stats.hits == 0
    backend.mtime = lambda path: 1 / 0
    assert store.describe_many([key(1)]) == [None]


def test_a_long_header_is_read_in_full(backend):
    store = BackendStore(backend)
    store.put(key(1), b"v", meta={"text": "x" * 10_000})
    assert next(store.entries()).meta["text"] == "x" * 10_000


def test_replace_false_keeps_the_first_value(backend):
    store = BackendStore(backend)
    store.put(key(1), b"first")
    assert store.put_many([Write(key(1), b"second")], replace=False) == 1
    assert bytes(store.get(key(1)) or b"") == b"first"


def test_flipped_bytes_and_moved_blobs_are_counted_misses(backend):
    """W8: lmprobe serves a flipped byte, and another prompt's file that was copied under the key."""
    store = BackendStore(backend)
    store.put(key(1), bytes(100))
    store.put(key(2), b"other")
    whole = backend.blobs[blob_path(key(1))]
    for position in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        backend.blobs[blob_path(key(1))] = bytes(damaged)
        assert store.get(key(1)) is None
    backend.blobs[blob_path(key(1))] = backend.blobs[blob_path(key(2))]
    assert store.get(key(1)) is None
    assert store.events.stats.misses["damaged"] == len(range(0, len(whole), 7)) + 1
    assert not store.verify(repair=True).ok
    assert store.verify().ok


def test_the_limit_holds_on_write_and_evicts_the_least_recently_used(backend):
    store = BackendStore(backend, capacity_bytes=5_000)
    for number in range(30):
        store.put(key(number), bytes(500))
        assert store.get(key(0)) is not None  # kept fresh
        assert sum(len(blob) for path, blob in backend.blobs.items() if path.startswith("lmstash/")) <= 5_000
    assert store.contains(key(29))
    assert not store.contains(key(1))
    assert backend.blobs["photos/cat.jpg"] == b"meow"


def test_pinned_entries_stay_and_what_has_no_room_is_dropped(backend):
    store = BackendStore(backend, capacity_bytes=1_500)
    store.put(key(0), bytes(1_000))
    assert store.pin_many([key(0)]) == 1
    assert not store.put(key(1), bytes(1_000))
    assert store.events.stats.drops["no_room"] == 1
    assert store.contains(key(0))


def test_zero_and_too_large_are_drops_and_strict_raises(backend):
    assert not BackendStore(backend, 0).put(key(1), b"x")
    with pytest.raises(CapacityError):
        BackendStore(backend, 10, strict=True).put(key(1), bytes(100))


def test_a_failing_backend_is_a_miss_and_a_drop(backend):
    store = BackendStore(backend)
    store.put(key(1), b"x")
    backend.broken = True
    assert store.get(key(1)) is None
    assert not store.put(key(2), b"y")
    assert store.events.stats.misses["unavailable"] == 1
    assert store.events.stats.drops["unavailable"] == 1
    with pytest.raises(StoreUnavailableError):
        BackendStore(backend, strict=True).get(key(1))


def test_expired_entries_are_not_served(backend):
    store = BackendStore(backend)
    store.put(key(1), b"x", ttl_seconds=-1.0)
    assert store.get(key(1)) is None
    assert store.events.stats.misses["expired"] == 1


def test_clear_prune_and_delete_leave_strangers_alone(backend):
    backend.write_bytes("lmstash/readme.txt", b"mine")
    store = BackendStore(backend)
    for number in range(4):
        store.put(key(number), b"x", namespace=f"kind{number % 2}/a")
    assert store.info().entries == 4
    assert store.prune(namespace="kind0/", dry_run=True).entries == 2
    assert store.prune(namespace="kind0/").entries == 2
    assert store.delete(key(1))
    assert not store.delete(key(1))
    assert store.clear().entries == 1
    assert set(backend.blobs) == {"photos/cat.jpg", "lmstash/readme.txt"}
