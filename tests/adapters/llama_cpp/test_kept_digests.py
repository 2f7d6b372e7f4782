"""A model's file is read once by all processes that use one store, and what one store says counts for no other."""

import time

import pytest

from lmstash.adapters.llama_cpp import LlamaDiskCache, LlamaRAMCache
from lmstash.caches.digests import FILES
from lmstash.codecs.records import decode_record, encode_record
from lmstash.identity.content import files

from .conftest import STORY, say

pytestmark = pytest.mark.model


@pytest.fixture
def new_process(monkeypatch):
    """Forget what is known of files, and note which are read from now on. Files count as old."""
    now, read = time.time_ns, files._read
    monkeypatch.setattr(files.time, "time_ns", lambda: now() + 86_400 * 10**9)

    def begin():
        seen = []
        monkeypatch.setattr(files, "_digests", files._Digests())
        monkeypatch.setattr(files, "read_ahead", lambda paths: None)
        monkeypatch.setattr("lmstash.adapters.llama_cpp.llama.read_ahead", lambda paths: None)

        def noting(path, stamp, unwanted=()):
            seen.append(path)
            return read(path, stamp, unwanted)

        monkeypatch.setattr(files, "_read", noting)
        return seen

    return begin


def test_the_file_is_read_by_the_first_process_only(load, own_file, tmp_path, new_process):
    identities = []
    for number in range(3):
        read = new_process()
        cache = LlamaDiskCache(str(tmp_path / "cache"))
        llm = load(cache, path=own_file)
        say(llm, STORY, 2)
        identities.append(llm.identity_now())
        assert (llm._eval_tokens < 5) == (number > 0)
        assert (str(own_file) in read) == (number == 0)
        cache.store.close()
    assert len(set(identities)) == 1
    with own_file.open("r+b") as file:
        file.seek(60_000_000)
        byte = file.read(1)
        file.seek(60_000_000)
        file.write(bytes([byte[0] ^ 1]))
    read = new_process()
    llm = load(LlamaDiskCache(str(tmp_path / "cache")), path=own_file)
    assert llm.tokenize(STORY.encode()) not in llm.cache
    assert str(own_file) in read
    assert llm.identity_now() != identities[0]


def test_what_one_store_says_counts_for_no_other(load, own_file, new_process):
    lying, honest = LlamaRAMCache(), LlamaRAMCache()
    new_process()
    llm = load(lying, path=own_file)
    say(llm, STORY, 2)
    true = llm.identity_now()
    (entry,) = lying.store.entries(FILES)
    record = decode_record(lying.store.get(entry.key))
    lying.store.put(entry.key, encode_record({**record, "sha256": bytes(32)}), namespace=FILES)
    new_process()
    llm = load(lying, path=own_file)
    assert llm.tokenize(STORY.encode()) not in llm.cache  # it is believed of its own store: a miss there
    view = llm.cache
    assert llm.identity_now() != true
    llm.set_cache(honest)
    assert llm.identity_now() == true
    say(llm, STORY, 2)
    assert llm.tokenize(STORY.encode()) in llm.cache
    assert llm.tokenize(STORY.encode()) not in view
    assert llm.tokenize(STORY.encode()) in llm.cache
    llm.set_cache(lying)
    assert llm.identity_now() != true
    llm.set_cache(None)
    assert llm.identity_now() == true


def test_a_digest_that_cannot_be_read_is_computed_again(load, own_file, new_process):
    cache = LlamaRAMCache()
    new_process()
    say(load(cache, path=own_file), STORY, 2)
    (entry,) = cache.store.entries(FILES)
    cache.store.put(entry.key, b"noise", namespace=FILES)
    read = new_process()
    llm = load(cache, path=own_file)
    assert llm.tokenize(STORY.encode()) in llm.cache
    assert read.count(str(own_file)) == 1
