"""`Logprobs`: what a model says comes next after a context, computed once for each context."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lmstash.caches.activations.publish import Publisher
from lmstash.caches.logprobs.contexts import Context
from lmstash.caches.logprobs.engine import Budgets, Engine
from lmstash.caches.logprobs.forms import check_form
from lmstash.caches.logprobs.joining import Joiner
from lmstash.caches.logprobs.language_model import LanguageModel
from lmstash.caches.logprobs.scoring import score
from lmstash.caches.logprobs.shelf import Owner
from lmstash.caches.models import describe_model
from lmstash.errors import InterruptedChangeError, InvalidArgumentError
from lmstash.forks import renew_after_fork
from lmstash.identity.models.watch import watch_model
from lmstash.identity.tokens import TokenIds, token_bytes
from lmstash.prefix.tree import PrefixTree
from lmstash.settings import parse_bytes
from lmstash.store.base import Store, default_ttl

KV_BYTES = 2**30
ROW_BYTES = 2**28
ANSWER_BYTES = 2**26


class Logprobs:
    """Next-token log-probabilities of one model over one store.

    Threads may share it: one computes at a time. Rows are float32, on the CPU, and the caller's own. Values depend, in
    their last bits, on what a context was computed beside (see `docs/exactness.md`); the first ones are kept.

    The model must not be edited while a call runs. A change between calls is seen: by a glance at each call, wholly as
    `ModelWatch.recognise` says; what a changed model computed meanwhile is dropped, and never saved.
    """

    def __init__(
        self,
        store: Store,
        model: Any,
        *,
        keep: str = "hidden",
        kv_bytes: int | str = KV_BYTES,
        row_bytes: int | str = ROW_BYTES,
        answer_bytes: int | str = ANSWER_BYTES,
        variant: str | None = None,
        strict_numerics: bool = False,
        assume_frozen: bool = False,
        salt: bytes | str | None = None,
        private: bool = False,
        ttl_seconds: float | None = None,
    ) -> None:
        """Fingerprint the model (reads every weight once) and see what it bears (some passes of eleven tokens).

        Args:
            store: Where answers are kept.
            model: A causal language model of transformers, in evaluation mode.
            keep: The form of kept answers: "hidden", "exact" or "uint16"; see `forms`.
            kv_bytes: RAM for K and V rows, half of it for the batch in use; 0 keeps none.
            row_bytes: RAM for exact rows of the contexts used last.
            answer_bytes: RAM for answers in their form.
            variant: A name for what lmstash cannot see; part of the identity. Of modules and functions of your own you
                vouch with it that a token's values depend on the tokens before it only, however many are fed at once.
                With hooks of others, a `forward` on an instance or a mode of torch's each context is computed whole
                and by itself all the same.
            strict_numerics: Make the torch version and the device part of the identity.
            assume_frozen: Do not look for weights changed in place: you vouch for them. Saves 0.1 ms a call.
            salt: A tenant's secret; entries under different salts are invisible to each other.
            private: Keep no token ids, only digests.
            ttl_seconds: How long new entries live.

        Raises:
            InvalidArgumentError: An unknown `keep`, or a budget that is no size.
            UnsupportedModelError: The model cannot be fingerprinted or run safely; says why.
        """
        self.store = store
        self._model = model
        self._keep = check_form(keep)
        sizes = [parse_bytes(each) for each in (kv_bytes, row_bytes, answer_bytes)]
        if None in sizes:
            raise InvalidArgumentError("a budget of RAM is a number of bytes, not unlimited")
        self._budgets = Budgets(*[int(each or 0) for each in sizes])
        self._salt, self._private, self._ttl_seconds = salt, private, default_ttl(ttl_seconds)
        self._watch = watch_model(model, variant=variant, strict_numerics=strict_numerics, assume_frozen=assume_frozen)
        self._lock = threading.RLock()
        renew_after_fork(self, _lock=threading.RLock)
        self._saver = _Saver()
        # Not by the finalizer: the store, which closes when the process ends, may have been opened after the first one.
        atexit.register(self._saver.flush)
        weakref.finalize(self, self._saver.end).atexit = False
        self._joiners: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Joiner] = weakref.WeakKeyDictionary()
        self._places = PrefixTree()
        """The tokens of contexts that somebody holds. They are the same whoever computes."""
        self._digest = b""
        self._parts: tuple[int, ...] = ()
        self._engine: Engine | None = None
        self._in_use = False
        """Whether the engine is at work, or was when an interrupt ended that: what it has in RAM may be half changed.
        Who comes then (a signal handler, the next call) makes another one."""
        self._now()

    # --- rows -----------------------------------------------------------------------------------------------------

    def next_token_logprobs(self, ids: TokenIds | Context) -> Tensor:
        """Return the log-probabilities of the token after `ids`, `[vocabulary]` float32.

        Args:
            ids: At least one token id, or a `Context`.

        Raises:
            InvalidArgumentError: It is empty, too long, or names a token that the model has not.
            UnsupportedModelError: The model became one that cannot be cached safely.
        """
        data = _data(ids)
        return self._rows([data])[0]

    def batch_next_token_logprobs(self, contexts: Sequence[TokenIds | Context]) -> Tensor:
        """Return the log-probabilities after each context, `[n, vocabulary]` float32.

        Equal contexts are computed once, and what several of them begin with, too. Costs about 4 us beside the copy of
        a row for a context that is hot.

        Raises:
            InvalidArgumentError, UnsupportedModelError: As `next_token_logprobs`.
        """
        return self._rows([_data(each) for each in contexts])

    async def next_token_logprobs_async(self, ids: TokenIds | Context) -> Tensor:
        """As `next_token_logprobs`, together with what other tasks of this event loop ask for at the same time."""
        data = _data(ids)
        # Here, so that what is wrong with one query fails no other. What a model takes does not hang on its weights.
        engine = self._engine
        if engine is None:
            with self._lock:
                engine = self._now()
        engine.check(data)
        loop = asyncio.get_running_loop()
        joiner = self._joiners.get(loop)
        if joiner is None:
            joiner = self._joiners[loop] = Joiner(self._rows)
        return await joiner.ask(data)

    async def batch_next_token_logprobs_async(self, contexts: Sequence[TokenIds | Context]) -> Tensor:
        """As `batch_next_token_logprobs`, together with what other tasks of this event loop ask for."""
        if not contexts:
            return self._rows([])
        return torch.stack(await asyncio.gather(*map(self.next_token_logprobs_async, contexts)))

    def score(self, ids: TokenIds | Context) -> Tensor:
        """Return log p(token i + 1 | tokens up to i), `[n_tokens - 1]` float32, from one forward pass.

        Raises:
            InvalidArgumentError, UnsupportedModelError: As `next_token_logprobs`.
        """
        data = _data(ids)

        def work(engine: Engine) -> Tensor:
            engine.check(data)
            return score(engine, data)

        return self._with_engine(work)

    def start(self, ids: TokenIds) -> Context:
        """Return a context, to be extended and forked.

        Raises:
            InvalidArgumentError: `ids` are no token ids.
        """
        try:
            return Context(self, self._places.start(ids))
        except InterruptedChangeError:  # a signal handler's contexts are apart from then on
            self._places = PrefixTree()
            return Context(self, self._places.start(ids))

    # --- the cache itself -----------------------------------------------------------------------------------------

    @property
    def fingerprint(self) -> str:
        """Who computes, as 64 hexadecimal digits; the first 16 name the namespace of the entries."""
        return self._digest.hex()

    @property
    def held_bytes(self) -> int:
        """RAM taken for KV, rows and answers."""
        engine = self._engine
        return 0 if engine is None else engine.held_bytes

    @property
    def fed_tokens(self) -> int:
        """Tokens that went through the model since it was last fingerprinted, padding not counted."""
        engine = self._engine
        return 0 if engine is None else engine.feeder.fed_tokens

    @property
    def answer_bytes(self) -> int:
        """Bytes of one kept answer in its form."""
        engine = self._engine
        return 0 if engine is None else engine.form.n_bytes

    def clear(self) -> None:
        """Forget what is in RAM; what is in the store stays."""
        with self._lock:
            self._saver.flush()
            self._let_go()

    def flush(self) -> None:
        """Save what was computed and is held back (see `Publisher`); does nothing in a forked child."""
        with self._lock:
            self._saver.flush()

    def __repr__(self) -> str:
        """One line."""
        name = self._engine.model.name if self._engine else type(self._model).__name__
        return f"<Logprobs of {name} ({self.fingerprint[:16]}) on {self.store!r}>"

    def _rows(self, datas: Sequence[bytes]) -> Tensor:
        return self._with_engine(lambda engine: engine.rows(datas))

    def _with_engine(self, work: Callable[[Engine], Tensor]) -> Tensor:
        """Return what `work` does with what is known of the model now."""
        with self._lock:
            engine = self._now()
            self._in_use = True
            try:
                out = work(engine)
            except InvalidArgumentError:  # found before anything was changed
                self._in_use = False
                raise
            self._in_use = False
            return out

    def _let_go(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None and not self._in_use:
            engine.let_go()
        self._in_use = False

    def _now(self) -> Engine:
        """Return what is known of the model as it is now: nothing, if it has changed. The lock is held."""
        found, parts = self._watch.recognise(), self._watch.parts
        engine = self._engine
        told = found.digest == self._digest and parts == self._parts
        known = engine is not None and told and engine.model.device == engine.device
        if engine is not None and known and not self._in_use:
            return engine
        if found.digest == self._digest:
            self._saver.flush()
        self._saver.drop()
        self._let_go()  # what it holds goes first
        model = LanguageModel(self._model, unknown_code=self._watch.runs_unknown_code())
        owner = Owner(self.store, found.digest, model.name, self._salt, self._private, self._ttl_seconds)
        watch, store = self._watch, self.store  # not `self`, which must be free to go
        publisher = Publisher(
            store,
            lambda: watch.unchanged(found),
            replace=False,
            on_saved=lambda: describe_model(store, found, model.name),
        )
        self._engine = Engine(model, owner, publisher, keep=self._keep, budgets=self._budgets)
        self._digest, self._parts = found.digest, parts
        self._saver.publisher = publisher
        return self._engine


class _Saver:
    """Saves what is held back when the cache goes, or the process ends."""

    def __init__(self) -> None:
        self.publisher: Publisher | None = None
        self._process = os.getpid()

    def flush(self) -> None:
        """Save it, in the process that computed it."""
        if self.publisher is not None and os.getpid() == self._process:
            self.publisher.flush()

    def end(self) -> None:
        """Save it: nobody will ask for anything any more."""
        atexit.unregister(self.flush)
        self.flush()

    def drop(self) -> None:
        """Count it as dropped: the model is another one now."""
        publisher, self.publisher = self.publisher, None
        if publisher is not None:
            publisher.changed = True
            publisher.flush()


def _data(ids: TokenIds | Context) -> bytes:
    return ids.ids.tobytes() if isinstance(ids, Context) else token_bytes(ids)
