"""Calls to a backend: all at once where it reports what it will return, in parts where it does not."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from lmstash.adapters.lm_eval.asking.chunks import Chunks
from lmstash.adapters.lm_eval.asking.partials import Hook, Keep, Pending
from lmstash.adapters.lm_eval.asking.reporting import reports, returns_what_it_reports

_FIRST = 32
"""Requests in the first part, where the backend has no batch size of its own."""


def run(
    lm: Any,
    hook: Hook,
    method: str,
    instances: Sequence[Any],
    *,
    keep: Keep,
    begin: Callable[[Sequence[Any]], None] = lambda part: None,
    fill: Any = None,
    n_even: int | None = None,
    one_first: bool = False,
) -> list[Any]:
    """Return what the backend answers; each answer is kept at the latest when the part that it is in returns.

    Args:
        lm: The backend.
        hook: Its cache hook.
        method: What to call.
        instances: The requests.
        keep: See `Keep`; numbers are those of `instances`.
        begin: Told of each part before it is asked.
        fill: Asked again where there are fewer instances than `n_even`.
        n_even: How many requests every rank makes, in parts of the same sizes.
        one_first: Whether one request is asked before the others, where they are asked in parts.

    Raises:
        ValueError: The backend did not return one answer for each request.
        Exception: What the backend raises; what it had reported before is kept.
    """
    asked = [*instances, *[fill] * (0 if n_even is None else n_even - len(instances))]
    out: list[Any] = []
    chunks = Chunks(_batch_size(lm))
    early = returns_what_it_reports(lm, method)
    even, trusted = chunks.size(), early and reports(lm, method)
    while len(out) < len(asked):
        size = len(asked) if trusted else chunks.size() if n_even is None else even
        if one_first and not out and not trusted and n_even is None:
            size = 1
        part = asked[len(out) : len(out) + size]
        begin(part)
        started = time.perf_counter()
        answers, reported = _call(lm, hook, method, part, len(out), len(instances), keep, early=early)
        chunks.learn(len(part), time.perf_counter() - started)
        out += answers
        trusted = trusted or (reported and n_even is None)
    return out[: len(instances)]


def _call(
    lm: Any, hook: Hook, method: str, part: list[Any], start: int, n_wanted: int, keep: Keep, *, early: bool
) -> tuple[list[Any], bool]:
    """Call once; returns the answers, and whether the backend had reported all of them.

    What it reports is kept at once if `early`.
    """
    wanted = part[: max(0, n_wanted - start)]

    def keep_here(numbers: list[int], answers: list[Any], seconds: float) -> None:
        keep([start + number for number in numbers], answers, seconds)

    arguments, alone = [each.args for each in wanted], len(wanted) == len(part)
    pending = Pending(method, arguments, keep_here, _size_of(lm), alone=alone)
    started = time.perf_counter()
    outer, hook.pending = hook.pending, pending if early else None
    try:
        answers = list(getattr(lm, method)(part))
    finally:
        hook.pending = outer  # that of the call in whose midst a signal handler asks
        pending.end()
    if len(answers) != len(part):
        raise ValueError(f"{type(lm).__name__}.{method} got {len(part)} requests and returned {len(answers)} answers")
    seconds = (time.perf_counter() - started) / max(1, len(part))
    rest = [n for n in range(len(wanted)) if n not in pending.reported or not _same(pending.reported[n], answers[n])]
    if rest:
        keep_here(rest, [answers[number] for number in rest], seconds)
    return answers, early and len(pending.reported) == len(wanted)


def _same(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except Exception:  # arrays; what the call returned counts
        return False


def _batch_size(lm: Any) -> int:
    return _size_of(lm) or _FIRST


def _size_of(lm: Any) -> int | None:
    """Return the backend's batch size, if it has one."""
    try:
        size = getattr(lm, "batch_size", None)
        return max(1, int(size)) if size is not None else None
    except (TypeError, ValueError, NotImplementedError):  # "auto"
        return None
