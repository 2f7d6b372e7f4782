"""A cached function that is pickled opens the same place in the other process, or caches nothing there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lmstash

cloudpickle = pytest.importorskip("cloudpickle")

SCRIPT = """
import os, sys
import cloudpickle, lmstash

stash = lmstash.open(sys.argv[1])
responses = stash.responses("x/y", revision="1", salt="s")

@responses.cached(harmless=["os"])
def ask(x):
    return [x, os.getpid()]

first = ask("a")
with open(sys.argv[2], "wb") as file:
    file.write(cloudpickle.dumps(ask))
print(first[1])
"""
LOAD = "import pickle, sys; ask = pickle.load(open(sys.argv[1], 'rb')); print(ask('a')[1], ask('b')[1] == ask('b')[1])"


def output(*arguments: str) -> list[str]:
    return subprocess.run(
        [sys.executable, "-c", *arguments], capture_output=True, text=True, check=True, timeout=120
    ).stdout.split()


def test_a_script_s_function_finds_in_another_process_what_is_kept(tmp_path: Path) -> None:
    pickled = str(tmp_path / "ask")
    [pid] = output(SCRIPT, str(tmp_path / "stash"), pickled)
    assert output(LOAD, pickled) == [pid, "True"]


def made(responses: Any, calls: list[Any]) -> Any:
    namespace: dict[str, Any] = {"__name__": "__main__", "note": calls.append}
    exec("def ask(x):\n return x", namespace)
    return responses.cached(namespace["ask"])


@pytest.mark.parametrize("kind", ["name", "fingerprint"])
def test_functions_that_are_carried_share_one_store_with_the_same_answers(tmp_path: Path, kind: str) -> None:
    with lmstash.open(tmp_path) as stash:
        model: Any = "x/y" if kind == "name" else stash.responses("x/y").asker.who.look()
        ask = made(stash.responses(model), [])
        assert ask("a") == "a"
        again, once_more = (cloudpickle.loads(cloudpickle.dumps(ask)) for _ in range(2))
        stores = [
            dict(zip(each.__code__.co_freevars, each.__closure__, strict=True))["calls"] for each in (again, once_more)
        ]
        first, second = (each.cell_contents._cache.store for each in stores)
        assert first is second
        assert [again("a"), once_more("a")] == ["a", "a"]
        assert first.events.stats.hits == 2


def test_what_cannot_be_opened_there_is_passed_on(tmp_path: Path) -> None:
    in_memory = lmstash.open("memory://")
    assert cloudpickle.loads(cloudpickle.dumps(made(in_memory.responses("x/y"), [])))("a") == "a"
    torch = pytest.importorskip("torch")
    with lmstash.open(tmp_path) as stash:
        watched = made(stash.responses(torch.nn.Linear(2, 2).eval()), [])
        assert cloudpickle.loads(cloudpickle.dumps(watched))("a") == "a"
