"""What a function remembers of how all was before is not kept as what is now."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from tests.caches.responses.conftest import made_program

from lmstash.caches.responses import Responses
from lmstash.stash import Stash

START = """
import functools, os, pathlib
N, HERE, STYLE = [], pathlib.Path(%r), "one"
class Held:
    def __init__(self): self.style = "one"
    @functools.lru_cache
    def said(self): return self.style
    @staticmethod
    @functools.cache
    def static(): return STYLE
HELD = Held()
"""
GOES_BY_A_FILE = {
    "a file": "@functools.lru_cache\ndef said(): return (HERE / 'p.txt').read_text()\ndef ask(q): return said()",
    "a file that it is handed": (
        "@functools.cache\ndef said(name): return (HERE / f'{name}.txt').read_text()\ndef ask(q): return said('p')"
    ),
    "a method of a package": "said = functools.cache(pathlib.Path.read_text)\ndef ask(q): return said(HERE / 'p.txt')",
    "a partial": (
        "@functools.cache\ndef said(name): return (HERE / name).read_text()\none = functools.partial(said, 'p.txt')\n"
        "def ask(q): return one()"
    ),
    "a dict of them": (
        "@functools.cache\ndef said(): return (HERE / 'p.txt').read_text()\nBY = {'a': said}\n"
        "def ask(q): return BY['a']()"
    ),
    "an attribute": (
        "class R:\n def __init__(self): self.load = functools.lru_cache(self._load)\n"
        " def _load(self, name): return (HERE / name).read_text()\nR = R()\nsaid = R.load\n"
        "def ask(q): return R.load('p.txt')"
    ),
}
GOES_BY_A_VALUE = {
    "a global": "@functools.cache\ndef said(): return STYLE\ndef ask(q): return said()",
    "a static method": "def ask(q): return Held.static()",
    "a method": "def ask(q): return HELD.said()",
    "an attribute of what it is handed": (
        "class R:\n style = 'one'\n def __init__(self): self.style = 'one'\nOTHER = R()\n"
        "@functools.cache\ndef said(held): return held.style\ndef ask(q): return said(HELD)"
    ),
    "a method of an argument": "def ask(q, held=HELD): return held.said()",
    "the environment": ("@functools.cache\ndef said(): return os.environ['EVAL_STYLE']\ndef ask(q): return said()"),
}


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("EVAL_STYLE", "one")
    (tmp_path / "p.txt").write_text("one")

    def made(code: str) -> dict[str, Any]:
        table = made_program(START % str(tmp_path) + code)

        def edit(text: str) -> None:
            (tmp_path / "p.txt").write_text(text)
            monkeypatch.setenv("EVAL_STYLE", text)
            table["STYLE"] = table["HELD"].style = text

        def clear() -> None:
            for each in (table.get("said"), table["Held"].said, table["Held"].static):
                if each is not None:
                    each.cache_clear()

        return {**table, "edit": edit, "clear": clear}

    return made


@pytest.mark.parametrize("how", [*GOES_BY_A_FILE, *GOES_BY_A_VALUE])
def test_what_was_remembered_before_an_edit_is_not_kept(
    stash: Stash, responses: Responses, caplog: pytest.LogCaptureFixture, program: Any, how: str
) -> None:
    made = program((GOES_BY_A_FILE | GOES_BY_A_VALUE)[how])
    ask = responses.cached(made["ask"])
    assert [ask("a"), ask("a"), ask("b")] == ["one"] * 3
    made["edit"]("two")
    assert [ask("a"), ask("a")] == ["one"] * 2  # as without a cache
    assert "cache_clear()" in caplog.text
    made["clear"]()
    assert [ask("a"), ask("a")] == ["two"] * 2
    made["edit"]("one")
    assert ask("a") == "one"  # kept of before
    hits = stash.stats.hits
    made["edit"]("two")
    assert ask("a") == "two"
    assert stash.stats.hits == hits + 1


def test_what_does_not_hang_on_the_edit_goes_on(stash: Stash, responses: Responses, program: Any) -> None:
    """A client that is made once, say; and other files than those that it reads."""
    made = program(
        "@functools.lru_cache\ndef client(): return object()\n@functools.cache\ndef twice(x): return 2 * x\n"
        "def ask(q): return (client() and twice(STYLE)) + (HERE / 'p.txt').read_text()"
    )
    ask = responses.cached(made["ask"])
    assert ask("a") == ask("a") == "oneoneone"
    made["edit"]("two")
    assert ask("a") == "twotwotwo"
    hits = stash.stats.hits
    assert ask("a") == "twotwotwo"
    assert stash.stats.hits == hits + 1


def test_what_a_memo_does_not_read_may_change(responses: Responses, stash: Stash, program: Any) -> None:
    """Counters of the object that bears it, files that are written each time."""
    made = program(
        "class Runner:\n def __init__(self): self.done, self.name = 0, 'p'\n"
        " @functools.lru_cache\n def load(self, name): return name.upper()\n"
        " def ask(self, q): return self.load('a') + q + pathlib.Path(HERE, 'log.txt').read_text()\nRUNNER = Runner()"
    )
    runner = made["RUNNER"]
    type(runner).ask = responses.cached(type(runner).ask)
    for n in range(3):
        runner.done = n
        Path(made["HERE"], "log.txt").write_text(str(n))
        assert [runner.ask("q"), runner.ask("q")] == [f"Aq{n}"] * 2
    assert stash.stats.hits == 3


def test_each_of_two_of_one_name_is_looked_at(responses: Responses, stash: Stash, program: Any) -> None:
    made = program(
        "def made(style):\n @functools.cache\n def said(): return style or STYLE\n return said\n"
        "FIRST, LAST = made(''), made('fixed')\ndef ask(q): return FIRST() + LAST()"
    )
    ask = responses.cached(made["ask"])
    assert [ask("a"), ask("a")] == ["onefixed"] * 2
    made["edit"]("two")
    assert [ask("a"), ask("a")] == ["onefixed"] * 2  # as without a cache
    assert stash.stats.hits == 1


def test_what_was_remembered_before_anybody_looked_is_not_kept_if_a_file_changed_since_the_program_began(
    stash: Stash, responses: Responses, caplog: pytest.LogCaptureFixture, program: Any
) -> None:
    made = program(GOES_BY_A_FILE["a file"])
    ask = responses.cached(made["ask"])
    assert made["said"]() == "one"
    made["edit"]("two")
    assert [ask("a"), ask("a")] == ["one"] * 2
    assert "cache_clear()" in caplog.text
    assert stash.stats.hits == 0
    made["clear"]()
    assert [ask("a"), ask("a")] == ["two"] * 2
    assert stash.stats.hits == 1


def test_what_was_remembered_before_anybody_looked_is_kept_if_no_file_changed(
    stash: Stash, responses: Responses, program: Any, tmp_path: Path
) -> None:
    made = program(GOES_BY_A_FILE["a file"])
    os.utime(tmp_path / "p.txt", (0, 0))
    ask = responses.cached(made["ask"])
    made["said"]()
    assert [ask("a"), ask("a")] == ["one"] * 2
    assert stash.stats.hits == 1
