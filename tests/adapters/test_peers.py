"""The tests that need a peer run in the peer's own environment, made by `benchmarks/peers.py`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.campaign
@pytest.mark.timeout(600)
@pytest.mark.parametrize("peer", ["genlm", "lmms_eval", "mellea"])
def test_with_the_peer_itself(peer: str) -> None:
    folder = ROOT / ".cache/peers" / peer
    if not (folder / ".ready").exists():
        pytest.skip(f"{folder} is not there: python benchmarks/peers.py {peer}")
    if Path(sys.prefix).resolve() == folder.resolve():
        pytest.skip("runs inside the peer's environment already")
    tests = ROOT / "tests/adapters" / peer
    command = [folder / "bin/python", "-m", "pytest", "-q", "-p", "no:cacheprovider", tests]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=590)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|skipped)", done.stdout)}
    assert counts.get("passed", 0) > counts.get("skipped", 0), done.stdout[-2000:]
