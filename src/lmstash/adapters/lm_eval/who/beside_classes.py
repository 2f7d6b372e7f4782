"""Code of the harness beside its models' classes: the files that these call into, and what is put into its modules.

The harness counts by its version, which says nothing of a working copy that is edited, or of
`lm_eval.models.huggingface.postprocess_generated_text = mine`. A release as it was published, with nothing put into it,
is its version alone.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import sys
from collections.abc import Collection, Iterator
from functools import lru_cache, partial
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

from lmstash.identity.code.digests import defined_in, is_installed
from lmstash.identity.encoding import Component

_FILES = ("models/utils*.py", "models/api_models.py", "api/model.py", "utils.py", "defaults.py")
"""What models are written with."""


@lru_cache(maxsize=1)
def edited() -> dict[Component, Component]:
    """Return digests of the files that are not as the installed release has them, as they were at the first call."""
    try:
        record = distribution("lm_eval").read_text("RECORD") or ""
    except PackageNotFoundError:
        record = ""
    found: dict[Component, Component] = {}
    for file in _files():
        name = file.relative_to(_folder()).as_posix()
        digest = hashlib.sha256(file.read_bytes()).digest()
        published = re.search(rf"^lm_eval/{re.escape(name)},sha256=([^,]*),", record, re.MULTILINE)
        if published is None or published[1] != base64.urlsafe_b64encode(digest).rstrip(b"=").decode():
            found[name] = digest.hex()
    return found


def put_into_modules(kind: type, by_version: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Yield what lies in the modules of a class and in those that it calls into, and is not the harness's, by place.

    Args:
        kind: A class of the harness, or one derived from it.
        by_version: Packages whose functions and classes lie there by themselves.
    """
    own = {*by_version, *sys.stdlib_module_names, "lmstash"} - {"__main__"}
    names = {each.__module__ for each in kind.__mro__ if each.__module__.partition(".")[0] == "lm_eval"}
    names |= {".".join(("lm_eval", *file.relative_to(_folder()).with_suffix("").parts)) for file in _files()}
    for name in sorted(names & sys.modules.keys()):
        for key, value in list(vars(sys.modules[name]).items()):
            if key[:2] != "__" and _is_foreign(value, own):
                yield f"{name}:{key}", value


def _is_foreign(value: Any, own: Collection[str]) -> bool:
    value = getattr(value, "__wrapped__", value) if type(value).__qualname__ == "_lru_cache_wrapper" else value
    if isinstance(value, FunctionType):
        if value.__code__.co_filename.startswith(f"{_folder()}{os.sep}"):
            return False
        root = defined_in(value).partition(".")[0]
        return root == "lm_eval" or root not in own
    if isinstance(value, partial | MethodType):
        return True
    kind = value if isinstance(value, type) else type(value)
    if not callable(value):
        return False
    return kind.__module__.partition(".")[0] not in own and not is_installed(kind.__module__)


@lru_cache(maxsize=1)
def _files() -> list[Path]:
    return sorted(file for each in _FILES for file in _folder().glob(each))


@lru_cache(maxsize=1)
def _folder() -> Path:
    return Path(str(sys.modules["lm_eval"].__file__)).parent
