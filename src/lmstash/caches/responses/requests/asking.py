"""From a request to its key: who is asked, what, and the how-manieth time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import repeat
from operator import index
from typing import Any, NamedTuple

from lmstash.caches.responses.requests.counting import Counts
from lmstash.caches.responses.requests.encoding import HARMLESS
from lmstash.caches.responses.requests.reading import RequestReader
from lmstash.caches.responses.requests.sampling import fields_sampling, is_chat, is_sampled, seed_of
from lmstash.caches.responses.who import Who
from lmstash.errors import InvalidArgumentError, UnsupportedModelError
from lmstash.events import EventLog, MissReason
from lmstash.identity.fingerprint import Fingerprint
from lmstash.identity.keys import KeyFamily

KIND = "responses"
_SAMPLED = (
    "lmstash: a request that is sampled (by %s) and has no seed is not cached: give it a seed, or open stash.responses "
    "with keep_sampled=True to keep each of its answers under its number. If that field says nothing of sampling, give "
    "it another name"
)
_SILENT = (
    "lmstash: a request that says nothing of its temperature is not cached, since the model samples then: send "
    "temperature=0 or a seed, or open stash.responses with sampled_by_default=False if it does not, or with "
    "keep_sampled=True to keep what it drew"
)


class Asked(NamedTuple):
    """A request that can be looked up."""

    key: bytes
    text: bytes
    """The request as it is stored."""
    model: Fingerprint
    occurrence: int


class Asker:
    """Names requests to one model. Threads may share it."""

    def __init__(
        self,
        who: Who,
        events: EventLog,
        counts: Counts,
        *,
        salt: str | bytes | None,
        harmless: frozenset[str],
        sampled_by_default: bool | None,
        keep_sampled: bool,
        urls: str = "refuse",
    ) -> None:
        """Take what belongs to every key."""
        self.who = who
        self._events = events
        self.salt = salt
        self._reader = RequestReader(HARMLESS | harmless, urls)
        self.fetches = urls == "content"
        """Whether to name a request may take as long as another server does."""
        self._sampled_by_default = sampled_by_default
        self.keep_sampled = keep_sampled
        self._namers: dict[bytes, Namer] = {}
        self._counts = counts

    def _by_default(self, request: Any) -> bool:
        """Whether the model samples where the request does not say."""
        said = self._sampled_by_default
        if said is None:
            said = getattr(self.who, "samples", None)
            return is_chat(request) if said is None else bool(said)
        return said or bool(getattr(self.who, "samples", False))

    def _is_sampled(self, arguments: Mapping[str, Any], requests: Sequence[Any]) -> bool:
        """Whether one of several requests is answered by chance, all of which say the same of it."""
        if is_sampled(arguments):
            return True
        return is_sampled(arguments, True) and any(map(self._by_default, requests))

    def look(self) -> Fingerprint | None:
        """Return who would answer now; None where that cannot be said safely, which is logged once."""
        try:
            return self.who.look()
        except UnsupportedModelError as error:
            self._events.warn_once(f"model {error}", "lmstash: nothing is cached for this model: %s", error)
            return None

    def text_of(self, request: Any) -> bytes | None:
        """Return the text by which a request would be named now; None for what cannot be named."""
        text = self._reader.write(request, {})
        if text is not None:
            return text
        try:
            return self._reader.read(request).text
        except Exception:  # other people's objects are looked at
            return None

    def ask(self, model: Fingerprint | None, request: Any, occurrence: int | None = None) -> Asked | None:
        """Return what to look up; None, counted as a miss, for what may not be served or cannot be named.

        Args:
            model: As `look` returned it.
            request: The request.
            occurrence: Which of several answers to the same sampled request; default: the first for a request with a
                seed; for one without, where it is kept at all, as many as this object was asked for before.
        """
        if model is None:
            return self._miss(MissReason.UNSUPPORTED)
        arguments: dict[str, Any] = {}
        text = self._reader.write(request, arguments)
        return self._name(model, request, text, arguments, occurrence)

    def ask_many(
        self, model: Fingerprint | None, requests: Sequence[Any], occurrences: Sequence[int] | None = None
    ) -> list[Asked | None]:
        """As `ask`, for many."""
        requests = list(requests)  # looked through more than once
        if occurrences is not None and len(occurrences) != len(requests):
            raise InvalidArgumentError(f"{len(requests)} requests have {len(occurrences)} occurrences")
        if model is None:
            return [self._miss(MissReason.UNSUPPORTED) for _ in requests]
        write, name = self._reader.write, self._namer(model).first
        make = tuple.__new__  # what Asked(...) does, at half its cost
        alike = self._reader.write_alike(requests)
        if alike is not None and not self._is_sampled(alike[1], requests):
            texts = alike[0]
            return [make(Asked, each) for each in zip(map(name, texts), texts, repeat(model), repeat(0))]
        out: list[Asked | None] = []
        arguments: dict[str, Any] = {}
        for number, request in enumerate(requests):
            arguments.clear()
            text = write(request, arguments)
            if text is None or self._is_sampled(arguments, [request]):
                occurrence = None if occurrences is None else occurrences[number]
                out.append(self._name(model, request, text, arguments, occurrence))
            else:
                out.append(make(Asked, (name(text), text, model, 0)))
        return out

    def _name(
        self,
        model: Fingerprint,
        request: Any,
        text: bytes | None,
        arguments: Mapping[str, Any],
        occurrence: int | None,
    ) -> Asked | None:
        """Do what `ask` does, for a request that was written, or for one that is not usual (`text` is None)."""
        try:
            if text is None:
                read = self._reader.read(request)
                text, arguments = read.text, read.arguments
            number = 0
            if self._is_sampled(arguments, [request]):
                if seed_of(arguments) is None and not self.keep_sampled:
                    if is_sampled(arguments):
                        fields = ", ".join(fields_sampling(arguments))
                        self._events.warn_once(f"sampled request by {fields}", _SAMPLED, fields)
                    elif self._sampled_by_default is None:
                        self._events.warn_once("silent request", _SILENT)
                    return self._miss(MissReason.SAMPLED)
                if occurrence is not None:
                    number = index(occurrence)
                elif seed_of(arguments) is None:
                    number = self._counts.take(self._namer(model).first(text))
            return Asked(self._namer(model).name(text, number), text, model, number)
        except Exception as error:  # other people's objects are looked at; whatever they do, nothing is cached
            self._events.warn_once(f"request {type(error)}", "lmstash: a request is not cached: %s", error)
            return self._miss(MissReason.UNSUPPORTED)

    def _namer(self, model: Fingerprint) -> Namer:
        namer = self._namers.get(model.digest)
        if namer is None:
            namer = self._namers[model.digest] = Namer(model.digest, self.salt)
        return namer

    def give_back(self, asked: Sequence[Asked | None]) -> None:
        """Let others have the occurrences that were got by default, where nothing was found under them, nor kept.

        What was not got by default is left alone.
        """
        if self.keep_sampled:
            for each in asked:
                if each is not None:
                    self._counts.give_back(self._namer(each.model).first(each.text), each.occurrence)

    def _miss(self, reason: MissReason) -> None:
        self._events.miss(KIND, b"", reason)


class Namer:
    """Makes the keys of one model's answers. Threads may share it."""

    __slots__ = ("_any", "first")

    def __init__(self, model: bytes, salt: str | bytes | None) -> None:
        """Take what belongs to every key: the digest of the model's fingerprint, and a tenant's secret."""
        parts = {"kind": KIND, "model": model, "salt": salt, "version": 1}
        self._any = KeyFamily(parts, ("request", "occurrence"))
        self.first = KeyFamily({**parts, "occurrence": 0}, ("request",)).digest_of_bytes()
        """As `name`, for the first occurrence."""

    def name(self, text: bytes, occurrence: int) -> bytes:
        """Return the key of a request's text and the number of the occurrence."""
        return self._any.digest(text, occurrence) if occurrence else self.first(text)


def namespace_of(model: Fingerprint) -> str:
    """Return where the answers of a model are kept."""
    return f"{KIND}/{model.hex[:16]}"
