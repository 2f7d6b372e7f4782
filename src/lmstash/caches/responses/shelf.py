"""Answers under their names in a store: read, checked and decoded; encoded and kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lmstash.caches.models import describe_model
from lmstash.caches.responses.answers import UnknownTypeError, decode_answer, encode_answer, pack, unpack
from lmstash.caches.responses.asking import KIND, Asked, namespace_of
from lmstash.caches.responses.who import Who
from lmstash.errors import FormatError, InvalidArgumentError
from lmstash.events import DropReason, MissReason
from lmstash.identity.fingerprint import Fingerprint
from lmstash.store.base import Buffer, Store, Write

Tags = Mapping[str, Any]
"""Facts to find an answer by: `task`, `doc`, `split`, `run`, `user`, and `tags`, a list of words."""

TAG_NAMES = frozenset({"task", "doc", "split", "run", "user", "tags"})


class Missing:
    """What stands for an answer that is not kept, since None may be one."""

    def __repr__(self) -> str:
        """Return its name."""
        return "MISSING"

    def __bool__(self) -> bool:
        """Be false."""
        return False


MISSING = Missing()


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
    ) -> None:
        """Take where answers are kept, who is asked whether the model is still the same, and which are kept."""
        self.store = store
        self._who = who
        self._keep_if = keep_if
        self._private = private
        self._ttl_seconds = ttl_seconds
        self._described: set[bytes] = set()

    def read(self, asked: Asked) -> Any:
        """Return the answer that is kept under a name, or `MISSING`."""
        value = self.store.get(asked.key)
        return MISSING if value is None else self._open(asked, value)

    def read_encoded(self, asked: Asked) -> bytes | None:
        """As `read`, encoded."""
        found = self.read_all([asked])[0]
        return None if found is None else found[1]

    def read_all(self, asked: Sequence[Asked | None]) -> list[tuple[Any, bytes] | None]:
        """As `read`, for many at once: each answer, and it encoded; None where nothing is kept, or that has no name."""
        named = [each for each in asked if each is not None]
        values = iter(self.store.get_many([each.key for each in named]))
        out: list[tuple[Any, bytes] | None] = []
        for each in asked:
            value = None if each is None else next(values)
            answer = MISSING if each is None or value is None else self._open(each, value)
            out.append(None if answer is MISSING or value is None else (answer, bytes(unpack(value)[0])))
        return out

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
        writes: list[Write] = []
        out: list[bytes | None] = []
        ttl = self._ttl_seconds if ttl_seconds is None else ttl_seconds
        for each, answer, about in zip(asked, answers, tags, strict=True):
            encoded = self._encode(each, answer)
            out.append(encoded)
            if encoded is not None:
                value = pack(encoded, b"" if self._private else each.text)
                namespace = namespace_of(each.model)
                meta = _meta(about)
                writes.append(Write(each.key, value, namespace, meta, b"", compute_seconds, 0, ttl))
        if not writes:
            return out
        for model in {each.model for each in asked}:
            if not self._who.unchanged(model):
                for each in asked:
                    self.store.events.drop(KIND, each.key, DropReason.MODEL_CHANGED)
                return [None] * len(asked)
            self._describe(model)
        if self.store.put_many(writes) < len(writes):
            keys = [each.key for each in writes]
            there = dict(zip(keys, self.store.contains_many(keys), strict=True))
            return [encoded if there.get(each.key) else None for each, encoded in zip(asked, out, strict=True)]
        return out

    def _encode(self, asked: Asked, answer: Any) -> bytes | None:
        events = self.store.events
        if not self._keep_if(answer):
            events.drop(KIND, asked.key, DropReason.EMPTY)
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
        events = self.store.events
        try:
            return decode_answer(unpack(value)[0])
        except UnknownTypeError as error:
            events.warn_once("unknown type", "lmstash: %s", error)
            events.miss(KIND, asked.key, MissReason.MISMATCH)
        except FormatError as error:
            events.damage(namespace_of(asked.model), asked.key, str(error))
            events.miss(KIND, asked.key, MissReason.DAMAGED)
            if self.store.strict:
                raise
        return MISSING

    def _describe(self, model: Fingerprint) -> None:
        if model.digest not in self._described:
            describe_model(self.store, model, str(model.recorded.get("name") or ""))
            self._described.add(model.digest)


def _meta(tags: Tags | None) -> bytes | None:
    if not tags:
        return None
    if not tags.keys() <= TAG_NAMES:
        raise InvalidArgumentError(f"tags= takes {', '.join(sorted(TAG_NAMES))}; got {', '.join(map(str, tags))}")
    return json.dumps(
        {name: value for name, value in tags.items() if value is not None}, separators=(",", ":")
    ).encode()
