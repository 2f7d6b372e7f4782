"""A program that misses in every run because of a time or a folder of its own is told which."""

from __future__ import annotations

import importlib
import itertools
import sys
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
    if kind == "an attribute":
        made = made_program("class C: pass\nc = C()\ndef ask(x): return x + str(c.start)[:0]")
        made["c"].start, made["c"].model = number, "m"
        return "c.start", made["ask"]
    made = made_program("def ask(x): return x + str(START)[:0]")
    made["START"] = number if kind == "a number" else Path(f"/nowhere/run{number}")
    return "START", made["ask"]


@pytest.mark.parametrize("kind", ["a number", "a path", "a variable", "an attribute"])
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


FILES = {
    "by a text": "def ask(x): return x + open({path!r}).read()[:0]",
    "by a path": "P = pathlib.Path({path!r})\ndef ask(x): return x + P.read_text()[:0]",
    "by its folder": "P = pathlib.Path({path!r}).parent\ndef ask(x): return x + (P / 'a.txt').read_text()[:0]",
    "by an object": "class C: pass\nc = C()\nc.path = {path!r}\ndef ask(x): return x + open(c.path).read()[:0]",
    "by an object's path": "class C: pass\nc = C()\nc.p = pathlib.Path({path!r})\n"
    "def ask(x): return x + c.p.read_text()[:0]",
}


@pytest.mark.parametrize("named", FILES)
def test_a_file_that_somebody_edits_is_not_told(
    responses: Responses, stash: Stash, tmp_path: Path, caplog: pytest.LogCaptureFixture, named: str
) -> None:
    for number in range(5):
        between_runs._noted.clear()
        (tmp_path / "a.txt").write_text(str(number))
        source = "import pathlib\n" + FILES[named].format(path=str(tmp_path / "a.txt"))
        assert responses.cached(made_program(source)["ask"])("a") == "a"
    assert not caplog.records
    assert stash.stats.hits == 0


@pytest.mark.parametrize("harmless", [False, True])
def test_a_file_that_changes_while_the_function_computes_is_told_in_the_first_run(
    responses: Responses, stash: Stash, tmp_path: Path, caplog: pytest.LogCaptureFixture, harmless: bool
) -> None:
    name = str(tmp_path / "seen.txt")
    source = f"def ask(x):\n with open({name!r}, 'r+') as f:\n  f.read()\n  f.write(x)\n return x"
    (tmp_path / "seen.txt").write_text("")
    ask = responses.cached(harmless=[name] if harmless else [])(made_program(source)["ask"])
    for x in "aab":
        assert ask(x) == x
    told = [each.getMessage() for each in caplog.records]
    assert [f"`{name}`, which program.ask goes by, changes while it computes" in each for each in told] == [True] * (
        not harmless
    )
    assert stash.stats.hits == (1 if harmless else 0)


def test_an_edit_of_any_module_of_ones_own_begins_anew(
    responses: Responses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for number in range(5):
        between_runs._noted.clear()
        (tmp_path / "lmstash_test_config.py").write_text(f"PROMPT = {number}  #{'#' * number}\n")
        monkeypatch.delitem(sys.modules, "lmstash_test_config", raising=False)
        importlib.invalidate_caches()
        source = "from lmstash_test_config import PROMPT\ndef ask(x): return x + str(PROMPT)"
        assert responses.cached(made_program(source)["ask"])("a") == f"a{number}"
    monkeypatch.delitem(sys.modules, "lmstash_test_config")
    assert not caplog.records


def test_a_default_that_changes_is_told_by_its_argument(responses: Responses, caplog: pytest.LogCaptureFixture) -> None:
    program = made_program("def ask(x, shots=[]):\n shots.append(x)\n return [*shots]")
    ask = responses.cached(program["ask"])
    assert [ask("a"), ask("a")] == [["a"], ["a", "a"]]
    assert ["changes its argument `shots`" in each.getMessage() for each in caplog.records] == [True]


def test_an_object_that_is_a_default_goes_by_its_argument(
    responses: Responses, stash: Stash, caplog: pytest.LogCaptureFixture
) -> None:
    source = (
        "class C:\n n = 0\n def __init__(self): self.n = 0\ndef ask(x, *, c=C(), d=iter('')):\n c.n += 1\n return x"
    )
    ask = responses.cached(harmless=["d"])(made_program(source)["ask"])
    assert [ask("a"), ask("a")] == ["a", "a"]
    assert "harmless=['c.n']" in caplog.text
    ask = responses.cached(harmless=["c.n", "d"])(made_program(source)["ask"])
    assert [ask("b"), ask("b")] == ["b", "b"]
    assert (stash.stats.hits, stash.stats.misses["unsupported"]) == (1, 0)


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
