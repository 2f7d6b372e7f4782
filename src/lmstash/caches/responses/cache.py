"""`Responses`: what a model answered to requests, each computed once."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from lmstash.caches.responses.answers.records import is_kept
from lmstash.caches.responses.answers.shelf import MISSING, Shelf, Tags
from lmstash.caches.responses.requests.asking import KIND, Asked, Asker, Namer, namespace_of
from lmstash.caches.responses.requests.counting import counts_of
from lmstash.caches.responses.requests.given import listed, one_for_each
from lmstash.caches.responses.requests.urls import POLICIES
from lmstash.caches.responses.single_flight.flights import flights_of
from lmstash.caches.responses.single_flight.steps import CALL, Aside, Steps, drive, drive_async, fly
from lmstash.caches.responses.who import who_is
from lmstash.errors import InvalidArgumentError
from lmstash.events import MissReason
from lmstash.store.base import Removed, Store, check_ttl

if TYPE_CHECKING:
    from lmstash.caches.responses.answers.finding import Conditions, Found


class Responses:
    """Answers of one model over one store. Threads, tasks and processes may share it.

    A kept answer is served only to the same request, of the same types, to the same model; it is the caller's own
    copy. Of all who ask the same at one time, one computes. Every fault is a miss: then the host's function is called,
    as if there were no cache; what it raises goes to the caller and is never kept.
    """

    def __init__(
        self,
        store: Store,
        model: Any,
        *,
        base_url: str | None = None,
        revision: str | None = None,
        variant: str | None = None,
        strict_numerics: bool = False,
        assume_frozen: bool = False,
        harmless: Sequence[str] = (),
        sampled_by_default: bool | None = None,
        keep_sampled: bool = False,
        keep_if: Callable[[Any], bool] = is_kept,
        compress: bool = False,
        wait_seconds: float = 600.0,
        urls: str = "refuse",
        salt: bytes | str | None = None,
        private: bool = False,
        ttl_seconds: float | None = None,
    ) -> None:
        """Name who answers; nothing is read or written yet.

        Args:
            store: Where answers are kept.
            model: A name such as `provider/model`; a torch module, which is its weights, code and `generation_config`;
                or the `lmstash.fingerprint` of one, which says nothing of its `generation_config`.
            base_url: Where a named model is served.
            revision: What is declared of a named model: a version, a date.
            variant: Your own name for a difference that lmstash cannot see.
            strict_numerics: For a torch module: torch's version and the device count, too.
            assume_frozen: For a torch module: it never changes.
            harmless: Names of the requests' own fields that change no answer, besides `timeout`, `request_timeout` and
                `max_retries`.
            sampled_by_default: Whether the model samples where a request says nothing of it. Default: a torch module as
                its `generation_config` says; others where the request is a chat (`messages` or `contents`), as all
                known servers do.
            keep_sampled: Keep sampled answers that have no seed, too, each under the number of its occurrence: how
                often all who use this stash object asked for it. Programs side by side have to say `occurrence=`.
            keep_if: Which answers are kept; by default those that are not empty and do not report an error.
            compress: Compress with zstd, by a dictionary that is trained on the first thousand answers and kept in the
                store (needs the extra `zstd`, and so do all who read these answers).
            wait_seconds: How long to wait for another one who computes the same, before computing it too.
            urls: What becomes of requests that name media by URL, whose content may change: `refuse` (they are passed
                on and not cached), `content` (fetched at each look-up and hashed, never stored: a second request to
                that server, and what it then gives the model is taken to be the same), `trust` (by the URL's text).
            salt: A tenant's secret; entries under different salts are invisible to each other.
            private: Keep no request beside the answer.
            ttl_seconds: How long new answers are served.

        Raises:
            InvalidArgumentError: Nothing that could answer.
            UnsupportedModelError: A torch module that cannot be identified safely.
            MissingDependencyError: `compress`, and zstandard is not installed.
        """
        self.given = {**locals(), "self": None}  # see `carrying`
        if urls not in POLICIES:
            raise InvalidArgumentError(f"urls= is one of {', '.join(POLICIES)}; got {urls!r}")
        who = who_is(
            model,
            base_url=base_url,
            revision=revision,
            variant=variant,
            strict_numerics=strict_numerics,
            assume_frozen=assume_frozen,
        )
        self.store = store
        self.asker = Asker(
            who,
            store.events,
            counts_of(store),
            salt=salt,
            harmless=frozenset(harmless),
            sampled_by_default=sampled_by_default,
            keep_sampled=keep_sampled,
            urls=urls,
        )
        self.flights = flights_of(store)
        self.shelf = Shelf(store, who, keep_if, private=private, ttl_seconds=ttl_seconds, compress=compress, salt=salt)
        self.wait_seconds = wait_seconds

    # --- one request ------------------------------------------------------------------------------------------------

    def get(self, request: Any, default: Any = None, *, occurrence: int | None = None) -> Any:
        """Return the answer that is kept, or `default`. Costs about 40 us.

        Args:
            request: Any value that JSON can say, with tuples, bytes and media in it.
            default: For instance `MISSING`.
            occurrence: Which of several answers to one sampled request; default: the next one, counted when it is
                served or `put`.
        """
        asked = self.asker.ask(self.asker.look(), request, occurrence)
        answer = MISSING if asked is None else self.shelf.read(asked)
        if answer is not MISSING:
            return answer
        if occurrence is None:
            self.asker.give_back([asked])
        return default

    def put(
        self,
        request: Any,
        answer: Any,
        *,
        occurrence: int | None = None,
        tags: Tags | None = None,
        compute_seconds: float = 0.0,
        ttl_seconds: float | None = None,
    ) -> bool:
        """Keep an answer that was computed elsewhere; returns whether it is kept now."""
        asked = self.asker.ask(self.asker.look(), request, occurrence)
        if asked is None:
            return False
        kept = self.shelf.keep([asked], [answer], [tags], compute_seconds, ttl_seconds)[0] is not None
        if not kept and occurrence is None:
            self.asker.give_back([asked])
        return kept

    def get_or_compute(
        self,
        request: Any,
        fn: Callable[[], Any],
        *,
        tags: Tags | None = None,
        occurrence: int | None = None,
        refresh: bool = False,
        ttl_seconds: float | None = None,
    ) -> Any:
        """Return the answer that is kept; else call `fn`, keep what it returns, and return that.

        Args:
            request: Any value that JSON can say, with tuples, bytes and media in it. All of it counts, but for what is
                harmless.
            fn: Computes the answer. What it raises is raised, and nothing is kept.
            tags: Facts to find the answer by.
            occurrence: Which of several answers to one sampled request.
            refresh: Compute anew and replace what is kept.
            ttl_seconds: How long the answer is served; default: the cache's.
        """
        steps = self._steps(request, tags, occurrence, refresh, ttl_seconds)
        return drive(steps, fn)

    async def get_or_compute_async(
        self,
        request: Any,
        fn: Callable[[], Awaitable[Any]],
        *,
        tags: Tags | None = None,
        occurrence: int | None = None,
        refresh: bool = False,
        ttl_seconds: float | None = None,
    ) -> Any:
        """As `get_or_compute`, for a function that is awaited. Look-ups do not await, unless media are fetched."""
        steps = self._steps(request, tags, occurrence, refresh, ttl_seconds)
        return await drive_async(steps, fn)

    def cached(
        self,
        fn: Callable[..., Any] | None = None,
        *,
        tags: Tags | Callable[..., Tags | None] | None = None,
        harmless: Sequence[str] = (),
        ttl_seconds: float | None = None,
    ) -> Any:
        """Decorate a function, a method or a coroutine function: each of its calls is computed once.

        A call is named by the function's qualified name, its code and the code it leads to, and its arguments, defaults
        included, `self` among them. Calls that cannot be named are passed on, those that change what they go by are not
        kept; both are counted, and logged once. Costs about 0.2 ms a call.

        Args:
            fn: The function (or bound method, or partial), where the decorator is written without brackets.
            tags: Facts to find the answers by, or what says them of the arguments.
            harmless: Names of arguments, of what code names, and of attributes (`self.client`), that change no answer.
            ttl_seconds: How long answers are served; default: the cache's.

        Raises:
            InvalidArgumentError: No function whose result can be kept.
        """
        from lmstash.caches.responses.functions.decorating import decorate

        def decorator(fn: Callable[..., Any]) -> Callable[..., Any]:
            return decorate(self, fn, tags=tags, harmless=harmless, ttl_seconds=ttl_seconds)

        return decorator if fn is None else decorator(fn)

    # --- what is kept -----------------------------------------------------------------------------------------------

    def find(self, **conditions: Any) -> Iterator[Found]:
        """Yield this model's kept answers, readable, that meet every condition. Under a salt, only those under it.

        Args:
            **conditions: `tag=` (a word, or `name=value`), `task=`, `doc=`, `split=`, `run=`, `user=`, each as it is or
                as a pattern (`gsm8k*`); `text=`, in the request or the answer; `older_than=`, seconds since its last
                use.
        """
        from lmstash.caches.responses.answers import finding

        chosen, place = _conditions(conditions), self._place()
        return iter(()) if place is None else finding.find(self.store, chosen, **place)

    def prune(self, *, dry_run: bool = False, **conditions: Any) -> Removed:
        """Remove this model's kept answers that meet every condition (as `find` takes); returns how many.

        Raises:
            InvalidArgumentError: There is no condition.
        """
        from lmstash.caches.responses.answers import finding

        chosen, place = _conditions(conditions), self._place()
        return Removed(0, 0) if place is None else finding.prune(self.store, chosen, dry_run=dry_run, **place)

    def _place(self) -> dict[str, Any] | None:
        """Where the answers are that may be looked at; None for a model that cannot be told."""
        model = self.asker.look()
        if model is None:
            return None
        namer = None if self.asker.salt is None else Namer(model.digest, self.asker.salt)
        return {"namespace": namespace_of(model), "namer": namer, "salt": self.asker.salt}

    # --- many requests ----------------------------------------------------------------------------------------------

    def get_many(self, requests: Sequence[Any], *, occurrences: Sequence[int] | None = None) -> list[Any]:
        """Return what is kept, `MISSING` where there is nothing. Costs 7 to 12 us each."""
        asked = self.asker.ask_many(self.asker.look(), requests, occurrences)
        answers = self.shelf.read_many(asked)
        if occurrences is None:
            self.asker.give_back([each for each, it in zip(asked, answers, strict=True) if it is MISSING])
        return answers

    def put_many(
        self,
        requests: Sequence[Any],
        answers: Sequence[Any],
        *,
        occurrences: Sequence[int] | None = None,
        tags: Tags | Sequence[Tags | None] | None = None,
        compute_seconds: float = 0.0,
        ttl_seconds: float | None = None,
    ) -> int:
        """Keep answers that were computed elsewhere; returns how many are kept now.

        Args:
            requests: The requests.
            answers: One for each.
            occurrences: Which of several answers to one sampled request, for each.
            tags: Facts to find them by, the same for all or for each.
            compute_seconds: What all took together.
            ttl_seconds: How long they are served; default: the cache's.
        """
        requests = listed(requests)
        if len(answers) != len(requests):
            raise InvalidArgumentError(f"{len(requests)} requests have {len(answers)} answers")
        asked = self.asker.ask_many(self.asker.look(), requests, occurrences)
        given = one_for_each(tags, len(requests))
        chosen = [each for each in zip(asked, answers, given, strict=True) if each[0] is not None]
        if not chosen:
            return 0
        named, values, about = zip(*chosen, strict=True)
        kept = self.shelf.keep(named, values, about, compute_seconds / len(chosen), ttl_seconds)
        if occurrences is None:
            self.asker.give_back([each for each, one in zip(named, kept, strict=True) if one is None])
        return sum(each is not None for each in kept)

    def map(self, requests: Sequence[Any], fn: Callable[[list[Any]], Sequence[Any]], **options: Any) -> list[Any]:
        """Return an answer for each request; computes what is not kept, in batches, and keeps each batch as it returns.

        A program that is killed loses at most the batch under way.

        Args:
            requests: The requests; the same one twice is computed once, unless it is sampled.
            fn: Takes a list of requests and returns one answer for each.
            **options: As `stream` takes.
        """
        requests = listed(requests)
        out: list[Any] = [None] * len(requests)
        for number, answer in self.stream(requests, fn, **options):
            out[number] = answer
        return out

    def stream(
        self,
        requests: Sequence[Any],
        fn: Callable[[list[Any]], Sequence[Any]],
        *,
        batch_size: int | Callable[[], int] = 1,
        tags: Tags | Sequence[Tags | None] | Callable[[Any], Tags | None] | None = None,
        occurrences: Sequence[int] | None = None,
        refresh: bool = False,
        ttl_seconds: float | None = None,
        progress: bool = False,
    ) -> Iterator[tuple[int, Any]]:
        """As `map`, yielding (number of the request, answer) as they come: first what is kept.

        Args:
            requests: The requests.
            fn: Takes a list of at most `batch_size` requests and returns one answer for each.
            batch_size: Requests in a call, or what says how many the next one takes.
            tags: Facts to find them by: the same for all, for each, or what says them of a request.
            occurrences: Which of several answers to one sampled request, for each.
            refresh: Compute anew and replace what is kept.
            ttl_seconds: How long new answers are served; default: the cache's.
            progress: Show a progress bar (needs tqdm).

        Raises:
            InvalidArgumentError: `fn` did not return one answer for each request.
        """
        from lmstash.caches.responses.mapping import Mapped, stream

        mapped = Mapped(self, requests, batch_size, tags, occurrences, refresh, ttl_seconds, progress)
        return stream(mapped, fn)

    def stream_async(
        self, requests: Sequence[Any], fn: Callable[[list[Any]], Awaitable[Sequence[Any]]], **options: Any
    ) -> AsyncIterator[tuple[int, Any]]:
        """As `stream`, for a function that is awaited."""
        from lmstash.caches.responses.mapping import Mapped, stream_async

        return stream_async(Mapped(self, requests, **{"batch_size": 1, **options}), fn)

    async def map_async(
        self, requests: Sequence[Any], fn: Callable[[list[Any]], Awaitable[Sequence[Any]]], **options: Any
    ) -> list[Any]:
        """As `map`, for a function that is awaited."""
        requests = listed(requests)
        out: list[Any] = [None] * len(requests)
        async for number, answer in self.stream_async(requests, fn, **options):
            out[number] = answer
        return out

    def _steps(
        self, request: Any, tags: Tags | None, occurrence: int | None, refresh: bool, ttl_seconds: float | None
    ) -> Steps:
        """What `get_or_compute` does, whoever computes."""
        check_ttl(ttl_seconds)
        ask = partial(self.asker.ask, self.asker.look(), request, occurrence)
        asked: Asked | None = (yield Aside(ask)) if self.asker.fetches else ask()
        if asked is None:
            return (yield CALL)
        if refresh:
            self.store.events.miss(KIND, asked.key, MissReason.REFRESH)
        elif (answer := self.shelf.read(asked)) is not MISSING:
            return answer

        def compute() -> Steps:
            started, kept = time.perf_counter(), None
            try:
                answer = yield CALL
                seconds = time.perf_counter() - started
                kept = self.shelf.keep([asked], [answer], [tags], seconds, ttl_seconds)[0]
                return answer, kept
            finally:
                if kept is None and occurrence is None:
                    self.asker.give_back([asked])

        return (yield from fly(self.shelf, self.flights, asked, compute, refresh, self.wait_seconds))


def _conditions(given: dict[str, Any]) -> Conditions:
    from lmstash.caches.responses.answers.finding import Conditions

    try:
        return Conditions(**given)
    except TypeError:
        raise InvalidArgumentError(f"answers are found by {', '.join(Conditions.__slots__)}; got {given}") from None
