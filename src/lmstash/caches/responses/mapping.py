"""Many requests: what is kept comes first, what is not is computed in batches, each kept as it returns."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from lmstash.caches.responses.answers.records import copy_of, decode_answer
from lmstash.caches.responses.answers.shelf import MISSING
from lmstash.caches.responses.requests.asking import KIND, Asked
from lmstash.caches.responses.requests.given import listed, one_for_each
from lmstash.caches.responses.single_flight.flights import ABANDONED, Flight, computing
from lmstash.caches.responses.single_flight.steps import Aside, Pause, Wait, await_here, await_there
from lmstash.caches.responses.single_flight.waiting import Slow
from lmstash.errors import InvalidArgumentError, MissingDependencyError
from lmstash.events import MissReason
from lmstash.store.base import check_ttl

if TYPE_CHECKING:
    from lmstash.caches.responses.answers.shelf import Tags
    from lmstash.caches.responses.cache import Responses

_LOOK_UP = 1024
"""So many are looked up at once."""
_PAUSE_SECONDS = 0.01
_MEDIA = b'{"$object":["media"'
"""Stands in the text of a request that holds media, or names a file, whose content may change at any time."""


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer that is ready."""

    number: int
    answer: Any


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests to compute; sent back is a list of answers."""

    requests: list[Any]


@dataclass(slots=True)
class _Wanted:
    """One thing to compute, for all who asked for it."""

    numbers: list[int]
    asked: Asked | None
    flight: Flight | None = None
    unreadable: bool = False
    """Something is kept under its name, and nobody here can read it."""
    kept: bool = False
    """Its answer is kept now."""


class Mapped:
    """One call of `map` or `stream`: see `Responses.stream` for what it takes."""

    def __init__(
        self,
        cache: Responses,
        requests: Sequence[Any],
        batch_size: int | Callable[[], int],
        tags: Tags | Sequence[Tags | None] | Callable[[Any], Tags | None] | None = None,
        occurrences: Sequence[int] | None = None,
        refresh: bool = False,
        ttl_seconds: float | None = None,
        progress: bool = False,
    ) -> None:
        if not callable(batch_size) and batch_size < 1:
            raise InvalidArgumentError(f"batch_size= is 1 or more; got {batch_size}")
        self._cache = cache
        check_ttl(ttl_seconds)
        self._requests = listed(requests)
        self._batch_size = batch_size
        self._tags = tags if callable(tags) else one_for_each(tags, len(self._requests))
        self._occurrences = None if occurrences is None else listed(occurrences)
        self._refresh = refresh
        self._ttl_seconds = ttl_seconds
        self._bar: Any = _bar(len(self._requests)) if progress else None
        self._may_differ = len(self._requests) > _LOOK_UP
        """Whether other code may have run since they were looked up, or media in them may be others by now.

        Then they are looked at again.
        """

    def steps(self) -> Generator[Any, Any, None]:
        """Yield `Answered`, and what is waited for: a `Batch`, or a step of `steps`."""
        wanted: list[_Wanted] = []
        try:
            yield from self._kept(wanted)
            later = yield from self._compute(wanted, patient=False)
            while later:  # others compute these now
                yield from self._await(later[0])
                later = yield from self._again(later)
        finally:
            for each in wanted:
                self._end(each, None)
            if self._occurrences is None:
                self._cache.asker.give_back([each.asked for each in wanted if not each.kept])
            if self._bar is not None:
                self._bar.close()

    def _kept(self, wanted: list[_Wanted]) -> Generator[Any, Any, None]:
        """Yield what is kept; adds the rest to `wanted`."""
        cache, events = self._cache, self._cache.store.events
        model = cache.asker.look()
        by_key: dict[bytes, _Wanted] = {}
        for start in range(0, len(self._requests), _LOOK_UP):
            part = self._requests[start : start + _LOOK_UP]
            numbers = None if self._occurrences is None else self._occurrences[start : start + _LOOK_UP]
            ask = partial(cache.asker.ask_many, model, part, numbers)
            asked: list[Asked | None] = (yield Aside(ask)) if cache.asker.fetches else ask()
            self._may_differ |= any(each is not None and _MEDIA in each.text for each in asked)
            if self._refresh:
                events.misses([each.key for each in asked if each is not None], MissReason.REFRESH)
                found: list[Any] = [MISSING] * len(asked)
            else:
                found = cache.shelf.read_many(asked)
            for number, (each, answer) in enumerate(zip(asked, found, strict=True), start):
                if answer is not MISSING:
                    yield self._answered(number, answer)
                elif each is None:
                    wanted.append(_Wanted([number], None))
                elif each.key in by_key:
                    by_key[each.key].numbers.append(number)
                else:
                    by_key[each.key] = _Wanted([number], each)
                    wanted.append(by_key[each.key])

    def _compute(self, wanted: list[_Wanted], *, patient: bool) -> Generator[Any, Any, list[_Wanted]]:
        """Compute what nobody else does, in batches; returns the rest. Patience over: compute that, too."""
        later: list[_Wanted] = []
        batch: list[_Wanted] = []
        for each in wanted:
            if not patient and not self._lead(each):
                later.append(each)
                continue
            batch.append(each)
            if len(batch) >= (self._batch_size() if callable(self._batch_size) else self._batch_size):
                yield from self._run(self._not_kept(batch, later))
                batch = []
        if batch:
            yield from self._run(self._not_kept(batch, later))
        return later

    def _lead(self, wanted: _Wanted) -> bool:
        if wanted.asked is None or wanted.flight is not None:
            return True
        flights = self._cache.flights
        flight, leads = flights.join(wanted.asked.key)
        if not leads:
            return flight.own()  # it waits for this very call: nobody to wait for
        wanted.flight = flight
        if flights.lock(flight):
            return True
        self._end(wanted, None)
        return False

    def _not_kept(self, batch: list[_Wanted], later: list[_Wanted]) -> list[_Wanted]:
        """Return what is still to be computed; what others have kept since the look-up is read with the rest."""
        led = [each for each in batch if each.flight is not None and not (self._refresh or each.unreadable)]
        if not led:
            return batch
        there = self._cache.store.contains_many([each.flight.key for each in led if each.flight is not None])
        late = [each for each, kept in zip(led, there, strict=True) if kept]
        if not late:
            return batch
        for each in late:
            self._end(each, None)
        later += late
        known = set(map(id, late))
        return [each for each in batch if id(each) not in known]

    def _run(self, batch: list[_Wanted]) -> Generator[Any, Any, None]:
        if not batch:
            return
        cache, requests = self._cache, [self._requests[each.numbers[0]] for each in batch]
        changed: set[int] = set()
        if self._may_differ:
            changed = {id(each) for each, request in zip(batch, requests, strict=True) if self._is_other(each, request)}
        self._may_differ = True
        started = time.perf_counter()
        with computing(each.flight for each in batch if each.flight is not None):
            answers = yield Batch(requests)
        seconds = (time.perf_counter() - started) / len(batch)
        several = hasattr(answers, "__len__") and not isinstance(answers, str | bytes | Mapping)
        if not several or len(answers) != len(batch):
            got = f"{len(answers)} answers" if several else f"a {type(answers).__name__}"
            raise InvalidArgumentError(
                f"the function got {len(batch)} requests and returned {got}: it has to return one for each, "
                "None where there is none"
            )
        answers = list(answers)  # those of arrays and columns, too
        pairs = zip(batch, answers, strict=True)
        named = [(each, answer) for each, answer in pairs if each.asked is not None and id(each) not in changed]
        kept = cache.shelf.keep(
            [each.asked for each, _ in named if each.asked is not None],
            [answer for _, answer in named],
            [self._about(each.numbers[0]) for each, _ in named],
            seconds,
            self._ttl_seconds,
        )
        encoded = {id(each): one for (each, _), one in zip(named, kept, strict=True)}
        for each in batch:  # all of them first: whoever reads the answers may take long, or ask for the next one
            each.kept = encoded.get(id(each)) is not None
            self._end(each, encoded.get(id(each)))
        for each, answer in zip(batch, answers, strict=True):
            one = encoded.get(id(each))
            yield self._answered(each.numbers[0], answer)
            for number in each.numbers[1:]:
                yield self._answered(number, answer if one is None else copy_of(one, answer))

    def _is_other(self, wanted: _Wanted, request: Any) -> bool:
        """Whether a request, or a file that it names, has become another since it was looked up."""
        asker = self._cache.asker
        if wanted.asked is None or asker.fetches or asker.text_of(request) == wanted.asked.text:
            return False
        self._cache.store.events.warn_once(
            "request changed", "lmstash: a request was changed before it was computed, so its answer is not kept"
        )
        return True

    def _await(self, wanted: _Wanted) -> Generator[Any, Any, None]:
        """Wait until somebody else's computation is over, or it took too long."""
        assert wanted.asked is not None
        self._may_differ = True
        flights, deadline = self._cache.flights, time.monotonic() + self._cache.wait_seconds
        slow = Slow(wanted.asked.key)
        while time.monotonic() < deadline:
            flight, leads = flights.join(wanted.asked.key)
            if flight.landed is not None and not leads:
                if (yield Wait(flight, max(deadline - time.monotonic(), 0.0))) is ABANDONED:
                    continue
                return
            if flights.lock(flight):
                wanted.flight = flight
                return
            flights.end(flight)
            if self._cache.store.contains(wanted.asked.key):
                return
            slow.tell()
            yield Pause(_PAUSE_SECONDS)

    def _again(self, later: list[_Wanted]) -> Generator[Any, Any, list[_Wanted]]:
        """Yield what others have kept meanwhile, and compute what they have not."""
        found: list[bytes | None] = [None] * len(later)
        there = [False] * len(later)
        if not self._refresh:
            there = self._cache.store.contains_many([each.asked.key for each in later if each.asked is not None])
            names = [each.asked if one else None for each, one in zip(later, there, strict=True)]
            found = self._cache.shelf.read_encoded(names)
        rest: list[_Wanted] = []
        for each, packed, kept in zip(later, found, there, strict=True):
            if packed is None:
                each.unreadable |= kept
                rest.append(each)
                continue
            each.kept = True
            self._end(each, packed)
            for number in each.numbers:
                yield self._answered(number, decode_answer(packed))
        first = rest[:1] if rest and rest[0] is later[0] else []  # waited for: now it is computed, come what may
        left = yield from self._compute(first, patient=True)
        return left + (yield from self._compute(rest[len(first) :], patient=False))

    def _end(self, wanted: _Wanted, encoded: bytes | None) -> None:
        if wanted.flight is not None:
            flight, wanted.flight = wanted.flight, None
            self._cache.flights.end(flight, encoded)

    def _about(self, number: int) -> Tags | None:
        if not callable(self._tags):
            return self._tags[number]
        try:
            return self._tags(self._requests[number])
        except Exception as error:  # a tag is no reason to lose an answer
            self._cache.store.events.warn_once(f"tags {type(error)}", "lmstash: an answer has no tags: %r", error)
            return None

    def _answered(self, number: int, answer: Any) -> Answered:
        self._may_differ = True
        if self._bar is not None:
            self._bar.update(1)
        return Answered(number, answer)


def stream(mapped: Mapped, fn: Callable[[list[Any]], Sequence[Any]]) -> Iterator[tuple[int, Any]]:
    """Yield answers, computing in this thread."""
    steps = mapped.steps()
    given: Any = None
    try:
        wish = next(steps)
        while True:
            if isinstance(wish, Answered):
                yield wish.number, wish.answer
                given = None
            elif isinstance(wish, Batch):
                given = fn(wish.requests)
            else:
                given = await_here(wish)
            wish = steps.send(given)
    except StopIteration:
        return
    finally:
        steps.close()


async def stream_async(
    mapped: Mapped, fn: Callable[[list[Any]], Awaitable[Sequence[Any]]]
) -> AsyncIterator[tuple[int, Any]]:
    """Yield answers, computing in this task."""
    steps = mapped.steps()
    given: Any = None
    try:
        wish = next(steps)
        while True:
            if isinstance(wish, Answered):
                yield wish.number, wish.answer
                given = None
            elif isinstance(wish, Batch):
                given = await fn(wish.requests)
            else:
                given = await await_there(wish)
            wish = steps.send(given)
    except StopIteration:
        return
    finally:
        steps.close()


def _bar(total: int) -> Any:
    try:
        from tqdm.auto import tqdm
    except ImportError:
        raise MissingDependencyError("tqdm", "torch") from None
    return tqdm(total=total, unit="request", desc=KIND)
