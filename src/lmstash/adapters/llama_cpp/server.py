"""llama-cpp-python's server, whose models keep their states in one cache of lmstash.

    python -m lmstash.adapters.llama_cpp.server --model model.gguf --cache true --cache_type disk

takes every argument of `python -m llama_cpp.server`. There, each model makes a cache of its own when it is loaded,
which is lost when another model is asked for; here all of them share one, and each finds its own states in it.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lmstash.adapters.llama_cpp.caches import LlamaDiskCache, LlamaRAMCache, StoreCache
from lmstash.adapters.llama_cpp.identity import library_files
from lmstash.adapters.llama_cpp.llama import bind
from lmstash.errors import MissingDependencyError
from lmstash.identity.content.files import read_ahead

if TYPE_CHECKING:
    from fastapi import FastAPI


def create_app(*arguments: Any, cache: StoreCache | None = None, **named: Any) -> FastAPI:
    """Return the application that `llama_cpp.server.app.create_app` makes, with states kept in a cache of ours.

    Args:
        *arguments: As there: settings, or server_settings and model_settings.
        cache: Where every model keeps its states. By default as the settings of each say (`cache`, `cache_type`,
            `cache_size`): those who say the same share one.
        **named: As there.

    Raises:
        MissingDependencyError: What the server needs is not installed.
    """
    app = _part_of_server("app")
    caches = _Caches(cache)
    theirs = app.LlamaProxy

    class Proxy(theirs):
        """Loads models that know our caches."""

        @staticmethod
        def load_llama_from_model_settings(settings: Any) -> Any:
            if os.path.isfile(settings.model):
                read_ahead([settings.model, *library_files()])  # beside llama.cpp, which reads it too
            llm = theirs.load_llama_from_model_settings(settings.model_copy(update={"cache": False}))
            bind(llm).set_cache(caches.of(settings))
            return llm

    app.LlamaProxy = Proxy  # which `create_app` makes one of
    try:
        return app.create_app(*arguments, **named)
    finally:
        app.LlamaProxy = theirs


class _Caches:
    """One cache for all models, or one for each way in which they ask for one."""

    def __init__(self, given: StoreCache | None) -> None:
        self._given = given
        self._made: dict[tuple[str, int], StoreCache] = {}

    def of(self, settings: Any) -> StoreCache | None:
        if self._given is not None or not settings.cache:
            return self._given
        asked = settings.cache_type, settings.cache_size
        if asked not in self._made:
            kind = LlamaDiskCache if settings.cache_type == "disk" else LlamaRAMCache
            self._made[asked] = kind(capacity_bytes=settings.cache_size)
        return self._made[asked]


def main() -> None:
    """Run `python -m llama_cpp.server` with our `create_app`."""
    command = _part_of_server("__main__")
    command.create_app = create_app
    command.main()


def _part_of_server(name: str) -> Any:
    try:
        return import_module(f"llama_cpp.server.{name}")
    except ModuleNotFoundError as error:
        raise MissingDependencyError("llama-cpp-python[server]", "llama-server") from error


if __name__ == "__main__":
    main()
