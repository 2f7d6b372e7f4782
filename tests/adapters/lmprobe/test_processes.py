"""Several processes on one folder, and one that is killed: nothing is lost, nothing is left lying about."""

import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

import lmstash
import lmstash.adapters.lmprobe as adapter
from lmstash.adapters.lmprobe import CacheBackend, CachedExtractor, config

EXTRACTOR = """
import sys, time, torch
torch.set_num_threads(1)
import lmstash.adapters.lmprobe as adapter

class Ones:
    model_name, batch_size, fingerprint = "ones", 1, "ones of revision 1"
    def __init__(self, layers): self.layer_indices = layers
    def extract_batch(self, prompts, layer_indices, remote=False):
        return torch.full((1, 3, 4 * len(layer_indices)), float(layer_indices[0])), torch.ones(1, 3)

adapter.set_cache_backend(sys.argv[1])
"""


@pytest.fixture(autouse=True)
def fresh():
    config.reset()
    yield
    config.reset()


def start(body: str, *arguments: object) -> subprocess.Popen[str]:
    code = EXTRACTOR + textwrap.dedent(body)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_processes_adding_layers_to_one_prompt_lose_none(tmp_path: Path):
    """W17: of 100 layers that 4 processes add to one prompt at once, lmprobe keeps 45."""
    body = """
        for layer in range(int(sys.argv[2]), 100, 4):
            adapter.CachedExtractor(Ones([layer])).extract(["shared prompt"], cache_only=True)
    """
    running = [start(body, tmp_path / "stash", at) for at in range(4)]
    assert [each.wait(timeout=120) for each in running] == [0, 0, 0, 0]
    adapter.set_cache_backend(tmp_path / "stash")
    found = adapter.discover_cached("ones", "shared prompt")
    assert found is not None
    assert found.raw_layers == list(range(100))


def test_processes_adding_prompts_lose_none_from_the_index(tmp_path: Path):
    """W18: of 600 prompts that 2 processes add, lmprobe's manifest keeps 153, or 23."""
    body = """
        for number in range(150):
            adapter.CachedExtractor(Ones([0])).extract([f"{sys.argv[2]}-{number}"], cache_only=True)
    """
    running = [start(body, tmp_path / "stash", name) for name in ("one", "two")]
    assert [each.wait(timeout=120) for each in running] == [0, 0]
    adapter.set_cache_backend(tmp_path / "stash")
    prompts = [f"{name}-{number}" for name in ("one", "two") for number in range(150)]
    assert all(adapter.discover_cached("ones", prompt) for prompt in prompts)
    assert adapter.cache_info("ones").models[0].num_prompts == 300


def test_a_killed_process_loses_nothing_it_had_saved_and_a_second_run_goes_on(tmp_path: Path):
    """W15, W19: killed runs of lmprobe leak temporary files that nothing counts, and resumed ones lose batches."""
    body = """
        for number in range(100_000):
            adapter.CachedExtractor(Ones([0])).extract([f"prompt {number}"], cache_only=True)
            print(number, flush=True)
    """
    process = start(body, tmp_path / "stash")
    assert process.stdout is not None
    for _ in range(20):
        last = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    process.wait()
    stash = lmstash.open(tmp_path / "stash")
    assert stash.verify().ok
    adapter.set_cache_backend(stash)
    assert all(adapter.discover_cached("ones", f"prompt {number}") for number in range(last + 1))
    held = stash.info().physical_bytes
    lying = sum(path.stat().st_blocks * 512 for path in (tmp_path / "stash").rglob("*") if path.is_file())
    assert lying <= held + 2**20
    stash.close()


def test_a_warm_extract_holds_little_beside_its_result(tmp_path: Path):
    """lmprobe's warm extract peaks at 3.5 times the result."""
    body = """
        import resource
        class Wide(Ones):
            batch_size = 8
            def extract_batch(self, prompts, layer_indices, remote=False):
                assert sys.argv[2] == "cold", "computed in the warm run"
                return torch.ones(len(prompts), 64, 1024 * len(layer_indices)), torch.ones(len(prompts), 64)
        cached, prompts = adapter.CachedExtractor(Wide([0, 1])), [f"p{i}" for i in range(400)]
        cached.extract(prompts[:8])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        values, _ = cached.extract(prompts)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print((after - before) * 1024 / values.nbytes)
    """
    start(body, tmp_path / "stash", "cold").communicate(timeout=120)
    said, _ = start(body, tmp_path / "stash", "warm").communicate(timeout=120)
    assert float(said) <= 1.3


def test_entries_replaced_behind_a_users_backend_are_seen_at_once():
    """W7: lmprobe remembers headers by key and never forgets: after a rewrite it returns garbage."""
    blobs: dict[str, bytes] = {}

    class Shared(CacheBackend):
        def exists(self, key):
            return key in blobs

        def read_bytes(self, key):
            return blobs[key]

        def write_bytes(self, key, data):
            blobs[key] = data

        def delete(self, key):
            blobs.pop(key, None)

        def list_keys(self, prefix=""):
            return [key for key in blobs if key.startswith(prefix)]

        def size(self, key):
            return len(blobs[key])

        def mtime(self, key):
            return time.time()

        def touch(self, key):
            pass

    class Sized:
        model_name, batch_size, layer_indices, fingerprint = "sized", 1, [0], "one"
        tokens = 3

        def extract_batch(self, prompts, layer_indices, remote=False):
            rows = torch.arange(float(self.tokens))[None, :, None].expand(1, -1, 4 * len(layer_indices))
            return rows, torch.ones(1, self.tokens)

    adapter.set_cache_backend(Shared())
    reader, writer = Sized(), Sized()
    first, _ = CachedExtractor(reader).extract(["p"])
    adapter.invalidate_extraction_cache(adapter.get_prompt_cache_dir("sized", "p"))
    assert adapter.discover_cached("sized", "p") is None
    writer.tokens = 5
    CachedExtractor(writer).extract(["p"])
    reader.tokens = 5
    again, mask = CachedExtractor(reader).extract(["p"])
    assert first.shape[1] == 3
    assert torch.equal(again[0, :, 0], torch.arange(5.0))
    assert mask.tolist() == [[1] * 5]
    writer.layer_indices = [0, 1]
    CachedExtractor(writer).extract(["p"])
    found = adapter.discover_cached("sized", "p")
    assert found is not None
    assert found.raw_layers == [0, 1]
