"""What code does with what it names, told by its instructions."""

# ruff: noqa: SIM115
from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from lmstash.identity.uses import COUNTED, READ, STORED, WRITTEN, tails_of, texts_used, uses_of

HERE = Path(__file__).parent


def test_how_attributes_are_used_is_told_by_the_code_around_them():
    def code(self: Any, other: Any) -> Any:
        self.counted += len(other)
        self.text.write_text("")
        open(self.log, "a").close()
        open(self.read).close()
        other(self.handed, "a")
        open(self.keyed["a"]).close()
        open(self.joined + "a").close()
        other.to_csv(self.table)
        return self.both + [1 for _ in self.inner]

    told = dict(uses_of(code.__code__))
    assert {name for name, use in told.items() if use == COUNTED} == {"counted"}
    assert {name for name, use in told.items() if use == WRITTEN} == {"text", "log", "table"}
    assert {"read", "handed", "both", "inner", "keyed", "joined"} <= {name for name, use in told.items() if use == READ}


def test_how_variables_from_outside_are_used():
    log, read = Path("log"), Path("read")

    def code(name: str) -> Any:
        with log.open("a") as file:
            json.dump(name, file)
        return read.read_text()

    told = dict(uses_of(code.__code__))
    assert (told["log"], told["read"]) == (WRITTEN, READ)


def test_texts_that_may_be_paths_come_with_their_use():
    def code(name: str, frame: Any) -> Any:
        open("a").write("b")
        open("c", "w").close()
        open(f"d/{name}.e", "a").close()
        Path("f").write_text("g")
        (Path("h") / "i" / "j").read_text()
        os.path.join("k", "l")
        logging.FileHandler("m")
        logging.basicConfig(level=logging.INFO, format="u", filename="v")
        frame.to_csv("n")
        frame.t = "t"
        return [open(each) for each in ("o", "p")], {"q": 1}["q"], [open("r") for _ in name]

    told = [*texts_used(code.__code__)]
    assert {(text, use) for text, use, _ in told if use.startswith(STORED)} == {("t", "stored as t")}
    read = {text for text, use, _ in told if use == READ}
    assert {text for text, use, _ in told if use == WRITTEN} == {"c", "d/", "f", "m", "n", "u", "v", "u/v"}
    assert {"a", "h", "h/i", "h/i/j", "k/l", "o", "p", "q", "r"} <= read
    assert {text for text, use, opens in told if use == READ and opens} >= {"a", "h/i/j", "k/l", "r"}
    assert not {text for text, use, opens in told if opens} & {"b", "g", "o", "q"}


def test_what_is_joined_behind_a_folder_comes_with_it():
    def code(name: str) -> Any:
        (HERE / "a" / "b.txt").read_text()
        open(HERE / "c.txt").close()
        open(f"{HERE}/d.txt").close()
        (HERE / "e.txt").write_text("")
        (HERE / f"{name}.log").open("a").close()

    assert [(tail, use) for name, tail, use in tails_of(code.__code__) if name == "HERE"] == [
        *[("a/b.txt", READ), ("c.txt", READ), ("d.txt", READ), ("e.txt", WRITTEN), ("", WRITTEN)]
    ]

    def more(name: str) -> Any:
        return (HERE / name).read_text(), (HERE / "a" / f"{name}_{name}.txt").read_text(), list(HERE.iterdir())

    assert [(tail, use) for name, tail, use in tails_of(more.__code__) if name == "HERE"] == [
        *[("", READ), ("a", READ), (None, READ)]
    ]

    def joined(name: str, *, folder: str = "f") -> Any:
        os.path.join(HERE, "a", "b.txt")
        os.path.join(HERE, "a", name + ".txt")
        Path(HERE, name)
        open(f"{HERE}/a/{name}.txt").close()
        path = HERE / "c" / f"{name}.json"
        path.write_text("")
        return open(os.path.join(folder, name)), HERE

    told = [*tails_of(joined.__code__)]
    assert [(tail, use) for name, tail, use in told if name == "HERE"] == [
        *[("a/b.txt", READ), ("a", READ), ("", READ), ("a", READ), ("c", WRITTEN), (None, READ)]
    ]
    assert [(tail, use) for name, tail, use in told if name == "folder"] == [("", READ)]
