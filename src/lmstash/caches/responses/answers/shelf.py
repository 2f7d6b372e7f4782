"""Answers under their names in a store: read, checked and decoded; encoded and kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from lmstash.caches.models import describe_model
from lmstash.caches.responses.answers.records import (
    UnknownTypeError,
    encode_answer,
    is_kept,
    pack,
    read_answer,
    read_answers,
    unpack,
)
from lmstash.caches.responses.answers.squeezing import SQUEEZED, Squeezer
from lmstash.caches.responses.requests.asking import KIND, Asked, namespace_of
from lmstash.caches.responses.requests.hiding import is_secret, shorten, url_shows_secret
from lmstash.caches.responses.who import Who
from lmstash.codecs.compression import zstandard_module
from lmstash.errors import FormatError, InvalidArgumentError, LmstashError, MissingDependencyError
from lmstash.events import DropReason, MissReason
from lmstash.identity.fingerprint import Fingerprint
from lmstash.store.base import Buffer, Store, Write, default_ttl

Tags = Mapping[str, Any]
"""Facts to find an answer by: `task`, `doc`, `split`, `run`, `user`, others of yours; and `tags`, a list of words."""


_FAILURE = (
    "lmstash: an answer that is empty or reports a failure (an `error`, or a `status` or `object` of error, failed or "
    "failure) is not kept; keep_if= of stash.responses decides otherwise"
)


class Missing:
    """What stands for an answer that is not kept, since None may be one."""

    def __repr__(self) -> str:
        """Return its name."""
        return "MISSING"

    def __bool__(self) -> bool:
        """Be false."""
        return False


MISSING = Missing()


class Unkept(NamedTuple):
    """An answer that is returned and not kept, whatever it is."""

    answer: Any


class Shelf:
    """What is kept of one model's answers. Threads may share it."""

    def __init__(
        self,
        store: Store,
        who: Who,
        keep_if: Callable[[Any], bool],
        *,
        private: bool = False,
        ttl_seconds: float | None = None,
        compress: bool = False,
        salt: str | bytes | None = None,
    ) -> None:
        """Take where answers are kept, who is asked whether the model is still the same, and which are kept.

        Raises:
            MissingDependencyError: `compress`, and zstandard is not installed.
        """
        self.store = store
        self._who = who
        self._keep_if = keep_if
        self._private = private
        self._ttl_seconds = default_ttl(ttl_seconds)
        self._compress = compress
        self._salt = salt
        self._described: set[bytes] = set()
        self._squeezers: dict[str, Squeezer] = {}
        if compress:
            zstandard_module()

    def read(self, asked: Asked) -> Any:
        """Return the answer that is kept under a name, or `MISSING`."""
        value = self.store.get(asked.key)
        return MISSING if value is None else self._open(asked, value)

    def read_many(self, asked: Sequence[Asked | None]) -> list[Any]:
        """As `read`, for many at once; `MISSING` for what has no name, too."""
        values = self._values(asked)
        try:
            opened = iter(read_answers([value for value in values if value is not None]))
            return [MISSING if value is None else next(opened) for value in values]
        except LmstashError:  # one is compressed, damaged, or of a type unknown here: one after another they say which
            return [
                MISSING if each is None or value is None else self._open(each, value)
                for each, value in zip(asked, values, strict=True)
            ]

    def read_encoded(self, asked: Sequence[Asked | None]) -> list[bytes | None]:
        """As `read_many`, each encoded, None where nothing is kept; every one of them can be decoded."""
        out: list[bytes | None] = []
        for each, value in zip(asked, self._values(asked), strict=True):
            if each is None or value is None or self._open(each, value) is MISSING:
                out.append(None)
            else:
                out.append(bytes(unpack(self._plain(each, value))[0]))
        return out

    def _values(self, asked: Sequence[Asked | None]) -> Sequence[Buffer | None]:
        keys = [each.key for each in asked if each is not None]
        if len(keys) == len(asked):
            return self.store.get_many(keys)
        values = iter(self.store.get_many(keys))
        return [None if each is None else next(values) for each in asked]

    def keep(
        self,
        asked: Sequence[Asked],
        answers: Sequence[Any],
        tags: Sequence[Tags | None],
        compute_seconds: float,
        ttl_seconds: float | None,
    ) -> list[bytes | None]:
        """Keep answers under their names; returns each encoded, None for what is not kept.

        Args:
            asked: The names.
            answers: One for each.
            tags: For each.
            compute_seconds: What each took.
            ttl_seconds: How long they are served; default: the cache's.
        """
        out = [self._encode(*each) for each in zip(asked, answers, strict=True)]
        chosen = [(each, about, one) for each, about, one in zip(asked, tags, out, strict=True) if one is not None]
        if not chosen:
            return out
        for model in {each.model for each, _, _ in chosen}:
            if not self._who.unchanged(model):
                for each, _, _ in chosen:
                    self.store.events.drop(KIND, each.key, DropReason.MODEL_CHANGED)
                return [None] * len(asked)
            self._describe(model)
        values = [pack(one, b"" if self._private else each.text) for each, _, one in chosen]
        if self._compress:
            values = self._squeezer(namespace_of(chosen[0][0].model)).squeeze(values)
        ttl = self._ttl_seconds if ttl_seconds is None else ttl_seconds
        writes = [
            Write(
                *(each.key, value, namespace_of(each.model)),
                *(_meta(self._tags(about), each.occurrence), b"", compute_seconds, 0, ttl),
            )
            for (each, about, _), value in zip(chosen, values, strict=True)
        ]
        if self.store.put_many(writes) < len(writes):
            keys = [each.key for each in writes]
            there = dict(zip(keys, self.store.contains_many(keys), strict=True))
            return [encoded if there.get(each.key) else None for each, encoded in zip(asked, out, strict=True)]
        return out

    def _squeezer(self, namespace: str) -> Squeezer:
        found = self._squeezers.get(namespace)
        if found is None:
            found = self._squeezers.setdefault(namespace, Squeezer(self.store, namespace, self._salt))
        return found

    def _plain(self, asked: Asked, value: Buffer) -> Buffer:
        """Return a value as `answers.pack` made it."""
        if len(value) and value[0] == SQUEEZED:
            return self._squeezer(namespace_of(asked.model)).expand(value)
        return value

    def _encode(self, asked: Asked, answer: Any) -> bytes | None:
        events = self.store.events
        if isinstance(answer, Unkept):
            events.drop(KIND, asked.key, DropReason.INPUT_CHANGED)
            return None
        try:
            keep = self._keep_if(answer)
        except Exception as error:  # the answer is paid for: whoever asked gets it
            events.warn_once("keep_if", "lmstash: keep_if= failed, so an answer is not kept: %r", error)
            keep = False
        if not keep:
            events.drop(KIND, asked.key, DropReason.EMPTY)
            if self._keep_if is is_kept and isinstance(answer, Mapping):
                events.warn_once("failure", _FAILURE)
            return None
        try:
            return encode_answer(answer)
        except InvalidArgumentError as error:
            events.drop(KIND, asked.key, DropReason.UNSUPPORTED)
            events.warn_once(
                f"answer {type(answer).__qualname__}",
                "lmstash: an answer is not kept: %s Or register its type (lmstash.caches.responses.register).",
                error,
            )
            return None

    def _open(self, asked: Asked, value: Buffer) -> Any:
        try:
            if len(value) and value[0] == SQUEEZED:
                value = self._plain(asked, value)
            return read_answer(value)
        except (UnknownTypeError, MissingDependencyError) as error:
            events = self.store.events
            events.warn_once(f"answer {type(error)}", "lmstash: a kept answer cannot be served here: %s", error)
            events.miss(KIND, asked.key, MissReason.MISMATCH)
        except FormatError as error:
            events = self.store.events
            events.damage(namespace_of(asked.model), asked.key, str(error))
            events.miss(KIND, asked.key, MissReason.DAMAGED)
            if self.store.strict:
                raise
        return MISSING

    def _tags(self, about: Any) -> Tags | None:
        if about is None or isinstance(about, Mapping):
            return about
        self.store.events.warn_once("tags", "lmstash: tags= takes a dict such as {'task': 'sums'}; got %r", about)
        return None

    def _describe(self, model: Fingerprint) -> None:
        if model.digest not in self._described:
            describe_model(self.store, model, str(model.recorded.get("name") or ""))
            self._described.add(model.digest)


def _meta(tags: Tags | None, occurrence: int) -> bytes | None:
    if not tags and not occurrence:
        return None
    number = {"occurrence": occurrence} if occurrence else {}  # with it, a kept request leads to its key
    try:
        named = {name: value for name, value in (tags or {}).items() if name != "occurrence"}
        facts = {name: value for name, value in named.items() if _may_be_stored(name, value)}
        words = facts.get("tags")
        if isinstance(words, str):
            facts["tags"] = [words]
        try:
            return _dumps(facts | number).encode()
        except (TypeError, ValueError):
            return _dumps({str(name): str(value) for name, value in facts.items()} | number).encode()
    except Exception:  # other people's objects are looked at, and a tag is no reason to lose an answer
        return _dumps(number).encode()


def _may_be_stored(name: Any, value: Any) -> bool:
    """Whether a fact is no secret, and holds none."""
    if is_secret(str(name)):
        return False
    kind = type(value)
    if kind is str:
        return not url_shows_secret(value)
    return kind not in (dict, list, tuple) or shorten(value, lambda hidden: repr(hidden).encode()) is value


_dumps = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
