"""The usage examples that llama-cpp-python's users know, with the line of the import alone changed."""

import gc
import json
import os
import re
import subprocess
import sys
import time
import typing
from pathlib import Path

import pytest

from .conftest import say

pytestmark = pytest.mark.model

EXAMPLES = Path(__file__).parent / "examples"
IMPORTS = {
    "from llama_cpp.llama_cache import BaseLlamaCache": "from lmstash.adapters.llama_cpp import BaseLlamaCache, Llama",
    "from llama_cpp import LlamaDiskCache": "from lmstash.adapters.llama_cpp import Llama, LlamaDiskCache",
    "from llama_cpp import": "from lmstash.adapters.llama_cpp import",
}
"""Two of the examples use `Llama` without importing it; so the line of their import brings it."""
_ONE_THREAD = "import multiprocessing; multiprocessing.cpu_count = lambda: 1\n"
"""llama.cpp's threads spin while they wait for each other, which shared cores make slow."""
_OPTIONS = {"prompt": "Once upon a time, in a small library at the edge of the forest,", "n_tokens": 8}


def changed(name):
    """Return an example with its import of llama_cpp replaced."""
    example = (EXAMPLES / f"{name}.txt").read_text(encoding="utf-8")
    for old, new in IMPORTS.items():
        if re.search(f"^{old}", example, re.MULTILINE):
            assert example.count(old) == 1
            return example.replace(old, new)
    raise AssertionError("it imports nothing of llama_cpp")


@pytest.fixture(autouse=True)
def folder(gguf, tmp_path, monkeypatch):
    """An empty folder to be in, with the model under the names that the examples use."""
    (tmp_path / "models").mkdir()
    for name in ("llama-2-7b.gguf", "model.gguf"):
        (tmp_path / "models" / name).symlink_to(gguf)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("multiprocessing.cpu_count", lambda: 1)
    return tmp_path


@pytest.fixture
def run():
    """Run code in a namespace, which is returned; its models are closed at the end."""
    spaces = []

    def go(code, namespace=None):
        space = {"__name__": "example"} if namespace is None else namespace
        spaces.append(space)
        exec(compile(code, "example", "exec"), space)
        return space

    yield go
    for space in spaces:
        for each in [each for name, each in space.items() if name.startswith("llm")]:
            each.close()
        space.clear()
    gc.collect()


def evaluated(llm, prompt, n_tokens):
    """Return the text of a greedy completion, and how many tokens were evaluated for it."""
    counted, evaluate = 0, llm.eval

    def counting(tokens):
        nonlocal counted
        counted += len(tokens)
        evaluate(tokens)

    llm.eval = counting
    try:
        return say(llm, prompt, n_tokens), counted
    finally:
        del llm.eval


def test_basic_ram_caching(run, capfd):
    space = run(changed("ram"))
    assert "Cache size: " in capfd.readouterr().out
    assert 1 <= len(space["cache"]) <= 2  # one text, or two that part
    assert space["cache"].events.stats.puts
    llm, prompt = space["llm"], "The capital of France is"
    say(llm, "Something else", 2)
    n_prompt = len(llm.tokenize(prompt.encode()))
    _text, n = evaluated(llm, prompt, 2)
    assert n < n_prompt


def test_persistent_disk_caching_across_a_restart(folder):
    """Twice, each in a process of its own; the footer says what the store counted."""
    footer = "import json; print(json.dumps(cache.events.stats.as_dict()))"
    counts, replies = [], []
    for _ in range(2):
        code = f"{_ONE_THREAD}{changed('disk')}\n{footer}\n"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False, timeout=200
        )
        assert done.returncode == 0, done.stderr
        *said, last = done.stdout.splitlines()
        counts.append(json.loads(last))
        replies.append(len(re.findall(r"^Response \d:", done.stdout, re.MULTILINE)))
        assert int(re.fullmatch(r"Disk cache contains (\d+) items", said[-1])[1]) >= 3
    assert replies == [3, 3]
    first, second = counts
    assert first["bytes_written"] > 2 * second["bytes_written"]
    assert first["misses"] == {"absent": 1}  # later prompts begin like the first one
    assert second["misses"] == {}
    assert second["bytes_read"] > 0


def test_cache_management(run, capfd):
    space = run(changed("management"))
    said = capfd.readouterr().out
    stats = space["cache_stats"]
    assert stats["hits"] + stats["misses"] == 5
    assert f"Cache statistics: {stats}" in said
    assert 4 <= len(space["cache"]) <= 5


def test_a_custom_json_cache_does_no_harm(run, plain, caplog):
    code = changed("custom")
    space = run(code, {"__name__": "example", "Tuple": typing.Tuple, "Optional": typing.Optional})  # noqa: UP006
    llm, cache = space["llm"], space["custom_cache"]
    fresh = say(plain(n_ctx=512, n_batch=512), **_OPTIONS)
    assert bool(cache)
    assert cache.cache_size == 0
    for _ in range(3):
        assert say(llm, **_OPTIONS) == fresh
        say(llm, "Something else", 1)
    assert cache.events.stats.drops.total() == 6  # JSON cannot hold a state
    assert cache.events.stats.misses.total() == 6
    assert cache.events.stats.hits == 0
    assert len([each for each in caplog.records if "a store of JSONDiskCache failed" in each.getMessage()]) == 1


def test_cache_performance_testing(run, capfd):
    run(changed("performance"))
    said = capfd.readouterr().out
    assert re.findall(r"^(.+): \d+\.\d\d seconds$", said, re.MULTILINE) == [
        "No cache",
        "With cache",
        "No cache",
        "With cache (should be faster)",
    ]


def monitored(run, capfd, example, n_items):
    """Run the example that watches memory: each cache keeps what it was given."""
    run(example)
    said = capfd.readouterr().out
    assert [int(each) for each in re.findall(r"^Cache items: (\d+)$", said, re.MULTILINE)] == [n_items] * 3
    assert len(re.findall(r"^Memory increase: ", said, re.MULTILINE)) == 3


def test_memory_usage_monitoring_for_a_short_time(run, capfd):
    shorter = changed("memory").replace("range(10)", "range(3)").replace("max_tokens=50", "max_tokens=5")
    monitored(run, capfd, shorter, 3)


@pytest.mark.campaign
def test_memory_usage_monitoring(run, capfd):
    monitored(run, capfd, changed("memory"), 10)


@pytest.mark.parametrize("which", ["what it lists", "segments too"])
def test_cache_cleanup_deletes_files_under_an_open_cache(run, plain, capfd, which):
    """Every file that lies in the folder is old when the example clears up."""
    use, clean = changed("cleanup").split("# Manual cache cleanup")
    space = run(use)
    llm, cache = space["llm"], space["cache"]
    fresh = say(plain(n_ctx=512, n_batch=512), **_OPTIONS)
    assert say(llm, **_OPTIONS) == fresh
    yesterday = time.time() - 86400
    files = [path for path in Path(cache.cache_dir).iterdir() if path.is_file()]
    for path in Path(cache.cache_dir).rglob("*"):
        os.utime(path, (yesterday, yesterday))
    run(clean, space)
    removed = re.findall(r"^Removed old cache file: (.+)$", capfd.readouterr().out, re.MULTILINE)
    assert sorted(removed) == sorted(path.name for path in files) != []
    if which == "segments too":
        for path in Path(cache.cache_dir).rglob("*"):
            if path.is_file():
                path.unlink()
    for prompt in ("Something else", "Example prompt 0", _OPTIONS["prompt"], "Example prompt 4"):
        assert say(llm, prompt, 8) == say(plain(n_ctx=512, n_batch=512), prompt, 8)
    assert len(cache) >= 0
    assert cache.cache_size >= 0
    llm.close()
    again = run(use.replace("range(5)", "range(1)"))
    assert say(again["llm"], **_OPTIONS) == fresh
    say(again["llm"], "Something else", 1)
    n_prompt = len(again["llm"].tokenize(_OPTIONS["prompt"].encode()))
    assert evaluated(again["llm"], **_OPTIONS)[1] < n_prompt  # it keeps again
