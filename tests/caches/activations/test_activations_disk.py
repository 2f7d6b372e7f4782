"""On the disk store: memory, other openings of the folder, a store that is closed."""

import subprocess
import sys

import pytest
import torch

import lmstash
from lmstash.caches.activations import Activations
from lmstash.store.disk.store import DiskStore

PROGRAM = """
import sys
import torch

import lmstash
from lmstash.caches.activations import Activations
from lmstash.store.disk.store import DiskStore

torch.set_num_threads(1)
folder, kind, step = sys.argv[1:]
width, layers = 4096, [0, 1, 2, 3]


class Wide:
    fingerprint = "wide/1"

    def extract(self, batch, layers, site):
        return [[torch.full((len(ids), width), ids[0] + layer / 8) for ids in batch] for layer in layers]


pool = None if kind == "raw" else "last"
prompts = [[number] * (40 if pool is None else 1) for number in range(1000 if pool else 50)]
store = DiskStore(folder, capacity_bytes=2**30)
acts = Activations(store, extractor=Wide())
if step == "fill":
    acts(prompts, layers, pool, cache_only=True)
    store.close()
    sys.exit()
acts(prompts[:2], layers, pool)


def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024


open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew from what is held now
before = peak()
result = acts(prompts, layers, pool, on_miss="error")
held = peak() - before
nbytes = sum(each.nbytes for each in result)
for number in (0, len(prompts) - 1):
    assert (result[number][3] == number + 3 / 8).all()
print(held / nbytes)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("kind", ["pooled", "raw"])
def test_a_warm_call_holds_little_beside_its_result(tmp_path, kind):
    for step in ("fill", "warm"):
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / "store"), kind, step]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
    assert 0.9 < float(done.stdout) <= 1.3


@pytest.mark.parametrize("pool", ["last", "mean", None])
def test_another_opening_of_the_folder_serves_what_was_kept(tmp_path, model, prompts, pool):
    with_store = DiskStore(tmp_path / "store", capacity_bytes=2**26)
    cold = Activations(with_store, model)(prompts, [0, 3], pool)
    with_store.close()
    again = DiskStore(tmp_path / "store", capacity_bytes=2**26)
    warm = Activations(again, model)(prompts, [0, 3], pool, on_miss="error")
    assert all(torch.equal(left, right) for left, right in zip(cold, warm, strict=True))
    for each in warm:
        each.zero_()  # the caller's own
    third = Activations(again, model)(prompts, [0, 3], pool, on_miss="error")
    assert all(torch.equal(left, right) for left, right in zip(cold, third, strict=True))
    again.close()


def test_results_survive_the_eviction_of_their_entries(tmp_path, model, prompts):
    store = DiskStore(tmp_path / "store", capacity_bytes=2**26)
    acts = Activations(store, model)
    acts(prompts, "all", None)
    warm = acts(prompts, "all", None, on_miss="error")
    before = [each.clone() for each in warm]
    store.clear()
    store.close()
    assert all(torch.equal(left, right) for left, right in zip(before, warm, strict=True))


@pytest.mark.parametrize("pool", ["last", None])
def test_a_closed_store_computes_and_does_not_break(tmp_path, model, prompts, pool):
    store = DiskStore(tmp_path / "store", capacity_bytes=2**26)
    acts = Activations(store, model)
    expected = acts(prompts, [0], pool)
    store.close()
    result = acts(prompts, [0], pool)
    for left, right in zip(result, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


def test_memory_that_is_handed_out_as_it_was_read_is_the_callers_own(tmp_path):
    class Wide:
        fingerprint = "wide, 1"
        n_layers = 2

        def extract(self, batch, layers, site):
            return [[torch.full((len(ids), 4096), float(layer + ids[0])) for ids in batch] for layer in layers]

    prompts = [[number, 1, 2, 3, 4] for number in range(6)]
    with lmstash.open(tmp_path / "stash", strict=True, trust_env=False) as stash:
        acts = stash.activations(extractor=Wide())
        acts(prompts, [1], None, cache_only=True)
        first, second = (acts([*prompts, prompts[0]], [1], None, on_miss="error") for _ in range(2))
        for row, ids in zip(first, [*prompts, prompts[0]], strict=True):
            assert torch.equal(row, torch.full((1, 5, 4096), 1.0 + ids[0]))
        for row in first:
            row.zero_()
        for row, ids in zip(second, [*prompts, prompts[0]], strict=True):
            assert torch.equal(row, torch.full((1, 5, 4096), 1.0 + ids[0]))
        stash.clear()
        assert (second[3] == 4.0).all()
        assert acts(prompts[:1], [1], None, dtype="float16")[0].dtype == torch.float16


class Plain:
    """Values of a prompt: its first id, and the layer in eighths; 96 KiB for four tokens of four layers."""

    fingerprint = "plain/1"

    def extract(self, batch, layers, site):
        return [[torch.full((len(ids), 1536), ids[0] + layer / 8) for ids in batch] for layer in layers]


def test_results_that_came_together_are_apart_and_hold_little(tmp_path):
    layers, prompts = [0, 1, 2, 3], [[number] * 4 for number in range(60)]
    with lmstash.open(tmp_path / "stash", strict=True, trust_env=False) as stash:
        acts = stash.activations(extractor=Plain())
        acts(prompts, layers, None, cache_only=True, progress=False)
        stash.flush()
        first = acts(prompts, layers, None, on_miss="error")
        for number in range(0, 60, 2):
            first[number].fill_(-1.0)  # whoever has a result may write into it
        for number in range(60):
            for layer in layers:
                assert (first[number][layer] == (-1.0 if number % 2 == 0 else number + layer / 8)).all()
        again = acts(prompts, layers, None, on_miss="error")
        assert all((each[layer] == number + layer / 8).all() for number, each in enumerate(again) for layer in layers)
        storages = {each.untyped_storage().data_ptr() for each in again}
        assert len(storages) == 60
        assert all(each.untyped_storage().nbytes() == each.nbytes for each in again), "saving one saves no other"
