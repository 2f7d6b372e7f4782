"""Ctrl-C, or a handler that generates with the same object, at any line of the adapter, as prompts are restored."""

import random
import sys
import tempfile
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
from tests.at_lines import at_line

import lmstash
from lmstash.adapters import llama_cpp as adapter
from lmstash.adapters.llama_cpp import Llama, LlamaStashCache, attach

from .toys import VOCABULARY, write_toy

SETTINGS = {"n_ctx": 512, "n_batch": 128, "n_ubatch": 128, "n_threads": 1, "n_threads_batch": 1, "verbose": False}
ADAPTER = str(Path(adapter.__file__).parent)
COPYING = str(Path(adapter.__file__).parent / "copying.py")
"""Where a signal that came during llama.cpp's own copy is handled."""


def ids_of(n_tokens, seed):
    return np.random.default_rng(seed).integers(3, VOCABULARY - 2, 300)[:n_tokens].tolist()


def greedy(llm, prompt):
    tokens = llm.generate(prompt, temp=0.0)
    out = [int(next(tokens)) for _ in range(4)]
    tokens.close()  # not by the collector, which would drop what is raised
    return out


A, B, C = ids_of(200, 1), ids_of(200, 2), ids_of(200, 4)
AFTER_B = [*B[:150], *ids_of(40, 3)]
"""Goes on from B, as a context says that holds it."""


class Interrupted(BaseException):
    """As `KeyboardInterrupt`, which pytest takes for its own."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("toy") / "toy.gguf"
    write_toy(path, "llama")
    fresh = llama_cpp.Llama(str(path), **SETTINGS)
    known = {}

    def reference(prompt):
        if tuple(prompt) not in known:
            fresh.reset()
            fresh._ctx.kv_cache_clear()
            known[tuple(prompt)] = greedy(fresh, prompt)
        return known[tuple(prompt)]

    yield str(path), reference
    fresh.close()


def opened(path, stash, way):
    if way == "attach":
        llm = llama_cpp.Llama(path, **SETTINGS)
        return llm, attach(llm, stash, exact=False)
    llm = Llama(path, **SETTINGS)
    llm.set_cache(LlamaStashCache(stash))
    return llm, None


def ask(llm, prompt, way):
    if way == "attach":
        return greedy(llm, prompt)
    answer = llm.create_completion(prompt, max_tokens=4, temperature=0.0)
    return [int(each) for each in llm.input_ids[len(prompt) : len(prompt) + 3]], answer["usage"]["completion_tokens"]


def wanted(reference, prompt, way):
    return reference(prompt) if way == "attach" else (reference(prompt)[:3], 4)


def drawn(n_lines, n):
    return random.Random(5).sample(range(1, n_lines + 1), min(n, n_lines))


def run(model, way, line, act, prompt, within=ADAPTER):
    """Restore `prompt` with something done at a line; returns how many lines there were."""
    path, reference = model
    with tempfile.TemporaryDirectory() as folder, lmstash.open(folder, trust_env=False) as stash:
        llm, attachment = opened(path, stash, way)
        try:
            for each in (A, B):
                ask(llm, each, way)
            stash.flush()
            out = []
            try:
                n_lines = at_line(line, lambda: out.append(ask(llm, prompt, way)), lambda: act(llm), within)
            except Interrupted:
                n_lines = 0
            else:
                assert out == [wanted(reference, prompt, way)]
            for each in (AFTER_B, [*A, 5], [*C, 5]):
                assert ask(llm, each, way) == wanted(reference, each, way), (way, line)
            stash.flush()
            other, another = opened(path, stash, way)
            try:
                for each in ([*AFTER_B, 7], [*A, 5, 8], [*C, 5, 6]):
                    assert ask(other, each, way) == wanted(reference, each, way), (way, line, "another object")
            finally:
                if another is not None:
                    another.detach()
                other.close()
        finally:
            if attachment is not None:
                attachment.detach()
            llm.close()
    return n_lines


def interrupt(llm):
    raise Interrupted


@pytest.mark.parametrize("way", ["attach", "cache"])
def test_what_an_interrupted_restore_leaves_is_never_gone_on_from(model, way):
    n_lines = run(model, way, 0, interrupt, A, within=COPYING)
    assert n_lines >= 4
    for line in range(1, n_lines + 1):
        run(model, way, line, interrupt, A, within=COPYING)
    for line in drawn(run(model, way, 0, interrupt, A), 15):
        run(model, way, line, interrupt, A)


@pytest.mark.parametrize("within", [COPYING, ADAPTER])
def test_a_handler_that_generates_in_the_midst_of_a_restore_waits_for_nobody_and_spoils_nothing(model, within):
    prompt = [*A[:190], 9, 9]
    generated = []

    def handler(llm):
        frame = sys._getframe()
        while frame is not None:
            if frame.f_code.co_filename == llama_cpp.llama.__file__:
                return  # llama-cpp-python's own evaluation bears no second one within it
            frame = frame.f_back
        generated.append(greedy(llm, C))

    n_lines = run(model, "attach", 0, handler, prompt, within=within)
    for line in drawn(n_lines, 20):
        run(model, "attach", line, handler, prompt, within=within)
    assert generated
    assert all(each == model[1](C) for each in generated)
