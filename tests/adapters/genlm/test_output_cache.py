"""`OutputCache`: genlm-backend's semantics without its faults, each of which is a test."""

import random

import pytest
import torch

from lmstash.adapters.genlm import OutputCache


def row(value: float) -> torch.Tensor:
    return torch.full((4,), float(value))


def test_overwriting_a_key_at_capacity_evicts_no_other():
    cache = OutputCache(2)
    cache["a"], cache["b"] = row(1), row(2)
    cache["b"] = row(3)
    assert list(cache.cache) == ["a", "b"]
    assert torch.equal(cache["b"], row(3))


def test_overwriting_a_key_makes_it_the_latest():
    cache = OutputCache(2)
    cache["a"], cache["b"] = row(1), row(2)
    cache["a"] = row(3)
    cache["c"] = row(4)
    assert list(cache.cache) == ["a", "c"]


@pytest.mark.parametrize("maxsize", [0, -1])
def test_without_room_nothing_is_kept_and_nothing_raised(maxsize):
    cache = OutputCache(maxsize)
    cache["a"] = row(1)
    assert len(cache) == 0
    with pytest.raises(KeyError, match="a"):
        cache["a"]


@pytest.mark.parametrize("move_to_cpu", [False, True])
def test_a_kept_row_does_not_keep_its_batch_alive(move_to_cpu):
    batch = torch.rand(20, 1000)
    cache = OutputCache(4, move_to_cpu=move_to_cpu)
    for index in range(4):
        cache[index] = batch[index]
    held = sum(tensor.untyped_storage().nbytes() for _, tensor in cache.cache.values())
    assert held == 4 * 1000 * 4


@pytest.mark.parametrize("move_to_cpu", [False, True])
def test_what_callers_write_to_does_not_reach_the_cache(move_to_cpu):
    cache = OutputCache(4, move_to_cpu=move_to_cpu)
    given = row(1)
    cache["a"] = given
    given.zero_()
    cache["a"].fill_(7)
    assert torch.equal(cache["a"], row(1))


def test_a_smaller_maxsize_counts_from_the_next_set_on():
    cache = OutputCache(4)
    for key in "abcd":
        cache[key] = row(1)
    cache.maxsize = 2
    cache["e"] = row(1)
    assert list(cache.cache) == ["d", "e"]


def test_asking_whether_a_key_is_there_is_no_use_of_it():
    cache = OutputCache(2)
    cache["a"], cache["b"] = row(1), row(2)
    assert "a" in cache
    cache["c"] = row(3)
    assert "a" not in cache
    cache.clear()
    assert len(cache) == 0


@pytest.mark.cuda
def test_tensors_of_a_gpu_wait_in_cpu_memory_and_come_back(cuda):
    cache = OutputCache(2, move_to_cpu=True)
    cache["a"] = row(5).to(cuda)
    device, kept = cache.cache["a"]
    assert (device, kept.device.type) == (cuda, "cpu")
    assert cache["a"].device == cuda
    assert torch.equal(cache["a"].cpu(), row(5))


@pytest.mark.parametrize("version", ["seed", "latest"])
@pytest.mark.parametrize("move_to_cpu", [False, True])
def test_reads_and_first_writes_behave_as_in_the_releases(request, version, move_to_cpu):
    theirs = request.getfixturevalue(version).OutputCache(5, move_to_cpu=move_to_cpu)
    ours = OutputCache(5, move_to_cpu=move_to_cpu)
    rng = random.Random(0)
    for step in range(2000):
        key = rng.randrange(12)
        if key in theirs and rng.random() < 0.7:
            assert torch.equal(ours[key], theirs[key])
        elif key not in theirs:
            theirs[key] = ours[key] = row(step)
        assert list(ours.cache) == list(theirs.cache)
        assert (len(ours), key in ours) == (len(theirs), key in theirs)
