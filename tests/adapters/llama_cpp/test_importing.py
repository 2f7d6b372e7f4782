"""Entries of a real `LlamaDiskCache` are taken over: those that the named model computes again, and no others."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llama_cpp")

import llama_cpp

from lmstash.adapters.llama_cpp import Llama, LlamaRAMCache
from lmstash.adapters.llama_cpp.importing import OldEntry, import_disk_cache, read_folder
from lmstash.errors import InvalidArgumentError, NotFoundError
from lmstash.stash import open_stash

from .old_caches import maker, store

PROMPTS = [
    "The lighthouse keeper climbed the stairs every evening to light the lamp, and wrote into a large book what ships "
    "had passed. The first of them was",
    "The lighthouse keeper climbed the stairs every evening to light the lamp, and wrote into a large book what the "
    "weather was like. In the winter it was",
    "A short recipe for bread with rye flour, salt, water and a sourdough that is at least three days old: first,",
]
SETTINGS: dict[str, Any] = {
    "n_ctx": 256, "n_batch": 128, "n_threads": 1, "n_threads_batch": 1, "verbose": False, "seed": 3,
}  # fmt: skip
WAYS = {
    "plain": {},
    "flash": {"flash_attn": True},
    "flash q8_0": {"flash_attn": True, "type_k": llama_cpp.GGML_TYPE_Q8_0, "type_v": llama_cpp.GGML_TYPE_Q8_0},
}


@pytest.fixture(scope="module")
def gguf() -> str:
    from lmstash.cli.demo.model import find_gguf

    try:
        return str(find_gguf())
    except NotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", params=WAYS)
def way(request: pytest.FixtureRequest) -> dict[str, Any]:
    return SETTINGS | WAYS[request.param]


@pytest.fixture(scope="module")
def old(gguf: str, way: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder that llama-cpp-python itself filled by completing the prompts, and what it answered."""
    folder = tmp_path_factory.mktemp("old")
    llm = llama_cpp.Llama(gguf, **way)
    texts = []
    for number, prompt in enumerate(PROMPTS):
        # Its own look-up would delete the entry of the prompt that begins alike: each is kept in a cache of its own.
        cache = llama_cpp.LlamaDiskCache(str(folder / str(number)))
        llm.set_cache(cache)
        with contextlib.redirect_stderr(io.StringIO()):
            texts.append(llm(prompt, max_tokens=12, temperature=0)["choices"][0]["text"])
        cache.cache.close()
    llm.close()
    whole = llama_cpp.LlamaDiskCache(str(folder / "whole"))
    for number in range(len(PROMPTS)):
        part = llama_cpp.LlamaDiskCache(str(folder / str(number)))
        for key in part.cache:
            whole.cache[key] = part.cache[key]
        part.cache.close()
    whole.cache.close()
    return folder / "whole", texts


@pytest.fixture(scope="module")
def llm(gguf: str, way: dict[str, Any]) -> Iterator[Any]:
    model = Llama(gguf, **way)
    yield model
    model.close()


pytestmark = pytest.mark.model


def complete(llm: Any, prompt: str) -> str:
    llm.reset()
    return llm(prompt, max_tokens=12, temperature=0)["choices"][0]["text"]


def entries(folder: Path) -> list[OldEntry]:
    out = list(read_folder(folder))
    assert all(isinstance(entry, OldEntry) for entry in out)
    return out  # pyright: ignore[reportReturnType]


def change(folder: Path, tmp_path: Path, **changed: Any) -> Path:
    """Return a folder with the second entry alone, changed."""
    entry = entries(folder)[1]
    state = replace(entry.state, **changed)
    ids = np.concatenate([state.input_ids, np.zeros(5, np.intc)]).astype(np.intc)
    made, cache = maker(tmp_path)()
    size = len(state.llama_state)
    scores = np.zeros((1, 9), np.single)
    store(
        cache, state.input_ids.tolist(), llama_cpp.LlamaState(ids, scores, state.n_tokens, state.llama_state, size, 1)
    )
    return made


def test_entries_are_taken_and_served(old: tuple[Path, list[str]], llm: Any):
    folder, texts = old
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    cache = LlamaRAMCache()
    report = import_disk_cache(folder, cache, llm=llm)
    assert report.problems == []
    assert (report.entries, report.taken, report.status, len(cache)) == (3, 3, "verified", 3)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    states = cache.states_of(llm)
    for entry in entries(folder):
        loaded = states.load(states.match(entry.state.input_ids))
        assert loaded is not None
        assert loaded.blob.tobytes() == entry.state.llama_state
    again = import_disk_cache(folder, cache, llm=llm)
    assert (again.taken, len(cache)) == (3, 3)
    llm.set_cache(cache)
    for prompt, text in zip(PROMPTS, texts, strict=True):
        ids = llm.tokenize(prompt.encode())
        assert len(ids) - 16 < llm.cache[ids].n_tokens <= len(ids)
        # One token is replayed, in a batch of its own, so that only the beginning is certain to be the same.
        assert complete(llm, prompt)[:2] == text[:2]
    llm.set_cache(None)
    assert cache.store.events.stats.misses == {}


def test_what_prompts_share_is_kept_once(old: tuple[Path, list[str]], llm: Any, tmp_path: Path):
    folder, _ = old
    with open_stash(tmp_path / "stash") as stash:
        report = import_disk_cache(folder, stash, llm=llm)
        assert report.taken == 3
        assert sum(info.nbytes for info in stash.store.entries()) < 0.95 * report.nbytes


def test_without_a_model_entries_are_only_counted(old: tuple[Path, list[str]]):
    folder, _ = old
    report = import_disk_cache(folder)
    assert (report.entries, report.taken, report.written, report.status) == (3, 0, 0, "unverified")
    assert report.tokens == sum(entry.state.n_tokens for entry in entries(folder))
    assert "name the model" in str(report)


@pytest.mark.parametrize(
    ("name", "value", "verify", "reason"),
    [
        ("rope_freq_base", 100_010.0, True, "computes other values"),
        ("rope_freq_scale", 0.999, True, "computes other values"),
        ("flash_attn", "other", True, "layout is of another"),
        ("flash_attn", "other", False, "layout is of another"),
        ("type_k", llama_cpp.GGML_TYPE_Q5_0, True, "layout is of another"),
        ("type_k", llama_cpp.GGML_TYPE_Q5_0, False, "layout is of another"),
    ],
)
def test_a_model_with_other_settings_takes_nothing(
    old: tuple[Path, list[str]], gguf: str, way: dict[str, Any], name: str, value: Any, verify: bool, reason: str
):
    """Without checking, only what the layout tells: other values are then the owner's word."""
    folder, _ = old
    if value == "other":
        if "type_v" in way:
            pytest.skip("q8_0 for V needs flash attention")
        value = not way.get("flash_attn", False)
    other = Llama(gguf, **way | {name: value})
    cache = LlamaRAMCache()
    report = import_disk_cache(folder, cache, llm=other, verify=verify)
    other.close()
    assert (report.entries, report.taken, len(cache)) == (3, 0, 0)
    assert all(reason in problem for problem in report.problems), report.problems


def test_a_state_of_other_tokens_than_it_claims_is_refused(old: tuple[Path, list[str]], llm: Any, tmp_path: Path):
    """As after an image: llama-cpp-python then leaves the tokens in place that were there before."""
    entry = entries(old[0])[1]
    ids = entry.state.input_ids.copy()
    ids[20:30] = entries(old[0])[2].state.input_ids[5:15]
    folder = change(old[0], tmp_path, input_ids=ids)
    cache = LlamaRAMCache()
    report = import_disk_cache(folder, cache, llm=llm)
    assert report.taken == len(cache) == 0
    assert "are not of the token" in report.problems[0]


def test_values_of_another_model_are_refused(old: tuple[Path, list[str]], llm: Any, tmp_path: Path):
    blob = bytearray(entries(old[0])[1].state.llama_state)
    n_tokens = entries(old[0])[1].state.n_tokens
    blob[9 + 8 + 12 * n_tokens + 8 + 12 + 40] ^= 1  # one bit, in the K of the first layer
    report = import_disk_cache(change(old[0], tmp_path, llama_state=bytes(blob)), LlamaRAMCache(), llm=llm)
    assert report.taken == 0
    assert "computes other values" in report.problems[0]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"llama_state": b"llama"}, "state"),
        ({"llama_state": b"\x05\0\0\0llama" + os.urandom(5000)}, "state"),
        ({"input_ids": np.full(30, 49_152, np.int32), "n_tokens": 30}, "does not know"),
        ({"n_tokens": 30}, "30 are named"),
    ],
)
@pytest.mark.parametrize("verify", [True, False])
def test_states_that_are_none_are_refused(
    old: tuple[Path, list[str]], llm: Any, tmp_path: Path, changed: dict[str, Any], reason: str, verify: bool
):
    if "n_tokens" in changed and "input_ids" not in changed:
        changed = changed | {"input_ids": entries(old[0])[1].state.input_ids[:30]}
    report = import_disk_cache(change(old[0], tmp_path, **changed), LlamaRAMCache(), llm=llm, verify=verify)
    assert report.taken == 0
    assert reason in report.problems[0]


def test_the_owners_word_is_taken_when_asked_to(old: tuple[Path, list[str]], llm: Any):
    cache = LlamaRAMCache()
    report = import_disk_cache(old[0], cache, llm=llm, verify=False)
    assert (report.taken, report.status, len(cache)) == (3, "declared", 3)


def test_a_plain_llama_may_be_named_and_what_it_holds_stays(old: tuple[Path, list[str]], gguf: str, way: Any):
    plain = llama_cpp.Llama(gguf, **way)
    ids = plain.tokenize(PROMPTS[2].encode())
    plain.eval(ids)
    with open_stash("memory://") as stash:
        assert import_disk_cache(old[0], stash, llm=plain).taken == 3
    assert plain.n_tokens == len(ids)
    assert plain.input_ids[: len(ids)].tolist() == ids
    text = plain(PROMPTS[2], max_tokens=6, temperature=0)["choices"][0]["text"]
    plain.reset()
    assert text.split()[:2] == plain(PROMPTS[2], max_tokens=6, temperature=0)["choices"][0]["text"].split()[:2]
    plain.close()


def test_a_store_that_keeps_nothing_is_reported(old: tuple[Path, list[str]], llm: Any, tmp_path: Path):
    with open_stash(tmp_path / "stash"):
        pass
    with open_stash(tmp_path / "stash", read_only=True) as stash:
        report = import_disk_cache(old[0], stash, llm=llm)
    assert report.taken == 0
    assert all("no room" in problem for problem in report.problems)


def test_half_an_answer_is_a_mistake(old: tuple[Path, list[str]], llm: Any):
    with pytest.raises(InvalidArgumentError):
        import_disk_cache(old[0], LlamaRAMCache())
    with pytest.raises(InvalidArgumentError):
        import_disk_cache(old[0], llm=llm)
