"""The documents' examples run: README.md and everything under docs/.

The `python` blocks of one document run one after the other in one namespace, in an empty folder; those that speak of
`model`, `tokenizer` or `prompts` without making them get SmolLM2-135M and four prompts; those that load `model.gguf`
find it there. What a `python` block prints is the text set off after it, where there is one, but for numbers.
In `console` blocks each line `$ lmstash ...` runs and must end with code 0. A block after
`<!-- not run: WHY -->` is left out.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
GIVEN = {"model", "tokenizer", "prompts"}
PROMPTS = ["Paris is the capital of", "Water boils at", "Two and two make", "Paris is the capital of"]
_BLOCK = re.compile(
    r"(<!-- not run: .+? -->\s*)?^```(python|console)\n(.*?)^```\n(?:\n(?:((?:    [^\n]*\n)+)|```\n(.*?)^```\n))?",
    re.MULTILINE | re.DOTALL,
)
_NUMBER = re.compile(r"-?\d[\d,.]*(e-?\d+)?")


@dataclass(frozen=True)
class Block:
    language: str
    code: str
    line: int
    printed: str | None
    """The text after it, indented or fenced."""


def blocks_of(path: Path) -> list[Block]:
    text = path.read_text(encoding="utf-8")
    return [
        Block(found[2], found[3], text[: found.start(3)].count("\n"), found[4] or found[5])
        for found in _BLOCK.finditer(text)
        if found[1] is None
    ]


def documents_with(language: str) -> list[Any]:
    found = [path for path in DOCUMENTS if any(block.language == language for block in blocks_of(path))]
    return [pytest.param(path, id=str(path.relative_to(ROOT))) for path in found]


def without_numbers(text: str) -> list[str]:
    """Lines as they are on every machine and at every time."""
    return [_NUMBER.sub("#", line.strip()) for line in text.strip().splitlines()]


def free_names(code: str) -> set[str]:
    """Names that the code reads, whether or not it also makes them."""
    names = (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name))
    return {node.id for node in names if isinstance(node.ctx, ast.Load)}


@pytest.mark.parametrize("path", documents_with("python"))
def test_python_examples_run(
    path: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    blocks = [block for block in blocks_of(path) if block.language == "python"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    namespace: dict[str, Any] = {"__name__": path.stem}
    if any('"model.gguf"' in block.code for block in blocks):
        pytest.importorskip("llama_cpp")
        from lmstash.cli.demo.model import find_gguf

        (tmp_path / "model.gguf").symlink_to(find_gguf())
    if any(GIVEN & free_names(block.code) for block in blocks):
        model, tokenizer = request.getfixturevalue("smollm2")
        namespace |= {"model": model, "tokenizer": tokenizer, "prompts": list(PROMPTS)}
    for block in blocks:
        # Blank lines in front, so that a traceback names the line of the document.
        capsys.readouterr()
        exec(compile("\n" * block.line + block.code, str(path), "exec"), namespace)
        printed = capsys.readouterr().out
        if block.printed is not None:
            assert without_numbers(printed) == without_numbers(block.printed), f"{path}, line {block.line}"


@pytest.mark.parametrize("path", documents_with("console"))
def test_console_examples_end_well(path: Path, tmp_path: Path):
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "LMSTASH_DIR": str(tmp_path / "stash")}
    make = "import lmstash; lmstash.open().store.put(b'k' * 32, b'value', namespace='user/me', meta={'tags': ['demo']})"
    subprocess.run([sys.executable, "-c", make], env=environment, check=True, timeout=60)
    ran = 0
    for block in blocks_of(path):
        for line in block.code.splitlines() if block.language == "console" else ():
            if line.startswith("$ lmstash ") and not line.startswith("$ lmstash demo"):
                command = [sys.executable, "-m", *shlex.split(line.removeprefix("$ "), comments=True)]
                done = subprocess.run(
                    command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=60
                )
                assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
                ran += 1
    assert ran or all("lmstash " not in block.code or "demo" in block.code for block in blocks_of(path))


def test_links_between_documents_lead_somewhere():
    link = re.compile(r"\]\((?!https?://|mailto:|#)([^)#\s]+)")
    broken = [
        f"{path.relative_to(ROOT)}: {target}"
        for path in DOCUMENTS
        for target in link.findall(path.read_text(encoding="utf-8"))
        if not (path.parent / target).exists()
    ]
    assert not broken


def test_what_the_reference_names_is_where_it_says():
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "docs" / "make_reference.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    absent = []
    for title, _path, names in made.PAGES:
        if title.startswith("lmstash.Stash"):
            continue  # a class and what it hands out
        try:
            module = importlib.import_module(title)
        except ImportError:  # a peer that is not installed here
            continue
        absent += [f"{title}.{name}" for name in names if names is not made.LMPROBE and not hasattr(module, name)]
    assert not absent
    lmprobe = importlib.import_module("lmstash.adapters.lmprobe")
    assert set(made.LMPROBE) == set(lmprobe.__all__)
    page = made.main().partition("\n## lmstash.adapters.lmprobe\n")[2].partition("\n## ")[0]
    headed = set(re.findall(r"^### (?:class )?`(\w+)", page, re.MULTILINE))
    assert headed == set(lmprobe.__all__)


def test_the_reference_is_what_the_code_says():
    made = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "make_reference.py")], capture_output=True, text=True, check=True
    )
    written = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert written == made.stdout, "run: python docs/make_reference.py > docs/reference.md"
