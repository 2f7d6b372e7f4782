"""Digests that a store has kept: believed of files that are as they were, and read again of all others."""

import hashlib
import os
import threading
import time

import pytest

import lmstash
from lmstash.caches import digests
from lmstash.caches.digests import FILES, keep_digests, recall_digests
from lmstash.codecs.records import decode_record, encode_record
from lmstash.identity.content import files
from lmstash.identity.content.files import file_digest, file_system, stamp_of
from lmstash.store.memory import MemoryStore
from lmstash.testing.faulty import FaultyStore


@pytest.fixture(autouse=True)
def another_process(monkeypatch):
    """What this process knows of files is forgotten."""

    def renew():
        monkeypatch.setattr(files, "_digests", files._Digests())

    renew()
    return renew


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A file that has long been as it is, by a clock that is a day ahead."""
    path = tmp_path / "model.gguf"
    path.write_bytes(os.urandom(3 << 20))
    now = time.time_ns
    monkeypatch.setattr(files.time, "time_ns", lambda: now() + 86_400 * 10**9)
    return path


def kept(store, path):
    """Have a process read a file and keep its digest; return what another one then recalls."""
    stamp = stamp_of(str(path))
    digest = file_digest(str(path), stamp)
    assert digest == hashlib.sha256(path.read_bytes()).digest()
    keep_digests(store, [(str(path), stamp)])
    return recalled(store, path)


def recalled(store, path):
    stamp = stamp_of(str(path))
    return recall_digests(store, [(str(path), stamp)]).get(stamp)


def test_a_digest_is_kept_for_other_processes(model, tmp_path):
    with lmstash.open(tmp_path / "stash") as stash:
        assert recalled(stash.store, model) is None
        digest = kept(stash.store, model)
        assert digest == hashlib.sha256(model.read_bytes()).digest()
    with lmstash.open(tmp_path / "stash") as stash:
        assert recalled(stash.store, model) == digest
        assert stash.stats.misses == {}


def test_tenants_do_not_see_each_others(model):
    store = MemoryStore()
    files_of = [(str(model), stamp_of(str(model)))]
    assert kept(store, model)
    for salt in ("", "a", b"a"):
        assert recall_digests(store, files_of, salt) == {}
    keep_digests(store, files_of, "a")
    assert recall_digests(store, files_of, "a") == recall_digests(store, files_of)
    assert len(list(store.entries(FILES))) == 2


def test_small_and_empty_files_have_digests(tmp_path, model):
    for content in (b"", b"x", b"x" * 5000):
        model.write_bytes(content)
        assert kept(MemoryStore(), model) == hashlib.sha256(content).digest()


def test_a_file_that_was_just_written_is_read_again(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"weights" * 1000)
    store = MemoryStore()
    assert kept(store, path) is None
    assert not list(store.entries())


def test_a_file_whose_inode_was_just_changed_is_read_again(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"weights" * 1000)
    os.utime(path, (1_000_000_000, 1_000_000_000))  # the time of writing can be put back; that of the inode cannot
    assert kept(MemoryStore(), path) is None


@pytest.mark.parametrize("how", ["written", "written, time put back", "touched", "replaced", "renamed", "copied over"])
def test_a_file_that_changed_is_read_again(model, tmp_path, how):
    store = MemoryStore()
    assert kept(store, model)
    status, content = model.stat(), model.read_bytes()
    other = tmp_path / "other"
    other.write_bytes(content[:-1] + b"x")
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    if how.startswith("written"):
        with model.open("r+b") as file:
            file.seek(1 << 20)
            file.write(b"y")
    elif how == "touched":
        os.utime(model, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    elif how == "replaced":
        os.replace(other, model)
    elif how == "renamed":
        model = model.rename(tmp_path / "another.gguf")
    else:
        model.write_bytes(other.read_bytes())
    if how != "renamed":
        os.utime(model, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert recalled(store, model) is None
    assert kept(store, model)


def test_a_stamp_that_lies_is_seen_through_by_the_pages(model, monkeypatch):
    """As of a file system that has no times of its own: another model under the same stamp."""
    store = MemoryStore()
    assert kept(store, model)
    stamp = stamp_of(str(model))
    model.write_bytes(os.urandom(3 << 20))
    monkeypatch.setattr(files.Stamp, "of", classmethod(lambda cls, status: stamp))
    assert recall_digests(store, [(str(model), stamp)]) == {}


def test_a_file_that_changes_while_it_is_read_has_no_digest(model, monkeypatch):
    store, stamp = MemoryStore(), stamp_of(str(model))
    monkeypatch.setattr(files, "_READ_BYTES", 1 << 20)
    seen = []

    class Reading:
        def __contains__(self, stamp):
            if not seen:
                seen.append(stamp)
                with model.open("r+b") as file:
                    file.write(b"changed")
            return False

    files._digests.unwanted = Reading()
    with pytest.raises(files.UnsupportedModelError, match="changed"):
        files._digests.of(str(model), stamp)
    keep_digests(store, [(str(model), stamp)])
    assert not list(store.entries())


def test_nothing_is_kept_of_a_file_system_that_says_little(model, monkeypatch):
    assert isinstance(file_system(str(model)), int)

    class ReadOnly:
        f_flag, f_fsid = os.ST_RDONLY, 7

    store = MemoryStore()
    assert kept(store, model)
    monkeypatch.setattr(files.os, "statvfs", lambda path: ReadOnly)
    assert file_system(str(model)) is None
    assert recalled(store, model) is None
    other = MemoryStore()
    keep_digests(other, [(str(model), stamp_of(str(model)))])
    assert not list(other.entries())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda record: b"",
        lambda record: b"{",
        lambda record: encode_record([record]),
        lambda record: encode_record({**record, "sha256": b"short"}),
        lambda record: encode_record({**record, "sha256": record["sha256"].hex()}),
        lambda record: encode_record({name: record[name] for name in record if name != "sha256"}),
        lambda record: encode_record({**record, "stamp": record["stamp"][:-1]}),
        lambda record: encode_record({**record, "stamp": [*record["stamp"][:-1], record["stamp"][-1] + 1]}),
        lambda record: encode_record({**record, "probe": bytes(32)}),
        lambda record: encode_record({**record, "key": bytes(32)}),
        lambda record: encode_record({**record, "more": 1}),
    ],
)
def test_what_is_damaged_or_says_something_else_is_not_believed(model, spoil):
    store = MemoryStore()
    assert kept(store, model)
    (entry,) = store.entries(FILES)
    store.put(entry.key, spoil(decode_record(store.get(entry.key))), namespace=FILES)
    assert recalled(store, model) is None
    assert store.events.stats.misses == {"mismatch": 1}
    assert kept(store, model)


def test_a_digest_of_another_path_is_not_believed(model, tmp_path):
    store = MemoryStore()
    assert kept(store, model)
    (entry,) = store.entries(FILES)
    link = tmp_path / "link.gguf"
    os.link(model, link)
    store.put(digests._key(str(link), None), bytes(store.get(entry.key)), namespace=FILES)
    assert recalled(store, link) is None


def test_a_store_that_keeps_nothing_costs_only_time(model):
    for options in ({"drop_rate": 1.0}, {"miss_rate": 1.0}):
        assert kept(FaultyStore(MemoryStore(), **options), model) is None


def test_what_is_recalled_need_not_be_read_ahead(model, monkeypatch):
    stamp = stamp_of(str(model))
    monkeypatch.setattr(files, "_READ_BYTES", 1 << 16)
    begun, go_on = threading.Event(), threading.Event()
    taken = hashlib.sha256

    def slow(*arguments):
        begun.set()
        assert go_on.wait(10)
        return taken(*arguments)

    monkeypatch.setattr(files.hashlib, "sha256", slow)
    files.read_ahead([str(model)])
    assert begun.wait(10)
    files.stop_reading(stamp)
    go_on.set()
    with files._digests._lock:
        assert stamp not in files._digests._known
    monkeypatch.undo()
    files._digests.unwanted.discard(stamp)
    assert file_digest(str(model), stamp) == hashlib.sha256(model.read_bytes()).digest()
