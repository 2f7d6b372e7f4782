"""What a model's functions remember (`functools.lru_cache`) of how all was before is not kept as what is now."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmstash.adapters.lm_eval import CachedLM

from ..conftest import generations
from .test_own_objects import Own

pytest.importorskip("tenacity")
SETTINGS = {"style": "one"}


@functools.lru_cache
def of_a_file() -> str:
    return Path("p.txt").read_text()


@functools.cache
def of_a_file_by_name(name: str) -> str:
    return Path(name).read_text()


@functools.cache
def of_a_global() -> str:
    return SETTINGS["style"]


@functools.cache
def of_the_environment() -> str:
    return os.environ["EVAL_STYLE"]


@functools.cache
def once() -> object:
    return object()


class File(Own):
    def said(self) -> Any:
        return of_a_file()


class NamedFile(Own):
    def said(self) -> Any:
        return of_a_file_by_name(self.file)


class Global(Own):
    def said(self) -> Any:
        return of_a_global()


class Environment(Own):
    def said(self) -> Any:
        return of_the_environment()


class Method(Own):
    @functools.lru_cache  # noqa: B019 (what people do)
    def said(self) -> Any:
        return self.style


class Attribute(Own):
    def said(self) -> Any:
        return self.pick()


class Once(Own):
    def said(self) -> Any:
        return once() and SETTINGS["style"]


@pytest.fixture
def edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Own, str], None]:
    monkeypatch.chdir(tmp_path)

    def edited(lm: Own, text: str) -> None:
        Path("p.txt").write_text(text)
        monkeypatch.setenv("EVAL_STYLE", text)
        monkeypatch.setitem(SETTINGS, "style", text)
        lm.style = text

    return edited


def clear() -> None:
    for each in (of_a_file, of_a_file_by_name, of_a_global, of_the_environment, Method.said):
        each.cache_clear()


@pytest.mark.parametrize("kind", [File, NamedFile, Global, Environment, Method, Attribute])
def test_what_was_remembered_before_an_edit_is_not_kept(stash, caplog, edit, kind) -> None:
    clear()
    made = kind(file="p.txt", **({"pick": of_a_global} if kind is Attribute else {}))
    edit(made, "one")
    lm, asked = CachedLM(made, stash), generations(2)
    first = lm.generate_until(asked)
    assert first == lm.generate_until(asked) == ["one prompt 0", "one prompt 1"]
    assert (lm.counts.hits, lm.counts.computed) == (2, 2)
    edit(made, "two")
    assert [lm.generate_until(asked) for _ in range(2)] == [first] * 2  # as without a cache
    assert lm.counts.computed == 6
    assert "cache_clear()" in caplog.text
    clear()
    second = [lm.generate_until(asked) for _ in range(2)]
    assert second == [["two prompt 0", "two prompt 1"]] * 2
    assert lm.counts.computed == 8


def test_what_does_not_hang_on_the_edit_goes_on(stash, edit) -> None:
    made = Once()
    edit(made, "one")
    lm, asked = CachedLM(made, stash), generations(2)
    lm.generate_until(asked)
    edit(made, "two")
    assert [lm.generate_until(asked) for _ in range(2)] == [["two prompt 0", "two prompt 1"]] * 2
    assert lm.counts.computed == 4
