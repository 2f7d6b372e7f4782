"""`lmstash.open` and `Stash`: where it opens, what it hands out, what it removes, and that it never breaks its host."""

from __future__ import annotations

import inspect
import logging
import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lmstash
from lmstash.caches.activations.cache import Activations
from lmstash.caches.kv.cache import KV
from lmstash.caches.logprobs.cache import Logprobs
from lmstash.caches.options import ActivationsOptions, KVOptions, LogprobsOptions, ResponsesOptions
from lmstash.caches.responses.cache import Responses
from lmstash.errors import CapacityError, InvalidArgumentError, ReadOnlyError, StoreUnavailableError
from lmstash.store.base import Write
from lmstash.store.disk.store import DiskStore
from lmstash.store.memory import MemoryStore
from lmstash.store.tiered import TieredStore

KEY = bytes(range(32))


def test_opens_the_folder_named_by_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("LMSTASH_DIR", str(tmp_path / "here"))
    with lmstash.open() as stash:
        assert stash.store.put(KEY, b"value")
        assert stash.info().location == str(tmp_path / "here")
    with lmstash.open(tmp_path / "here") as stash:
        assert bytes(stash.store.get(KEY) or b"") == b"value"


def test_memory_keeps_nothing_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with lmstash.open("memory://", capacity_bytes="1MB") as stash:
        assert isinstance(stash.store, MemoryStore)
        assert stash.store.capacity_bytes == 2**20
        stash.store.put(KEY, b"value")
        assert stash.info().entries == 1
    assert list(tmp_path.iterdir()) == []


def test_a_ram_tier_serves_what_was_read_and_forgets_what_others_remove(tmp_path: Path):
    with lmstash.open(tmp_path / "s", memory_bytes="1MB") as stash, lmstash.open(tmp_path / "s") as other:
        assert isinstance(stash.store, TieredStore)
        stash.store.put(KEY, b"value")
        assert stash.store.get(KEY) == b"value"
        assert stash.store.fast.contains(KEY)
        other.store.delete(KEY)
        assert stash.store.get(KEY) is None


@pytest.mark.parametrize("location", ["s3://bucket/prefix", "s3:/b", "valkey://host:6379/0", "redis://host", "gcs://b"])
def test_places_that_come_later_say_so(location: str):
    with pytest.raises(InvalidArgumentError, match="later release"):
        lmstash.open(location)


@pytest.mark.parametrize("location", ["file:///tmp/x", "memory:/", "https://host/path", "S3X://b"])
def test_a_scheme_that_is_none_makes_no_folder(location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidArgumentError, match="no place to open"):
        lmstash.open(location)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("policy", "words"), [("arc", "later release"), ("gdsf", "later release"), ("mru", "no policy")]
)
def test_policies_that_come_later_say_so(policy: str, words: str, tmp_path: Path):
    for location in ("memory://", tmp_path / "s"):
        with pytest.raises(InvalidArgumentError, match=words):
            lmstash.open(location, policy=policy)


def test_disabled_by_the_environment_keeps_and_serves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    with lmstash.open(tmp_path / "s") as stash:
        stash.store.put(KEY, b"value")
    monkeypatch.setenv("LMSTASH_DISABLE", "1")
    with lmstash.open(tmp_path / "s") as stash:
        assert stash.store.get(KEY) is None
        assert not stash.store.put(KEY, b"other")
        assert dict(stash.stats.drops) == {"disabled": 1}


def test_a_folder_that_cannot_be_used_gives_a_stash_that_keeps_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "file").write_text("not a folder")
    with caplog.at_level(logging.WARNING, "lmstash"):
        stash = lmstash.open(tmp_path / "file")
    assert "not a folder" in caplog.text
    assert "Nothing is cached" in caplog.text
    assert not stash.store.put(KEY, b"value")
    assert stash.store.get(KEY) is None
    with pytest.raises(StoreUnavailableError, match="not a folder"):
        lmstash.open(tmp_path / "file", strict=True)


def test_a_limit_of_zero_keeps_nothing_and_a_later_limit_does(tmp_path: Path):
    with lmstash.open(tmp_path / "s", capacity_bytes=0) as stash:
        assert not stash.store.put(KEY, b"value")
    with lmstash.open(tmp_path / "s", capacity_bytes="8MB") as stash:
        assert stash.store.put(KEY, b"value")
    with lmstash.open(tmp_path / "s") as stash:
        assert stash.info().capacity_bytes == 8 * 2**20


def test_a_limit_that_no_folder_can_keep_to_empties_none(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with lmstash.open(tmp_path / "s", capacity_bytes="8MB") as stash:
        assert stash.store.put(KEY, b"value")
    with caplog.at_level(logging.WARNING, "lmstash"), lmstash.open(tmp_path / "s", capacity_bytes=1000) as stash:
        assert stash.store.get(KEY) == b"value"
        assert not stash.store.put(KEY[::-1], b"value")
    assert "limit of 1,000 bytes" in caplog.text
    assert "The least is 1,048,576 bytes (capacity_bytes='1MB')" in caplog.text
    with lmstash.open(tmp_path / "s") as stash:
        stash.store.set_capacity(2**20 - 1)
        assert stash.store.put(KEY[::-1], b"value")
        assert stash.info().capacity_bytes == 8 * 2**20
        assert stash.info().entries == 2
    with pytest.raises(CapacityError, match="The least is"):
        lmstash.open(tmp_path / "s", capacity_bytes=1000, strict=True)
    with lmstash.open(tmp_path / "new", capacity_bytes=1000) as stash:
        assert not stash.store.put(KEY, b"value")
    assert not (tmp_path / "new").exists()
    with lmstash.open(tmp_path / "new", capacity_bytes="1MB", strict=True) as stash:
        assert stash.store.put(KEY, b"value")


def test_tensors_under_any_identity(tmp_path: Path):
    torch = pytest.importorskip("torch")
    with lmstash.open(tmp_path / "s") as stash:
        assert stash.tensors.put({"run": 3, "what": ["probe", True]}, {"w": torch.arange(6).reshape(2, 3)})
        found = stash.tensors.get({"run": 3, "what": ["probe", True]})
        assert found is not None
        assert torch.equal(found["w"], torch.arange(6).reshape(2, 3))
        found["w"].zero_()
        again = stash.tensors.get({"what": ["probe", True], "run": 3}, framework="numpy")
        assert again is not None
        np.testing.assert_array_equal(again["w"], np.arange(6).reshape(2, 3))
        assert stash.tensors.get({"run": 3, "what": ["probe", 1]}) is None  # True is not 1
        assert stash.tensors.delete({"run": 3, "what": ["probe", True]})
        assert stash.tensors.get({"run": 3, "what": ["probe", True]}) is None


@pytest.mark.parametrize("ttl_seconds", ["a", float("nan"), 0, -1])
@pytest.mark.parametrize("place", ["memory://", "folder"])
def test_a_lifetime_that_serves_nothing_is_refused_at_once(tmp_path: Path, place: str, ttl_seconds: Any):
    where = place if place == "memory://" else tmp_path / place
    with pytest.raises(InvalidArgumentError, match="ttl_seconds"):
        lmstash.open(where, ttl_seconds=ttl_seconds)


def test_tensors_come_by_name(tmp_path: Path):
    with lmstash.open("memory://") as stash, pytest.raises(InvalidArgumentError, match="by name"):
        stash.tensors.put("a", np.ones(2))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("activations", ActivationsOptions),
        ("kv", KVOptions),
        ("logprobs", LogprobsOptions),
        ("responses", ResponsesOptions),
    ],
)
def test_options_are_those_of_the_cache(name: str, options: Any):
    cache = {"activations": Activations, "kv": KV, "logprobs": Logprobs, "responses": Responses}[name]
    taken = set(inspect.signature(cache).parameters)
    assert taken - set(options.__annotations__) == {
        "store",
        "model",
        *({"tokenizer"} if name == "activations" else {"queue"} if name == "kv" else ()),
    }
    assert set(options.__annotations__) <= taken
    said = inspect.getdoc(getattr(lmstash.Stash, name)) or ""
    shared = {"salt", "private", "ttl_seconds"}
    assert [each for each in options.__annotations__ if f"`{each}=`" not in said and each not in shared] == []


def test_tensors_of_other_bytes_are_a_counted_miss(tmp_path: Path):
    with lmstash.open(tmp_path / "s") as stash:
        stash.store.put(stash.tensors._digest("a"), b"no tensors at all")
        assert stash.tensors.get("a", framework="numpy") is None
        assert stash.stats.damaged == 1


def test_salted_stashes_share_nothing_and_a_private_one_keeps_no_text(tmp_path: Path):
    value = {"w": np.ones(3)}
    with lmstash.open(tmp_path / "s", salt="ann") as ann, lmstash.open(tmp_path / "s", salt="bob") as bob:
        ann.tensors.put("secret-name", value)
        assert bob.tensors.get("secret-name", framework="numpy") is None
        assert ann.tensors.get("secret-name", framework="numpy") is not None
    with lmstash.open(tmp_path / "p", private=True) as stash:
        stash.tensors.put("secret-name", value)
        assert stash.tensors.get("secret-name", framework="numpy") is not None
    written = b"".join(path.read_bytes() for path in (tmp_path / "p").rglob("*") if path.is_file())
    assert b"secret-name" not in written


@pytest.mark.parametrize("how", ["argument", "environment", "not at all"])
def test_a_stash_that_compresses_does_so_for_whoever_asks_it_for_responses(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if how == "environment":
        monkeypatch.setenv("LMSTASH_COMPRESS", "1")
    long = "the same words in every answer, as evaluations have them, and then a number: " * 4
    with lmstash.open(tmp_path, **({"compress": True} if how == "argument" else {})) as stash:
        responses = stash.responses("m")
        assert responses.put_many(range(2000), [f"{long}{number}" for number in range(2000)]) == 2000
        entries = list(stash.store.entries("responses/"))
        n_bytes = sum(each.nbytes for each in entries if each.meta.get("request") is None)
    monkeypatch.delenv("LMSTASH_COMPRESS", raising=False)
    with lmstash.open(tmp_path) as stash:
        assert stash.responses("m").get_many(range(2000)) == [f"{long}{number}" for number in range(2000)]
        dictionaries = len(list(stash.store.entries("dictionaries/")))
    assert len(entries) == 2000
    assert (dictionaries > 0) == (how != "not at all")
    assert (n_bytes < 2000 * len(long)) == (how != "not at all")


def test_prune_meets_every_condition_and_needs_one(tmp_path: Path):
    def put(number: int, namespace: str, **meta: object) -> None:
        stash.store.put(bytes([number] * 32), b"v" * number, namespace=namespace, meta=meta)

    with lmstash.open(tmp_path / "s") as stash:
        put(1, "activations/aaaa", model="0123456789abcdef", name="gpt2", tags=["old"])
        put(2, "activations/bbbb", model="fedcba9876543210", name="gpt2")
        put(3, "kv/aaaa", model="0123456789abcdef", tags=["old"])
        with pytest.raises(InvalidArgumentError, match="condition"):
            stash.prune()
        assert stash.prune(model="gpt2", dry_run=True).entries == 2
        assert stash.prune(model="01234567", kind="activations", tag="old", dry_run=True).entries == 1
        assert stash.prune(model="0123456", dry_run=True).entries == 0  # too short to be a fingerprint
        assert stash.prune(older_than=3600, dry_run=True).entries == 0
        assert stash.prune(older_than="1h", dry_run=True).entries == 0
        with pytest.raises(InvalidArgumentError, match="span of time"):
            stash.prune(older_than="a while")
        time.sleep(0.02)
        assert stash.prune(older_than=0.01, kind="kv", dry_run=True).entries == 1
        assert stash.prune(kind="activations").entries == 2
        assert [entry.namespace for entry in stash.store.entries()] == ["kv/aaaa"]
        assert stash.clear().entries == 1
        assert stash.info().entries == 0


def test_local_is_for_what_comes_later(tmp_path: Path):
    with pytest.raises(InvalidArgumentError, match="later release"):
        lmstash.open("s3://bucket/prefix", local=tmp_path)
    with pytest.raises(InvalidArgumentError, match="leave it out"):
        lmstash.open(tmp_path / "s", local=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_a_read_only_or_closed_stash_cannot_remove_it_says(tmp_path: Path):
    with lmstash.open(tmp_path) as stash:
        stash.responses("provider/model").put("a prompt", "an answer")
    reading, closed = lmstash.open(tmp_path, read_only=True), lmstash.open(tmp_path)
    closed.close()
    for stash, error in ((reading, ReadOnlyError), (closed, StoreUnavailableError)):
        for remove in (
            lambda stash: stash.forget(prompt="a prompt"),
            lambda stash: stash.prune(kind="responses"),
            lambda stash: stash.prune(older_than=0),
            lambda stash: stash.responses("provider/model").prune(text="a prompt"),
            lambda stash: stash.clear(),
        ):
            with pytest.raises(error, match=r"opened with read_only=True|closed"):
                remove(stash)
    assert reading.prune(kind="responses", dry_run=True).entries == 1
    assert reading.forget(prompt="a prompt", dry_run=True).entries == 1
    reading.close()


def test_forget_removes_every_entry_of_a_prompt_whatever_its_length(tmp_path: Path):
    from lmstash.identity.tokens import digest_text

    long = "word " * 100
    with lmstash.open(tmp_path / "s") as stash:
        facts = [{"text": long[:200], "text_id": digest_text(long)}, {"text": "other"}, {"text": long[:200]}]
        stash.store.put_many(
            Write(bytes([number] * 32), b"value", "activations/x", meta) for number, meta in enumerate(facts)
        )
        stash.store.put(bytes([9] * 32), b"ids", namespace="prompts/x")
        assert stash.forget(prompt=long, dry_run=True).entries == 2
        assert stash.forget(prompt=long).entries == 2  # its entry, and the kept ids
        assert stash.store.contains(bytes([1] * 32))
        assert stash.store.contains(bytes([2] * 32))
        assert stash.forget(prompt="other").entries == 1


def test_entries_expire_after_the_stash_lifetime(tmp_path: Path):
    with lmstash.open(tmp_path / "s", ttl_seconds=0.2) as stash:
        stash.tensors.put("k", {"w": np.ones(2)})
        assert stash.tensors.get("k", framework="numpy") is not None
        time.sleep(0.25)
        assert stash.tensors.get("k", framework="numpy") is None
        assert stash.stats.misses["expired"] == 1


def _read_in_child(folder: str, out: multiprocessing.SimpleQueue[bytes]) -> None:
    with lmstash.open(folder) as stash:
        out.put(bytes(stash.store.get(KEY) or b""))


def test_another_process_reads_what_this_one_has_not_flushed(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.SimpleQueue[bytes] = context.SimpleQueue()
    with lmstash.open(tmp_path / "s") as stash:
        stash.store.put(KEY, b"value")
        child = context.Process(target=_read_in_child, args=(str(tmp_path / "s"), queue))
        child.start()
        assert queue.get() == b"value"
        child.join()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("ram_bytes", [None, 1 << 20])
def test_a_signal_handler_that_flushes_or_closes_within_a_put_waits_for_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ram_bytes: int | None
):
    """Who would be waited for waits for that put: the thread of the queue, or of another cache."""
    stash = lmstash.open(tmp_path / "stash", trust_env=False, memory_bytes=ram_bytes)
    disk = stash.store.slow if isinstance(stash.store, TieredStore) else stash.store
    assert isinstance(disk, DiskStore)
    held = Held()
    stash._holding.add(held)
    log, came = disk._opened.index.log, []
    was_long = log.is_long

    def is_long() -> bool:
        if not came:
            came.append(stash.writes.offer([Write(b"q" * 32, b"queued")]))
            stash.flush()
            stash.close()
        return was_long()

    monkeypatch.setattr(log, "is_long", is_long)
    assert stash.store.put(b"k" * 32, b"value")
    assert came == [1]
    assert not held.flushed, "it would have been refused, and what it holds lost"
    stash.flush()
    assert held.flushed
    assert stash.store.get(b"k" * 32) == b"value"
    assert stash.store.get(b"q" * 32) == b"queued"
    stash.close()


class Held:
    """A cache that holds something back."""

    flushed = False

    def flush(self) -> None:
        self.flushed = True


def test_reprs_say_where_and_how_full(tmp_path: Path):
    with lmstash.open(tmp_path / "<b>") as stash:
        stash.store.put(KEY, b"value", namespace="user/<i>")
        assert str(tmp_path / "<b>") in repr(stash)
        html = stash._repr_html_()
        assert "user/&lt;i&gt;" in html
        assert "<i>" not in html
        assert isinstance(stash.store, DiskStore)
