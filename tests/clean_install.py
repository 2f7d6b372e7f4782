"""Builds the wheel, installs it into a new virtual environment without extras, and uses it there.

Run by `make check`: what passes here does not lean on the developer's environment (torch, transformers, pytest).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent

SMOKE = """
import sys
import lmstash
import numpy as np

for place in (sys.argv[1], "memory://"):
    with lmstash.open(place, strict=True, trust_env=False) as stash:
        assert stash.store.put(b"k" * 32, b"value", namespace="user/smoke", meta={"tags": ["smoke"]})
        assert bytes(stash.store.get(b"k" * 32)) == b"value"
        assert stash.store.get(b"?" * 32) is None
        assert stash.tensors.put({"layer": 3}, {"x": np.arange(6.0).reshape(2, 3)})
        assert (stash.tensors.get({"layer": 3}, framework="numpy")["x"] == np.arange(6.0).reshape(2, 3)).all()
        stash.flush()
        assert stash.info().entries == 2
with lmstash.open(sys.argv[1], read_only=True, strict=True, trust_env=False) as stash:
    assert bytes(stash.store.get(b"k" * 32)) == b"value"
absent = [name for name in ("torch", "transformers", "safetensors", "zstandard", "pytest") if name in sys.modules]
assert not absent, absent
try:
    import torch
except ImportError:
    pass
else:
    raise SystemExit("torch is installed: this is no clean environment")
"""


def say(text: str) -> None:
    print(f"clean install: {text}", flush=True)


def run(*command: str | Path) -> str:
    done = subprocess.run([str(each) for each in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="lmstash-clean-") as folder:
        scratch = Path(folder)
        say("building the wheel")
        run(sys.executable, "-m", "build", "--wheel", "--outdir", scratch / "dist", ROOT)
        (wheel,) = (scratch / "dist").glob("*.whl")
        say(f"installing {wheel.name} without extras")
        venv.create(scratch / "venv", with_pip=True)
        python, program = scratch / "venv" / "bin" / "python", scratch / "venv" / "bin" / "lmstash"
        run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel)
        say("memory and disk stores")
        (scratch / "smoke.py").write_text(SMOKE)
        run(python, scratch / "smoke.py", scratch / "stash")
        run(python, "-c", "from lmstash.cli.demo.worker import read_prompts; assert len(read_prompts(300)) == 300")
        say("the command line")
        assert "usage: lmstash COMMAND" in run(program, "--help")
        assert '"entries": 2' in run(program, "info", "--json", "--dir", scratch / "stash")
        assert "all good" in run(program, "verify", "--dir", scratch / "stash")
        run(program, "doctor", "--dir", scratch / "stash")
        demo = subprocess.run([program, "demo"], capture_output=True, text=True, check=False)
        assert demo.returncode == 1
        assert "pip install 'lmstash[demo]'" in demo.stderr, demo.stderr
    say("all good")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
