"""The model that a `ResponseCache` has met, and all that the cache goes by while that one answers.

They are one object, so that no interrupt leaves the one's answers beside the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from lmstash.adapters.lm_eval.asking.chunks import Chunks
from lmstash.adapters.lmms_eval.who.model import ModelObject
from lmstash.caches.responses import Responses
from lmstash.caches.responses.who import Declared


@dataclass(slots=True)
class Seen:
    """What was seen of a model while it answered."""

    drew: bool = False
    """Whether the answers at hand were drawn though nothing says so."""
    reordered: bool = False
    """Whether it was asked in another order than the harness's."""


class Met(NamedTuple):
    """One model."""

    lm: Any
    name: str
    """The one that the harness was given, else that of its class."""
    who: ModelObject | Declared
    responses: Responses
    chunks: Chunks
    samples: bool
    """Whether it samples where a request says nothing of it."""
    seen: Seen
