"""The sequence that is in a context of llama.cpp: who computed it, and copies of its state."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from llama_cpp import llama_cpp as _c

from lmstash.adapters.llama_cpp.caches import BoundCache
from lmstash.adapters.llama_cpp.copying import holds_start, put_in, read_out
from lmstash.adapters.llama_cpp.exactness import Exactness
from lmstash.adapters.llama_cpp.following import Following
from lmstash.adapters.llama_cpp.identity import Identity
from lmstash.adapters.llama_cpp.rows import Rows, taking
from lmstash.adapters.llama_cpp.state import LlamaState
from lmstash.caches.states.buffers import buffer
from lmstash.caches.states.cache import Loaded
from lmstash.caches.states.scores import Take
from lmstash.errors import UnsupportedModelError
from lmstash.events import DropReason

if TYPE_CHECKING:
    from lmstash.adapters.llama_cpp.attaching import Attachment


class Sequences(Following):
    """Mixed into `llama_cpp.Llama`: follows the sequence in the context, and copies states once.

    A state is offered to a cache only if every token in it was evaluated by `eval` under the identity that the object
    has now: not after an adapter was changed in the middle, not with images in it, not after the memory was edited.
    """

    _exactness: Exactness | None
    """In exact mode: the batches of a fresh run."""
    _exact: int
    """Tokens from the start on whose rows are as in any run."""
    _rows: Rows
    """Of the scores, where all of them are asked for."""
    _eval_seconds: float
    _eval_tokens: int
    attached: Attachment | None
    """Restores and keeps prompts, beside or instead of a cache."""
    _turn: int
    """Counts calls of `generate`."""
    busy: threading.RLock
    """Held while the context changes, or is read out. A signal handler of the thread that has it comes in."""
    evaluates: bool
    """Whether a thread that is in `busy` computes, which takes long."""
    changes: int
    """Counts changes of the context: who does something over some lines looks whether a handler came between."""

    def _follow(self, identity: Identity, *, from_start: bool) -> None:
        self._identity = identity
        self._followed, self._origin, self._edits = 0 if from_start else -1, None, -1
        self._exactness, self._exact = None, 0
        self._rows = Rows()
        self._eval_seconds, self._eval_tokens = 0.0, 0
        self.attached, self._turn, self.evaluates = None, 0, False
        self.busy, self.changes = threading.RLock(), 0

    def set_cache(self, cache: Any) -> None:
        """Use a cache: see `llama_cpp.Llama.set_cache`. One of ours is bound to this object."""
        bind_to = getattr(cache, "bound_to", None)
        if bind_to is None:
            self._identity.recall(None)
        super().set_cache(cache if bind_to is None else bind_to(self))  # pyright: ignore[reportAttributeAccessIssue]

    def eval(self, tokens: Sequence[int]) -> None:
        """Evaluate tokens: see `llama_cpp.Llama.eval`. Of a model whose state cannot be cut, it is kept on the way."""
        here: Any = self
        done = 0
        attached = self.attached
        cache = here.cache if attached is None else None if attached.is_paused else attached.view
        if len(tokens) > 1 and isinstance(cache, BoundCache):
            before = here.n_tokens
            ids = [*here.input_ids[:before].tolist(), *tokens]
            for stop in cache.stops(ids, before):
                self._eval(tokens[done : stop - before])
                done = stop - before
                if attached is None:
                    self._keep(ids[:stop])
                else:
                    attached.keep()
        if self._exactness is not None:
            for cut in self._exactness.parts(here.n_tokens, len(tokens) - done):
                self._eval(tokens[done : done + cut])
                done += cut
        self._eval(tokens[done:] if done else tokens)

    def _keep(self, ids: Sequence[int]) -> None:
        """Keep the state after some tokens of a prompt. That it cannot be saved must not end the completion."""
        here: Any = self
        try:
            here.cache[ids] = self.save_state()
        except (RuntimeError, MemoryError):
            if here.cache.strict:
                raise
            here.cache.events.drop("states/unknown", b"", DropReason.UNAVAILABLE)

    def _eval(self, tokens: Sequence[int]) -> None:
        here: Any = self
        before = here.n_tokens
        if before == 0:
            self._start()
        exact = before if before <= self._exact else -1
        self._exact = min(self._exact, before)
        known = 0 <= before <= self._followed and self._is_undisturbed()
        if before != self._followed and known and before and not self.can_trim():
            known = False  # what llama.cpp left of a window or a recurrent state is not that of the tokens before
        self._followed = -1  # should it fail in the middle
        self.changes += 1
        changes = self.changes
        started = time.perf_counter()
        with self.busy:
            self.evaluates = True
            try:
                super().eval(tokens)  # pyright: ignore[reportAttributeAccessIssue]
            finally:
                self.evaluates = False
        self._eval_seconds += time.perf_counter() - started
        self._eval_tokens += len(tokens)
        if here._logits_all:
            self._rows.note(here.scores, before, here.n_tokens)
        if self.changes != changes:  # a handler evaluated in the midst of it: nobody knows what the context holds
            self._exact = 0
            return
        if known:
            self._followed = here.n_tokens
        if self._exactness is not None and exact == before:
            self._exact = self._exactness.reached(before, len(tokens))

    def save_state(self) -> LlamaState:
        """Return the state of the sequence: see `llama_cpp.Llama.save_state`. Costs one copy of its bytes.

        Raises:
            RuntimeError: llama.cpp could not say it.
        """
        here: Any = self
        changes = self.changes
        blob = self.read_out(buffer)
        if blob is None:
            raise RuntimeError("Failed to copy llama state data")
        rows = min(here.n_tokens, here.scores.shape[0])
        state = LlamaState(
            here.input_ids.copy(),
            here._scores.copy() if here._logits_all else None,
            here.n_tokens,
            blob,
            blob.nbytes,
            here._seed,
            origin=self.origin_now(),
            shape=(rows, here.scores.shape[1]),
            seconds_per_token=self.seconds_per_token,
            sums=self._rows.sums[: here.n_tokens],
        )
        if self.changes != changes:  # by a signal handler
            state.origin = None
        return state

    def load_state(self, state: Any) -> None:
        """Put a state into the context: see `llama_cpp.Llama.load_state`.

        Raises:
            KeyError: The state was kept in a cache and is gone; nothing was changed.
            RuntimeError: llama.cpp does not take the state; the object is as it was before.
        """
        here: Any = self
        ours = isinstance(state, LlamaState)
        is_kept = ours and state.is_kept
        sequence = is_kept and not self._has_rest()
        if is_kept:
            loaded = state.read(sequence)
            blob, scores = loaded.blob, loaded.scores
        elif ours:
            blob, scores = state.blob, state.scores if state.has_scores else None
        else:
            blob = np.frombuffer(state.llama_state, np.uint8)
            scores = state.scores if here._logits_all else None
        n_tokens, ids = int(state.n_tokens), np.asarray(state.input_ids)
        if not 0 <= n_tokens <= min(len(ids), len(here.input_ids)):
            raise RuntimeError(f"Failed to set llama state data: {n_tokens} tokens do not fit into this context")
        if not self._takes(scores, n_tokens):
            raise RuntimeError("Failed to set llama state data: it has no scores for logits_all=True")
        before = None if is_kept else self.read_out(buffer)
        held, followed = here.n_tokens, self._followed
        change = self._set(blob, n_tokens, sequence=sequence)
        if not change:
            if before is not None and self._set(before, held):
                here.n_tokens, self._followed = held, followed
            raise (
                KeyError("the state is not taken") if before is None else RuntimeError("Failed to set llama state data")
            )
        sums = state.sums if ours and not is_kept else ()
        origin = state.origin if ours else None
        if not self._restored(ids[:n_tokens], scores, sums, origin, is_kept=is_kept, change=change):
            raise KeyError("a signal handler used the model meanwhile")
        here._seed = state.seed

    def take_in(self, loaded: Loaded, ids: np.ndarray, origin: bytes, *, sequence: bool) -> bool:
        """Put a state that was kept into the context; returns whether that was done.

        If llama.cpp does not take it, the context is empty; if scores are needed that it lacks, all is as it was.

        Args:
            loaded: The state.
            ids: `[n_tokens]`: its tokens.
            origin: Digest of who computed it.
            sequence: It is of the sequence form: then llama.cpp neither fills all of its memory with zeros first, nor
                writes over what left a window.
        """
        if not self._takes(loaded.scores, len(ids)):
            return False
        change = self._set(loaded.blob, len(ids), sequence=sequence)
        if not change:
            return False
        return self._restored(ids, loaded.scores, (), origin, is_kept=True, change=change)

    def _takes(self, scores: np.ndarray | None, n_tokens: int) -> bool:
        """Whether these are the scores of so many tokens, or none are needed."""
        here: Any = self
        wanted = (n_tokens, here.scores.shape[1])
        return not here._logits_all or (scores is not None and scores.shape == wanted and n_tokens <= len(here.scores))

    def _restored(
        self,
        ids: np.ndarray,
        scores: np.ndarray | None,
        sums: Sequence[int | None],
        origin: bytes | None,
        *,
        is_kept: bool,
        change: int,
    ) -> bool:
        """Note what was put into the context. Scores that were kept are as llama.cpp gave them, others have `sums`."""
        here: Any = self
        n_tokens, rows = len(ids), Rows(sums)
        if here._logits_all and self.changes == change:
            here.scores[:n_tokens] = scores
            if is_kept:
                rows.note(here.scores, 0, n_tokens)
        self._start()
        if self.changes != change:  # a signal handler has used the model since: the context is what it left
            return False
        # From here on nothing is called, so nobody comes between.
        here.input_ids[:n_tokens] = ids
        self._rows = rows
        self._followed = n_tokens if origin is not None and origin == self._origin else -1
        self._exact = n_tokens if is_kept and self._followed == n_tokens else 0
        here.n_tokens, here._requires_eval = n_tokens, True
        return True

    def _emptied(self) -> None:
        here: Any = self
        here.n_tokens, here._requires_eval, self._followed = 0, True, -1

    def take_scores(self) -> Take | None:
        """Return what gives the scores of the context that are as llama.cpp gave them; None where few are computed."""
        here: Any = self
        return taking(here.scores, self._rows.sums[: here.n_tokens]) if here._logits_all else None

    def read_out(self, room: Callable[[int], np.ndarray]) -> np.ndarray | None:
        """Return the state as it is now, `[n_bytes]` uint8, in the memory that `room` gives; None when it cannot be."""
        return read_out(self._ctx.ctx, room)  # pyright: ignore[reportAttributeAccessIssue]

    def generate(self, *arguments: Any, **named: Any) -> Generator[int, Sequence[int] | None, None]:
        """Generate tokens: see `llama_cpp.Llama.generate`. What other adapters computed is not continued."""
        here: Any = self
        tokens = named["tokens"] if "tokens" in named else arguments[0]
        reset = named.get("reset", True)
        if reset and here.n_tokens:
            stale = here.n_tokens <= self._followed and not self._is_undisturbed()
            if stale or not (self.can_trim() or self.is_begun_by(tokens)):
                here.reset()
            else:
                self.trim_to_exact(tokens)
        with self.busy:
            self._turn += 1
        turn, attached = self._turn, self.attached if reset else None
        if attached is not None:
            attached.restore(tokens)
        try:
            yield from super().generate(*arguments, **named)  # pyright: ignore[reportAttributeAccessIssue]
        except GeneratorExit:  # the last token was wanted, or a stream is closed early
            self._ended(turn, attached)
            raise
        self._ended(turn, attached)

    def _ended(self, turn: int, attached: Attachment | None) -> None:
        # An abandoned generator may be closed much later, by any thread: what the context holds is another's by then.
        if attached is not None and attached is self.attached and turn == self._turn:
            attached.keep()

    def _create_completion(self, *arguments: Any, **named: Any) -> Any:
        # What is asked for while caching is paused stays unkept, even if its chunks are taken later.
        chunks = super()._create_completion(*arguments, **named)  # pyright: ignore[reportAttributeAccessIssue]
        attached = self.attached
        return attached.unkept(chunks) if attached is not None and attached.is_paused else chunks

    def attach(self, attached: Attachment | None) -> None:
        """Have prompts restored and kept by `attached`; None ends it."""
        self.attached = attached

    def trim_to_exact(self, tokens: Sequence[int]) -> None:
        """In exact mode, give up what a fresh run of `tokens` would compute in another way."""
        here: Any = self
        exactness = self._exactness
        if exactness is None or not here.n_tokens:
            return
        shared = here.longest_token_prefix(here.input_ids[: here.n_tokens].tolist(), list(tokens))
        keep = exactness.point(min(shared, self._exact), len(tokens))
        if keep < here.n_tokens:
            trims = keep > 0 and self.can_trim()
            here.n_tokens, here._requires_eval = keep if trims else 0, True  # first: it may hold more, not less
            if not (trims and here._ctx.kv_cache_seq_rm(-1, keep, -1)):
                here.reset()

    def is_begun_by(self, tokens: Sequence[int]) -> bool:
        """Whether what is in the context is a beginning of `tokens`, with at least one left to evaluate."""
        here: Any = self
        n_tokens = here.n_tokens
        return n_tokens < len(tokens) and here.input_ids[:n_tokens].tolist() == list(tokens[:n_tokens])

    def can_trim(self) -> bool:
        """Whether the state of fewer tokens is that of what is in the context without the last ones."""
        here: Any = self
        if self._has_rest():
            return False
        if not _c.llama_model_n_swa(here._model.model):
            return True
        return holds_start(here._ctx.ctx)

    def _has_rest(self) -> bool:
        try:
            return self._identity.memory().has_rest
        except UnsupportedModelError:
            return False

    def be_exact(self, exact: bool) -> None:
        """Continue prompts only where every bit is as in a fresh run, and keep only what is so; or do not care."""
        here: Any = self
        settings = self._identity.context.settings
        self._exactness = Exactness.of(settings, here.n_batch, whole=self._has_rest()) if exact else None
        self._identity.mode = "exact" if exact else None
        self._exact = 0

    def exact_tokens(self) -> int | None:
        """Return how many tokens of the context are as in any run; None when nobody cares."""
        return None if self._exactness is None else min(self._exact, self._followed)

    @property
    def seconds_per_token(self) -> float:
        """What evaluating a token took, on average; 0 when none was."""
        return self._eval_seconds / self._eval_tokens if self._eval_tokens else 0.0

    def exact_point(self, most: int, n_tokens: int) -> int:
        """Return where a prompt of `n_tokens` may be continued, at most at `most`."""
        return most if self._exactness is None else self._exactness.point(most, n_tokens)

    def exact_stop(self, n_tokens: int) -> int:
        """Return the last place, at most `n_tokens`, at which a state may be kept on the way through a prompt."""
        return n_tokens if self._exactness is None else self._exactness.whole(n_tokens)

    def _set(self, blob: np.ndarray, n_tokens: int, *, sequence: bool = False) -> int:
        """Put a state in; returns the number of this change, 0 where it was not done.

        Whatever comes of it, the object says that its context is empty till `_restored`.
        """
        context = self._ctx.ctx  # pyright: ignore[reportAttributeAccessIssue]
        with self.busy:
            self._emptied()  # what is interrupted leaves nothing that the next prompt goes on from
            self.changes += 1
            change = self.changes
            done = put_in(context, blob, n_tokens, sequence=sequence)
            if self.changes != change:  # a signal handler came in the midst of it
                self._emptied()
            return change if done and self.changes == change else 0
