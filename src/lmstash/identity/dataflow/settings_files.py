"""What files of settings hold that code loads while it runs: `yaml.safe_load(open("config.yaml"))`."""

from __future__ import annotations

import functools
import json
import os
import tomllib
from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any

from lmstash.identity.dataflow.expressions import ATTRIBUTE, Node
from lmstash.identity.dataflow.lying_in import UNKNOWN

_LOADING = frozenset({"load", "loads", "safe_load", "full_load", "unsafe_load"})
_ENDINGS = {
    "json": (".json",),
    "orjson": (".json",),
    "yaml": (".yaml", ".yml", ".json"),
    "tomllib": (".toml",),
    "tomli": (".toml",),
    "toml": (".toml",),
}
"""Of the files that modules load."""
ENDINGS = tuple({ending: None for endings in _ENDINGS.values() for ending in endings})
_MOST_BYTES = 256 << 10


def endings_of(callee: Node, values: Iterable[Any]) -> tuple[str, ...]:
    """Return how the files end that a call loads; nothing where it is another one.

    Args:
        callee: What is called.
        values: What that may be.
    """
    if callee.name not in _LOADING:
        return ()
    of = [callee.parts[0].name] if callee.kind == ATTRIBUTE and callee.parts else []
    of += [str(getattr(each, "__module__", "")).partition(".")[0] for each in values if each is not UNKNOWN]
    return next((_ENDINGS[each] for each in of if each in _ENDINGS), ())


def held_in(paths: Iterable[str], endings: tuple[str, ...]) -> Iterator[Any]:
    """Yield what files hold that end so, as they are now; `UNKNOWN` for one that cannot be read. Keeps it in mind."""
    for path in paths:
        if path.endswith(endings):
            try:
                about = os.stat(path)
                yield _held(path, about.st_mtime_ns, about.st_size, about.st_ino)
            except OSError:
                continue


@functools.lru_cache(maxsize=64)
def _held(path: str, changed: int, size: int, inode: int) -> Any:
    if size > _MOST_BYTES:
        return UNKNOWN
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
        if path.endswith(".json"):
            return json.loads(text)
        return tomllib.loads(text) if path.endswith(".toml") else import_module("yaml").safe_load(text)
    except Exception:  # its library says so to the code that loads it
        return UNKNOWN
