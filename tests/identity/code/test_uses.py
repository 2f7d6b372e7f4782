"""What code does with what it names, told by its instructions."""

# ruff: noqa: SIM115, UP031, UP032
from __future__ import annotations

import json
import logging
import os
import time
from importlib import resources
from pathlib import Path
from typing import Any

from lmstash.identity.code.uses import COUNTED, FILE, FOLDER, READ, WRITTEN, paths_in, uses_of

HERE = Path(__file__).parent
FORMAT = "{n}"


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


def said(code: Any) -> dict[str, set[tuple[str, str]]]:
    """Return the use of each path in code, and as what it is opened, with `*` for what nobody knows of it."""
    found: dict[str, set[tuple[str, str]]] = {}
    for each in paths_in(code.__code__):
        text = "".join(part if isinstance(part, str) else f"<{part.name}>" for part in each.parts)
        found.setdefault(text, set()).add((each.use, each.opens or each.stored_as))
    return found


def test_texts_that_may_be_paths_come_with_their_use():
    def code(name: str, frame: Any) -> Any:
        open("a").write("b")
        open("c", "w").close()
        open(f"d/{name}.e", "a").close()
        Path("f").write_text("g")
        (Path("h") / "i" / "j").read_text()
        os.listdir(os.path.join("k", "l"))
        logging.FileHandler("m")
        logging.basicConfig(level=logging.INFO, format="u", filename="v")
        frame.to_csv("n")
        frame.t = "t"
        with open(os.path.join("out", name + ".txt"), mode="w", encoding="utf-8") as file:
            file.write("w")
        return [open(each) for each in ("o", "p")], {"q": 1}["q"], [open("r") for _ in name]

    told = said(code)
    written = {text for text, uses in told.items() if {use for use, _ in uses} == {WRITTEN}}
    assert written - {"<INFO>", "utf-8", "w", "<_>"} == {"c", "d/<name>.e", "f", "m", "n", "u", "v", "out/<name>.txt"}
    opened = {text: opens for text, uses in told.items() for use, opens in uses if use == READ}
    assert {text for text, opens in opened.items() if opens == FILE} >= {"a", "h/i/j", "r"}
    assert opened["k/l"] == FOLDER
    assert told["t"] == {(READ, "t")}
    assert {"b", "g", "w", "o", "p", "q"} <= {text for text, opens in opened.items() if not opens}
    assert not {"h", "h/i", "i", "k", "l", "out", ".txt"} & told.keys()  # parts of longer ones


def test_paths_are_told_as_far_as_an_expression_says_them():
    def code(d: Any, n: str, *, f: str = "f") -> Any:
        (HERE / "a" / f"{n}_{n}.txt").read_text()
        open("%s/%s.txt" % (d, n)).close()
        open("b/%(n)s.md" % {"n": n}).close()
        open("{}/{x}.txt".format(d, x=n)).close()
        open("c/{0}/{0}".format(n)).close()
        open(d + os.sep + n).close()
        open("/".join(["e", n])).close()
        open(", ".join([d, n])).close()
        open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "g")).close()
        open(Path(__file__).resolve().parents[2] / "h").close()
        Path(d, "i").joinpath("j", n).with_suffix(".k").open().close()
        open("l" if n else "m" + d).close()
        open("o/N.txt".replace("N", n)).close()
        resources.files("pk.q").joinpath("r").read_text()
        return open(d.folder), open(FORMAT.format(n=n))

    file = "<__file__>"
    assert {text for text, uses in said(code).items() if (READ, FILE) in uses} == {
        *("<HERE>/a/<n>_<n>.txt", "<d>/<n>.txt", "b/<>.md", "c/<n>/<n>", "<d>/<n>", "e/<n>", "<>"),
        *(f"{file}/../g", f"{file}/../../../h", "<d>/i/j/<n>/../<>", "l", "m<d>", "o/<n>.txt", "<pk.q:package>/r"),
        *("<folder>", "<FORMAT>"),
    }


def test_a_path_that_is_kept_under_a_name_goes_by_that():
    def code(n: str) -> Any:
        a = b = HERE / "a"
        c = HERE / "c"
        c.write_text("")
        d = HERE / "d" if n else HERE
        return open(a), b, d.read_text()

    told = said(code)
    assert told["<HERE>/a"] == {(READ, "a"), (READ, "b")}
    assert told["<HERE>/c"] == {(WRITTEN, "")}
    assert told["<HERE>/d"] == told["<HERE>"] == {(READ, "d")}
    assert (READ, FILE) in told["<a>"]


def test_what_goes_back_into_a_variable_ends():
    def code(names: Any) -> Any:
        out = HERE / "out"
        for name in names:
            out = out / name
            out += "x"
        other = out
        out = other
        out.write_text("")
        return [open(each) for each in names]

    assert said(code)["<HERE>/out"] == {(WRITTEN, "")}


def test_parents_that_are_no_path_s_are_just_a_variable():
    def code(parents: Any) -> Any:
        return parents[0], open(parents[1])

    assert (READ, FILE) in said(code)["<>"]


def test_variables_that_are_made_of_each_other_take_no_time():
    made: dict[str, Any] = {}
    exec("def code(x, h):\n" + " a = x + h\n h = h + a\n x = x + h\n" * 60 + " return x", made)
    began = time.perf_counter()
    uses_of(made["code"].__code__, of_locals=True)
    paths_in(made["code"].__code__)
    assert time.perf_counter() - began < 5
