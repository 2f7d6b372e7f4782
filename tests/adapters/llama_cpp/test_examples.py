"""The usage examples of llama-cpp-python's cache documentation, with the import line alone changed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.model, pytest.mark.slow]

EXAMPLES = Path(__file__).parent / "examples"


@pytest.fixture
def run(gguf, tmp_path):
    """Run an example in a folder of its own, in a process of its own; return what it printed."""
    (tmp_path / "models").mkdir()
    for name in ("llama-2-7b.gguf", "model.gguf"):
        (tmp_path / "models" / name).symlink_to(gguf)

    def start(name, after=""):
        code = (EXAMPLES / f"{name}.txt").read_text(encoding="utf-8")
        ours = "from lmstash.adapters.llama_cpp import"
        code, n_changed = re.subn(r"from llama_cpp(\.llama_cache)? import", ours, code)
        assert n_changed == 1
        if " Llama," not in code:
            code = f"{ours} Llama\n{code}"  # two examples forget it, and the types
        code = f"from typing import Optional, Tuple\n{code}\n{after}"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=250
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return start


def test_ram(run):
    assert re.search(r"Cache size: [12] items", run("ram"))


def test_disk_and_again_after_a_restart(run):
    counts = []
    for _ in range(2):
        said = run("disk", "print('hits', cache.store.events.stats.hits)")
        counts.append(int(re.search(r"contains (\d+) items", said)[1]))
        hits = int(re.search(r"hits (\d+)", said)[1])
    assert counts[0] == 3
    assert counts[1] >= 3
    assert hits > 0


def test_management(run):
    said = run("management")
    assert "Prompt 1: CACHE MISS - New cache size: 1" in said
    assert said.count("CACHE MISS") in (4, 5)  # the duplicate goes on as the dice fall


def test_a_custom_cache_is_harmless_as_it_stands(run):
    said = run(
        "custom",
        "for _ in range(2): print(repr(llm.create_completion('The sea is', max_tokens=3, temperature=0.0)"
        "['choices'][0]['text']))\n"
        "print(custom_cache.events.stats.as_dict())",
    )
    first, second, stats = said.splitlines()
    assert first == second
    assert "'drops': {'unavailable': 2}" in stats


def test_performance(run):
    said = run("performance")
    times = [float(each) for each in re.findall(r": (\d+\.\d+) seconds", said)]
    assert len(times) == 4


def test_memory(run):
    said = run("memory")
    assert len(re.findall(r"Cache items: \d+", said)) == 3


def test_cleanup_under_an_open_cache(run):
    age = (
        "import pathlib\n"
        "def age():\n"
        "    for path in [*pathlib.Path('temp_cache').rglob('*')]:\n"
        "        os.utime(path, (0, 0))\n"
    )
    again = (EXAMPLES / "cleanup.txt").read_text(encoding="utf-8").split("# Manual cache cleanup")[1]
    answer = "llm.create_completion('Example prompt 1', max_tokens=5, temperature=0.0)['choices'][0]['text']"
    said = run(
        "cleanup",
        f"{age}\nbefore = {answer}\nage()\n{again}\nllm.reset()\nprint(before == {answer}, os.listdir(cache_dir))",
    )
    assert "Removed old cache file" in said
    assert "True" in said.splitlines()[-1]
