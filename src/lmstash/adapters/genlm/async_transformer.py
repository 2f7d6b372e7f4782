"""`AsyncTransformer`: genlm-backend's asynchronous language model, answered by `stash.logprobs`."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import torch

from lmstash.adapters.genlm.joining import Joiner
from lmstash.adapters.genlm.token_trie import TokenTrie
from lmstash.caches.logprobs.cache import Logprobs
from lmstash.errors import InvalidArgumentError, LmstashError, UnsupportedModelError
from lmstash.stash import Stash, open_stash

try:
    from genlm.backend.llm.hf import AsyncTransformer as _Released
except ImportError as error:
    needs = "lmstash.adapters.genlm.AsyncTransformer extends genlm-backend's: pip install 'genlm-backend>=0.3'"
    raise ImportError(f"{needs} ({error})") from error

MEMORY_BYTES = 2**30
"""Room for answers where no stash is given: SmolLM2's take 2.3 KB each."""


class AsyncTransformer(_Released):
    """genlm-backend's `AsyncTransformer` (0.3.1), whose answers come out of a stash or are computed into it.

    Use it wherever genlm-backend and genlm-control take theirs; every method of theirs works, adapters included.
    Answers are float32 rows on the CPU that belong to the caller.

    What differs: KV is kept for every context, in blocks and within a budget, not only after `cache_kv`; what tasks ask
    for at the same time is computed in one batch as soon as they have all asked, with no timer (`batch_size` and
    `timeout` are accepted and bear on `add_query` alone); equal contexts are computed once, contexts that are
    beginnings of one another (as `log_probability` asks for) in one forward pass; answers outlive the process if the
    stash does. Prompt positions that nobody asked for take no memory.

    Threads may share it: one computes at a time. A change of the weights between calls is seen.

    Attributes:
        stash: where answers are kept.
    """

    def __init__(
        self,
        hf_model: Any,
        hf_tokenizer: Any,
        batch_size: int = 20,
        timeout: float = 0.02,
        *,
        stash: Stash | str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> None:
        """Wrap a model. The fingerprint is taken at the first question.

        Args:
            hf_model: a causal language model of transformers.
            hf_tokenizer: its tokenizer.
            batch_size: how many raw queries (`add_query`) are gathered.
            timeout: seconds after the last raw query until they are evaluated.
            stash: a `Stash`, or a folder to open one in; by default one of 1 GiB in memory, for this object alone.
            **options: as `stash.logprobs` takes them, for instance `kv_bytes="4GB"`.
        """
        super().__init__(hf_model, hf_tokenizer, batch_size=batch_size, timeout=timeout)
        self._owns_memory = stash is None
        if stash is None:
            stash = open_stash("memory://", capacity_bytes=MEMORY_BYTES)
        self.stash: Stash = stash if isinstance(stash, Stash) else open_stash(stash)
        self._options = options
        self._by_adapter: dict[str | None, Logprobs | UnsupportedModelError] = {}
        self._joiners: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Joiner] = weakref.WeakKeyDictionary()
        self._turn = threading.RLock()

    # --- questions ------------------------------------------------------------------------------------------------

    async def next_token_logprobs(self, token_ids: Sequence[int], lora_name: str | None = None) -> torch.Tensor:
        """Return the log-probabilities after `token_ids`, `[vocab]`, together with what other tasks ask for.

        Args:
            token_ids: at least one.
            lora_name: which adapter; None for the base model.

        Raises:
            ValueError: there is no token, too many, one that the model has not, or no such adapter.
        """
        _check(token_ids)
        return (await self._joiner().ask(lora_name, [token_ids]))[0]

    async def batch_next_token_logprobs(
        self, token_ids_list: Sequence[Sequence[int]], lora_name: str | None = None
    ) -> torch.Tensor:
        """Return the log-probabilities after each of the contexts, `[n, vocab]`, as `next_token_logprobs`."""
        for token_ids in token_ids_list:
            _check(token_ids)
        return await self._joiner().ask(lora_name, token_ids_list)

    def next_token_logprobs_sync(self, token_ids: Sequence[int], lora_name: str | None = None) -> torch.Tensor:
        """As `next_token_logprobs`, at once."""
        return self.batch_next_token_logprobs_sync([token_ids], lora_name)[0]

    def batch_next_token_logprobs_sync(
        self, token_ids_list: Sequence[Sequence[int]], lora_name: str | None = None
    ) -> torch.Tensor:
        """As `batch_next_token_logprobs`, at once."""
        for token_ids in token_ids_list:
            _check(token_ids)
        return self._answer(lora_name, token_ids_list)

    def _joiner(self) -> Joiner:
        loop = asyncio.get_running_loop()
        joiner = self._joiners.get(loop)
        if joiner is None:
            joiner = self._joiners[loop] = Joiner(self._answer)
        return joiner

    @torch.no_grad()
    def _answer(self, lora_name: str | None, contexts: Sequence[Sequence[int]]) -> torch.Tensor:
        with self._turn:
            self._activate(lora_name)
            try:
                return self._logprobs(lora_name).batch_next_token_logprobs(contexts)
            except InvalidArgumentError:
                raise  # a mistake of the one who asked
            except LmstashError as error:
                store = self.stash.store
                if store.strict:
                    raise
                store.events.warn_once(f"genlm {error}", "lmstash: genlm computes without a cache: %s", error)
                rows = [self.next_token_logprobs_uncached(list(each), lora_name) for each in contexts]
                return torch.stack(rows).cpu()

    def _logprobs(self, lora_name: str | None) -> Logprobs:
        """Return the cache of the model under an adapter, which is active now.

        Each adapter has one of its own, so that going from one to another and back forgets nothing.
        """
        found = self._by_adapter.get(lora_name)
        if found is None:
            try:
                found = self.stash.logprobs(self.model, **self._options)
            except UnsupportedModelError as error:
                found = error  # not asked again: finding out reads all weights
            self._by_adapter[lora_name] = found
        if isinstance(found, UnsupportedModelError):
            raise found
        return found

    def _caches_made(self) -> list[Logprobs]:
        return [each for each in self._by_adapter.values() if not isinstance(each, UnsupportedModelError)]

    # --- the caches -----------------------------------------------------------------------------------------------

    def clear_cache(self) -> None:
        """Forget all answers and KV that are in memory; a stash that was passed keeps what it has (`stash.prune`)."""
        super().clear_cache()
        with self._turn:
            for cache in self._caches_made():
                cache.flush()
                cache.clear()
            for name in [name for name, each in self._by_adapter.items() if isinstance(each, UnsupportedModelError)]:
                del self._by_adapter[name]  # it may have become one that can be cached
            if self._owns_memory:
                self.stash.clear()

    def clear_kv_cache(self) -> None:
        """Forget all KV; answers stay."""
        super().clear_kv_cache()
        with self._turn:
            for cache in self._caches_made():
                cache.flush()  # what it computed goes to the stash, where it is found again
                cache.clear()

    def cache_kv(self, prompt_tokens: Sequence[int], lora_name: str | None = None) -> None:
        """Compute a prompt now, so that contexts that begin with it feed only what is new.

        Not needed: KV is kept of whatever is asked.
        """
        self.next_token_logprobs_sync(prompt_tokens, lora_name)

    def reset_async_queries(self) -> None:
        """Drop what has been asked and not answered; who waits for it gets `joining.Abandoned` (theirs: hangs)."""
        super().reset_async_queries()
        for joiner in list(self._joiners.values()):
            joiner.abandon()

    def walk_cache(self, token_ids: Sequence[int], lora_name: str | None = None) -> tuple[TokenTrie, int, Any, int]:
        """Say what is in memory of a context.

        Returns:
            node: a `TokenTrie` with the answer after the matched tokens, and with their KV where that is there.
            matched: the longest beginning of `token_ids` whose answer is known.
            past: a `DynamicCache` of the longest beginning whose KV is known, short of the last token; or None.
            base: how many tokens `past` holds.
        """
        from lmstash.adapters.genlm.looking import look

        with self._turn:
            cache = self._by_adapter.get(lora_name)
            if cache is None or isinstance(cache, UnsupportedModelError) or not token_ids:
                return TokenTrie(), 0, None, 0
            self._activate(lora_name)
            return look(cache, token_ids)

    # --- adapters -------------------------------------------------------------------------------------------------

    def add_new_lora(self, lora_path: str, lora_name: str = "lora_1") -> None:
        """Load a LoRA adapter; under a name that is taken, in its place."""
        with self._turn:
            super().add_new_lora(lora_path, lora_name)

    def remove_lora(self, lora_name: str) -> None:
        """Remove a LoRA adapter, and what is in memory of it."""
        with self._turn:
            super().remove_lora(lora_name)
            cache = self._by_adapter.pop(lora_name, None)
            if cache is not None and not isinstance(cache, UnsupportedModelError):
                cache.clear()


def _check(token_ids: Sequence[int]) -> None:
    if len(token_ids) == 0:
        raise ValueError("Token ids must not be empty")
