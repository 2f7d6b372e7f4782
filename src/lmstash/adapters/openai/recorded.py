"""An HTTP answer as it is kept: status, the headers that say something of it, and its body, byte for byte."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

MARK = "x-lmstash"
"""The header that says where an answer comes from: `hit`, `miss` or `bypass`."""
REASON = "x-lmstash-reason"
"""The header that says why a request is passed on."""

_FORM = 1
_KEPT_HEADERS = re.compile(r"content-type|openai-model|openai-version|x-request-id|access-control-.*")
"""What a hit repeats. Rate limits, cookies and dates belong to the moment."""

_EVENT = re.compile(rb".*?(?:\r\n\r\n|\n\n|\r\r|$)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Recorded:
    """One answer.

    Attributes:
        status: 200, ...
        headers: Names in lower case.
        body: As the server sent it; of a stream, all of it.
        created: Unix time when it was complete.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    created: float

    @property
    def is_stream(self) -> bool:
        """Whether it is a stream of server-sent events."""
        return self.headers.get("content-type", "").lower().startswith("text/event-stream")

    @property
    def age_seconds(self) -> float:
        """How long ago it was computed."""
        return max(0.0, time.time() - self.created)

    def pieces(self) -> Iterator[bytes]:
        """Yield the body in the pieces it is sent in: a stream event by event, anything else whole."""
        if not self.is_stream:
            yield self.body
            return
        for match in _EVENT.finditer(self.body):
            if match[0]:
                yield match[0]


def record(status: int, headers: Iterable[tuple[str, str]], body: bytes) -> Recorded:
    """Return an answer that is complete now.

    Args:
        status: Of the answer.
        headers: All that came with it, names in lower case.
        body: All of it.
    """
    return Recorded(status, dict(headers), body, time.time())


def to_answer(recorded: Recorded) -> dict[str, Any]:
    """Return what is kept of an answer, in plain values. Text stays text, so that people can search and read it."""
    body: str | bytes = recorded.body
    with contextlib.suppress(UnicodeDecodeError):
        body = recorded.body.decode("utf-8")
    headers = {name: value for name, value in recorded.headers.items() if _KEPT_HEADERS.fullmatch(name)}
    return {
        "http": _FORM,
        "status": recorded.status,
        "headers": headers,
        "body": body,
        "created": recorded.created,
    }


def from_answer(answer: Any) -> Recorded | None:
    """Return the answer that was kept; None for anything else than `to_answer` makes."""
    if not isinstance(answer, Mapping) or answer.get("http") != _FORM:
        return None
    status, headers, body, created = (answer.get(name) for name in ("status", "headers", "body", "created"))
    if not isinstance(status, int) or not isinstance(headers, dict) or not isinstance(created, float):
        return None
    if isinstance(body, str):
        body = body.encode("utf-8")
    return Recorded(status, headers, body, created) if isinstance(body, bytes) else None
