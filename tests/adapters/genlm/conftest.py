"""genlm-backend's own cache.py, out of its wheels, to be compared with."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path
from types import ModuleType

import pytest

FILES = Path(__file__).parents[3] / ".cache/peers/files"


def released(version: str) -> ModuleType:
    """The cache.py of a release; skips the test where `make env` has not fetched it."""
    file = FILES / f"genlm-backend=={version}" / "genlm/backend/cache.py"
    if not file.exists():
        pytest.skip(f"needs {file}: make env")
    spec = importlib.util.spec_from_file_location(f"genlm_cache_{version.replace('.', '_')}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def seed() -> ModuleType:
    """Release 0.2.2, with a clock that never stands still."""
    module = released("0.2.2")
    clock = itertools.count(1)
    module.time = lambda: float(next(clock))  # pyright: ignore[reportAttributeAccessIssue]
    return module


@pytest.fixture(scope="session")
def latest() -> ModuleType:
    """Release 0.3.1."""
    return released("0.3.1")
