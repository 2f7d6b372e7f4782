"""`attach`: prompts of a `llama_cpp.Llama` that exists already, restored from a stash and kept there.

This is the shorter way between store and context than through llama-cpp-python's cache interface. Measured with 1,000
tokens of SmolLM2 (23 MB; a copy of them takes 5 ms):

- A state is built in memory that is kept for that, and handed over as a sequence: 6 ms, whatever the context's size.
  As a whole state it takes 13 ms in a context of 2,048 tokens and 37 ms in one of 8,192, since llama.cpp then fills all
  of its memory with zeros first; fresh memory costs 7 ms more each time.
- It is read out (6 ms, as fast in either form) only if something of it is not kept yet. What is new is cut from it at
  once, because the context may change, and written in the background.
- Scores of models with `logits_all` are cut at once, too: with zstandard, 3 ms a megabyte.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import numpy as np

from lmstash.adapters.llama_cpp.caches import BoundCache, LlamaStashCache
from lmstash.adapters.llama_cpp.llama import bind
from lmstash.caches.states.buffers import Scratch
from lmstash.caches.states.cache import Match, States
from lmstash.caches.writing import WriteBehind
from lmstash.events import DropReason, MissReason
from lmstash.interrupts import held_here
from lmstash.store.base import Write, byte_views

_PART_BYTES = 16 << 20
_PATIENCE_SECONDS = 0.25
"""How long a completion waits for what is on its way to the store: for room there, or because it needs it."""


class Attachment:
    """A model at a stash. One thread at a time, as the model itself.

    Attributes:
        cache: The stash as a cache of llama-cpp-python's form: `len`, `cache_size`, `events`. What is still being
            written is not in it: `flush` first.
    """

    def __init__(self, llm: Any, stash: Any, *, exact: bool, strict_numerics: bool, variant: str | None) -> None:
        """Attach; `attach` says how."""
        llm = bind(llm, strict_numerics=strict_numerics, variant=variant)
        self._llm = weakref.ref(llm)  # it refers to this
        self._before = llm.cache
        self.cache = LlamaStashCache(stash)
        self.view = BoundCache(self.cache, llm)
        """The same, as this model sees it."""
        queue = getattr(stash, "writes", None)
        self._queue = queue if queue is not None else WriteBehind(self.cache.store)
        self._scratch = Scratch()
        self._pauses = 0
        llm.be_exact(exact)
        llm.set_cache(None)
        llm.attach(self)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Neither look up nor keep what is asked for within the block: for prompts that must not be kept.

        A stream that is begun within it stays unkept wherever its chunks are taken.
        """
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1

    @property
    def is_paused(self) -> bool:
        """Whether prompts are neither looked up nor kept now."""
        return self._pauses > 0

    @property
    def working_bytes(self) -> int:
        """Memory that is kept for copying: as much as the largest state so far. Not in `cache.cache_size`."""
        return self._scratch.taken_bytes

    def flush(self) -> None:
        """Return once everything that was computed so far is in the store."""
        self._queue.flush()

    def detach(self) -> None:
        """Leave the model, and give it back the cache that it had. Waits for what is being written."""
        llm = self._llm()
        if llm is not None and llm.attached is self:
            llm.attach(None)
            llm.be_exact(False)
            llm.set_cache(self._before)
        self._queue.flush()
        self._scratch.release()

    def kept_tokens(self, tokens: Sequence[int]) -> int:
        """Return how many tokens of a prompt would be restored now. Reads the index only, and counts nothing."""
        return self.view.find(list(tokens))[1] if self.view.states_now() is not None else 0

    # --- what the model calls -------------------------------------------------------------------------------------

    def restore(self, tokens: Sequence[int]) -> None:
        """Put as much of a prompt into the context as is kept, if it holds less. Never raises, unless strict."""
        llm = self._llm()
        if llm is None or self.is_paused or held_here(llm.busy):
            return  # as in `keep`
        with llm.busy, self._guarded(lambda: self.cache.events.miss("states/unknown", b"", MissReason.UNAVAILABLE)):
            self._restore(list(tokens))

    def keep(self) -> None:
        """Keep what of the context is not kept yet. Never raises, unless strict."""
        llm = self._llm()
        if llm is None or self.is_paused or llm.evaluates or held_here(llm.busy):
            return  # another thread evaluates, or a signal handler asks in the midst of what uses the same memory
        with llm.busy, self._guarded(lambda: self.cache.events.drop("states/unknown", b"", DropReason.UNAVAILABLE)):
            self._keep(llm)

    def unkept(self, chunks: Any) -> Generator[Any, None, None]:
        """Yield what `chunks` yields, each taken while paused."""
        try:
            while True:
                with self.paused():
                    try:
                        chunk = next(chunks)
                    except StopIteration:
                        return
                yield chunk
        finally:
            with self.paused():
                chunks.close()

    # --- how ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _guarded(self, count: Any) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if self.cache.strict:
                raise
            count()
            self.cache.events.warn_once(
                f"attached {type(error)}", "lmstash: a prompt could not be restored or kept: %r", error
            )

    def _restore(self, tokens: list[int]) -> None:
        llm, events = self._llm(), self.cache.events
        states = None if llm is None else self.view.states_now()
        if llm is None or states is None:
            events.miss("states/unknown", b"", MissReason.DISABLED)
            return
        match, n_tokens = self.view.find(tokens)
        if match is not None and self._is_coming(states, match, scores=llm._logits_all):
            match, n_tokens = self.view.find(tokens)
        live = llm.longest_token_prefix(llm.input_ids[: llm.n_tokens].tolist(), tokens)
        if match is None or n_tokens <= live:
            if not live:
                key = b"" if match is None else match.path.first_key
                events.miss(states.names.namespace, key, MissReason.ABSENT)
            return
        sequence = not states.memory.has_rest
        n_vocab = llm.scores.shape[1] if llm._logits_all else 0
        loaded = states.load(match, n_tokens, sequence=sequence, room=self._scratch.take, n_vocab=n_vocab)
        if loaded is None or loaded.n_tokens <= live:
            return
        if loaded.n_tokens != llm.exact_point(loaded.n_tokens, len(tokens)):
            return  # some of it was damaged, and so much is no place to go on from
        ids = np.frombuffer(match.path.data, "<u4", loaded.n_tokens)
        llm.take_in(loaded, ids, states.fingerprint.digest, sequence=sequence)

    def _is_coming(self, states: States, match: Match, *, scores: bool) -> bool:
        """Whether more of a prompt was on its way to the store, and is there now."""
        if not self._queue.waiting_bytes:
            return False
        if not (states.memory.has_rest or scores):
            path, block = match.path, match.n_blocks
            wanted = [*path.keys(block, block + 1), *path.pointers(block)]
            if block == path.n_blocks and path.tokens(block):
                wanted.append(path.tail(block))
            if not any(self._queue.waits(wanted)):
                return False
        return self._queue.flush(_PATIENCE_SECONDS)

    def _keep(self, llm: Any) -> None:
        changes = llm.changes
        states = self.view.states_now()
        n_tokens = llm.n_tokens
        if states is None or not n_tokens:
            return
        if llm.origin_now() != states.fingerprint.digest:
            self.cache.events.drop("states/unknown", b"", DropReason.MODEL_CHANGED)
            return
        ids = llm.input_ids[:n_tokens].copy()
        if (ids < 0).any():  # images
            return
        match = states.missing(ids, llm.exact_tokens(), scores=llm._logits_all)
        if match is None:
            return
        blob = llm.read_out(self._scratch.take)
        if blob is None:
            raise RuntimeError("llama.cpp does not say its state")
        writes = states.cut(match, blob, n_tokens, seconds_per_token=llm.seconds_per_token, scores=llm.take_scores())
        if llm.changes != changes:  # by a signal handler, so that these are not the values of those tokens
            self.cache.events.drop("states/unknown", b"", DropReason.UNAVAILABLE)
            return
        waits = self._queue.waits([each.key for each in writes])
        self._write([each for each, there in zip(writes, waits, strict=True) if not there], states.describe)

    def _write(self, writes: list[Write], describe: Callable[[], None]) -> None:
        """Have entries written, the last ones first, so that beginnings are the latest used; then their model."""
        left = writes
        while left:
            # In parts from the beginning on: where there is no room for all, ends are left out.
            n, n_bytes = 0, 0
            while n < len(left) and n_bytes < _PART_BYTES:
                n += 1
                n_bytes += sum(len(each) for each in byte_views(left[-n].value))
            part, left = left[-n:], left[:-n]
            taken = self._queue.offer(part, published=lambda _: describe(), patience_seconds=_PATIENCE_SECONDS)
            if taken < len(part):
                for each in left:
                    self.cache.events.drop(each.namespace, each.key, DropReason.BUSY)
                return


def attach(
    llm: Any, stash: Any, *, exact: bool = False, strict_numerics: bool = False, variant: str | None = None
) -> Attachment:
    """Restore the prompts of `llm` from a stash, and keep them there: only what is new, in the background.

        attachment = attach(llm, lmstash.open("runs/notes"))
        with attachment.paused():
            llm("a prompt that is not to be kept")
        attachment.detach()

    Works for whatever goes through `generate`: completions, chats, streams (closed early, too), and `generate` itself.
    A cache that was set on `llm` rests until `detach`.

    Args:
        llm: A `llama_cpp.Llama`, made after lmstash.adapters.llama_cpp was imported.
        stash: From `lmstash.open`, or a store.
        exact: Restore only so much that greedy text equals that of a fresh run, bit for bit. Costs evaluating up to 64
            tokens more; of recurrent and hybrid models up to `n_batch`, and prompts shorter than that are not kept.
        strict_numerics: See `Llama`.
        variant: See `Llama`.
    """
    return Attachment(llm, stash, exact=exact, strict_numerics=strict_numerics, variant=variant)
