"""Templates of jinja2 that code names count by what they render by, wherever that lies."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jinja2
import pytest

from lmstash.caches.responses import Responses
from lmstash.stash import Stash

from ..conftest import made_program

ASK = "def ask(x): return T.render(x=x)"
GET = "def ask(x): return E.get_template('a.j2').render(x=x)"


def text(n: str, folder: Path) -> dict[str, Any]:
    return {"T": jinja2.Template("{% for i in range(2) %}{{ x }}{% endfor %}" + n)}


def given(n: str, folder: Path) -> dict[str, Any]:
    return {"T": jinja2.Environment().from_string("{{ x }}{{ n }}", globals={"n": n})}


def global_of_environment(n: str, folder: Path) -> dict[str, Any]:
    environment = jinja2.Environment()
    environment.globals["n"] = n
    return {"T": environment.from_string("{{ x }}{{ n }}")}


def filter_of_environment(n: str, folder: Path) -> dict[str, Any]:
    environment = jinja2.Environment()
    made: dict[str, Any] = {}
    exec(f"def say(x): return x + {n!r}", made)
    environment.filters["say"] = made["say"]
    return {"T": environment.from_string("{{ x|say }}")}


def escaping(n: str, folder: Path) -> dict[str, Any]:
    return {"T": jinja2.Environment(autoescape=n == "1").from_string("{{ '<' }}{{ x }}")}


def undefined(n: str, folder: Path) -> dict[str, Any]:
    kind = jinja2.DebugUndefined if n == "1" else jinja2.Undefined
    return {"T": jinja2.Environment(undefined=kind).from_string("{{ nothing }}{{ x }}")}


def included(n: str, folder: Path) -> dict[str, Any]:
    (folder / "b.j2").write_text(n)
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(folder))
    return {"T": environment.from_string("{% include 'b.j2' %}{{ x }}")}


def in_a_file(n: str, folder: Path) -> dict[str, Any]:
    (folder / "a.j2").write_text(f"{n}{{{{ x }}}}")
    return {"E": jinja2.Environment(loader=jinja2.FileSystemLoader(folder))}


def in_a_dict(n: str, folder: Path) -> dict[str, Any]:
    loaders = [jinja2.DictLoader({"a.j2": f"{n}{{{{ x }}}}"}), jinja2.FileSystemLoader(folder)]
    return {"E": jinja2.Environment(loader=jinja2.ChoiceLoader(loaders))}


def syntax(n: str, folder: Path) -> dict[str, Any]:
    begins = "{{" if n == "1" else "[["
    loader = jinja2.DictLoader({"a.j2": "[[ x ]] {{ x }}"})
    ends = begins.replace("{", "}").replace("[", "]")
    return {"E": jinja2.Environment(loader=loader, variable_start_string=begins, variable_end_string=ends)}


KINDS = {
    ASK: (text, given, global_of_environment, filter_of_environment, escaping, undefined, included),
    GET: (in_a_file, in_a_dict, syntax),
}


@pytest.mark.parametrize(("ask", "kind"), [(ask, kind) for ask, kinds in KINDS.items() for kind in kinds])
def test_what_a_template_renders_by_counts_and_nothing_else(
    responses: Responses, stash: Stash, tmp_path: Path, ask: str, kind: Any
) -> None:
    folder = tmp_path / "templates"
    folder.mkdir()
    for n in "1212":
        program = made_program(ask)
        program["ask"].__globals__.update(kind(n, folder))
        expected = program["ask"]("x")
        assert responses.cached(program["ask"])("x") == expected
    assert (stash.stats.hits, dict(stash.stats.misses)) == (2, {"absent": 2})


def test_others_whose_source_nobody_knows_are_refused(responses: Responses, stash: Stash) -> None:
    class Loader(jinja2.BaseLoader):
        def get_source(self, environment: Any, template: str) -> Any:
            return "a", None, lambda: True

    program = made_program(GET)
    program["ask"].__globals__["E"] = jinja2.Environment(loader=Loader())
    assert responses.cached(program["ask"])("x") == "a"
    assert dict(stash.stats.misses) == {"unsupported": 1}


def test_a_template_is_the_same_in_another_process(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(
        "import sys, jinja2, lmstash\n"
        "T = jinja2.Template('{% set a, b = x, 1 %}{{ a|upper }}{% for k, v in d.items() %}{{ k }}{% endfor %}')\n"
        "with lmstash.open(sys.argv[1]) as stash:\n"
        "    ask = stash.responses(model='m').cached(lambda x: T.render(x=x, d={'k': x}))\n"
        "    print(ask('a'), stash.stats.hits)\n"
    )
    said = [
        subprocess.run(
            [sys.executable, script, tmp_path / "stash"],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "12"
    ]
    assert said == ["Ak 0\n", "Ak 1\n"]
