"""What every test shares: Hypothesis profiles, one torch thread, no settings from the outside, the real model."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# For the processes that tests start, too: two workers on two cores, whose threads would make each other wait.
os.environ["OMP_NUM_THREADS"] = "1"

# Tests edit modules twice within a second, by as many letters: Python would run what it compiled before.
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
sys.dont_write_bytecode = True

ROOT = Path(__file__).parent.parent
CONVERTED_MODEL = ROOT / ".cache" / "models" / "smollm2"

# Shared machines are slow at random: no deadline for one example; `timeout` in pyproject.toml bounds each test.
hypothesis.settings.register_profile("dev", max_examples=30, deadline=None)
# The same examples each time: what gates a change must not fail by luck. Exploring is for `dev` and the campaigns.
hypothesis.settings.register_profile("ci", max_examples=100, deadline=None, print_blob=True, derandomize=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


_MODULES_MORE, _TESTS_MORE = 200, 50
_n_modules = _n_tests = 0


def pytest_runtest_setup() -> None:
    """What libraries hold is no garbage: to search it at each full collection took a quarter of the suite's time."""
    global _n_modules, _n_tests
    _n_tests += 1
    if len(sys.modules) >= _n_modules + _MODULES_MORE or _n_tests % _TESTS_MORE == 0:
        gc.collect()
        gc.freeze()
        _n_modules = len(sys.modules)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A test sees neither the person's variables nor their config file nor their stash."""
    for name in [name for name in os.environ if name.startswith("LMSTASH_")]:
        monkeypatch.delenv(name)
    home = tmp_path_factory.getbasetemp() / "home"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))


@pytest.fixture(autouse=True)
def _one_torch_thread() -> None:
    """Tests share two cores: more threads than that make each other wait."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture
def cuda() -> Iterator[Any]:
    """The first CUDA device; what a test left on it is freed. Without one, the test is skipped."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU: torch.cuda.is_available() is false")
    yield torch.device("cuda", 0)
    gc.collect()
    torch.cuda.empty_cache()


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """The folder of the converted SmolLM2-135M-Instruct (converted now if `make model` has not)."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from lmstash.cli.demo.model import convert, find_gguf
    from lmstash.errors import NotFoundError

    if not (CONVERTED_MODEL / "config.json").exists():
        try:
            find_gguf()
        except NotFoundError as error:
            pytest.skip(str(error))
    return convert(CONVERTED_MODEL)


@pytest.fixture(scope="session")
def smollm2(smollm2_folder: Path) -> tuple[Any, Any]:
    """(model, tokenizer) of SmolLM2-135M-Instruct, float32 on the CPU. Shared: do not change the model."""
    import torch

    from lmstash.cli.demo.model import load

    torch.set_num_threads(1)
    return load(smollm2_folder)
