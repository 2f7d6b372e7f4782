"""Evaluations that are killed, and evaluations on several ranks, in real processes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lmstash.adapters.lm_eval import CachedLM

from .conftest import Scripted, echo, generations, instance, tiny_model, write_tasks

SCRIPT = Path(__file__).parent / "evaluation.py"
N_DOCS, BATCH = 14, 2


def start(tmp_path: Path, model: Path, log: Path, names: str, *more: str) -> subprocess.Popen[str]:
    line = [sys.executable, str(SCRIPT), str(tmp_path / "stash"), str(tmp_path / "tasks"), str(model), str(log), names]
    extra = {"HF_DATASETS_CACHE": str(tmp_path / "datasets"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with open(tmp_path / "stderr.txt", "a") as errors:
        return subprocess.Popen(
            [*line, *more], stdout=subprocess.PIPE, stderr=errors, text=True, env=os.environ | extra
        )


def end(process: subprocess.Popen[str], tmp_path: Path) -> Any:
    out, _ = process.communicate(timeout=280)
    assert process.returncode == 0, (tmp_path / "stderr.txt").read_text()[-3000:]
    return json.loads(out.strip().splitlines()[-1])


def batches(log: Path) -> int:
    return log.read_text().count("batch") if log.exists() else 0


@pytest.mark.model
@pytest.mark.slow
def test_a_killed_evaluation_computes_at_most_the_batch_in_flight_again(tmp_path, smollm2_folder):
    write_tasks(tmp_path / "tasks", N_DOCS)
    done = 0
    for number in range(2):
        log = tmp_path / f"log{number}"
        process = start(tmp_path, smollm2_folder, log, "t_gen")
        while batches(log) < 3 and process.poll() is None:
            time.sleep(0.002)
        time.sleep(random.random() * 0.3)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.returncode == -signal.SIGKILL
        done += BATCH * (batches(log) - 1)
    counts = end(start(tmp_path, smollm2_folder, tmp_path / "log", "t_gen"), tmp_path)
    assert counts["asked"] == N_DOCS
    assert counts["computed"] <= N_DOCS - done
    assert counts["hits"] >= done > 0


@pytest.mark.slow
def test_any_number_of_ranks_finds_what_another_number_has_computed(tmp_path, tokenizer):
    n_docs = 7  # which no number of ranks divides: the harness pads
    write_tasks(tmp_path / "tasks", n_docs)
    tiny_model().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    first, *others = end(
        start(tmp_path, tmp_path / "model", tmp_path / "log", "t_gen,t_mc,t_roll", "--ranks", "1,2,4,1"), tmp_path
    )
    assert sum(each["computed"] for each in first) == n_docs * 4
    assert [len(each) for each in others] == [2, 4, 1]
    for ranks in others:
        assert sorted(each["rank"] for each in ranks) == list(range(len(ranks)))
        assert sum(each["computed"] + each["filled"] for each in ranks) == 0
        assert sum(each["asked"] for each in ranks) >= n_docs * 4


@pytest.mark.slow
def test_ranks_that_find_more_than_others_wait_for_them_in_the_same_calls(tmp_path, tokenizer):
    """Rolling log-likelihoods gather over all ranks inside the model: one that did not call would hang the others."""
    write_tasks(tmp_path / "tasks", 6)
    tiny_model().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    data = tmp_path / "tasks" / "data.jsonl"
    rows = data.read_text().splitlines()
    data.write_text("\n".join(rows[::2]))  # what rank 0 of two will be given later
    end(start(tmp_path, tmp_path / "model", tmp_path / "log", "t_roll", "--ranks", "1"), tmp_path)
    data.write_text("\n".join(rows))
    ((one, other),) = end(start(tmp_path, tmp_path / "model", tmp_path / "log", "t_roll", "--ranks", "2"), tmp_path)
    assert (one["hits"], one["computed"], one["filled"]) == (3, 0, 3)
    assert (other["hits"], other["computed"], other["filled"]) == (0, 3, 0)


# --- ranks without processes --------------------------------------------------------------------------------------


class OfTwo(Scripted):
    """Rank 0 of two; the other one is said to miss `theirs`."""

    def __init__(self, theirs: int = 0) -> None:
        super().__init__(echo)
        self._world_size = 2
        self.theirs = SimpleNamespace(missing=theirs)

    def all_gather(self, tensor: Any) -> Any:
        import torch

        return torch.stack([tensor, torch.tensor(self.theirs.missing)])


def test_padding_of_the_last_request_is_recognised(stash):
    requests = generations(3)
    lm = OfTwo()
    cached = CachedLM(lm, stash, model="m")
    cached.generate_until([*requests, requests[-1], requests[-1]])
    assert len(lm.seen) == 3
    assert cached.counts.repeated == 2


def test_padding_of_repeats_is_recognised_and_repeats_are_not_padding(stash):
    numbers = iter(range(100))
    sampled = instance("generate_until", "p", {"temperature": 1.0, "seed": 1}, repeats=2)
    lm = OfTwo()
    lm._say = lambda method, arguments: str(next(numbers))
    said = CachedLM(lm, stash, model="m").generate_until([sampled] * 4)
    assert said == [said[0], said[1]] * 2
    assert said[0] != said[1]


def test_a_rank_that_finds_all_calls_as_often_as_the_others(stash):
    CachedLM(OfTwo(), stash, model="m", harmless=["theirs"]).generate_until(generations(4))
    lm = OfTwo(theirs=3)
    cached = CachedLM(lm, stash, model="m", harmless=["theirs"])
    assert cached.generate_until(generations(4)) == [echo("generate_until", each.args) for each in generations(4)]
    assert (cached.counts.hits, cached.counts.filled, len(lm.seen)) == (4, 3, 3)


def test_nobody_calls_where_all_ranks_find_all(stash):
    CachedLM(OfTwo(), stash, model="m").generate_until(generations(4))
    lm = OfTwo()
    CachedLM(lm, stash, model="m").generate_until(generations(4))
    assert not lm.seen


def test_ranks_of_a_model_that_is_not_sharded_do_not_wait_for_each_other(hflm):
    from lmstash.adapters.lm_eval.asking.ranks import must_be_even

    lm = hflm()
    assert not must_be_even(lm, "loglikelihood")
    assert must_be_even(lm, "loglikelihood_rolling")

    class Accelerator:
        distributed_type = "DistributedType.FSDP"

    lm.accelerator = Accelerator()
    assert must_be_even(lm, "loglikelihood")
    assert must_be_even(Scripted(echo), "loglikelihood")
