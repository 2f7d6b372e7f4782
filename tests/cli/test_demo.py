"""The demonstration: its prompts, its model, and the main job itself on a few prompts."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from lmstash.cli.demo.worker import Task, read_prompts
from lmstash.cli.main import main


def test_the_package_ships_300_distinct_prompts():
    prompts = read_prompts(300)
    assert len(set(prompts)) == 300
    assert all(prompt == " ".join(prompt.split()) and len(prompt) > 40 for prompt in prompts)


def test_a_task_survives_the_way_to_its_process():
    task = Task("stash", "model", "store", "out.npy", [1, 2], 3, 1)
    assert Task.decode(task.encode()) == task


def test_a_folder_that_is_in_use_is_refused(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    assert main(["demo", "--dir", str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("count", ["0", "301"])
def test_more_prompts_than_there_are_is_code_2(count, capsys):
    assert main(["demo", "--prompts", count]) == 2


def test_a_model_folder_without_a_model_is_refused(tmp_path, capsys):
    assert main(["demo", "--model", str(tmp_path / "missing")]) == 1
    assert "no model" in capsys.readouterr().err
    assert not (tmp_path / "missing").exists()


@pytest.mark.model
@pytest.mark.slow
def test_the_second_process_reads_what_the_first_computed(smollm2_folder, tmp_path):
    command = [sys.executable, "-m", "lmstash", "demo", "--json", "--prompts", "6", "--model", str(smollm2_folder)]
    done = subprocess.run(
        [*command, "--dir", str(tmp_path / "stash")], capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["ok"] is True
    assert report["bit_equal"] is True
    assert report["shape"] == [6, 4, 576]
    assert (report["first"]["computed"], report["first"]["read"]) == (6, 0)
    assert (report["second"]["computed"], report["second"]["read"]) == (0, 6)
    assert report["greatest_difference_relative"] < 1e-5
    listing = subprocess.run(
        [sys.executable, "-m", "lmstash", "ls", "--json", "--kind", "activations", "--dir", str(tmp_path / "stash")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(listing.stdout)["total"] == 12  # of each prompt two bundles: layers 7 and 14, and 21 and 29
