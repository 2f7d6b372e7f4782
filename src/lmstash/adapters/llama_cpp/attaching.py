"""`attach`: prompts of a `llama_cpp.Llama` that exists already, restored from a stash and kept there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from lmstash.adapters.llama_cpp.caches import LlamaStashCache
from lmstash.adapters.llama_cpp.llama import bind


class Attachment:
    """A model at a stash. One thread at a time, as the model itself.

    Attributes:
        cache: What the model asks.
    """

    def __init__(self, llm: Any, stash: Any, *, exact: bool, strict_numerics: bool, variant: str | None) -> None:
        """Attach; `attach` says how."""
        self._llm = bind(llm, strict_numerics=strict_numerics, variant=variant)
        self._before = llm.cache
        self.cache = LlamaStashCache(stash)
        self._llm.be_exact(exact)
        self._llm.set_cache(self.cache)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Neither look up nor keep anything within the block: for prompts that must not be kept."""
        llm, cache = self._llm, self._llm.cache
        llm.cache = None
        try:
            yield
        finally:
            llm.cache = cache

    def detach(self) -> None:
        """Give the model back the cache that it had."""
        self._llm.be_exact(False)
        self._llm.set_cache(self._before)


def attach(
    llm: Any, stash: Any, *, exact: bool = False, strict_numerics: bool = False, variant: str | None = None
) -> Attachment:
    """Restore the prompts of `llm` from a stash, and keep them there: only what is new, one copy each way.

        attachment = attach(llm, lmstash.open("runs/notes"))
        with attachment.paused():
            llm("a prompt that is not to be kept")
        attachment.detach()

    Args:
        llm: A `llama_cpp.Llama`, made after lmstash.adapters.llama_cpp was imported.
        stash: From `lmstash.open`, or a store.
        exact: Restore only so much that greedy text equals that of a fresh run, bit for bit (of models whose memory is
            a plain KV cache); costs evaluating up to 64 tokens more.
        strict_numerics: See `Llama`.
        variant: See `Llama`.
    """
    return Attachment(llm, stash, exact=exact, strict_numerics=strict_numerics, variant=variant)
