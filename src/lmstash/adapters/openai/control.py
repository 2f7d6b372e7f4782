"""What a request's own headers say of the cache: `Cache-Control`, as HTTP defines it, and `x-lmstash-*`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from lmstash.errors import InvalidArgumentError

_MOST_DIGITS = 18


@dataclass(frozen=True, slots=True)
class Control:
    """How one request is to be answered.

    Attributes:
        bypass: Neither looked up nor kept (`no-store`).
        max_age_seconds: What is older is computed anew, and replaced (`max-age`; 0 for `no-cache`).
        only_kept: Nobody is asked (`only-if-cached`).
        keep_sampled: Keep it though it is answered by chance and has no seed (`x-lmstash-keep-sampled: 1`).
        occurrence: Which of several answers to one sampled request (`x-lmstash-occurrence: 3`).
    """

    bypass: bool = False
    max_age_seconds: float = math.inf
    only_kept: bool = False
    keep_sampled: bool = False
    occurrence: int | None = None


def read_control(headers: Iterable[tuple[str, str]]) -> Control:
    """Return what the headers of a request say.

    Args:
        headers: Names in lower case, and values.

    Raises:
        InvalidArgumentError: `x-lmstash-occurrence` is no number.
    """
    headers = list(headers)
    directives = _directives(headers)
    ours = {
        name.removeprefix("x-lmstash-"): value.strip().lower()
        for name, value in headers
        if name.startswith("x-lmstash-")
    }
    max_age = math.inf
    if "max-age" in directives:
        value = directives["max-age"]
        max_age = float(value) if value.isdecimal() else 0.0  # what nobody understands is stale: RFC 9111, 4.2.1
    if "no-cache" in directives:
        max_age = 0.0
    occurrence = ours.get("occurrence", "")
    if occurrence and not (occurrence.isdecimal() and len(occurrence) <= _MOST_DIGITS):
        raise InvalidArgumentError(f"x-lmstash-occurrence takes a number from 0, not {occurrence[:40]!r}")
    return Control(
        bypass="no-store" in directives,
        max_age_seconds=max_age,
        only_kept="only-if-cached" in directives,
        keep_sampled=ours.get("keep-sampled") in ("1", "true", "yes", "on"),
        occurrence=int(occurrence) if occurrence else None,
    )


def asks_nobody(headers: Iterable[tuple[str, str]]) -> bool:
    """Whether a request, which may be one that is not cached, wants nobody to be asked (`only-if-cached`)."""
    return "only-if-cached" in _directives(headers)


def _directives(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return what `Cache-Control` says, in lower case; without one, what `Pragma` says: RFC 9111, 5.4."""
    said: dict[str, dict[str, str]] = {"cache-control": {}, "pragma": {}}
    for name, value in headers:
        if name in said:
            for each in value.lower().split(","):
                directive, _, argument = each.strip().partition("=")
                said[name][directive] = argument.strip('"')
    if not said["cache-control"] and "no-cache" in said["pragma"]:
        return {"no-cache": ""}
    return said["cache-control"]
