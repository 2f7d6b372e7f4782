"""The demonstration: its prompts, its model, and the main job itself on a few prompts."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest

from lmstash.cli.demo import particles
from lmstash.cli.demo.worker import Task, read_prompts
from lmstash.cli.main import main


def test_the_package_ships_300_distinct_prompts():
    prompts = read_prompts(300)
    assert len(set(prompts)) == 300
    assert all(prompt == " ".join(prompt.split()) and len(prompt) > 40 for prompt in prompts)


def test_a_task_survives_the_way_to_its_process():
    task = Task("stash", ["kv"], "model", "store", "out.npz", [1, 2], 3, 1)
    assert Task.decode(task.encode()) == task


def test_a_folder_that_is_in_use_is_refused(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    assert main(["demo", "--dir", str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("uri", "why"), [("memory://", "ends with its process"), ("s3://bucket/demo", "comes with a later release")]
)
def test_a_place_that_a_second_process_cannot_read_is_refused_before_anything_runs(capsys, uri, why):
    assert main(["demo", "--uri", uri]) == 2
    assert why in capsys.readouterr().err


def test_a_uri_is_a_place_as_a_folder_is(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    assert main(["demo", "--uri", str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err


@pytest.mark.parametrize("count", ["0", "301"])
def test_more_prompts_than_there_are_is_code_2(count, capsys):
    assert main(["demo", "--prompts", count]) == 2


def test_a_model_folder_without_a_model_is_refused(tmp_path, capsys):
    assert main(["demo", "--model", str(tmp_path / "missing")]) == 1
    assert "no model" in capsys.readouterr().err
    assert not (tmp_path / "missing").exists()


def test_a_job_that_there_is_not_is_code_2(capsys):
    assert main(["demo", "kv", "dreams"]) == 2
    assert "'dreams'" in capsys.readouterr().err


def test_without_llama_cpp_python_its_job_says_how_to_get_it(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "llama_cpp" else find(name))
    assert main(["demo", "states"]) == 1
    assert "pip install 'lmstash[llama]'" in capsys.readouterr().err


def test_without_llama_cpp_python_the_other_jobs_are_done(monkeypatch, capsys, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "llama_cpp" else find(name))
    assert main(["demo", "--model", str(tmp_path / "missing")]) == 1  # which ends it, later
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if "left out" in line] == [
        "left out, states of llama.cpp: llama-cpp-python is not installed. Run: pip install 'lmstash[llama]'"
    ]
    assert "no model" in said[-1]


@pytest.mark.model
@pytest.mark.slow
def test_the_second_process_reads_what_the_first_computed(smollm2_folder, tmp_path):
    command = [sys.executable, "-m", "lmstash", "demo", "--json", "--prompts", "6", "--model", str(smollm2_folder)]
    done = subprocess.run(
        [*command, "--dir", str(tmp_path / "stash")], capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["ok"] is True
    jobs = report["jobs"]
    assert all(job["bit_equal"] and job["passed"] for job in jobs.values())
    if importlib.util.find_spec("llama_cpp") is not None:
        states = jobs.pop("states")
        assert states["first"]["computed"] == states["plain"]["computed"]
        assert states["second"]["computed"] < 15 * 3  # of each chat, hardly more than the reply
        assert states["second"]["read"] > 3 * 320
        assert states["first"]["stored_bytes"] > 320 * 23_000
    activations, kv, logprobs = jobs["activations"], jobs["kv"], jobs["logprobs"]
    assert activations["shape"] == [6, 4, 576]
    assert (activations["first"]["computed"], activations["first"]["read"]) == (6, 0)
    assert (activations["second"]["computed"], activations["second"]["read"]) == (0, 6)
    assert activations["greatest_difference"] < 1e-5 * activations["greatest_value"]
    asked = kv["plain"]["computed"]
    assert kv["first"]["computed"] < asked / 2  # the document once, the questions
    assert kv["second"]["computed"] < kv["first"]["computed"] / 10
    assert logprobs["first"]["computed"] == logprobs["plain"]["computed"] == logprobs["second"]["read"]
    assert logprobs["second"]["computed"] == 0
    listing = subprocess.run(
        [sys.executable, "-m", "lmstash", "ls", "--json", "--kind", "activations", "--dir", str(tmp_path / "stash")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(listing.stdout)["total"] == 12  # of each prompt two bundles: layers 7 and 14, and 21 and 29


def test_the_particles_draw_among_tokens_that_no_rounding_brings_out_of_order(smollm2):
    """Else a run that differs in the last bits might grow others."""
    model, tokenizer = smollm2
    task = Task("plain", ["logprobs"], "", "", "", [], 1, 1)
    rows, _measured = particles.plainly(task, model, tokenizer)
    best = np.sort(rows, axis=-1)[..., -particles.N_LIKELIEST - 1 :]
    assert np.diff(best, axis=-1).min() > 3e-4  # ten times what rounding changes
