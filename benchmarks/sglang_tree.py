"""SGLang's Python radix tree, from its released wheel, without the GPU stack that `import sglang` asks for.

The files that make the tree are executed as released, unmodified. Whatever else they import from sglang is stood in for
by empty classes: the tree itself uses none of it without a GPU pool and with KV events off (its defaults).
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

AS_RELEASED = {
    "sglang.srt.mem_cache.radix_cache",
    "sglang.srt.mem_cache.base_prefix_cache",
    "sglang.srt.mem_cache.cache_init_params",
    "sglang.srt.mem_cache.events",
    "sglang.srt.mem_cache.evict_policy",
    "sglang.srt.mem_cache.utils",
}


def load() -> Any:
    """Return the module `sglang.srt.mem_cache.radix_cache`."""
    place = Path(next(iter(importlib.machinery.PathFinder.find_spec("sglang").submodule_search_locations)))  # type: ignore[union-attr]
    sys.meta_path.insert(0, _Finder(place))
    return importlib.import_module("sglang.srt.mem_cache.radix_cache")


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, place: Path) -> None:
        self._place = place

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name.partition(".")[0] != "sglang":
            return None
        if name in AS_RELEASED:
            file = self._place.joinpath(*name.split(".")[1:]).with_suffix(".py")
            return importlib.util.spec_from_file_location(name, file)
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Stub(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


class _Stub(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})
