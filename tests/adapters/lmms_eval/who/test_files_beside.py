"""Files that attributes name, where a container holds very many words."""

from __future__ import annotations

import os
from pathlib import Path, PurePath
from typing import Any

import pytest

from lmstash.adapters.lm_eval.who.named_files import files_named
from lmstash.adapters.lmms_eval.who.files_beside import files_of
from lmstash.adapters.lmms_eval.who.noted import Noted


def reader(self: Any) -> Any:
    return self.words


def test_the_same_files_are_found_without_a_look_at_each_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    for name in ("a.txt", "folder/b.txt", "c.txt"):
        Path(name).write_text(name)
    code = Noted("lmms_eval")
    code.note(reader)
    words = [f"word {k}" for k in range(5000)] + ["no/such", "", "/", "a\0b", "folder"]
    named = ["a.txt", "folder/b.txt", str(tmp_path / "c.txt"), "./a.txt", "folder/../c.txt", PurePath("c.txt")]
    asked: list[Any] = []
    looked = os.stat
    for held in ([*words, *named], dict(enumerate([*named, *words])), {"deeper": (*words, *named)}):
        found = files_named({"words": held}, (), code)
        with monkeypatch.context() as patched:
            patched.setattr(os, "stat", lambda path, *more, **how: (asked.append(path), looked(path, *more, **how))[1])
            assert files_of({"words": held}, (), code) == found
        assert len(found["words"]) == len(named)
    assert len(asked) < 100
