"""`Llama`: llama-cpp-python's class, which knows who computed what is in its context."""

from __future__ import annotations

from typing import Any

import llama_cpp

from lmstash.adapters.llama_cpp.identity import Identity, library_files
from lmstash.adapters.llama_cpp.sequences import Sequences
from lmstash.identity.content.files import read_ahead


class Llama(Sequences, llama_cpp.Llama):
    """`llama_cpp.Llama` whose caches know which model asks. Every argument is the same."""

    def __init__(
        self, *arguments: Any, strict_numerics: bool = False, variant: str | None = None, **named: Any
    ) -> None:
        """Load a model: see `llama_cpp.Llama`.

        Args:
            *arguments: As there.
            strict_numerics: Make what changes only the last bits of results (device, split) part of the identity.
            variant: A name for what lmstash cannot see; part of the identity.
            **named: As there.
        """
        self._follow(Identity(self, strict_numerics=strict_numerics, variant=variant), from_start=True)
        path = arguments[0] if arguments else named.get("model_path")
        if isinstance(path, str):
            # Beside llama.cpp, which reads it too: a cache will soon ask whose states these are.
            read_ahead([path, *library_files()])
        super().__init__(*arguments, **named)


def bind(llm: Any, *, strict_numerics: bool = False, variant: str | None = None) -> Any:
    """Make a `llama_cpp.Llama` that exists already one whose caches know which model asks; returns it.

    Its class becomes one that is derived from the present one. What its context holds already is not kept.

    Args:
        llm: The object. lmstash.adapters.llama_cpp must have been imported before it was made.
        strict_numerics: See `Llama`.
        variant: See `Llama`.
    """
    if not isinstance(llm, Sequences):
        kind = type(llm)
        llm.__class__ = type(kind.__name__, (Sequences, kind), {"__module__": kind.__module__})
        llm._follow(Identity(llm, strict_numerics=strict_numerics, variant=variant), from_start=not llm.n_tokens)
        if llm.cache is not None:
            llm.set_cache(llm.cache)
    return llm


__all__ = ["Llama", "bind"]
