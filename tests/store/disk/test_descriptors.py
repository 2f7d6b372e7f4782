"""Descriptors: a process keeps few open, however many namespaces it writes and segments it reads."""

from __future__ import annotations

import os
import resource
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lmstash.store.base import Write
from lmstash.store.disk.files.segment import descriptors
from lmstash.store.disk.store import DiskStore
from lmstash.testing.samples import sample_bytes, sample_key

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="nowhere to count descriptors")


def n_open() -> int:
    return len(os.listdir("/proc/self/fd"))


def write(number: int, n_bytes: int = 500) -> Write:
    return Write(sample_key(number), sample_bytes(n_bytes, number), f"kind/{number}")


def test_a_process_that_writes_many_namespaces_keeps_few_descriptors(tmp_path: Path, tools: Any):
    before = n_open()
    with closing(DiskStore(tmp_path, capacity_bytes=None, strict=True)) as store:
        for _round in range(2):
            for number in range(300):
                assert store.put_many([write(number)]) == 1
                assert n_open() - before <= 64 + 16
        keys = [sample_key(number) for number in range(300)]
        assert store.get_many(keys) == [sample_bytes(500, number) for number in range(300)]
        assert store.delete_many(keys[:150]) == 150
        assert n_open() - before <= 256 + 64 + 16
        assert store.verify().ok
    for path in tmp_path.glob("index.db*"):
        path.unlink()
    with closing(DiskStore(tmp_path, strict=True)) as store:  # what was sealed early says the same to a rebuild
        expected = [None] * 150 + [sample_bytes(500, number) for number in range(150, 300)]
        assert store.get_many(keys) == expected


def test_a_process_that_may_have_few_descriptors_keeps_fewer(in_child: Any):
    def fewer() -> tuple[int, int]:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        return descriptors(64), descriptors(256)

    assert in_child(fewer) == [16, 64]
    assert descriptors(64) == 64 or resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 1024


def test_a_sealed_segment_keeps_only_the_slots_that_it_uses(tmp_path: Path):
    """Slots are room for good: a namespace of few entries shall not take that of thousands."""
    with closing(DiskStore(tmp_path, capacity_bytes=None, strict=True)) as store:
        for number in range(300):
            assert store.put_many([write(number)]) == 1
    assert os.stat(tmp_path / "recency").st_size <= 64 * 4096 * 8 + 2 * 300 * 512 * 8
    with closing(DiskStore(tmp_path, strict=True)) as store:
        assert store.put_many(write(number) for number in range(300, 600)) == 300
        found = store.get_many([sample_key(number) for number in range(600)])
        assert found == [sample_bytes(500, number) for number in range(600)]
