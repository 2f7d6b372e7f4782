"""A folder that llama-cpp-python's `LlamaDiskCache` wrote, kept here, is read for ever, without llama-cpp-python.

`llama_disk_cache.tar.gz` is as a killed process left it, its newest entries in the write-ahead log. Three programs
wrote to it with llama-cpp-python 0.3.36, diskcache 5.6.3 and Python 3.11: two with numpy 1.26 (pickle protocols 5 and
4), one with numpy 2.4. The states are small ones of two layers, in rows of `cache.db` and in files beside it.
`llama_disk_cache.json` says what it holds. To write another, run this file for each with the program's name, a folder
and `--kill` for the last; see `write`.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import sys
import tarfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SAMPLE = HERE / "llama_disk_cache.tar.gz"
PROGRAMS = {"numpy1": (1, 5), "numpy1-protocol4": (2, 4), "numpy2": (3, 5)}
"""First token of its entries, and pickle protocol."""


def held() -> list[dict[str, Any]]:
    return json.loads(SAMPLE.with_name("llama_disk_cache.json").read_text(encoding="utf-8"))


def test_the_folder_is_read(tmp_path: Path):
    from lmstash.adapters.llama_cpp.importing import OldEntry, read_folder

    with tarfile.open(SAMPLE) as archive:
        archive.extractall(tmp_path, filter="data")
    folder = tmp_path / "llama_disk_cache"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert (folder / "cache.db-wal").stat().st_size > 0
    for entry, expected in zip(read_folder(folder), held(), strict=True):
        assert isinstance(entry, OldEntry), entry
        assert list(entry.key_tokens) == expected["key"]
        assert entry.state.input_ids.tolist() == expected["key"][:-1]
        assert hashlib.sha256(entry.state.llama_state).hexdigest() == expected["sha256"]
        assert (entry.state.n_tokens, entry.state.seed) == (len(expected["key"]) - 1, expected["seed"])
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_the_sample_has_every_form(tmp_path: Path):
    with tarfile.open(SAMPLE) as archive:
        archive.extractall(tmp_path, filter="data")
    data = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for word in (b"numpy.core.numeric", b"numpy.core.multiarray", b"numpy._core.numeric"):
        assert data.count(word) >= 2
    assert len(list(tmp_path.rglob("*.val"))) == len(held()) / 2 == len(PROGRAMS)


def write(program: str, folder: Path) -> Any:
    """Write two entries, a short one and a long one, as `Llama` does after a completion; return the open cache."""
    import numpy as np
    from llama_cpp import LlamaDiskCache
    from llama_cpp.llama import LlamaState

    first, protocol = PROGRAMS[program]
    assert np.__version__[0] == program[5]
    cache = LlamaDiskCache(str(folder))
    cache.cache.reset("disk_pickle_protocol", protocol)
    entries = held() if SAMPLE.with_name("llama_disk_cache.json").exists() else []
    for n_tokens in (5, 70):
        tokens = [first, *range(100, 99 + n_tokens)]
        blob = struct.pack("<I5sII", 5, b"llama", 1, n_tokens)
        blob += b"".join(struct.pack("<iIi", place, 1, 0) for place in range(n_tokens)) + struct.pack("<II", 0, 2)
        for side in range(4):
            rows = np.arange(n_tokens * 8, dtype=np.float16) + side
            blob += struct.pack("<iQ", 1, 16) + rows.tobytes()
        ids = np.full(128, 3, dtype=np.intc)
        ids[:n_tokens] = tokens
        scores = np.zeros((n_tokens, 200), dtype=np.single)
        cache[[*tokens, 9]] = LlamaState(ids, scores, n_tokens, blob, len(blob), 0xFFFFFFFF)
        entries.append({"key": [*tokens, 9], "sha256": hashlib.sha256(blob).hexdigest(), "seed": 0xFFFFFFFF})
    SAMPLE.with_name("llama_disk_cache.json").write_text(json.dumps(entries) + "\n", encoding="utf-8")
    return cache


if __name__ == "__main__":
    if SAMPLE.exists():
        sys.exit(f"{SAMPLE} is there, and is never written again")
    target = Path(sys.argv[2])
    still_open = write(sys.argv[1], target)
    if "--kill" in sys.argv:
        with tarfile.open(SAMPLE, "w:gz") as made:
            made.add(target, "llama_disk_cache")
        os._exit(0)
