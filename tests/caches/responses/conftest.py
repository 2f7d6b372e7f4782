"""A stash in a folder, responses of one model, and programs made from their text."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lmstash
from lmstash.caches.responses import Responses
from lmstash.stash import Stash

IMPORTS = """
import contextlib, dataclasses, enum, functools, inspect, os, typing
from typing import Annotated, Literal, NamedTuple, TypedDict
"""


@pytest.fixture
def stash(tmp_path: Path) -> Iterator[Stash]:
    with lmstash.open(tmp_path / "stash", strict=True) as opened:
        yield opened


@pytest.fixture
def responses(stash: Stash) -> Responses:
    return stash.responses(model="m")


def made_program(source: str) -> dict[str, Any]:
    """Return what a program has made, without whatever annotations this file has asked for."""
    namespace: dict[str, Any] = {"__name__": "program"}
    exec(compile(IMPORTS + source, "<program>", "exec", dont_inherit=True), namespace)
    return namespace


def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, source: str, version: str = "1.0") -> Any:
    """Return a module of a package that is installed."""
    folder = tmp_path / "site-packages"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(f"__version__ = '{version}'\n{source}")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, name, raising=False)
    module = __import__(name)
    monkeypatch.setitem(sys.modules, name, module)
    return module
