"""A stash in a folder, responses of one model, and programs made from their text."""

from __future__ import annotations

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
