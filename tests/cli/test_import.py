"""`lmstash import lmprobe FOLDER` and `lmstash import llama-cpp FOLDER`: the command line over the importers."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

pytest.importorskip("torch")

from lmstash.codecs.tensors import encode_tensors

MODEL = "someone/tiny"


def hash16(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.fixture
def lmprobe_cache(tmp_path):
    """A cache as lmprobe 0.10 writes it: one model, two prompts, one of them damaged."""
    place = tmp_path / "lmprobe" / hash16(MODEL)
    place.mkdir(parents=True)
    (place / "_model_name.txt").write_text(MODEL)
    tensors = {
        "layer_3": np.arange(20, dtype=np.float32).reshape(1, 5, 4),
        "attention_mask": np.ones((1, 5), dtype=np.int64),
    }
    (place / f"{hash16('Hello there')}.safetensors").write_bytes(b"".join(map(bytes, encode_tensors(tensors))))
    (place / f"{hash16('Broken')}.safetensors").write_bytes(b"not a tensor")
    return tmp_path / "lmprobe"


def test_import_takes_what_is_sound_and_reports_the_rest(lmstash_cli, lmprobe_cache, tmp_path):
    before = {path: path.read_bytes() for path in lmprobe_cache.rglob("*") if path.is_file()}
    outcome = lmstash_cli("import", "lmprobe", str(lmprobe_cache), "--json", place=tmp_path / "fresh")
    assert outcome.code == 1  # one file could not be taken
    (model,) = outcome.data["report"]["models"]
    assert (model["name"], model["status"]) == (MODEL, "unverified")
    assert model["added"] > 0
    assert len(outcome.data["report"]["problems"]) == 1
    assert {path: path.read_bytes() for path in lmprobe_cache.rglob("*") if path.is_file()} == before
    assert lmstash_cli("info", "--json", place=tmp_path / "fresh").data["entries"] > 0


def test_declaring_needs_the_model_named(lmstash_cli, lmprobe_cache):
    refused = lmstash_cli("import", "lmprobe", str(lmprobe_cache), "--declare")
    assert refused.code == 2
    assert "--declare needs --model NAME" in refused.err
    outcome = lmstash_cli("import", "lmprobe", str(lmprobe_cache), "--declare", "--model", MODEL, "--json")
    assert outcome.data["report"]["models"][0]["status"] == "declared"


def test_a_folder_that_is_not_there_is_code_1(lmstash_cli, tmp_path):
    outcome = lmstash_cli("import", "lmprobe", str(tmp_path / "nothing"))
    assert outcome.code == 1
    assert "not a folder" in outcome.err


@pytest.mark.parametrize("name", ["notes.txt", "0123456789abcdef/notes.txt"])
def test_a_folder_without_an_lmprobe_cache_is_code_1_and_makes_no_stash(lmstash_cli, tmp_path, name):
    (tmp_path / "other" / name).parent.mkdir(parents=True)
    (tmp_path / "other" / name).write_text("mine")
    outcome = lmstash_cli("import", "lmprobe", str(tmp_path / "other"), place=tmp_path / "fresh")
    assert outcome.code == 1
    assert f"there is no lmprobe cache in {tmp_path / 'other'}" in outcome.err
    assert not (tmp_path / "fresh").exists()


def test_another_tools_name_is_code_2(lmstash_cli, tmp_path):
    assert lmstash_cli("import", "spreadsheet", str(tmp_path)).code == 2


def test_settings_are_not_for_lmprobe(lmstash_cli, lmprobe_cache):
    assert lmstash_cli("import", "lmprobe", str(lmprobe_cache), "--setting", "n_ctx=5").code == 2


@pytest.fixture
def llama_cache(tmp_path):
    """A folder that llama-cpp-python filled by a completion, and the model."""
    llama_cpp = pytest.importorskip("llama_cpp")
    from lmstash.cli.demo.model import find_gguf
    from lmstash.errors import NotFoundError

    try:
        gguf = str(find_gguf())
    except NotFoundError as error:
        pytest.skip(str(error))
    llm = llama_cpp.Llama(gguf, n_ctx=128, n_batch=64, n_threads=1, verbose=False, flash_attn=True)
    cache = llama_cpp.LlamaDiskCache(str(tmp_path / "old"))
    llm.set_cache(cache)
    llm("A lighthouse stands at the end of the pier, and every evening its keeper climbs the stairs", max_tokens=4)
    llm.close()
    cache.cache.close()
    return str(tmp_path / "old"), gguf


@pytest.mark.model
def test_llama_cpp_entries_are_counted_without_a_model_and_taken_with_it(lmstash_cli, llama_cache):
    folder, gguf = llama_cache
    counted = lmstash_cli("import", "llama-cpp", folder, "--json")
    assert counted.code == 0
    assert (counted.data["report"]["entries"], counted.data["report"]["taken"]) == (1, 0)
    settings = [part for each in ("n_ctx=128", "n_batch=64", "n_threads=1") for part in ("--setting", each)]
    wrong = lmstash_cli("import", "llama-cpp", folder, "--model", gguf, *settings, "--json")
    assert (wrong.code, wrong.data["report"]["taken"]) == (1, 0)
    assert "flash attention" in wrong.data["report"]["problems"][0]
    right = [*settings, "--setting", "flash_attn=true"]
    taken = lmstash_cli("import", "llama-cpp", folder, "--model", gguf, *right, "--json")
    assert (taken.code, taken.data["report"]["taken"], taken.data["report"]["status"]) == (0, 1, "verified")
    assert lmstash_cli("ls", "--json").data["entries"]
    again = lmstash_cli("import", "llama-cpp", folder, "--model", gguf, *right, "--declare")
    assert again.code == 0
    assert "1 entries taken (declared)" in again.out


def test_llama_cpp_mistakes_are_named(lmstash_cli, tmp_path):
    pytest.importorskip("llama_cpp")
    folder = str(tmp_path)
    assert lmstash_cli("import", "llama-cpp", folder).code == 1
    assert "cache_dir" in lmstash_cli("import", "llama-cpp", folder).err
    assert lmstash_cli("import", "llama-cpp", folder, "--declare").code == 2
    assert lmstash_cli("import", "llama-cpp", folder, "--setting", "n_ctx=5").code == 2
    assert lmstash_cli("import", "llama-cpp", folder, "--model", str(tmp_path / "none.gguf")).code == 1
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    assert lmstash_cli("import", "llama-cpp", folder, "--model", str(tmp_path / "bad.gguf")).code == 2
    wrong = lmstash_cli("import", "llama-cpp", folder, "--model", str(tmp_path / "bad.gguf"), "--setting", "n_ctx")
    assert wrong.code == 2
    assert "NAME=VALUE" in wrong.err
