"""Samples of one prompt are drawn together, so they are kept and served together, or not at all.

The harness seeds its generators anew whenever it starts. What a resumed evaluation draws for a sample that is missing
comes from the state that a kept one came from: it would be its copy, and not a second try. So all samples that one call
asks of one prompt (its `repeats`, and documents with the same text) are one entry, and where that is missing they are
all drawn anew.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lmstash.caches.responses.answers.shelf import MISSING
from lmstash.caches.responses.requests.asking import Asked


class Place(NamedTuple):
    """Where a request's answer lies among those that are drawn with it."""

    at: int
    n_drawn: int

    def of(self, answers: Any) -> Any:
        """Return the answer from those that were kept, `MISSING` where they are not so many."""
        return answers[self.at] if isinstance(answers, list) and len(answers) == self.n_drawn else MISSING


class Draws:
    """Collects what one call draws, until nothing is missing. Threads may share it."""

    def __init__(self, places: Mapping[int, Place], names: Mapping[int, Asked]) -> None:
        """Take the places of the requests that are drawn with others, and the names of all, by number."""
        self._places = places
        self._names = names
        self._drawn: dict[bytes, dict[int, Any]] = {}
        self._lock = threading.Lock()

    def complete(self, numbers: Sequence[int], answers: Sequence[Any]) -> list[tuple[int, Any, int]]:
        """Take answers to requests; return what can be kept now: a request's number, its value, and of how many it is.

        A request that is answered alone comes back as it is; one that is drawn with others when all of them have come.
        """
        out: list[tuple[int, Any, int]] = []
        whole: dict[bytes, tuple[int, Any, int]] = {}
        with self._lock:
            for number, answer in zip(numbers, answers, strict=True):
                place, name = self._places.get(number), self._names.get(number)
                if place is None:
                    out.append((number, answer, 1))
                elif name is not None:
                    drawn = self._drawn.setdefault(name.key, {})
                    drawn[place.at] = answer
                    if len(drawn) == place.n_drawn:
                        values = [drawn[index] for index in range(place.n_drawn)]
                        whole[name.key] = number, values, place.n_drawn
        return [*out, *whole.values()]
