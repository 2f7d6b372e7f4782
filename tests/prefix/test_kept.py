from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmstash.errors import InvalidArgumentError
from lmstash.identity.chain import BLOCK_TOKENS, chain_ids, chain_key, chain_root, tail_key
from lmstash.prefix.kept import find_kept, find_kept_many, shared_tail, tail_meta
from lmstash.store.base import Write
from lmstash.store.disk.store import DiskStore
from lmstash.store.memory import MemoryStore

ROOT = chain_root(b"m" * 32)
WHAT = {"kind": "kv", "site": "all", "layout": "l,kv,h,t,d", "dtype": "float32"}


class AskedStore(MemoryStore):
    """Counts the keys and calls it is asked with, and refuses to read a value."""

    keys = calls = described = 0

    def contains_many(self, keys):
        self.keys += len(keys)
        self.calls += 1
        assert len(set(keys)) == len(keys)
        return super().contains_many(keys)

    def describe_many(self, keys):
        self.described += len(keys)
        return super().describe_many(keys)

    def fetch_many(self, keys):
        raise AssertionError("a value was read")

    get = get_many = fetch_many


def put_blocks(store, ids, numbers=None):
    """Keep some blocks of a prompt (all of them by default)."""
    chain = chain_ids(ROOT, ids)
    numbers = range(len(chain)) if numbers is None else numbers
    store.put_many([Write(chain_key(chain[n], **WHAT), b"value", "kv/m", n_tokens=BLOCK_TOKENS) for n in numbers])


def put_tail(store, ids, *, private=False, **wrong):
    """Keep what is over after the last whole block."""
    chain = chain_ids(ROOT, ids)
    rest = list(ids)[len(chain) * BLOCK_TOKENS :]
    key = tail_key(chain[-1] if chain else ROOT, rest[0], **WHAT)
    fields = {"n_tokens": len(rest), "meta": tail_meta(rest, private=private)} | wrong
    store.put(key, b"tail", namespace="kv/m", **fields)
    return key


def found(store, ids, **options):
    return find_kept(store, ROOT, ids, **WHAT, **options)


@given(st.integers(0, 30), st.sets(st.integers(0, 29)), st.integers(0, 63))
@settings(deadline=None, max_examples=100)
def test_what_is_found_is_what_is_there(n_blocks, kept, rest):
    store = AskedStore()
    ids = [random.Random(n_blocks).randrange(1000) for _ in range(n_blocks * BLOCK_TOKENS + rest)]
    kept = {n for n in kept if n < n_blocks}
    put_blocks(store, ids, sorted(kept))
    run = next(n for n in range(n_blocks + 1) if n not in kept)
    got = found(store, ids)
    assert (got.n_blocks, got.n_tokens, got.tail) == (run, run * BLOCK_TOKENS, None)
    chain = chain_ids(ROOT, ids)
    assert got.chain == chain[: len(got.chain)]
    assert got.keys == [chain_key(each, **WHAT) for each in got.chain]
    assert len(got.keys) >= min(n_blocks, run + 1)
    assert got.later == sorted(n for n in kept if run < n < len(got.keys))
    if run >= 8 or any(n in kept for n in range(run, 8)):  # then the second window was asked too, to the end here
        assert len(got.keys) == n_blocks


@given(st.integers(1, 63), st.integers(0, 63), st.integers(0, 63), st.integers(0, 3))
@settings(deadline=None, max_examples=100)
def test_a_tail_is_matched_to_the_token(n_kept, n_asked, agree, n_blocks):
    store = AskedStore()
    prefix = list(range(n_blocks * BLOCK_TOKENS))
    tail = list(range(7000, 7000 + n_kept))
    asked = [token if n < agree else 9 for n, token in enumerate(range(7000, 7000 + n_asked))]
    put_blocks(store, prefix)
    key = put_tail(store, prefix + tail)
    got = found(store, prefix + asked)
    shared = min(agree, n_kept, n_asked)
    assert got.n_blocks == n_blocks
    assert got.n_tokens == len(prefix) + shared
    if shared:
        assert (got.tail.key, got.tail.n_tokens, got.tail.n_kept) == (key, shared, n_kept)
    else:
        assert got.tail is None
    assert found(store, prefix + asked, tail=False).n_tokens == len(prefix)


def test_a_tail_serves_a_prompt_that_goes_on_over_the_block():
    store = AskedStore()
    prompt = list(range(1000))
    put_blocks(store, prompt[:640])
    put_tail(store, prompt[:700])
    assert found(store, prompt).n_tokens == 700
    put_blocks(store, prompt[:704])
    assert found(store, prompt).n_tokens == 704


def test_a_tail_after_a_hole_is_not_used_and_one_before_it_is():
    store = AskedStore()
    prompt = list(range(200))
    put_blocks(store, prompt, [0, 2])
    put_tail(store, prompt)
    got = found(store, prompt)
    assert (got.n_tokens, got.later, got.tail) == (64, [2], None)
    put_tail(store, prompt[:100])
    assert found(store, prompt).n_tokens == 100


def test_a_private_tail_matches_whole_or_not_at_all():
    store = AskedStore()
    ids = list(range(90))
    put_tail(store, ids[64:], private=True)
    rest = ids[64:]
    assert found(store, rest).n_tokens == 26
    assert found(store, [*rest, 5]).n_tokens == 26
    assert found(store, rest[:-1]).n_tokens == 0
    assert found(store, [*rest[:-1], 5]).n_tokens == 0
    assert "5a000000" not in str(tail_meta([90], private=True))


@pytest.mark.parametrize(
    "wrong",
    [
        {"meta": None},
        {"meta": {}},
        {"meta": {"tail": "zz"}},
        {"meta": {"tail": 5}},
        {"meta": {"tail": "01000000"}},
        {"meta": {"tail_digest": "00"}},
        {"meta": {"tail_digest": None}},
        {"n_tokens": 0},
        {"n_tokens": 9},
        {"meta": tail_meta([2, 2, 2])},
    ],
)
def test_a_tail_that_does_not_say_what_it_is_of_is_not_used(wrong):
    store = AskedStore()
    ids = [1, 2, 3]
    put_tail(store, ids, **wrong)
    assert found(store, ids).tail is None


def test_tails_and_prompts_share_whole_tokens_only():
    prompt = np.array([1, 2, 3], np.uint32).tobytes()
    meta = tail_meta([1, 2 + 2**24, 3])
    assert shared_tail(meta, 3, prompt) == 1
    assert shared_tail(tail_meta([2, 3]), 2, prompt, 4) == 2
    assert shared_tail(tail_meta([2, 3]), 2, prompt, 12) == 0


def test_nothing_kept_costs_eight_keys_however_long_the_prompt():
    store = AskedStore()
    got = found(store, range(100_000), tail=False)
    assert (got.n_blocks, store.keys, store.calls) == (0, 8, 1)
    put_blocks(store, range(100_000, 164_000))
    got = found(store, [*range(100_000, 164_000), *range(50_000)], tail=False)
    assert got.n_blocks == 1000
    assert store.calls == 1 + 5
    assert store.keys == 8 + 8 + 32 + 128 + 512 + 512


def test_many_prompts_share_their_look_ups():
    store = AskedStore()
    shared = list(range(640))
    prompts = [[*shared, *[1000 + k] * 130] for k in range(20)] + [[5], [], shared]
    put_blocks(store, prompts[0])
    put_blocks(store, prompts[1][:704])
    put_tail(store, prompts[3][:660])
    got = find_kept_many(store, ROOT, prompts, **WHAT)
    assert [each.n_tokens for each in got] == [768, 704, 640, 660, *[640] * 16, 0, 0, 640]
    assert store.calls == 2
    assert store.keys == 8 + 2 + 20 * 2
    assert got[5].keys[:10] == got[6].keys[:10]
    assert find_kept_many(store, ROOT, [], **WHAT) == []


@pytest.mark.parametrize("name", list(WHAT))
def test_what_was_kept_as_something_else_is_not_found(name):
    store = AskedStore()
    put_blocks(store, range(128))
    put_tail(store, range(130))
    other = WHAT | {name: "other"}
    assert find_kept(store, ROOT, range(130), **other).n_tokens == 0
    assert find_kept(store, chain_root(b"n" * 32), range(130), **WHAT).n_tokens == 0


def test_no_use_is_counted_and_wrong_ids_are_refused():
    store = AskedStore()
    put_blocks(store, range(128))
    put_tail(store, range(130))
    before = list(store.entries())
    assert found(store, range(130)).n_tokens == 130
    assert list(store.entries()) == before
    assert (store.events.stats.hits, sum(store.events.stats.misses.values())) == (0, 0)
    with pytest.raises(InvalidArgumentError):
        found(store, [-1])


def test_a_new_process_finds_what_an_old_one_kept(tmp_path):
    store = DiskStore(tmp_path / "store")
    put_blocks(store, range(1000))
    put_tail(store, range(1000))
    store.close()
    code = (
        "import sys\n"
        "from lmstash.identity.chain import chain_root\n"
        "from lmstash.prefix.kept import find_kept\n"
        "from lmstash.store.disk.store import DiskStore\n"
        f"store = DiskStore({str(tmp_path / 'store')!r}, read_only=True)\n"
        f"got = find_kept(store, chain_root(b'm' * 32), range(5000), **{WHAT!r})\n"
        "print(got.n_blocks, got.n_tokens, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["15", "1000", "False"]
