"""The answers of all models behind OpenAI's interface: what is asked is found, or computed once and kept."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lmstash.adapters.openai.control import Control, read_control
from lmstash.adapters.openai.judging import is_worth_keeping
from lmstash.adapters.openai.question import Bypass, Question, read_question
from lmstash.adapters.openai.recorded import Recorded, from_answer, to_answer
from lmstash.caches.responses.asking import KIND, Asked
from lmstash.caches.responses.cache import Responses
from lmstash.caches.responses.sampling import is_sampled
from lmstash.caches.responses.shelf import MISSING
from lmstash.caches.responses.steps import CALL, Steps, fly
from lmstash.errors import InvalidArgumentError
from lmstash.events import DropReason, MissReason

if TYPE_CHECKING:
    from lmstash.stash import Stash

_MOST_MODELS = 1000


class Case:
    """One question that can be looked up. Belongs to one caller."""

    def __init__(self, question: Question, control: Control, responses: Responses, asked: Asked) -> None:
        """Take what is asked, how, and where the answers of that model are."""
        self.question = question
        self.control = control
        self.key = asked.key
        self._asked = asked
        self._responses = responses

    def kept(self) -> Recorded | None:
        """Return the answer that is kept and young enough, or None."""
        if self.control.max_age_seconds == 0:
            self._responses.store.events.miss(KIND, self.key, MissReason.REFRESH)
            return None
        recorded = from_answer(self._responses.shelf.read(self._asked))
        if recorded is None or recorded.age_seconds > self.control.max_age_seconds:
            return None
        return recorded

    def steps(self) -> Steps:
        """Compute what was not kept, or wait for whoever computes it; for `drive` and `drive_async`.

        `CALL` gives a `Recorded`. Returns the answer, and whether it was computed here.
        """
        here: list[Recorded] = []

        def compute() -> Steps:
            started = time.perf_counter()
            recorded: Recorded = yield CALL
            here.append(recorded)
            return MISSING, self.keep(recorded, time.perf_counter() - started)

        refresh = self.control.max_age_seconds < float("inf")
        responses = self._responses
        answer = yield from fly(
            responses.shelf, responses.flights, self._asked, compute, refresh, responses.wait_seconds
        )
        if here:
            return here[-1], True
        recorded = from_answer(answer)
        if recorded is None:  # kept by another program in a form of its own
            yield from compute()
            return here[-1], True
        return recorded, False

    def keep(self, recorded: Recorded, compute_seconds: float) -> bytes | None:
        """Keep an answer if it is complete and good; returns it encoded, or None."""
        if not is_worth_keeping(self.question.endpoint, self.question.streamed, recorded):
            self._responses.store.events.drop(KIND, self.key, DropReason.EMPTY)
            return None
        return self._responses.shelf.keep([self._asked], [to_answer(recorded)], [None], compute_seconds, None)[0]


class Library:
    """Finds answers in a stash. Threads and tasks may share it; processes, the stash's folder."""

    def __init__(
        self,
        stash: Stash,
        *,
        keep_sampled: bool = False,
        trust_urls: bool = False,
        by_token: bool = False,
        revision: str | None = None,
        ttl_seconds: float | None = None,
    ) -> None:
        """Take where answers are kept.

        Args:
            stash: The stash; it stays the caller's to close.
            keep_sampled: Keep sampled answers that have no seed, too, each under the number of its occurrence.
            trust_urls: What URLs in requests point at never changes; without it, such requests are not cached.
            by_token: Callers with different credentials get different answers.
            revision: What you declare of the models: a version, a date, a file's digest. A server says their names
                only; what is kept under one revision is not served under another.
            ttl_seconds: How long new answers are served; default: the stash's.
        """
        self.events = stash.store.events
        self._stash = stash
        self._keep_sampled = keep_sampled
        self._trust_urls = trust_urls
        self._by_token = by_token
        self._revision = revision
        self._ttl_seconds = ttl_seconds
        self._caches: dict[Any, Responses] = {}
        self._lock = threading.Lock()

    def consider(self, method: str, url: str, headers: Sequence[tuple[str, str]], body: bytes) -> Case | Bypass:
        """Return what can be looked up, or why the request is to be passed on.

        Args:
            method: `POST`, ...
            url: In full.
            headers: Names in lower case, and values.
            body: As it was sent.
        """
        question = read_question(method, url, headers, body, trust_urls=self._trust_urls, by_token=self._by_token)
        if isinstance(question, Bypass):
            return self._pass_on(question)
        try:
            control = read_control(headers)
        except InvalidArgumentError as error:
            self.events.warn_once("openai control", "lmstash: a request is not cached: %s", error)
            return self._pass_on(Bypass.UNSUPPORTED)
        if control.bypass:
            return self._pass_on(Bypass.NO_STORE)
        responses = self._of(question, self._keep_sampled or control.keep_sampled)
        asked = responses.asker.ask(responses.asker.look(), question.request, control.occurrence)
        if asked is not None:
            return Case(question, control, responses, asked)
        sampled = is_sampled(question.request, question.endpoint.samples)  # and counted by `ask`, as the rest is
        return Bypass.SAMPLED if sampled else Bypass.UNSUPPORTED

    def _pass_on(self, why: Bypass) -> Bypass:
        if why is not Bypass.ENDPOINT:
            self.events.miss(KIND, b"", MissReason.DISABLED if why is Bypass.NO_STORE else MissReason.UNSUPPORTED)
        if why is Bypass.URL:
            self.events.warn_once(
                "openai url",
                "lmstash: a request that points at a URL is not cached, since what is there may change; send the "
                "content as a data: URL, or say that URLs can be trusted (trust_urls=True, --trust-urls).",
            )
        return why

    def _of(self, question: Question, keep_sampled: bool) -> Responses:
        """Return the answers of a model; one object for each, since it counts occurrences."""
        name = (question.base_url, question.model, question.endpoint, keep_sampled)
        with self._lock:
            found = self._caches.pop(name, None)
            if found is None:
                options: dict[str, Any] = {} if self._ttl_seconds is None else {"ttl_seconds": self._ttl_seconds}
                found = self._stash.responses(
                    question.model,
                    base_url=question.base_url,
                    revision=self._revision,
                    harmless=sorted(question.endpoint.harmless),
                    sampled_by_default=question.endpoint.samples,
                    keep_sampled=keep_sampled,
                    keep_if=lambda _answer: True,  # `Case.keep` has judged it
                    urls="trust",  # `read_question` lets no others through
                    **options,
                )
            self._caches[name] = found  # the one used last is at the end
            while len(self._caches) > _MOST_MODELS:
                del self._caches[next(iter(self._caches))]
            return found
