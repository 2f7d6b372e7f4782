"""A stash with known entries, and a way to run a command line on it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lmstash
from lmstash.caches.models import name_model
from lmstash.cli.main import main
from lmstash.codecs.tensors import encode_tensors
from lmstash.identity.keys import Key
from lmstash.store.base import Write

FINGERPRINT = "0123456789abcdef"
PROMPT = "The cat sat on the mat."


def activation(
    layer: int,
    *,
    text: str = PROMPT,
    pool: str = "last",
    name: str = "tiny",
    fingerprint: str = FINGERPRINT,
    **fields: Any,
) -> Write:
    """One entry as the activations cache keeps it."""
    key = Key({"layers": [layer], "site": "block_out", "pool": pool, "tokens": f"{text}{name}".encode()})
    meta = {"id": key.describe(), "model": fingerprint, "name": name, "text": text, "tags": ["probe"]}
    value = encode_tensors({"value": np.full(64, layer, dtype=np.float32)})
    return Write(key.digest, value, namespace=f"activations/{fingerprint}", meta=meta, n_tokens=6, **fields)


@pytest.fixture
def writes() -> list[Write]:
    return [activation(3, compute_seconds=1.5), activation(7), activation(7, text="Another prompt.")]


@pytest.fixture
def folder(tmp_path: Path, writes: list[Write]) -> Path:
    """A stash that keeps three activations and one value of another kind."""
    place = tmp_path / "stash"
    with lmstash.open(place, strict=True, capacity_bytes="64MB") as stash:
        assert stash.store.put_many(writes) == 3
        assert stash.store.put(b"u" * 32, b"x" * 5000, namespace="user/me")
    return place


@pytest.fixture
def named_by_folder(folder: Path) -> Callable[[str], Write]:
    """Keep an entry of one more model, under the name of its folder or of its place on a hub, and what it is called."""

    def keep(name: str) -> Write:
        fingerprint = sha256(name.encode()).hexdigest()[:16]
        with lmstash.open(folder, strict=True) as stash:
            write = activation(3, name=name, fingerprint=fingerprint)
            assert stash.store.put_many([write]) == 1
            name_model(stash.store, bytes.fromhex(fingerprint) + bytes(24), name)
        return write

    return keep


@dataclass
class Outcome:
    code: int
    out: str
    err: str

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.out)


@pytest.fixture
def lmstash_cli(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a command line on `folder` (in this process)."""

    def run(command: str, *arguments: str, place: Path | None = folder) -> Outcome:
        where = ["--dir", str(place)] if place else []
        code = main([command, *arguments, *where])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run
