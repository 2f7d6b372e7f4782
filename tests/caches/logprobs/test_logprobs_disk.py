"""Answers in a folder: another process finds them, and what is damaged or not what was asked for is a miss."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import lmstash
from lmstash.caches.logprobs.forms import FORMS
from lmstash.store.memory import MemoryStore

TOLERANCE = {"hidden": 4e-5, "exact": 0.0, "uint16": 4e-4}

_OTHER_PROCESS = """
import json, sys, torch
sys.path.insert(0, sys.argv[3])
torch.set_num_threads(1)
from tests.caches.logprobs.conftest import _SHAPE, Fed
from transformers import LlamaConfig, LlamaForCausalLM
import lmstash
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(**_SHAPE)).eval()
contexts = json.loads(sys.argv[2])
with lmstash.open(sys.argv[1]) as stash:
    lp = stash.logprobs(model)
    fed = Fed(model)
    rows = lp.batch_next_token_logprobs(contexts)
    scores = lp.score(contexts[0])
    print(json.dumps([fed.take()[0], stash.stats.puts, rows.double().tolist(), scores.double().tolist()]))
"""


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("private", [False, True])
def test_a_new_cache_over_the_same_folder_computes_nothing(make_model, contexts, tmp_path, count_fed, form, private):
    with lmstash.open(tmp_path, private=private) as stash:
        first = stash.logprobs(make_model(), keep=form).batch_next_token_logprobs(contexts)
    model = make_model()
    with lmstash.open(tmp_path, private=private) as stash:
        lp = stash.logprobs(model, keep=form)
        fed = count_fed(model)
        again = lp.batch_next_token_logprobs(contexts)
        assert fed.take() == (0, 0)
        assert (again - first).abs().max() <= TOLERANCE[form]
        assert stash.stats.hits == len({tuple(each) for each in contexts})


def test_another_process_finds_them(make_model, contexts, tmp_path):
    with lmstash.open(tmp_path) as stash:
        lp = stash.logprobs(make_model())
        rows, scores = lp.batch_next_token_logprobs(contexts), lp.score(contexts[0])
    root = str(Path(__file__).parents[3])
    command = [sys.executable, "-c", _OTHER_PROCESS, str(tmp_path), json.dumps(contexts), root]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    passes, puts, theirs, their_scores = json.loads(done.stdout)
    assert passes == 0
    assert puts == 0
    assert (torch.tensor(theirs) - rows).abs().max() < 4e-5
    assert torch.tensor(their_scores).equal(scores)


def test_forms_do_not_answer_for_each_other(make_model, tmp_path):
    with lmstash.open(tmp_path) as stash:
        for form in FORMS:
            lp = stash.logprobs(make_model(), keep=form)
            lp.next_token_logprobs([1, 2, 3])
            lp.flush()
    with lmstash.open(tmp_path) as stash:
        assert sum(each.kind == "logprobs" for each in stash.store.entries()) == len(FORMS)


def test_values_wait_to_be_saved_together_and_a_flush_saves_them(make_model, tmp_path):
    with lmstash.open(tmp_path) as stash:
        lp = stash.logprobs(make_model())
        for token in range(50):
            lp.next_token_logprobs([token])
        stash.flush()
        assert stash.info().entries >= 50
        lp.next_token_logprobs([60])
    with lmstash.open(tmp_path) as stash:  # closing saved the last one
        assert sum(each.kind == "logprobs" for each in stash.store.entries()) == 51


def test_what_was_computed_is_saved_when_the_program_ends_without_closing(tmp_path):
    code = """
import sys, torch
sys.path.insert(0, sys.argv[2])
from tests.caches.logprobs.conftest import _SHAPE
from transformers import LlamaConfig, LlamaForCausalLM
import lmstash
torch.manual_seed(0)
lp = lmstash.open(sys.argv[1]).logprobs(LlamaForCausalLM(LlamaConfig(**_SHAPE)).eval())
for token in range(20):
    lp.next_token_logprobs([token])
"""
    root = str(Path(__file__).parents[3])
    subprocess.run([sys.executable, "-c", code, str(tmp_path), root], check=True, capture_output=True)
    with lmstash.open(tmp_path) as stash:
        assert sum(each.kind == "logprobs" for each in stash.store.entries()) == 20


def test_entries_say_what_they_are(make_model, tmp_path):
    with lmstash.open(tmp_path) as stash:
        lp = stash.logprobs(make_model())
        lp.batch_next_token_logprobs([[1, 2], list(range(70))])
        stash.flush()
        found = [each for each in stash.store.entries() if each.kind == "logprobs"]
        assert {each.n_tokens for each in found} == {2, 70}
        assert {each.namespace for each in found} == {f"logprobs/{lp.fingerprint[:16]}"}
        assert {each.meta["model"] for each in found} == {lp.fingerprint[:16]}
        assert all(each.compute_seconds > 0 for each in found)
        assert stash.prune(kind="logprobs").entries == 2
        assert any(each.kind == "models" for each in stash.store.entries())


class Swapping(MemoryStore):
    """Answers each key with another entry of equal length: what a broken store would do."""

    swap = False

    def fetch_many(self, keys):
        found = super().fetch_many(keys)
        if not self.swap:
            return found
        values = [None if entry is None else bytearray(entry.value) for entry in found]
        for number, entry in enumerate(found):
            if entry is not None and values[number - 1] is not None:
                entry.value = memoryview(values[number - 1])
        return found


@pytest.mark.parametrize("private", [False, True])
def test_an_entry_of_another_context_is_a_miss(model, plain, private):
    from lmstash.stash import Stash

    store = Swapping()
    stash = Stash(store, private=private)
    contexts = [[1, 2, 3], [3, 2, 1], [5, 6]]
    stash.logprobs(model).batch_next_token_logprobs(contexts)
    stash.flush()
    store.swap = True
    lp = stash.logprobs(model)
    for context, row in zip(contexts, lp.batch_next_token_logprobs(contexts), strict=True):
        assert (row - plain(model, context)).abs().max() < 1e-5
    assert stash.stats.misses["mismatch"] == 3


@pytest.mark.parametrize("place", ["key", "parent", "n_tokens", "tokens", "header"])
def test_every_part_of_an_entry_is_compared(model, plain, place):
    """Values swapped in the store itself: one changed byte in what says what an entry is makes it a miss."""
    stash = lmstash.open("memory://")
    lp = stash.logprobs(model)
    context = list(range(90))
    lp.next_token_logprobs(context)
    lp.flush()
    key = lp._engine.shelf.key_of(np.array(context, np.uint32).tobytes())
    (entry,) = stash.store.fetch_many([key])
    value = bytearray(entry.value)
    at = 20 if place == "header" else lp._engine.shelf._places[place].start
    value[at] ^= 1
    stash.store.put(key, bytes(value), namespace=entry.namespace)
    again = stash.logprobs(model)
    assert (again.next_token_logprobs(context) - plain(model, context)).abs().max() < 1e-5
    assert stash.stats.misses["mismatch"] == 1


def test_damaged_files_are_misses(make_model, plain, contexts, tmp_path):
    with lmstash.open(tmp_path) as stash:
        stash.logprobs(make_model()).batch_next_token_logprobs(contexts)
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.stat().st_size > 10_000 and "segment" in str(path.parent):
            data = bytearray(path.read_bytes())
            for at in range(500, len(data), 700):
                data[at] ^= 0xFF
            path.write_bytes(data)
    model = make_model()
    with lmstash.open(tmp_path) as stash:
        rows = stash.logprobs(model).batch_next_token_logprobs(contexts)
        for context, row in zip(contexts, rows, strict=True):
            assert (row - plain(model, context)).abs().max() < 1e-5


def test_a_folder_that_cannot_be_written_breaks_nothing(make_model, plain, tmp_path):
    model = make_model()
    with lmstash.open(tmp_path) as stash:
        stash.logprobs(model).next_token_logprobs([1, 2])
    with lmstash.open(tmp_path, read_only=True) as stash:
        lp = stash.logprobs(model)
        rows = lp.batch_next_token_logprobs([[1, 2], [3, 4]])
        lp.flush()
        assert (rows[1] - plain(model, [3, 4])).abs().max() < 1e-5
        assert stash.stats.hits == 1
        assert stash.stats.drops["read_only"] == 1
