"""llama-cpp-python's classes over lmstash: change the import, and states are shared, bounded, safe, and kept.

    from lmstash.adapters.llama_cpp import Llama, LlamaDiskCache

    llm = Llama(model_path="model.gguf")
    llm.set_cache(LlamaDiskCache("folder"))

Importing this loads llama-cpp-python when one of its names is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmstash.errors import MissingDependencyError

if TYPE_CHECKING:
    from lmstash.adapters.llama_cpp.attaching import Attachment, attach
    from lmstash.adapters.llama_cpp.base import BaseLlamaCache
    from lmstash.adapters.llama_cpp.caches import (
        LlamaCache,
        LlamaDiskCache,
        LlamaRAMCache,
        LlamaStashCache,
    )
    from lmstash.adapters.llama_cpp.importing import import_disk_cache
    from lmstash.adapters.llama_cpp.llama import Llama, bind
    from lmstash.adapters.llama_cpp.state import LlamaState

_WHERE = {
    "Attachment": "attaching",
    "attach": "attaching",
    "Llama": "llama",
    "bind": "llama",
    "LlamaState": "state",
    "BaseLlamaCache": "base",
    "LlamaCache": "caches",
    "LlamaDiskCache": "caches",
    "LlamaRAMCache": "caches",
    "LlamaStashCache": "caches",
    "import_disk_cache": "importing",
}

__all__ = [
    "Attachment",
    "BaseLlamaCache",
    "Llama",
    "LlamaCache",
    "LlamaDiskCache",
    "LlamaRAMCache",
    "LlamaStashCache",
    "LlamaState",
    "attach",
    "bind",
    "import_disk_cache",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    try:
        return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name != "llama_cpp":
            raise
        raise MissingDependencyError("llama-cpp-python", "llama") from error
