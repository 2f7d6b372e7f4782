"""Settings that a function loads itself, `yaml.safe_load(open("config.yaml"))`, say whether it samples."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmstash.caches.responses import Responses

from ..conftest import made_program

START = """
N = []
def create(**given):
    N.append(given)
    return len(N)
"""
LOADED = {
    "yaml": (
        "c.yaml",
        "import yaml\ndef ask(q): return create(temperature=yaml.safe_load(open({path!r}))['gen']['t'])",
    ),
    "yaml, with its loader": (
        "c.yml",
        "import yaml\ndef ask(q):\n with open({path!r}) as f: c = yaml.load(f, Loader=yaml.SafeLoader)\n"
        " return create(temperature=c['gen']['t'])",
    ),
    "json": ("c.json", "import json\ndef ask(q): return create(temperature=json.load(open({path!r}))['gen']['t'])"),
    "json, from its text": (
        "c.json",
        "from json import loads\nfrom pathlib import Path\nP = Path({path!r})\n"
        "def ask(q): return create(temperature=loads(P.read_text())['gen']['t'])",
    ),
    "toml": (
        "c.toml",
        "import tomllib\ndef cfg():\n with open({path!r}, 'rb') as f: return tomllib.load(f)\n"
        "def ask(q): return create(temperature=cfg()['gen'].get('t', 0))",
    ),
    "a helper that remembers": (
        "c.yaml",
        "import functools, yaml\n@functools.lru_cache\ndef cfg(): return yaml.safe_load(open({path!r}))\n"
        "def ask(q): return create(prompt=q, **cfg()['all'])",
    ),
    "an import within": (
        "c.yaml",
        "def ask(q):\n import yaml\n c = yaml.safe_load(open({path!r}))\n return create(prompt=q, **c['all'])",
    ),
    "an argument": ("c.json", "import json\ndef ask(q, at={path!r}): return create(**json.load(open(at))['all'])"),
    "an argument that is a path": (
        "c.json",
        "import json\nfrom pathlib import Path\n"
        "def ask(q, at=Path({path!r})): return create(**json.loads(at.read_text())['all'])",
    ),
    "settings made of it": (
        "c.yaml",
        "import dataclasses, yaml\n@dataclasses.dataclass\nclass C:\n temperature: float = 0.0\n"
        "def ask(q):\n c = C(**yaml.safe_load(open({path!r}))['all'])\n return create(temperature=c.temperature)",
    ),
}
SETTINGS = {
    "json": '{{"gen": {{"t": {t}}}, "all": {{"temperature": {t}}}}}',
    "yaml": "gen: {{t: {t}}}\nall: {{temperature: {t}}}\n",
    "toml": "[gen]\nt = {t}\n[all]\ntemperature = {t}\n",
}


@pytest.mark.parametrize("how", LOADED)
def test_settings_that_code_loads_itself_are_told(responses: Responses, tmp_path: Path, how: str) -> None:
    name, source = LOADED[how]
    path = tmp_path / name
    written = SETTINGS[name.partition(".")[2].replace("yml", "yaml")]
    path.write_text(written.format(t=0.8))
    program = made_program(START + source.format(path=str(path)))
    ask = responses.cached(program["ask"], harmless=["N"])
    assert [ask("a"), ask("a")] == [1, 2]
    path.write_text(written.format(t="0.00"))
    if "cfg" in program and "remembers" in how:
        program["cfg"].cache_clear()
    assert [ask("a"), ask("a")] == [3, 3]
    path.write_text(written.format(t="0.750"))
    if "remembers" in how:
        program["cfg"].cache_clear()
    assert [ask("a"), ask("a")] == [4, 5]


def test_what_is_no_file_of_settings_says_nothing(responses: Responses, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text("{")
    source = (
        f"import json\ndef ask(q):\n try: c = json.load(open({str(path)!r}))\n"
        " except ValueError: c = {}\n return create(**c)"
    )
    ask = responses.cached(made_program(START + source)["ask"], harmless=["N"])
    assert [ask("a"), ask("a")] == [1, 1]
    path.write_text('{"temperature": 0.8}' + " " * (256 << 10))
    assert [ask("a"), ask("a")] == [2, 2]
