"""Answers taken over from the harness's own cache: kept under its digests, for a model that their owner declares.

The digests are one-way: what was asked cannot be read back from them. So they stand as aliases under the declared name,
and are looked at only on a miss, only by a model of that name, and never for what is sampled or asked repeatedly (the
harness kept one answer for all of these).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lmstash.caches.responses.answers.shelf import MISSING, Shelf
from lmstash.caches.responses.requests.asking import Asked
from lmstash.caches.responses.requests.sampling import is_sampled
from lmstash.caches.responses.who import Declared, named
from lmstash.identity.keys import KeyFamily

if TYPE_CHECKING:
    from lmstash.stash import Stash


class ImportedAnswers:
    """What was taken over under one name. Threads may share it."""

    def __init__(self, stash: Stash, name: str) -> None:
        """Take the stash and the declared name."""
        self.model = named(name)
        self._shelf = Shelf(stash.store, Declared(self.model), lambda answer: answer is not None)
        common = {"kind": "responses", "of": "lm_eval CachingLM", "model": self.model.digest, "salt": stash.salt}
        self._family = KeyFamily(common, ("digest",))

    def keep(self, digests: Sequence[bytes], answers: Sequence[Any]) -> int:
        """Keep answers under the harness's digests (32 bytes each); returns how many are kept."""
        asked = [self._asked(each) for each in digests]
        kept = self._shelf.keep(asked, answers, [{"tags": ["imported"]}] * len(asked), 0.0, None)
        return sum(each is not None for each in kept)

    def contains(self, digests: Sequence[bytes]) -> list[bool]:
        """Whether these are kept."""
        return self._shelf.store.contains_many([self._asked(each).key for each in digests])

    def find(self, method: str, instances: Sequence[Any], numbers: Sequence[int]) -> dict[int, Any]:
        """Return what was taken over, by the number of the request."""
        from lm_eval.api.model import hash_args

        asked: dict[int, Asked] = {}
        times: dict[int, int] = {}
        for each in instances:
            times[id(each)] = times.get(id(each), 0) + 1
        for number in numbers:
            arguments = instances[number].args
            if times[id(instances[number])] > 1:
                continue
            if len(arguments) > 1 and isinstance(arguments[1], dict) and is_sampled(arguments[1]):
                continue
            try:
                asked[number] = self._asked(bytes.fromhex(hash_args(method, arguments)))
            except (TypeError, ValueError):  # the harness could not have kept it either
                continue
        there = self._shelf.store.contains_many([each.key for each in asked.values()])
        present = {number: each for (number, each), one in zip(asked.items(), there, strict=True) if one}
        found = self._shelf.read_many(list(present.values()))
        return {number: one for number, one in zip(present, found, strict=True) if one is not MISSING}

    def _asked(self, digest: bytes) -> Asked:
        return Asked(self._family.digest(digest), b"", self.model, 0)
