"""The answers of all models behind OpenAI's interface: what is asked is found, or computed once and kept."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lmstash.adapters.openai.control import Control, read_control
from lmstash.adapters.openai.judging import is_worth_keeping
from lmstash.adapters.openai.question import Bypass, Question, read_question
from lmstash.adapters.openai.recorded import Recorded, from_answer, to_answer
from lmstash.caches.responses.answers.shelf import MISSING
from lmstash.caches.responses.cache import Responses
from lmstash.caches.responses.requests.asking import KIND, Asked
from lmstash.caches.responses.requests.encoding import HARMLESS, read_request
from lmstash.caches.responses.requests.sampling import is_sampled, seed_of
from lmstash.caches.responses.single_flight.steps import CALL, Steps, fly
from lmstash.errors import InvalidArgumentError
from lmstash.events import DropReason, MissReason

if TYPE_CHECKING:
    from lmstash.stash import Stash

_MOST_MODELS = 1000


class Case:
    """One question that can be looked up. Belongs to one caller."""

    def __init__(
        self, question: Question, control: Control, responses: Responses, asked: Asked, ttl_seconds: float | None
    ) -> None:
        """Take what is asked, how, where the answers of that model are, and how long a new one is served."""
        self.question = question
        self.control = control
        self.key = asked.key
        self._asked = asked
        self._responses = responses
        self._ttl_seconds = ttl_seconds
        self._is_numbered_here = control.occurrence is None

    def kept(self) -> Recorded | None:
        """Return the answer that is kept and young enough, or None."""
        recorded = None
        if self.control.max_age_seconds == 0:
            self._responses.store.events.miss(KIND, self.key, MissReason.REFRESH)
        else:
            recorded = from_answer(self._responses.shelf.read(self._asked))
        if recorded is not None and recorded.age_seconds <= self.control.max_age_seconds:
            return recorded
        if self.control.only_kept:
            self.give_back()
        return None

    def steps(self, wait_seconds: float | None = None) -> Steps:
        """Compute what was not kept, or wait for whoever computes it; for `drive` and `drive_async`.

        `CALL` gives a `Recorded`. Returns the answer, and whether it was computed here.

        Args:
            wait_seconds: How long to wait for another one; default, and at most: the library's.
        """
        here: list[Recorded] = []

        def compute() -> Steps:
            started = time.perf_counter()
            recorded: Recorded = yield CALL
            here.append(recorded)
            return MISSING, self.keep(recorded, time.perf_counter() - started)

        refresh = self.control.max_age_seconds < float("inf")
        responses = self._responses
        longest = responses.wait_seconds if wait_seconds is None else min(wait_seconds, responses.wait_seconds)
        try:
            answer = yield from fly(responses.shelf, responses.flights, self._asked, compute, refresh, longest)
            if here:
                return here[-1], True
            recorded = from_answer(answer)
            if recorded is None:  # kept by another program in a form of its own
                yield from compute()
                return here[-1], True
            return recorded, False
        except BaseException:
            self.give_back()
            raise

    def keep(self, recorded: Recorded, compute_seconds: float) -> bytes | None:
        """Keep an answer if it is complete and good; returns it encoded, or None."""
        encoded = None
        if is_worth_keeping(self.question.endpoint, self.question.streamed, recorded):
            shelf = self._responses.shelf
            encoded = shelf.keep([self._asked], [to_answer(recorded)], [None], compute_seconds, self._ttl_seconds)[0]
        else:
            self._responses.store.events.drop(KIND, self.key, DropReason.EMPTY)
        if encoded is None:
            self.give_back()
        self._is_numbered_here = False
        return encoded

    def give_back(self) -> None:
        """Let another request have the number of this one's occurrence: nothing is kept under it. Works once."""
        if self._is_numbered_here:
            self._is_numbered_here = False
            self._responses.asker.give_back([self._asked])


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
        wait_seconds: float | None = None,
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
            wait_seconds: How long to wait for another one who asks the same, before asking too; default: that of
                `stash.responses`.
        """
        self.events = stash.store.events
        self._stash = stash
        self._keep_sampled = keep_sampled
        self._trust_urls = trust_urls
        self._by_token = by_token
        self._revision = revision
        self._ttl_seconds = stash.ttl_seconds if ttl_seconds is None else ttl_seconds
        self._options: dict[str, Any] = {} if wait_seconds is None else {"wait_seconds": wait_seconds}
        self._caches: OrderedDict[Any, Responses] = OrderedDict()
        self._lock = threading.RLock()  # a signal handler may ask in the middle of it

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
        keep_sampled = self._keep_sampled or control.keep_sampled
        if question.drawn and not keep_sampled:
            self.events.miss(KIND, b"", MissReason.SAMPLED)
            return Bypass.SAMPLED
        if question.drawn and not _is_counted(question):
            return self._pass_on(Bypass.UNSUPPORTED)
        responses = self._of(question, keep_sampled)
        asked = responses.asker.ask(responses.asker.look(), question.request, control.occurrence)
        if asked is not None:
            longest = [each for each in (self._ttl_seconds, question.held_seconds) if each is not None]
            return Case(question, control, responses, asked, min(longest, default=None))
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
        """Return the answers of a model; one object for each, since to make one costs more than a look-up."""
        name = (question.base_url, question.model, question.endpoint, keep_sampled)
        with self._lock:
            found = self._caches.get(name)
            if found is None:
                made = self._stash.responses(
                    question.model,
                    base_url=question.base_url,
                    revision=self._revision,
                    harmless=sorted(question.endpoint.harmless),
                    sampled_by_default=question.endpoint.samples,
                    keep_sampled=keep_sampled,
                    keep_if=lambda _answer: True,  # `Case.keep` has judged it
                    urls="trust",  # `read_question` lets no others through
                    **self._options,  # and a `Case` knows how long its answer is served
                )
                found = self._caches.setdefault(name, made)  # a signal handler may have made one meanwhile
            with contextlib.suppress(KeyError):  # or may have put it out
                self._caches.move_to_end(name)
            while len(self._caches) > _MOST_MODELS:
                self._caches.popitem(last=False)
            return found


def _is_counted(question: Question) -> bool:
    """Whether the answers to a request that is drawn are told apart by their number.

    They are not where the request says somewhere what such servers do not read, and other hosts do: that it is greedy
    (`"options": {"temperature": 0}`), or a seed.
    """
    try:
        said = read_request(question.request, HARMLESS | question.endpoint.harmless, "trust").arguments
    except Exception:  # it is nested too deeply, say: what cannot be read cannot be named
        return False
    return is_sampled(said, True) and seed_of(said) is None
