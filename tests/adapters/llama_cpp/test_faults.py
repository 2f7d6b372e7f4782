"""Damage, kills, other processes, stores that fail: right text or a miss, never an exception out of a completion."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import pytest

import lmstash
from lmstash.adapters.llama_cpp import BaseLlamaCache, LlamaDiskCache, LlamaRAMCache, LlamaStashCache
from lmstash.errors import LmstashError
from lmstash.store.memory import MemoryStore
from lmstash.testing.faulty import FaultyStore

from .conftest import SETTINGS, STORY, say

pytestmark = pytest.mark.model


def seeds(n):
    """Of damage drawn at random: a few each time, more in the campaign."""
    campaign = [pytest.param(seed, marks=pytest.mark.campaign) for seed in range(n, 20)]
    return pytest.mark.parametrize("seed", [*range(n), *campaign])


def flip(path, draw, n_flips=3):
    size = path.stat().st_size
    with open(path, "r+b") as file:
        for _ in range(n_flips):
            at = draw.randrange(size)
            file.seek(at)
            old = file.read(1)
            file.seek(at)
            file.write(bytes([old[0] ^ (1 << draw.randrange(8))]))


@seeds(3)
def test_damaged_blocks_are_computed_anew(load, plain, tmp_path, seed):
    draw = random.Random(seed)
    cache = LlamaDiskCache(str(tmp_path))
    llm = load(cache)
    text = say(plain(), STORY)
    say(llm, STORY)
    cache.store.close()
    for path in (tmp_path / "segments").iterdir():
        flip(path, draw)
    llm.set_cache(LlamaDiskCache(str(tmp_path)))
    for _ in range(3):
        say(llm, "Something else", 1)
        assert say(llm, STORY) == text


@pytest.mark.parametrize("what", ["segments", "index.db", "everything"])
def test_files_removed_under_an_open_cache_are_misses(load, plain, tmp_path, what):
    cache = LlamaDiskCache(str(tmp_path))
    llm = load(cache)
    text = say(plain(), STORY)
    say(llm, STORY)
    for path in sorted(tmp_path.rglob("*")):
        if path.is_file() and (what == "everything" or what in str(path)):
            path.unlink()
    for _ in range(2):
        say(llm, "Something else", 1)
        assert say(llm, STORY) == text


def test_what_is_gone_between_look_up_and_loading_is_a_miss(load, plain):
    cache = LlamaRAMCache()
    llm = load(cache)
    text = say(llm, STORY)
    say(llm, "Something else", 1)
    before = llm.save_state()
    look_up = type(llm.cache).__getitem__

    class Late(type(llm.cache)):
        def __getitem__(self, key):
            state = look_up(self, key)
            cache.store.clear()
            return state

    llm.cache.__class__ = Late
    state = llm.cache[llm.tokenize(STORY.encode())]
    with pytest.raises(KeyError):
        llm.load_state(state)
    assert llm.save_state().llama_state == before.llama_state
    assert say(llm, STORY) == text == say(plain(), STORY)


@seeds(2)
def test_a_store_that_loses_things_costs_only_time(load, plain, seed):
    cache = LlamaStashCache(FaultyStore(MemoryStore(), miss_rate=0.3, drop_rate=0.3, seed=seed))
    llm = load(cache)
    for prompt in (STORY, "Something else", STORY, STORY[:60], STORY):
        assert say(llm, prompt, 4) == say(plain(), prompt, 4)


@pytest.mark.parametrize(
    "error", [OSError(28, "no space left"), LmstashError("no"), RuntimeError("odd"), KeyError("x")]
)
def test_a_store_that_raises_does_not_reach_the_completion(load, plain, error):
    store = FaultyStore(MemoryStore(), error_rate=1.0, error=error)
    llm = load(LlamaStashCache(MemoryStore()))
    llm.cache.cache.store = store
    llm.cache.cache._states.clear()
    assert say(llm, STORY, 4) == say(plain(), STORY, 4)


def test_a_strict_store_raises(load):
    error = LmstashError("on purpose")
    llm = load(LlamaStashCache(MemoryStore(strict=True)))
    llm.cache.cache.store = FaultyStore(MemoryStore(strict=True), error_rate=1.0, error=error)
    llm.cache.cache._states.clear()
    with pytest.raises(LmstashError, match="on purpose"):
        say(llm, STORY, 1)


def test_a_full_cache_goes_on(load, plain):
    cache = LlamaRAMCache(capacity_bytes=2 << 20)
    llm = load(cache)
    for number in range(4):
        prompt = f"{STORY} {number}"
        assert say(llm, prompt, 4) == say(plain(), prompt, 4)
        assert cache.cache_size <= 2 << 20


@pytest.mark.parametrize("limit", [0, 1000])
def test_a_limit_that_fits_nothing_keeps_nothing(load, plain, limit):
    cache = LlamaRAMCache(capacity_bytes=limit)
    llm = load(cache)
    assert say(llm, STORY, 4) == say(plain(), STORY, 4)
    assert len(cache) == 0


def test_a_folder_that_cannot_be_used_keeps_nothing(load, plain, tmp_path):
    (tmp_path / "file").write_text("in the way")
    cache = LlamaDiskCache(str(tmp_path / "file"))
    llm = load(cache)
    assert say(llm, STORY, 4) == say(plain(), STORY, 4)
    assert len(cache) == 0


# --- caches of one's own ----------------------------------------------------------------------------------------------


class Faulty(BaseLlamaCache):
    def __init__(self, get=None, error=None):
        self.get, self.error = get, error
        self.stored = 0

    def __getitem__(self, key):
        if self.error:
            raise self.error
        return self.get

    def __contains__(self, key):
        raise ValueError

    def __setitem__(self, key, value):
        self.stored += 1
        raise OSError("full")


@pytest.mark.parametrize(
    "own", [Faulty(), Faulty(get="text"), Faulty(error=ValueError("no")), Faulty(error=KeyError())]
)
def test_a_cache_of_ones_own_may_fail_in_any_way(load, plain, own):
    llm = load(own)
    assert say(llm, STORY, 4) == say(plain(), STORY, 4)
    assert bool(own)
    assert own.stored == 1
    assert own.cache_size == 0
    assert [1] not in own
    assert own.events.stats.drops == {"unavailable": 1}
    if not isinstance(own.error, KeyError):
        assert sum(own.events.stats.misses.values()) == 2


def test_a_cache_of_ones_own_that_works_is_left_alone(load, plain):
    class Own(BaseLlamaCache):
        def __init__(self):
            super().__init__(5)
            self.kept = {}

        def __getitem__(self, key):
            return self.kept[max(k for k in self.kept if k[: len(key)] == tuple(key))]

        def __setitem__(self, key, value):
            self.kept[tuple(key)] = value

        def __contains__(self, key):
            return tuple(key) in self.kept

        def __len__(self):
            return len(self.kept)

    own = Own()
    llm = load(own)
    assert bool(own)
    text = say(llm, STORY, 4)
    say(llm, "Something else", 1)
    assert say(llm, STORY, 4) == text
    assert len(own) == 2


# --- processes --------------------------------------------------------------------------------------------------------

_COMPLETE = """
import sys
from lmstash.adapters.llama_cpp import Llama, LlamaDiskCache
llm = Llama({path!r}, **{settings!r})
llm.set_cache(LlamaDiskCache({folder!r}))
print("ready", flush=True)
for number in range({first}, {first} + {count}):
    done = llm.create_completion({story!r} + f" {{number % 3}}", max_tokens=2, temperature=0.0)
    print(done["choices"][0]["text"].encode(), flush=True)
"""


def start(gguf, folder, *, first=0, count=4):
    story = STORY[:60]
    code = textwrap.dedent(_COMPLETE).format(
        path=str(gguf), settings=SETTINGS, folder=str(folder), story=story, first=first, count=count
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def expected(plain, number):
    return say(plain(), f"{STORY[:60]} {number % 3}", 2)


def test_two_processes_share_a_folder(gguf, plain, tmp_path):
    both = [start(gguf, tmp_path, first=first, count=5) for first in (0, 1)]
    texts = [expected(plain, number) for number in range(3)]
    for first, process in enumerate(both):
        out, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
        said = out.splitlines()[1:]
        assert said == [repr(texts[number % 3].encode()) for number in range(first, first + 5)]
    with lmstash.open(tmp_path) as stash:
        assert stash.verify().ok


@pytest.mark.slow
def test_a_kill_at_any_time_leaves_right_text_or_a_miss(gguf, load, plain, tmp_path):
    draw = random.Random(0)
    texts = [expected(plain, number) for number in range(3)]
    for _ in range(4):
        process = start(gguf, tmp_path, count=1000)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(draw.uniform(0.3, 1.5))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        cache = LlamaDiskCache(str(tmp_path))
        llm = load(cache)
        assert [say(llm, f"{STORY[:60]} {number}", 2) for number in range(3)] == texts
        assert cache.store.verify().ok
        cache.store.clear()
        cache.store.close()
        llm.close()


def test_an_identity_that_cannot_be_told_is_a_miss_and_no_exception(load, monkeypatch):
    cache = LlamaRAMCache()
    llm = load(cache)
    text = say(llm, STORY, 2)

    def fail(*arguments):
        raise OSError("planted")

    monkeypatch.setattr(llm._identity, "_refresh", fail)
    llm.reset()
    assert say(llm, STORY, 2) == text
    assert llm.cache.stops(list(range(200)), 0) == []
    assert cache.events.stats.misses
