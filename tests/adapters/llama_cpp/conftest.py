"""The real SmolLM2 GGUF, loaded in different ways, and what a fresh model says."""

import gc
import os
import shutil
from pathlib import Path

import pytest

pytest.importorskip("llama_cpp")

SETTINGS = {"n_ctx": 512, "n_batch": 256, "n_threads": 1, "n_threads_batch": 1, "verbose": False}
STORY = (
    "Once upon a time there was a small library at the edge of a forest. Every evening the librarian lit a lamp, "
    "counted the books, and wrote down which of them had been read. One night a book was missing. "
)


@pytest.fixture(scope="session")
def gguf() -> Path:
    """The file of SmolLM2-135M-Instruct."""
    from lmstash.cli.demo.model import find_gguf
    from lmstash.errors import NotFoundError

    try:
        return find_gguf()
    except NotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture
def load(gguf):
    """Load the model by our `Llama`; closed at the end."""
    from lmstash.adapters.llama_cpp import Llama

    opened = []

    def make(cache=None, *, path=gguf, kind=Llama, **options):
        llm = kind(str(path), **{**SETTINGS, **options})
        opened.append(llm)
        if cache is not None:
            llm.set_cache(cache)
        return llm

    yield make
    for llm in opened:
        llm.close()
    gc.collect()


@pytest.fixture(scope="session")
def plain(gguf):
    """llama-cpp-python itself, without a cache, by settings."""
    import llama_cpp

    opened = {}

    def make(**options):
        key = repr(sorted(options.items()))
        if key not in opened:
            opened[key] = llama_cpp.Llama(str(gguf), **{**SETTINGS, **options})
        llm = opened[key]
        llm.reset()
        llm._ctx.kv_cache_clear()
        return llm

    yield make
    for llm in opened.values():
        llm.close()


def say(llm, prompt, n_tokens=12, **options):
    """Return the text of a greedy completion."""
    done = llm.create_completion(prompt, max_tokens=n_tokens, temperature=0.0, **options)
    return done["choices"][0]["text"]


@pytest.fixture
def own_file(gguf, tmp_path):
    """A copy of the model's file that a test may change."""
    path = tmp_path / "model.gguf"
    shutil.copyfile(gguf, path)
    os.chmod(path, 0o600)
    return path
