"""The endpoints of OpenAI's interface whose answers depend on nothing but the request and the model behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One of them.

    Attributes:
        path: What its URLs end in.
        samples: Whether it answers by chance where a request says nothing of it.
        harmless: Fields of its requests that change no answer, and that no answer repeats.
        held_seconds: How long its server holds an answer for the caller, who names it by its id in later requests; None
            if it does not.
    """

    path: str
    samples: bool
    harmless: frozenset[str]
    held_seconds: float | None = None


# Whom the request is for, how OpenAI finds its own cache, and whether and under what words OpenAI keeps the answer.
_CALLER = frozenset({"user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"})

CHAT: Final = Endpoint("/chat/completions", True, _CALLER | {"metadata", "store"})
COMPLETIONS: Final = Endpoint("/completions", True, _CALLER)
EMBEDDINGS: Final = Endpoint("/embeddings", False, _CALLER)
# An answer of this one repeats the caller's fields, and what is stored of it can be asked for by its id: all count.
# (OpenAI holds it for 30 days.)
RESPONSES: Final = Endpoint("/responses", True, frozenset(), 30 * 86400.0)

ENDPOINTS: Final = (CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES)


def endpoint_of(path: str) -> Endpoint | None:
    """Return the endpoint that the path of a URL names; None for every other one."""
    for each in ENDPOINTS:
        if path.endswith(each.path):
            return each
    return None
