"""Which code is followed, and which stands by the version of its package.

Models and tasks are followed to the last function. What they are written with is not: installed packages change with
their version, and keep counters and caches in their globals that change without meaning. Of the harness itself, which
many run from a working copy, the files that models are written with stand for all of it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import sys
from functools import lru_cache
from pathlib import Path

from lmstash.adapters.lmms_eval.who.noted import Noted
from lmstash.identity.code.digests import is_installed
from lmstash.identity.encoding import Component

_FOLLOWED = ("lmms_eval.models.simple.", "lmms_eval.models.chat.", "lmms_eval.tasks.")
_WRITTEN_WITH = ("models/model_utils", "protocol.py", "utils.py", "imports.py", "api/model.py", "api/instance.py")
"""Files and folders of the harness."""
_AS_EVERYWHERE = frozenset({"transformers", "torch", "numpy", "huggingface_hub"})
"""Packages that `identity.code` has its own rules for."""


def harness_code() -> Noted:
    """Return a collector of code that follows models and tasks only."""
    return Noted("lmms_eval", pin_of=pin_of)


def pin_of(module: str) -> Component:
    """Return what stands for the code of a module; None for code that is followed."""
    root = module.partition(".")[0]
    if root == "lmms_eval":
        return None if module.startswith(_FOLLOWED) else ["lmms_eval", _harness()]
    if root in _AS_EVERYWHERE or not is_installed(module):
        return None
    version = _version(root)
    return None if version is None else [root, version]


@lru_cache(maxsize=1)
def _harness() -> str:
    folder = Path(str(getattr(sys.modules.get("lmms_eval"), "__file__", ""))).parent
    state = hashlib.sha256()
    for name in _WRITTEN_WITH:
        place = folder / name
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            if file.is_file():
                state.update(f"{file.relative_to(folder)}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return state.hexdigest()


@lru_cache(maxsize=1024)
def _version(root: str) -> str | None:
    version = getattr(sys.modules.get(root), "__version__", None)
    if isinstance(version, str):
        return "".join(version)  # torch's is a subclass
    try:
        return importlib.metadata.version(root)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None
