"""Folders as lmprobe 0.10.3 lays them out, written here by hand so that lmprobe need not be installed."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file


def hash16(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class LmprobeFolder:
    """Writes v2 entries (and v1 ones with `old=True`) the way lmprobe's cache.py does."""

    def __init__(self, base: Path):
        self.base = base
        base.mkdir(parents=True, exist_ok=True)

    def model(self, name: str, *, named: bool = True) -> Path:
        directory = self.base / hash16(name)
        directory.mkdir(exist_ok=True)
        if named:
            (directory / "_model_name.txt").write_text(name)
        return directory

    def add(self, name: str, prompt: str, tensors: dict[str, torch.Tensor], *, suffix: str = "", listed: bool = True):
        directory = self.model(name)
        path = directory / f"{hash16(prompt)}{suffix}.safetensors"
        save_file({key: value.contiguous() for key, value in tensors.items()}, path)
        if listed:
            with (directory / "_manifest.jsonl").open("a") as file:
                line = {"hash": hash16(prompt), "prompt": prompt, "num_tokens": 3, "cached_at": "2026-01-01T00:00:00"}
                file.write(json.dumps(line) + "\n")
        return path

    def add_old(self, name: str, prompt: str, tensors: dict[str, torch.Tensor]) -> Path:
        directory = self.model(name) / hash16(prompt)
        for key, tensor in tensors.items():
            path = directory / f"{key}.pt"
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(tensor, path)
        return directory

    def picture(self) -> dict[str, bytes]:
        """Every file and its bytes, to show that nothing was touched."""
        return {str(path.relative_to(self.base)): path.read_bytes() for path in self.base.rglob("*") if path.is_file()}


@pytest.fixture
def folder(tmp_path: Path) -> LmprobeFolder:
    torch.manual_seed(0)
    return LmprobeFolder(tmp_path / "lmprobe-cache")
