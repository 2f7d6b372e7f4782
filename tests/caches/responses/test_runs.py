"""A program that misses in every run because of a time or a folder of its own is told which."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from lmstash.caches import between_runs
from lmstash.caches.between_runs import RUNS
from lmstash.caches.responses import Responses
from lmstash.stash import Stash

from .conftest import made_program

_new = itertools.count(1).__next__


def program(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Callable[[str], str]]:
    """Return the name of what is new in each run, and the function as this run has it."""
    number = _new()
    between_runs._noted.clear()  # as in another process
    if kind == "a variable":
        monkeypatch.setenv("RUN_ID", str(number))
        return "RUN_ID", made_program("def ask(x): return x + os.environ['RUN_ID'][:0]")["ask"]
    if kind == "a file":
        (folder / "state.txt").write_text(str(number))
        name = str(folder / "state.txt")
        return name, made_program(f"def ask(x): return x + open({name!r}).read()[:0]")["ask"]
    made = made_program("def ask(x): return x + str(START)[:0]")
    made["START"] = number if kind == "a number" else Path(f"/nowhere/run{number}")
    return "START", made["ask"]


@pytest.mark.parametrize("kind", ["a number", "a path", "a variable"])
def test_what_is_new_in_each_run_is_told_once_it_was_in_three(
    responses: Responses,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    said: list[int] = []
    name = ""
    for _ in range(4):
        name, ask = program(kind, tmp_path, monkeypatch)
        kept = responses.cached(ask)
        assert [kept(x) for x in "aab"] == [*"aab"]
        said.append(caplog.text.count("new values in each of the last 3 runs"))
    assert said == [0, 0, 1, 1]
    assert f"`{name}`" in caplog.text
    assert f"harmless=['{name}']" in caplog.text
    for puts in (2, 0):  # the answer and the note
        kept = responses.cached(program(kind, tmp_path, monkeypatch)[1], harmless=[name])
        before = responses.store.events.stats.puts
        assert kept("new") == "new"
        assert responses.store.events.stats.puts - before == puts


def test_edits_and_a_setting_that_is_tried_again_are_not_told(
    responses: Responses, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(5):
        between_runs._noted.clear()
        responses.cached(made_program(f"def ask(x): return x * {number + 1}")["ask"])("a")
    for model in "abab":
        between_runs._noted.clear()
        made = made_program("def ask(x): return MODEL + x")
        made["MODEL"] = model
        responses.cached(made["ask"])("a")
    assert not caplog.records


def test_a_private_cache_notes_nothing(stash: Stash) -> None:
    stash.responses(model="m", private=True).cached(made_program("def ask(x): return x")["ask"])("a")
    assert not [*stash.store.entries(RUNS)]
