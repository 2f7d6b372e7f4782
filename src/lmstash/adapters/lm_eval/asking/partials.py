"""Results that a backend reports while it works, kept at once, so that a crash loses at most the batch in flight.

The harness's backends call `cache_hook.add_partial(method, arguments, result)` for each item of a batch. What arrives
is matched with what the call under way waits for, and kept when a batch is complete, before the next one begins; where
nobody knows how large batches are, or they take next to no time, by a thread a few milliseconds later. Some backends
report arguments that they have changed (vLLM adds stop words, vision models leave the images out): these are matched by
their context, if only one request that waits has it, and not at all otherwise.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from lmstash.adapters.lm_eval.asking.questions import context_of, same_arguments

_GATHER_SECONDS = 0.005
_SHARE = 0.01
"""Of the time that keeping may take."""

Keep = Callable[[list[int], list[Any], float], None]
"""Keeps answers: takes the numbers of the requests, an answer for each, and the seconds that each took."""


class Pending:
    """What one call to the backend waits for. The backend's thread or threads report; another one keeps."""

    def __init__(
        self,
        method: str,
        arguments: Sequence[Sequence[Any]],
        keep: Keep,
        batch_size: int | None = None,
        *,
        alone: bool = True,
    ) -> None:
        """Wait for results.

        Args:
            method: What is called.
            arguments: Of each request that waits.
            keep: See `Keep`.
            batch_size: How many results the backend reports together, if that is known.
            alone: Whether the backend is asked nothing else meanwhile; else a context alone does not tell whose a
                result is.
        """
        self._batch_size = batch_size or len(arguments) + 1
        self._cost_seconds = 0.0
        """What keeping takes: the least so far, but for the first time, which also describes the model. A disk's bad
        moment must not have the next batches wait."""
        self._has_kept = False
        self._method = method
        self._keep = keep
        self._exact: dict[Any, list[int]] = {}
        self._by_context: dict[Any, list[int]] = {}
        for number, each in enumerate(arguments):
            self._exact.setdefault(same_arguments(each), []).append(number)
            if alone:
                self._by_context.setdefault(context_of(each), []).append(number)
        self.reported: dict[int, Any] = {}
        """What came so far, by the number of the request."""
        self._fresh: list[int] = []
        self._lock = threading.Lock()
        self._came = threading.Event()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._since = time.perf_counter()

    def report(self, method: str, arguments: Any, result: Any) -> None:
        """Take what a backend reports."""
        if method != self._method:
            return
        with self._lock:
            number = self._match(arguments)
            if number is None:
                return
            self.reported[number] = result
            self._fresh.append(number)
            seconds = time.perf_counter() - self._since
            complete = len(self._fresh) >= self._batch_size and seconds * _SHARE >= self._cost_seconds
            if not complete and self._thread is None:
                self._thread = threading.Thread(target=self._work, name="lmstash-partials", daemon=True)
                self._thread.start()
        if complete:
            self._flush()
        else:
            self._came.set()

    def end(self) -> None:
        """Keep what was reported and is not kept yet."""
        self._ended.set()
        self._came.set()
        if self._thread is not None:
            self._thread.join()
        self._flush()

    def _match(self, arguments: Any) -> int | None:
        arguments = tuple(arguments) if isinstance(arguments, tuple | list) else (arguments,)
        waiting = self._exact.get(same_arguments(arguments))
        if waiting is None:
            waiting = self._by_context.get(context_of(arguments), [])
            if len(waiting) != 1 or self._method == "loglikelihood":
                return None
        return next((number for number in waiting if number not in self.reported), None)

    def _work(self) -> None:
        pause = _GATHER_SECONDS
        while not self._ended.is_set():
            self._came.wait()
            self._came.clear()
            if self._ended.wait(pause):
                return
            self._flush()
            # Fast backends report all the time: keep less often then.
            pause = max(_GATHER_SECONDS, self._cost_seconds / _SHARE if self._came.is_set() else 0.0)

    def _flush(self) -> None:
        with self._lock:
            numbers, self._fresh = self._fresh, []
            now = time.perf_counter()
            seconds, self._since = now - self._since, now
        if numbers:
            self._keep(numbers, [self.reported[number] for number in numbers], seconds / len(numbers))
            taken = time.perf_counter() - now
            if self._has_kept:
                self._cost_seconds = min(taken, self._cost_seconds or taken)
            self._has_kept = True


class Hook:
    """Stands where the harness's `CacheHook` does; hands on what it is told to whoever was there before."""

    dbdict = None

    def __init__(self) -> None:
        self.pending: Pending | None = None
        self.outer: Any = None
        self.on_report: Callable[[], None] | None = None

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        """Take one result of a backend. Never raises."""
        pending = self.pending
        if pending is not None:
            with contextlib.suppress(Exception):  # the result comes again when the call returns
                pending.report(attr, req, res)
            if self.on_report is not None:
                self.on_report()
        if self.outer is not None:
            self.outer.add_partial(attr, req, res)
