"""`lmstash import lmprobe FOLDER`: the command line over the importer."""

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
    assert lmstash_cli("import", "lmprobe", str(lmprobe_cache), "--declare").code == 2
    outcome = lmstash_cli("import", "lmprobe", str(lmprobe_cache), "--declare", "--model", MODEL, "--json")
    assert outcome.data["report"]["models"][0]["status"] == "declared"


def test_a_folder_that_is_not_there_is_code_1(lmstash_cli, tmp_path):
    outcome = lmstash_cli("import", "lmprobe", str(tmp_path / "nothing"))
    assert outcome.code == 1
    assert "not a folder" in outcome.err


def test_another_tools_name_is_code_2(lmstash_cli, tmp_path):
    assert lmstash_cli("import", "spreadsheet", str(tmp_path)).code == 2
